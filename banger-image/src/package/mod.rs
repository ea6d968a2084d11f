//! A distribution's kernel packages as they are downloaded: the files in them, and what their
//! installation would have made of these.
//!
//! Called by the import of a kernel, in the confined child. No script of a package runs; the
//! indexes that `depmod` would write are written here.

mod deb;
mod depmod;
mod index;
mod rpm;
#[cfg(test)]
mod tests;

use crate::ImageError;
use crate::source::{Budget, Progress, Window};
use crate::spool::{Hashes, spool};
use banger_policy::kernel::{KERNEL_ENTRY, MODULES_PREFIX};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// Files by name.
type Files = BTreeMap<String, Window>;

/// Why packages are no kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// Neither `.deb` nor `.rpm`.
    #[error("package {number} is neither a .deb nor an .rpm; give it as it was downloaded")]
    Kind {
        /// Counted from 1.
        number: usize,
    },
    /// A `.deb` or `.rpm` that ends early, or whose structure is wrong.
    #[error("package {number} is damaged ({why}); download it again")]
    Damaged {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// What is packed inside.
    #[error("package {number} is not usable")]
    Inside {
        /// Counted from 1.
        number: usize,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A meta package, headers or the like.
    #[error(
        "there is no kernel in {}: a kernel is boot/vmlinuz-VERSION or lib/modules/VERSION/vmlinuz; \
         give the package that has it (linux-image-VERSION of Debian and Ubuntu, kernel-core of Fedora)",
        if *.packages == 1 { "the package" } else { "the packages" }
    )]
    NoKernel {
        /// How many there are.
        packages: usize,
    },
    /// More than one.
    #[error("there are several kernels in the packages: {}; import them one after the other", .releases.join(", "))]
    Several {
        /// Their releases.
        releases: Vec<String>,
    },
    /// The modules are in another package.
    #[error(
        "there is kernel {release} in it and no modules of that release{}; give their package in the same command, too \
         (linux-modules-{release} of Ubuntu, kernel-modules-core of Fedora)",
        if .others.is_empty() { String::new() } else { format!(", but of {}", .others.join(", ")) }
    )]
    NoModules {
        /// The kernel's release.
        release: String,
        /// Those of modules that are there.
        others: Vec<String>,
    },
    /// A module that cannot be read.
    #[error("{path} is not a kernel module: {why}")]
    Module {
        /// Its path below `lib/modules/VERSION`.
        path: String,
        /// Why.
        why: String,
    },
    /// The staging folder.
    #[error("cannot write to the staging folder")]
    Write(#[source] io::Error),
}

/// The kernel and the modules of `packages`, by the names that `kernel import` uses.
///
/// # Errors
/// [`PackageError`].
pub(crate) fn unpack(
    packages: &[&Window],
    staging: &Path,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<Files, PackageError> {
    let mut all = Files::new();
    for (number, package) in (1..).zip(packages) {
        let inside = |source| PackageError::Inside { number, source };
        let head = package.head().map_err(|source| inside(ImageError::Read { source }))?;
        let damaged = |why| PackageError::Damaged { number, why };
        let mut from = Unpacker { staging, budget: &mut *budget, progress };
        let found = if head.starts_with(deb::MAGIC) {
            from.spool(&deb::data(package).map_err(damaged)?).and_then(|tar| from.tar(&tar)).map_err(inside)?
        } else if head.starts_with(&rpm::MAGIC) {
            let cpio = from.spool(&rpm::payload(package).map_err(damaged)?).map_err(inside)?;
            let mut count = || from.budget.spend_entry();
            rpm::files(&cpio, &mut count).map_err(|fault| match fault {
                rpm::Fault::Damaged(why) => damaged(why),
                rpm::Fault::Budget(source) => inside(source),
            })?
        } else {
            return Err(PackageError::Kind { number });
        };
        // Distributions with a merged /usr may say either.
        all.extend(found.into_iter().map(|(name, file)| match name.strip_prefix("usr/lib/") {
            Some(rest) => (format!("lib/{rest}"), file),
            None => (name, file),
        }));
    }
    let mut files = chosen(all, packages.len())?;
    if !files.contains_key(&format!("{MODULES_PREFIX}modules.dep")) {
        depmod::complete(&mut files, staging, progress)?;
    }
    Ok(files)
}

/// Where packed parts go.
struct Unpacker<'a> {
    staging: &'a Path,
    budget: &'a mut Budget,
    progress: &'a dyn Progress,
}

impl Unpacker<'_> {
    fn spool(&mut self, part: &Window) -> Result<Window, ImageError> {
        spool(part, "the package", self.staging, Hashes::default(), self.budget, self.progress)
    }

    fn tar(&mut self, tar: &Window) -> Result<Files, ImageError> {
        crate::container::regular_files(tar, self.budget, self.progress)
    }
}

/// Release and path below `lib/modules/RELEASE`.
fn module_file(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("lib/modules/")?.split_once('/')
}

/// The release whose kernel that is.
fn kernel_of(name: &str) -> Option<&str> {
    name.strip_prefix("boot/vmlinuz-").filter(|release| !release.contains('/')).or_else(|| match module_file(name) {
        Some((release, "vmlinuz")) => Some(release),
        _ => None,
    })
}

/// The one kernel and its modules.
fn chosen(all: Files, packages: usize) -> Result<Files, PackageError> {
    let kernels: BTreeSet<&str> = all.keys().filter_map(|name| kernel_of(name)).collect();
    let mut names = kernels.iter().map(|release| shown(release));
    let release = match (names.next(), names.next()) {
        (None, _) => return Err(PackageError::NoKernel { packages }),
        (Some(first), Some(second)) => {
            return Err(PackageError::Several { releases: [first, second].into_iter().chain(names.take(6)).collect() });
        }
        (Some(_), None) => kernels.first().copied().unwrap_or_default().to_owned(),
    };
    let is_module = |path: &str| path.contains(".ko");
    let others: BTreeSet<&str> =
        all.keys().filter_map(|name| module_file(name)).filter(|(_, path)| is_module(path)).map(|(of, _)| of).collect();
    if !others.contains(release.as_str()) {
        let others = others.iter().take(8).map(|other| shown(other)).collect();
        return Err(PackageError::NoModules { release: shown(&release), others });
    }
    let wanted = |(name, file): (String, Window)| {
        if kernel_of(&name).is_some() {
            return Some((KERNEL_ENTRY.to_owned(), file));
        }
        let (of, path) = module_file(&name)?;
        (of == release).then(|| (format!("{MODULES_PREFIX}{path}"), file))
    };
    Ok(all.into_iter().filter_map(wanted).collect())
}

/// A release for messages.
fn shown(release: &str) -> String {
    release.chars().filter(|c| !c.is_control()).take(64).collect()
}
