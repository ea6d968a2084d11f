//! Kernel modules from the initramfs, in the order that the daemon gave them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::sys::module;

/// Loads every `NN-name.ko` in `folder`. A kernel with everything built in has no such folder.
pub(super) fn load_all(folder: &Path) -> Result<(), Error> {
    for path in in_order(folder)? {
        let file = File::open(&path).map_err(|source| Error::OpenModule { path: path.clone(), source })?;
        module::load(&file).map_err(|source| Error::LoadModule { path: path.clone(), source })?;
    }
    Ok(())
}

/// The modules in `folder`, by the number in front of the name: 10 comes after 9 however it is
/// padded.
fn in_order(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = |source| Error::ListModules { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(list(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(list)?.path();
        if path.extension() == Some(OsStr::new("ko")) {
            found.push(path);
        }
    }
    found.sort_by_key(|path| (number(path), path.clone()));
    Ok(found)
}

/// The leading decimal number of a file name; a name without one comes last.
fn number(path: &Path) -> u64 {
    let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
    let end = name.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(name.len());
    let digits = name.get(..end).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn order_is_by_number_and_foreign_files_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10-vsock.ko", "9-net.ko", "00-failover.ko", "zz.ko", "README", "01-x.ko.zst"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            in_order(folder.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["00-failover.ko", "9-net.ko", "10-vsock.ko", "zz.ko"]);
    }

    #[test]
    fn no_folder_means_no_modules() {
        let folder = tempfile::tempdir().unwrap();
        assert!(in_order(&folder.path().join("none")).unwrap().is_empty());
    }
}
