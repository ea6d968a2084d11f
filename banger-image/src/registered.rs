//! An ext4 file system that a user brings whole, taken as a root disk as it is.
//!
//! Called by the daemon's import jobs as [`super::import`] is. Only the superblock is read: it
//! decides about the size, and whether a guest's kernel mounts such a file system at all. What else
//! is in it only that guest ever parses, whose disk it is.

use super::error::ImageError;
use super::ext4::checksum;
use super::source::{Progress, Window, check};
use super::tree::Tree;
use super::{ImportedRootfs, ROOTFS_FILE, SEED_FILE, SourceKind, digest, work_disk};
use banger_policy::ImageConfig;
use banger_policy::limits::MAX_DISK_BYTES;
use banger_policy::rootfs::{HEAD_BYTES, NotARootDisk, RootFileSystem, SUPERBLOCK_AT, SUPERBLOCK_BYTES, examine};
use sha2::{Digest as _, Sha256};
use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Part of every digest of such an image: raised when the same file would be stored differently.
const FORMAT: &str = "banger registered ext4 1";
/// What is copied at a time, bytes: how far a cancelled copy still runs.
const CHUNK: u64 = 1 << 20;
/// What is left out where it is zero, bytes: a block of the host's file systems.
const BLOCK: usize = 4096;

/// Takes `source`, a file that begins with an ext4 file system, as a root disk: the same files in
/// `staging` as [`super::import`] makes. What the file has behind its file system is left out,
/// since a guest that grows it expects zeros there. Its work disks begin empty, and it has no
/// configuration.
///
/// # Errors
/// `NotARootDisk`, `Read`, `Write`, `Cancelled`; nothing but files in `staging` is left behind.
pub fn register(source: File, staging: &Path, progress: &dyn Progress) -> Result<ImportedRootfs, ImageError> {
    let source = Window::whole(source)?;
    let file_system = look(&source)?;
    if file_system.read_only != 0 {
        progress.warn(&format!(
            "it has features with which Linux 6.12 mounts it to be read only (ro_compat {:#x}): its VMs cannot write to their root disk",
            file_system.read_only
        ));
    }
    progress.stage("copy root file system");
    let rootfs_path = staging.join(ROOTFS_FILE);
    let copied = copy(&source, file_system.bytes, &rootfs_path, progress)?;
    let seed_path = staging.join(SEED_FILE);
    work_disk::write_seed(&mut Tree::new(), &[], &seed_path, progress)?;
    let source_digest = digest(copied.sha256)?;
    Ok(ImportedRootfs {
        digest: digest(Sha256::digest(format!("{FORMAT}\nsource {source_digest}\n")).into())?,
        source: SourceKind::Ext4,
        source_digest,
        rootfs_path,
        seed_path,
        build_size: file_system.root_bytes(),
        content_bytes: copied.data,
        entries: 0,
        config: ImageConfig::default(),
        // Its folders are the guest's alone to read.
        docker: false,
    })
}

fn look(source: &Window) -> Result<RootFileSystem, ImageError> {
    let mut head = Vec::new();
    let limit = u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX);
    source.reader().take(limit).read_to_end(&mut head).map_err(|source| ImageError::Read { source })?;
    let file_system = examine(&head, source.len()).map_err(ImageError::NotARootDisk)?;
    let superblock = head.get(SUPERBLOCK_AT..).and_then(|rest| rest.first_chunk::<SUPERBLOCK_BYTES>());
    if file_system.has_checksum && !superblock.is_some_and(is_whole) {
        return Err(ImageError::NotARootDisk(NotARootDisk::Checksum));
    }
    Ok(file_system)
}

/// `s_checksum`, which ends the superblock, is of all before it.
fn is_whole(superblock: &[u8; SUPERBLOCK_BYTES]) -> bool {
    let (of, sum) = superblock.split_at(SUPERBLOCK_BYTES - 4);
    checksum(!0, of).to_le_bytes() == sum
}

struct Copied {
    sha256: [u8; 32],
    /// Bytes that were written.
    data: u64,
}

