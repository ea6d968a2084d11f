//! The files by which a guest knows its own name and its resolver.
//!
//! Called by `init` after the switch to the image's root. A file that cannot be written is said on
//! the console and does not stop the boot. Where the disk is full or read-only, the right content
//! is laid over the file until the next boot; an immutable file is its owner's wish and stays.

use banger_proto::guest::GuestConfig;
use nix::mount::{MsFlags, mount};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::image::Image;
use crate::console::say;
use crate::hosts::{self, HOSTS, MAX_HOSTS};

/// Where contents lie that are laid over files.
const COVERS: &str = "/run/banger";

pub(super) fn apply(image: &Image, config: &GuestConfig) {
    if let Err(error) = nix::unistd::sethostname(&config.hostname) {
        say(format_args!("cannot set the host name: {error}"));
    }
    write(image, "/etc/hostname", format!("{}\n", config.hostname).as_bytes());
    match image.read(HOSTS, MAX_HOSTS) {
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            say(format_args!("{HOSTS} has more than {MAX_HOSTS} bytes and is left as it is"));
        }
        old => write(image, HOSTS, &hosts::at_boot(&old.unwrap_or_default(), config.address, &config.hostname)),
    }
    write(image, "/etc/resolv.conf", format!("nameserver {}\n", config.dns).as_bytes());
}

fn write(image: &Image, path: &str, content: &[u8]) {
    let Err(error) = image.write(path, content, 0o644) else { return };
    say(format_args!("{path}: {error}"));
    if can_be_covered(&error)
        && let Err(error) = cover(image, path, content, 0o644)
    {
        say(format_args!("{path} cannot be covered either: {error}"));
    }
}

/// Whether the disk is the reason, and not the file.
pub(super) fn can_be_covered(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem)
}

/// Lays a file in memory over one that cannot be replaced.
pub(super) fn cover(image: &Image, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let target = image.resolve(path).ok_or(ErrorKind::NotFound)?;
    if !image.metadata(path).is_some_and(|found| found.is_file()) {
        return Err(io::Error::new(ErrorKind::NotFound, "there is no file to lay it over"));
    }
    let over = Path::new(COVERS).join(path.rsplit('/').next().unwrap_or(path));
    image.write(&over, content, mode)?;
    let over = image.itself(&over)?;
    Ok(mount(Some(&over), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::print_stdout,
        reason = "a test fails by panicking, and says why it is skipped"
    )]
    use super::*;

    #[test]
    fn an_image_without_etc_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("etc")).unwrap();
        let image = Image::at(folder.path());
        write(&image, "/etc/resolv.conf", b"nameserver 1.1.1.1\n");
        assert_eq!(image.read("/etc/resolv.conf", 100).unwrap(), b"nameserver 1.1.1.1\n");
    }

    /// In a mount namespace of the test's own thread, which is gone with it.
    #[test]
    fn a_file_on_a_disk_that_cannot_be_written_is_covered() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root, which may mount");
            return;
        }
        let tried = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS);
        if let Err(error) = tried {
            println!("skipped: no mount namespace of its own: {error}");
            return;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let memory = |at: &Path, flags| mount(Some("tmpfs"), at, Some("tmpfs"), flags, none).unwrap();
        memory(folder.path(), MsFlags::empty());
        let image = Image::at(folder.path());
        write(&image, "/etc/hostname", b"old\n");
        std::os::unix::fs::symlink("hostname", folder.path().join("etc/link")).unwrap();
        memory(&image.folder("/run").unwrap(), MsFlags::empty());
        memory(folder.path(), MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        write(&image, "/etc/hostname", b"new\n");
        assert_eq!(image.read("/etc/hostname", 100).unwrap(), b"new\n");
        assert_eq!(image.read("/etc/link", 100).unwrap(), b"new\n");
        // There is nothing to lay it over, and nothing is made on the disk.
        write(&image, "/etc/resolv.conf", b"nameserver 1.1.1.1\n");
        assert!(!image.exists("/etc/resolv.conf"));
        nix::mount::umount2(&folder.path().join("etc/hostname"), nix::mount::MntFlags::empty()).unwrap();
        assert_eq!(image.read("/etc/hostname", 100).unwrap(), b"old\n");
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}
