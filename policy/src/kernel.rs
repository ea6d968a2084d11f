//! Which modules of a distribution's kernel a guest needs to boot, and in which order they load.
//!
//! The CLI asks this to know which files to send with `kernel import`; the daemon asks the
//! same question of what it received, and never believes the CLI's answer. Pure: both hand in
//! the *texts* of `modules.dep` and `modules.builtin` (formats: `modules.dep(5)`,
//! `Documentation/kbuild/kbuild.rst`). Must not read files.

use std::collections::{BTreeMap, BTreeSet};

/// Longest text of `modules.dep` or `modules.builtin` that is read, bytes: a full Fedora kernel
/// has 0.9 MiB.
pub const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Name of the kernel itself (bzImage or ELF) in the tar that `kernel import` sends.
pub const KERNEL_ENTRY: &str = "vmlinuz";

/// In that tar, the files of `lib/modules/VERSION` have their path there behind this prefix: at
/// least `modules/modules.dep`, `modules/modules.builtin`, and every [`ModuleIndex::boot_modules`].
/// A kernel with everything built in may come without any of them.
pub const MODULES_PREFIX: &str = "modules/";

/// In the place of all that: the packages of a distribution, as they were downloaded, each with
/// this prefix before its number.
pub const PACKAGE_PREFIX: &str = "package/";

/// Modules without which no guest comes up: its disks, its network, its file system, its control
/// channel.
const REQUIRED: [&str; 5] = ["virtio_mmio", "virtio_blk", "virtio_net", "ext4", "vmw_vsock_virtio_transport"];

/// Taken along when the kernel has them as modules. `crc32c_generic`: up to Linux 6.14, jbd2 and
/// ext4 ask the crypto API for "crc32c" by name, which no line of `modules.dep` need say.
/// `virtio_pci`: a VMM with a PCI bus.
const OPTIONAL: [&str; 2] = ["crc32c_generic", "virtio_pci"];

/// Why a kernel's module index is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A line of `modules.dep` without its colon.
    #[error("modules.dep line {line} is not `path: dependencies`; run depmod for this kernel")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A path that does not stay inside the modules folder.
    #[error("{path:?} is not the path of a module below lib/modules/VERSION")]
    Path {
        /// As found.
        path: String,
    },
    /// `modules.dep` names a dependency for which it has no line.
    #[error("modules.dep says that {module} needs {dependency}, but has no line for it; run depmod for this kernel")]
    Dangling {
        /// Who needs it.
        module: String,
        /// The path without a line.
        dependency: String,
    },
    /// The kernel cannot boot a guest.
    #[error(
        "the kernel has no {}, neither built in (modules.builtin) nor as a module (modules.dep); \
         use a kernel built with virtio support, such as linux-image-cloud-amd64 on Debian",
        .names.join(", ")
    )]
    Missing {
        /// Module names.
        names: Vec<String>,
    },
}

/// The path of a module relative to `lib/modules/VERSION`, such as `kernel/fs/ext4/ext4.ko.xz`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModulePath(String);

impl ModulePath {
    /// # Errors
    /// [`KernelError::Path`]: absolute, a `.` or `..` component, a character outside
    /// `[A-Za-z0-9_.+,-]`, not a `.ko` file, or longer than 255 bytes.
    pub fn new(path: &str) -> Result<Self, KernelError> {
        let component = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+,-".contains(&b))
                && !part.starts_with('.')
        };
        let file = path.rsplit('/').next().unwrap_or(path);
        let module = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| file.ends_with(end));
        if path.len() <= 255 && module && path.split('/').all(component) {
            Ok(Self(path.to_owned()))
        } else {
            Err(KernelError::Path { path: path.chars().take(255).collect() })
        }
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The module's name: the file's without `.ko` and what follows, `-` written as `_` as the
    /// kernel does.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.0)
    }
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split_once(".ko").map_or(file, |(stem, _)| stem).replace('-', "_")
}

/// A kernel's modules and their dependencies.
#[derive(Clone, Debug, Default)]
pub struct ModuleIndex {
    modules: BTreeMap<String, (ModulePath, Vec<ModulePath>)>,
    builtin: BTreeSet<String>,
}

impl ModuleIndex {
    /// Reads the texts of `modules.dep` and `modules.builtin`.
    ///
    /// # Errors
    /// [`KernelError::Line`] and [`KernelError::Path`].
    pub fn parse(modules_dep: &str, modules_builtin: &str) -> Result<Self, KernelError> {
        let mut modules = BTreeMap::new();
        for (number, line) in (1_usize..).zip(modules_dep.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let (path, dependencies) = line.split_once(':').ok_or(KernelError::Line { line: number })?;
            let path = ModulePath::new(path.trim())?;
            let dependencies = dependencies.split_whitespace().map(ModulePath::new).collect::<Result<_, _>>()?;
            modules.insert(path.name(), (path, dependencies));
        }
        let builtin = modules_builtin.lines().map(str::trim).filter(|l| !l.is_empty()).map(name_of).collect();
        Ok(Self { modules, builtin })
    }