/// Copies the first `bytes` of `source` to the new file `path` of the largest root disk's length,
/// mode 0440, and syncs it. Blocks of zeros become holes.
fn copy(source: &Window, bytes: u64, path: &Path, progress: &dyn Progress) -> Result<Copied, ImageError> {
    let write_error = |source| ImageError::Write { path: path.to_owned(), source };
    let file = File::options().write(true).create_new(true).mode(0o440).open(path).map_err(write_error)?;
    // Whatever the umask was.
    file.set_permissions(Permissions::from_mode(0o440)).map_err(write_error)?;
    file.set_len(MAX_DISK_BYTES).map_err(write_error)?;
    let (mut hash, mut data, mut at) = (Sha256::new(), 0, 0);
    let mut chunk = Vec::new();
    while at < bytes {
        check(progress)?;
        let length = CHUNK.min(bytes - at);
        chunk.resize(usize::try_from(length).unwrap_or_default(), 0);
        source.read_exact_at(&mut chunk, at).map_err(|source| ImageError::Read { source })?;
        hash.update(&chunk);
        data += write_data(&file, &chunk, at).map_err(write_error)?;
        at += length;
        progress.bytes(at, bytes);
    }
    file.sync_all().map_err(write_error)?;
    Ok(Copied { sha256: hash.finalize().into(), data })
}

