//! The tiny guest: a busybox tree as a tar, with the odd owners, modes and names that an exact
//! import must carry.
//!
//! Called by the image builder. Written entry by entry, so no privilege is needed for foreign
//! owners.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Part of the image's cache key: change it together with what [`write_tiny`] writes.
pub(super) const FINGERPRINT: &str = "tiny-1";

/// Where scenarios find the odd entries; each is checked inside the guest after an import.
pub(super) const ODD_FOLDER: &str = "odd";

/// Writes the tiny root file system to `target`, with `busybox` as its only program.
pub(super) fn write_tiny(busybox: &Path, target: &Path) -> Result<()> {
    let program = std::fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    let list = Command::new(busybox).arg("--list").output().context("ask busybox for its applets")?;
    ensure!(list.status.success(), "busybox --list ended with {}", list.status);
    let applets = String::from_utf8(list.stdout).context("busybox --list is not text")?;

    let file = File::create(target).with_context(|| format!("create {}", target.display()))?;
    let mut tar = Builder::new(file);
    for (folder, mode) in [
        ("./", 0o755),
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var", 0o755),
        (ODD_FOLDER, 0o2750),
    ] {
        entry(&mut tar, EntryType::Directory, folder, mode, (0, 0), &[])?;
    }
    entry(&mut tar, EntryType::Regular, "bin/busybox", 0o755, (0, 0), &program)?;
    for applet in applets.lines().filter(|name| !name.is_empty() && *name != "busybox") {
        link(&mut tar, EntryType::Symlink, &format!("bin/{applet}"), "busybox", (0, 0))?;
    }
    link(&mut tar, EntryType::Symlink, "sbin", "bin", (0, 0))?;
    link(&mut tar, EntryType::Symlink, "usr", ".", (0, 0))?;
    entry(&mut tar, EntryType::Regular, "etc/passwd", 0o644, (0, 0), b"root:x:0:0:root:/root:/bin/sh\n")?;
    entry(&mut tar, EntryType::Regular, "etc/group", 0o644, (0, 0), b"root:x:0:\n")?;
    entry(&mut tar, EntryType::Regular, "etc/bench-release", 0o644, (0, 0), b"tiny\n")?;
    entry(&mut tar, EntryType::Regular, "odd/owned by others", 0o640, (1234, 5678), b"owned\n")?;
    entry(&mut tar, EntryType::Regular, r"odd/back\x2dslash", 0o644, (0, 0), b"escaped\n")?;
    entry(&mut tar, EntryType::Regular, "odd/quote\"d", 0o4755, (0, 7), b"setuid\n")?;
    link(&mut tar, EntryType::Link, "odd/second name", "odd/owned by others", (1234, 5678))?;
    link(&mut tar, EntryType::Symlink, "odd/absolute", "/etc/bench-release", (42, 42))?;
    tar.into_inner().context("finish the tiny tar")?.sync_all().context("write the tiny tar")
}

fn header(kind: EntryType, mode: u32, (uid, gid): (u64, u64), size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_size(size);
    // A fixed, recognisable time: an import must carry it.
    header.set_mtime(1_700_000_000);
    header
}

fn entry(
    tar: &mut Builder<File>,
    kind: EntryType,
    path: &str,
    mode: u32,
    owner: (u64, u64),
    data: &[u8],
) -> Result<()> {
    let mut header = header(kind, mode, owner, data.len() as u64);
    tar.append_data(&mut header, path, data).with_context(|| format!("write {path} into the tiny tar"))
}

fn link(tar: &mut Builder<File>, kind: EntryType, path: &str, target: &str, owner: (u64, u64)) -> Result<()> {
    let mut header = header(kind, 0o777, owner, 0);
    tar.append_link(&mut header, path, target).with_context(|| format!("write {path} into the tiny tar"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiny_tar_carries_owner_mode_and_links() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let target = folder.path().join("tiny.tar");
        // Any program that accepts --list and ends well stands in for busybox here.
        write_tiny(Path::new("/bin/echo"), &target)?;
        let mut archive = tar::Archive::new(File::open(&target)?);
        let mut seen = Vec::new();
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path()?.display().to_string();
            if path.starts_with("odd/") {
                seen.push((path, entry.header().mode()? & 0o7777, entry.header().uid()?, entry.header().gid()?));
            }
        }
        assert!(seen.contains(&("odd/owned by others".to_owned(), 0o640, 1234, 5678)), "{seen:?}");
        assert!(seen.contains(&("odd/quote\"d".to_owned(), 0o4755, 0, 7)), "{seen:?}");
        assert!(seen.iter().any(|(path, ..)| path == r"odd/back\x2dslash"), "{seen:?}");
        Ok(())
    }
}
