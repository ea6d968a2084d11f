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

/// The end of a line in `/etc/hosts` that is ours and is replaced at each boot.
const MARK: &str = "# banger";
/// Longest `/etc/hosts`, bytes: lists of blocked names have some MiB. A longer one is left as it
/// is.
const MAX_HOSTS: u64 = 16 << 20;
/// Where contents lie that are laid over files.
const COVERS: &str = "/run/banger";

pub(super) fn apply(image: &Image, config: &GuestConfig) {
    if let Err(error) = nix::unistd::sethostname(&config.hostname) {
        say(format_args!("cannot set the host name: {error}"));
    }
    write(image, "/etc/hostname", format!("{}\n", config.hostname).as_bytes());
    match image.read("/etc/hosts", MAX_HOSTS) {
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            say(format_args!("/etc/hosts has more than {MAX_HOSTS} bytes and is left as it is"));
        }
        old => write(image, "/etc/hosts", &hosts(&old.unwrap_or_default(), config)),
    }
    write(image, "/etc/resolv.conf", format!("nameserver {}\n", config.dns).as_bytes());
}

/// The image's hosts file with our line in it: other lines stay, our line of an earlier boot goes,
/// and so does 127.0.1.1, by which Debian names the machine.
fn hosts(old: &[u8], config: &GuestConfig) -> Vec<u8> {
    fn names(line: &[u8], address: &str) -> bool {
        line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()) == Some(address.as_bytes())
    }
    let old = old.strip_suffix(b"\n").unwrap_or(old);
    let lines = || old.split(|byte| *byte == b'\n').filter(|_| !old.is_empty());
    let kept = || lines().filter(|line| !line.trim_ascii_end().ends_with(MARK.as_bytes()) && !names(line, "127.0.1.1"));
    let mut text = Vec::with_capacity(old.len() + 100);
    if !kept().any(|line| names(line, "127.0.0.1")) {
        text.extend_from_slice(b"127.0.0.1\tlocalhost\n");
    }
    for line in kept() {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.extend_from_slice(format!("{}\t{} {MARK}\n", config.address, config.hostname).as_bytes());
    text
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
    use crate::init::tests::config;

    #[test]
    fn an_empty_hosts_file_gets_both_lines() {
        assert_eq!(hosts(b"", &config()), b"127.0.0.1\tlocalhost\n172.16.0.2\tweb # banger\n");
    }

    #[test]
    fn foreign_lines_stay_and_ours_is_replaced() {
        let old = b"127.0.0.1 localhost\n127.0.1.1 debian\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.7\told # banger\n";
        let new = b"127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.9 db\n172.16.0.2\tweb # banger\n";
        assert_eq!(hosts(old, &config()), new);
        assert_eq!(hosts(new, &config()), new);
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let old = b"127.0.0.1 localhost\n# caf\xe9\n\n10.0.0.9 db";
        let new = b"127.0.0.1 localhost\n# caf\xe9\n\n10.0.0.9 db\n172.16.0.2\tweb # banger\n";
        assert_eq!(hosts(old, &config()), new);
    }

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
