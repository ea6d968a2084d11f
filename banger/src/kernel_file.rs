//! What a kernel file says of itself, to find the folder of its modules. The daemon looks again,
//! and harder.

use crate::error::explained;
use anyhow::Context as _;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// `HdrS` at 0x202 marks a bzImage, and the word at 0x20e says where its version text is, minus
/// 0x200 (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const MAGIC_AT: u64 = 0x202;
const VERSION_POINTER_AT: u64 = 0x20e;
const SETUP: u64 = 0x200;
/// The longest release name, bytes: `__NEW_UTS_LEN` (linux/utsname.h).
const MAX_RELEASE: usize = 64;

/// Whether it is a `.deb` (deb(5)) or an `.rpm` (the lead's magic), by its first bytes.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn is_package(file: &std::fs::File) -> io::Result<bool> {
    let mut head = [0; 8];
    let length = file.read_at(&mut head, 0)?;
    let head = head.get(..length).unwrap_or_default();
    Ok(head == b"!<arch>\n" || head.starts_with(&[0xed, 0xab, 0xee, 0xdb]))
}

/// The release of a bzImage, such as `6.12.41+deb13-cloud-amd64`; `None` for any other file.
fn release(file: &std::fs::File) -> io::Result<Option<String>> {
    let mut head = [0; 16];
    if file.read_at(&mut head, MAGIC_AT)? < head.len() || !head.starts_with(b"HdrS") {
        return Ok(None);
    }
    let mut pointer = [0; 2];
    file.read_exact_at(&mut pointer, VERSION_POINTER_AT)?;
    let mut text = [0; MAX_RELEASE + 1];
    let length = file.read_at(&mut text, SETUP + u64::from(u16::from_le_bytes(pointer)))?;
    let text = text.get(..length).unwrap_or_default();
    let word = text.split(|byte| matches!(byte, b' ' | 0)).next().unwrap_or_default();
    Ok(std::str::from_utf8(word).ok().filter(|word| is_release(word)).map(str::to_owned))
}

/// A release becomes part of a path.
fn is_release(word: &str) -> bool {
    (1..=MAX_RELEASE).contains(&word.len())
        && word.bytes().all(|c| c.is_ascii_alphanumeric() || b"._+-~".contains(&c))
        && !word.starts_with('.')
}

/// The folder of a kernel's modules: the one that it lies in, else by its own release, else by its
/// file name, first in the kernel's own tree (an unpacked package), then in this host's.
///
/// `None` for a plain `vmlinux` whose modules are in none of these places: everything may be built
/// in.
///
/// # Errors
/// When a distribution's kernel has its modules in none of them; the places are listed.
pub(crate) fn modules_folder(path: &Path, file: &std::fs::File) -> anyhow::Result<Option<PathBuf>> {
    // Fedora keeps each kernel in the folder of its modules.
    if let Some(folder) = path.parent().filter(|folder| folder.join("modules.dep").is_file()) {
        return Ok(Some(folder.to_owned()));
    }
    let own = release(file).with_context(|| format!("cannot read {}", path.display()))?;
    let by_name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
    let by_name = by_name.map(|(_, release)| release.to_owned()).filter(|release| is_release(release));
    let mut roots: Vec<PathBuf> = Vec::new();
    if let Some(tree) = path.parent().filter(|parent| parent.ends_with("boot")).and_then(Path::parent) {
        roots.push(tree.to_owned());
    }
    roots.push(PathBuf::from("/"));
    let mut tried = Vec::new();
    for release in own.iter().chain(by_name.iter().filter(|name| own.as_ref() != Some(name))) {
        for root in &roots {
            for lib in ["lib/modules", "usr/lib/modules"] {
                let folder = root.join(lib).join(release);
                if folder.join("modules.dep").is_file() {
                    return Ok(Some(folder));
                }
                tried.push(folder.display().to_string());
            }
        }
    }
    if own.is_none() {
        return Ok(None);
    }
    let hint = "say where they are: --modules FOLDER (the one with modules.dep in it)";
    Err(explained(format!("its modules are not in {}", tried.join(", ")), hint))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn bzimage(version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        bytes[0x500..0x500 + version.len()].copy_from_slice(version.as_bytes());
        bytes
    }

    #[test]
    fn the_kernels_own_release_finds_its_modules_in_its_own_tree() {
        let tree = tempfile::tempdir().unwrap();
        let modules = tree.path().join("usr/lib/modules/6.12.1-x");
        std::fs::create_dir_all(&modules).unwrap();
        std::fs::create_dir_all(tree.path().join("boot")).unwrap();
        std::fs::write(modules.join("modules.dep"), "").unwrap();
        for (name, content) in [
            ("vmlinuz", bzimage("6.12.1-x (build@host) #1 SMP")),
            ("vmlinuz-6.12.1-x", bzimage("")),
            ("vmlinux-6.12.1-x", b"\x7fELF".to_vec()),
        ] {
            let path = tree.path().join("boot").join(name);
            std::fs::write(&path, content).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            assert_eq!(modules_folder(&path, &file).unwrap().as_ref(), Some(&modules), "{name}");
        }
    }

    #[test]
    fn packages_are_known_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b"!<arch>\ndebian-binary"[..], true),
            (&[0xed, 0xab, 0xee, 0xdb, 3, 0, 0, 0], true),
            (b"!<arch>", false),
            (b"", false),
            (&bzimage("6.12"), false),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(is_package(file.as_file()).unwrap(), expected);
        }
    }

    #[test]
    fn a_release_that_would_leave_the_folder_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bzimage("../../etc x")).unwrap();
        assert_eq!(release(file.as_file()).unwrap(), None);
        std::fs::write(file.path(), b"short").unwrap();
        assert_eq!(release(file.as_file()).unwrap(), None);
    }
}