    /// The modules that a guest needs, each after all that it depends on; empty when everything is
    /// built in.
    ///
    /// # Errors
    /// [`KernelError::Missing`] names all required modules that are neither built in nor modules;
    /// [`KernelError::Dangling`] when the index contradicts itself.
    pub fn boot_modules(&self) -> Result<Vec<ModulePath>, KernelError> {
        let known = |name: &str| self.builtin.contains(name) || self.modules.contains_key(name);
        let names: Vec<String> = REQUIRED.iter().filter(|name| !known(name)).map(|name| (*name).to_owned()).collect();
        if !names.is_empty() {
            return Err(KernelError::Missing { names });
        }
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in OPTIONAL.iter().chain(&REQUIRED) {
            if let Some((path, _)) = self.modules.get(*name).filter(|_| !self.builtin.contains(*name)) {
                self.visit(path, &mut seen, &mut order)?;
            }
        }
        Ok(order)
    }

    /// Depth first, with its own stack: a hostile index decides how deep the chain is. A cycle,
    /// which no real index has, ends because every module is entered once.
    fn visit(
        &self,
        root: &ModulePath,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<ModulePath>,
    ) -> Result<(), KernelError> {
        enum Step {
            Enter(ModulePath),
            Leave(ModulePath),
        }
        let mut stack = vec![Step::Enter(root.clone())];
        while let Some(step) = stack.pop() {
            match step {
                Step::Leave(path) => order.push(path),
                Step::Enter(path) => {
                    if !seen.insert(path.name()) {
                        continue;
                    }
                    let (_, dependencies) = self.modules.get(&path.name()).ok_or_else(|| KernelError::Dangling {
                        module: root.name(),
                        dependency: path.as_str().to_owned(),
                    })?;
                    stack.push(Step::Leave(path));
                    // modules.dep lists what loads first last; the stack turns the order round.
                    stack.extend(dependencies.iter().cloned().map(Step::Enter));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
        kernel/fs/jbd2/jbd2.ko.xz:\nkernel/fs/mbcache.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
        kernel/net/core/failover.ko.xz:\nkernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz\n\
        kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz\n\
        kernel/drivers/block/virtio_blk.ko.xz:\n\
        kernel/net/vmw_vsock/vmw-vsock-virtio-transport.ko.xz: kernel/net/vmw_vsock/vsock.ko.xz\n\
        kernel/net/vmw_vsock/vsock.ko.xz:\n\
        kernel/sound/snd.ko.xz:\n";

    fn names(paths: &[ModulePath]) -> Vec<String> {
        paths.iter().map(ModulePath::name).collect()
    }

    #[test]
    fn selects_the_closure_in_load_order() {
        let index = ModuleIndex::parse(DEP, "kernel/drivers/virtio/virtio-mmio.ko\n").unwrap();
        let order = names(&index.boot_modules().unwrap());
        let position = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert!(position("failover") < position("net_failover"));
        assert!(position("net_failover") < position("virtio_net"));
        assert!(position("jbd2") < position("ext4") && position("crc16") < position("ext4"));
        assert!(position("vsock") < position("vmw_vsock_virtio_transport"));
        assert_eq!(order.len(), 10, "{order:?}");
    }

    #[test]
    fn names_all_that_is_missing() {
        let index = ModuleIndex::parse("kernel/fs/ext4/ext4.ko:\n", "").unwrap();
        let error = index.boot_modules().unwrap_err();
        assert_eq!(
            error,
            KernelError::Missing {
                names: ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport"]
                    .map(String::from)
                    .to_vec()
            }
        );
        assert!(error.to_string().contains("virtio_mmio, virtio_blk"), "{error}");
    }

    #[test]
    fn everything_built_in_needs_no_module() {
        let builtin: String = REQUIRED.iter().map(|name| format!("kernel/x/{name}.ko\n")).collect();
        assert_eq!(ModuleIndex::parse("", &builtin).unwrap().boot_modules().unwrap(), []);
    }

    #[test]
    fn a_dependency_without_a_line_is_an_error() {
        let builtin: String = REQUIRED[..3].iter().map(|name| format!("{name}.ko\n")).collect::<String>() + "ext4.ko\n";
        let index = ModuleIndex::parse("a/vmw_vsock_virtio_transport.ko: a/vsock.ko\n", &builtin).unwrap();
        assert!(matches!(index.boot_modules(), Err(KernelError::Dangling { .. })));
    }

    #[test]
    fn a_cycle_ends() {
        let builtin: String = REQUIRED[..4].iter().map(|name| format!("{name}.ko\n")).collect();
        let index = ModuleIndex::parse(
            "a/vmw_vsock_virtio_transport.ko: a/b.ko\na/b.ko: a/vmw_vsock_virtio_transport.ko",
            &builtin,
        )
        .unwrap();
        assert_eq!(index.boot_modules().unwrap().len(), 2);
    }

    #[test]
    fn paths_stay_inside() {
        for bad in
            ["/a.ko", "../a.ko", "a/../b.ko", "a//b.ko", "a/.b.ko", "a", "a.ko.exe", "a b.ko", "a\n.ko", "", "ä.ko"]
        {
            assert!(ModulePath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a.ko", "kernel/x-y/a_b.ko.zst", "updates/dkms/z.ko.gz", "kernel/a,b+c.ko.xz"] {
            assert!(ModulePath::new(good).is_ok(), "{good:?}");
        }
        assert!(matches!(ModuleIndex::parse("no colon\n", ""), Err(KernelError::Line { line: 1 })));
    }

    proptest! {
        #[test]
        fn parsing_is_total(dep in ".{0,200}", builtin in ".{0,200}") {
            if let Ok(index) = ModuleIndex::parse(&dep, &builtin) {
                let _ = index.boot_modules();
            }
        }
    }
}
