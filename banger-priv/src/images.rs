//! Base images: files of the daemon's, which become the read-only side of a VM's root disk.

use crate::kernel::{At, KernelError, Outcome};
use crate::record;
use banger_policy::Digest;
use banger_policy::id::ROOTFS_FILE;
use banger_policy::limits::MAX_DISK_BYTES;
use banger_policy::snapshot::CHUNK_BYTES;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The daemon's image folder.
#[derive(Clone, Debug)]
pub struct Images {
    folder: Arc<OwnedFd>,
    daemon_uid: u32,
}

impl Images {
    /// `folder`: a handle on it, good for passing through.
    #[must_use]
    pub fn new(folder: OwnedFd, daemon_uid: u32) -> Self {
        Self { folder: Arc::new(folder), daemon_uid }
    }

    /// Opens a base image: a plain, read-only file of the daemon's, in whole chunks. Answers its
    /// size too. May wait for the disk.
    ///
    /// # Errors
    /// EINVAL when it is anything else.
    pub fn base(&self, image: &Digest) -> Outcome<(OwnedFd, u64)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = record::beneath() | ResolveFlags::NO_XDEV;
        let path = format!("{image}/{ROOTFS_FILE}");
        let file = openat2(&self.folder, path, flags, Mode::empty(), resolve).at("base-open")?;
        let stat = fstat(&file).at("base-stat")?;
        let bytes = size(&stat);
        let writable = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WUSR | Mode::WGRP | Mode::WOTH);
        let whole = bytes > 0 && bytes <= MAX_DISK_BYTES && bytes.is_multiple_of(CHUNK_BYTES);
        if plain(&stat) && stat.st_uid == self.daemon_uid && !writable && whole {
            Ok((file, bytes))
        } else {
            Err(KernelError { step: "base-refused", errno: libc::EINVAL })
        }
    }
}

/// A regular file under one name.
pub(crate) fn plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
}

pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn image() -> Digest {
        Digest::from_bytes([4; 32]).unwrap()
    }

    /// Everything that must not become a loop device.
    #[test]
    fn only_a_plain_read_only_file_of_the_daemon_is_a_base() {
        let images = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let directory = images.path().join(image().to_string());
        let path = directory.join(ROOTFS_FILE);
        let attempt = |uid| Images::new(record::folder(images.path(), OFlags::PATH).unwrap(), uid).base(&image());
        assert_eq!(attempt(me).unwrap_err().errno, libc::ENOENT);
        fs::create_dir(&directory).unwrap();
        let good = |bytes: usize| {
            drop(fs::remove_file(&path));
            fs::write(&path, vec![0; bytes]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        };
        good(8192);
        assert_eq!(attempt(me).unwrap().1, 8192);
        assert_eq!(attempt(me + 1).unwrap_err().step, "base-refused", "another owner");
        for size in [0, 4095, 4097] {
            good(size);
            assert_eq!(attempt(me).unwrap_err().step, "base-refused", "{size} bytes");
        }
        good(4096);
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "writable");
        good(4096);
        fs::hard_link(&path, directory.join("second")).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "two names");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("second", &path).unwrap();
        assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a symbolic link");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a fifo");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a folder");
        fs::remove_dir(&path).unwrap();
        fs::remove_file(directory.join("second")).unwrap();
        fs::remove_dir(&directory).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(ROOTFS_FILE), vec![0; 4096]).unwrap();
        std::os::unix::fs::symlink(outside.path(), &directory).unwrap();
        assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a folder that is a link");
    }
}