/// Writes what of a chunk is not zero; answers how many bytes that are.
fn write_data(file: &File, chunk: &[u8], at: u64) -> io::Result<u64> {
    let mut written = 0;
    let mut from = at;
    // Neighbours that both have data, or both none, in one go.
    for stretch in chunk.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: u64 = stretch.iter().map(|block| block.len() as u64).sum();
        if !stretch.first().is_none_or(|block| is_zero(block)) {
            let start = usize::try_from(from - at).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            let data = chunk.get(start..end).ok_or(io::ErrorKind::InvalidInput)?;
            file.write_all_at(data, from)?;
            written += length;
        }
        from += length;
    }
    Ok(written)
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and skips aloud")]
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    /// A file system of 4 MiB, made of nothing but its superblock and some data; `change` is made
    /// before the superblock gets its checksum.
    fn made(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = vec![0; 4 << 20];
        for (at, value) in [(0x4, 1024_u32), (0x18, 2), (0x38, 0xef53), (0x60, 0x2c2), (0x64, 0x46b)] {
            bytes[SUPERBLOCK_AT + at..SUPERBLOCK_AT + at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[(1 << 20) - 100..(1 << 20) + 100].fill(7);
        bytes[(4 << 20) - 1] = 9;
        change(&mut bytes);
        let end = SUPERBLOCK_AT + SUPERBLOCK_BYTES - 4;
        let sum = checksum(!0, &bytes[SUPERBLOCK_AT..end]);
        bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn registered(bytes: &[u8], folder: &Path) -> Result<ImportedRootfs, ImageError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        register(file, folder, &())
    }

    #[test]
    fn it_is_stored_as_it_is_without_what_is_behind_it_and_without_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = made(|_| {});
        let image = registered(&[bytes.as_slice(), &[1; 5000]].concat(), folder.path()).unwrap();
        assert_eq!((image.source, image.build_size, image.manifest()), (SourceKind::Ext4, 128 << 20, None));
        assert_eq!(image.config, ImageConfig::default());
        let stored = File::open(&image.rootfs_path).unwrap();
        let seen = stored.metadata().unwrap();
        assert_eq!((seen.len(), seen.mode() & 0o7777), (MAX_DISK_BYTES, 0o440));
        // The superblock's block, the two beside the first MiB, and the last.
        assert_eq!(image.content_bytes, 4 * 4096);
        assert!(seen.blocks() * 512 < 1 << 20, "{} blocks", seen.blocks());
        let mut front = vec![1; bytes.len() + 8192];
        stored.read_exact_at(&mut front, 0).unwrap();
        assert_eq!(front[..bytes.len()], bytes);
        assert!(is_zero(&front[bytes.len()..]), "what was behind it is stored");
        // Its work disks begin empty: the folder alone.
        let seed = std::fs::read(&image.seed_path).unwrap();
        assert_eq!(tar::Archive::new(seed.as_slice()).entries().unwrap().count(), 1);

        // The same bytes are the same image, whatever their file has behind them.
        let (same, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(registered(&bytes, same.path()).unwrap().digest, image.digest);
        let changed = made(|bytes| bytes[2 << 20] = 1);
        assert_ne!(registered(&changed, other.path()).unwrap().digest, image.digest);
    }

    #[test]
    fn what_is_none_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut damaged = made(|_| {});
        damaged[SUPERBLOCK_AT + 0x68] = 1;
        for (bytes, why) in [
            (damaged, "damaged"),
            (made(|_| {})[..4 << 20 >> 1].to_vec(), "not copied to its end"),
            (made(|bytes| bytes[SUPERBLOCK_AT + 0x61] = 0xff), "cannot mount"),
            (made(|bytes| bytes[SUPERBLOCK_AT + 0x38] = 0), "no ext4"),
            (b"QFI\xfb and more".to_vec(), "qemu-img convert"),
            (Vec::new(), "empty"),
        ] {
            let refused = registered(&bytes, folder.path()).unwrap_err();
            let (said, source) = (refused.to_string(), std::error::Error::source(&refused).unwrap().to_string());
            assert!(said == "this is no root disk" && source.contains(why), "{said}: {source}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_cancelled_copy_ends() {
        struct Stop;
        impl Progress for Stop {
            fn cancelled(&self) -> bool {
                true
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&made(|_| {})).unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(register(file, folder.path(), &Stop), Err(ImageError::Cancelled)));
    }

    #[test]
    fn a_feature_that_makes_it_read_only_is_a_warning() {
        struct Warned(std::cell::RefCell<String>);
        impl Progress for Warned {
            fn warn(&self, text: &str) {
                self.0.borrow_mut().push_str(text);
            }
        }
        let warned = Warned(std::cell::RefCell::default());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&made(|bytes| bytes[SUPERBLOCK_AT + 0x65] |= 0x40)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        register(file, folder.path(), &warned).unwrap();
        assert!(warned.0.borrow().contains("ro_compat 0x4000"), "{:?}", warned.0);
    }

    /// What mke2fs makes today, in several ways, is taken, and e2fsck finds the copy as good as it
    /// finds the original.
    #[test]
    fn what_mke2fs_makes_is_taken() {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            eprintln!("skipped: there is no mke2fs");
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("file"), "content\n".repeat(9000)).unwrap();
        for options in [
            &["-t", "ext4"][..],
            &["-t", "ext4", "-b", "1024"],
            &["-t", "ext4", "-O", "^has_journal"],
            &["-t", "ext4", "-O", "^metadata_csum,^64bit,^resize_inode"],
            &["-t", "ext4", "-O", "meta_bg,^resize_inode,inline_data,ea_inode,large_dir"],
            &["-t", "ext2"],
            &["-t", "ext3"],
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("made");
            let mut mke2fs = Command::new("mke2fs");
            mke2fs.args(["-q", "-d"]).arg(tree.path()).args(options).arg(&path).arg("40M");
            let made = mke2fs.output().unwrap();
            assert!(made.status.success(), "{options:?}: {}", String::from_utf8_lossy(&made.stderr));
            let image = register(File::open(&path).unwrap(), folder.path(), &()).unwrap();
            assert_eq!(image.build_size, 128 << 20, "{options:?}");
            let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image.rootfs_path).output().unwrap();
            assert!(checked.status.success(), "{options:?}: {}", String::from_utf8_lossy(&checked.stdout));
        }
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal");
        let made = Command::new("mke2fs").args(["-q", "-O", "journal_dev"]).arg(&journal).arg("8M").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let refused = register(File::open(&journal).unwrap(), folder.path(), &()).unwrap_err();
        assert!(matches!(refused, ImageError::NotARootDisk(NotARootDisk::JournalOnly)), "{refused}");
    }
}
