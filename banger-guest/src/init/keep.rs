//! A folder of the image in a file system in memory: folders, files and links, with their owners
//! and modes.
//!
//! Called by `mounts` for `/run`, before anything of the image runs. An image may have put anything
//! there: what is copied is bounded, no link is followed, and there are no devices.

use crate::console::say;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Folders, files and links.
const MAX_ENTRIES: usize = 4096;
/// Of all files together, bytes: the smallest guest has 128 MiB, and a fifth of that for `/run`.
const MAX_BYTES: u64 = 8 << 20;
/// Folders in folders.
const MAX_DEPTH: usize = 32;

/// Copies what is in a folder into another one. What is there already stays as it is.
pub(super) fn keep(from: &Path, to: &Path) -> io::Result<()> {
    let (mut entries, mut bytes) = (MAX_ENTRIES, MAX_BYTES);
    let mut too_much = false;
    let mut folders: Vec<(PathBuf, usize)> = vec![(PathBuf::new(), 0)];
    while let Some((name, depth)) = folders.pop() {
        let listed = match fs::read_dir(from.join(&name)) {
            Ok(listed) => listed,
            // An image without the folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in listed {
            let entry = entry?;
            let (found, name) = (entry.metadata()?, name.join(entry.file_name()));
            let (source, target) = (entry.path(), to.join(&name));
            let kind = found.file_type();
            let is_there = target.symlink_metadata();
            if kind.is_dir() && depth < MAX_DEPTH && is_there.as_ref().is_ok_and(fs::Metadata::is_dir) {
                folders.push((name, depth + 1));
                continue;
            }
            if is_there.is_ok() {
                continue;
            }
            let room = entries > 0 && depth < MAX_DEPTH && (!kind.is_file() || found.len() <= bytes);
            if !room {
                too_much = true;
                continue;
            }
            entries -= 1;
            if kind.is_dir() {
                DirBuilder::new().mode(0o700).create(&target)?;
                folders.push((name, depth + 1));
            } else if kind.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else if kind.is_file() {
                bytes -= copy(&source, &target, found.len())?;
            } else {
                // A socket of a program that does not run any more, a pipe, a device.
                continue;
            }
            lchown(&target, Some(found.uid()), Some(found.gid()))?;
            if !kind.is_symlink() {
                // Behind the owner, whose change takes set-id bits away.
                fs::set_permissions(&target, Permissions::from_mode(found.mode() & 0o7777))?;
            }
        }
    }
    if too_much {
        say("not all of what the image has in /run is there: it is too much");
    }
    Ok(())
}

/// At most so many bytes; gives how many they were.
fn copy(source: &Path, target: &Path, most: u64) -> io::Result<u64> {
    let source = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(source)?;
    let mut to = File::options().write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(&mut io::Read::take(source, most), &mut to)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (image, run) = (folder.path().join("image"), folder.path().join("run"));
        fs::create_dir(&image).unwrap();
        fs::create_dir(&run).unwrap();
        (folder, image, run)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_a_service_needs_is_there_with_its_owner() {
        let (_folder, image, run) = folders();
        fs::create_dir_all(image.join("mysqld/deep")).unwrap();
        fs::write(image.join("mysqld/deep/file"), "text").unwrap();
        symlink("/etc/passwd", image.join("link")).unwrap();
        nix::unistd::mkfifo(&image.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        drop(std::os::unix::net::UnixListener::bind(image.join("socket")).unwrap());
        mode(&image.join("mysqld"), 0o2775);
        mode(&image.join("mysqld/deep/file"), 0o640);
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            lchown(image.join("mysqld"), Some(999), Some(998)).unwrap();
            mode(&image.join("mysqld"), 0o2775);
            lchown(image.join("link"), Some(7), Some(7)).unwrap();
            nix::sys::stat::mknod(
                &image.join("device"),
                nix::sys::stat::SFlag::S_IFCHR,
                nix::sys::stat::Mode::S_IRWXU,
                nix::sys::stat::makedev(1, 3),
            )
            .unwrap();
        }
        // What is there already, such as a folder that something of ours has made.
        fs::create_dir(run.join("lock")).unwrap();
        fs::create_dir(image.join("lock")).unwrap();
        fs::write(image.join("lock/file"), "theirs").unwrap();
        mode(&run.join("lock"), 0o711);
        fs::write(run.join("own"), "ours").unwrap();
        fs::write(image.join("own"), "theirs").unwrap();
        keep(&image, &run).unwrap();
        let found = |name: &str| run.join(name).symlink_metadata().unwrap();
        assert_eq!(found("mysqld").mode() & 0o7777, 0o2775);
        assert_eq!(found("mysqld/deep/file").mode() & 0o7777, 0o640);
        assert_eq!(fs::read_to_string(run.join("mysqld/deep/file")).unwrap(), "text");
        assert_eq!(fs::read_link(run.join("link")).unwrap(), Path::new("/etc/passwd"));
        if is_root {
            assert_eq!((found("mysqld").uid(), found("mysqld").gid(), found("link").uid()), (999, 998, 7));
        }
        assert_eq!(found("lock").mode() & 0o7777, 0o711);
        assert_eq!(fs::read_to_string(run.join("lock/file")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(run.join("own")).unwrap(), "ours");
        for name in ["pipe", "socket", "device"] {
            assert!(run.join(name).symlink_metadata().is_err(), "{name}");
        }
        keep(&image.join("nothing"), &run).unwrap();
    }

    #[test]
    fn too_much_is_not_copied() {
        let (_folder, image, run) = folders();
        File::create(image.join("large")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        fs::write(image.join("small"), "text").unwrap();
        keep(&image, &run).unwrap();
        assert!(run.join("small").exists() && !run.join("large").exists());
        fs::remove_file(run.join("small")).unwrap();
        fs::remove_file(image.join("small")).unwrap();
        fs::remove_file(image.join("large")).unwrap();
        for number in 0..MAX_ENTRIES + 10 {
            fs::write(image.join(number.to_string()), "").unwrap();
        }
        keep(&image, &run).unwrap();
        assert_eq!(fs::read_dir(&run).unwrap().count(), MAX_ENTRIES);
        let (_folder, image, run) = folders();
        let deep: PathBuf = (0..MAX_DEPTH + 5).map(|_| "d").collect();
        fs::create_dir_all(image.join(deep)).unwrap();
        keep(&image, &run).unwrap();
        let there: PathBuf = (0..MAX_DEPTH).map(|_| "d").collect();
        assert!(run.join(&there).exists() && !run.join(there.join("d")).exists());
    }
}
