//! The host VM: a disposable Debian in which device-mapper, KVM and systemd exist, made and booted
//! by the bench itself.
//!
//! Used by the binary `banger-bench` on the build machine. Nothing here runs inside the host VM.

pub mod accel;
mod apt;
mod booted;
pub mod image;
pub mod machine;
mod material;
pub mod payload;
mod recipe;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

pub use recipe::{Kind, USERS};

/// What nobody has used for so long is removed when something new is made beside it.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Where what host VMs are started from is kept: with the caches of other programs, where other
/// checkouts find it, too.
#[must_use]
pub fn kept() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("BANGER_BENCH_CACHE")
        .or_else(|| Some(named("XDG_CACHE_HOME")?.join("banger-bench")))
        .or_else(|| Some(named("HOME")?.join(".cache/banger-bench")))
        .unwrap_or_else(|| PathBuf::from("target/host-vm"))
}

/// Makes what the host VMs of most suites are started from, as far as it is not there.
pub fn prepare() -> Result<()> {
    let image = image::ensure_image(&kept(), Kind::Plain)?;
    match accel::choose(&kept(), &image)? {
        accel::Accel::Kvm => Ok(()),
        tcg @ accel::Accel::Tcg => booted::Booted::ensure(&image, tcg).map(drop),
    }
}

/// Writes the root file system of the guests with Debian to a tar.
pub fn debian(target: &Path) -> Result<()> {
    image::debian(target)
}

/// Notes that a folder was used now.
fn used(folder: &Path) -> Result<()> {
    let now = File::open(folder).and_then(|open| open.set_modified(SystemTime::now()));
    now.with_context(|| format!("touch {}", folder.display()))
}

/// Folders of `parent` that begin so, and that nobody has used for long: of older recipes, of
/// another QEMU.
fn unused(parent: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("read {}", parent.display()))?.flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with(prefix) && entry.path().is_dir() && age > Some(UNUSED) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_lately_is_kept() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let names = ["image-1", "image-2", "other"].map(|name| folder.path().join(name));
        for name in &names {
            fs::create_dir(name)?;
            File::open(name)?.set_modified(SystemTime::now() - UNUSED - Duration::from_secs(60))?;
        }
        used(&names[1])?;
        assert_eq!(unused(folder.path(), "image-")?, [names[0].clone()]);
        Ok(())
    }
}
