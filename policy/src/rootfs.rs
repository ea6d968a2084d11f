//! Whether a guest can have a file of a user's as its root disk: what the superblock of an ext4
//! file system says of it.
//!
//! The command line asks before it sends the file, and the process that takes it over asks again,
//! whose answer counts. Both read the first [`HEAD_BYTES`] of the file and give them to
//! [`examine`]. Nothing behind the superblock is looked at: only guests ever read the rest.
//!
//! Source of the format: `Documentation/filesystems/ext4/super.rst` ("Super Block") of the Linux
//! kernel. Which features Linux 6.12 mounts: `EXT4_FEATURE_INCOMPAT_SUPP` and
//! `EXT4_FEATURE_RO_COMPAT_SUPP` of its `fs/ext4/ext4.h`. File systems of ext2 and ext3 have the
//! same superblock, and Linux mounts them as ext4.

use crate::limits::{MAX_DISK_BYTES, ROOT_STEP_BYTES};

/// How much of a file is looked at, bytes: the superblock of btrfs, which is named when it is
/// refused, ends here.
pub const HEAD_BYTES: usize = 65 * 1024;
/// Where the superblock is, bytes.
pub const SUPERBLOCK_AT: usize = 1024;
/// Length of the superblock, bytes.
pub const SUPERBLOCK_BYTES: usize = 1024;

/// `s_magic`.
const MAGIC: u16 = 0xef53;
/// `s_feature_compat`: it has a journal.
const HAS_JOURNAL: u32 = 0x4;
/// `s_feature_incompat`: it is nothing but the journal of another file system.
const JOURNAL_DEVICE: u32 = 0x8;
/// `s_feature_incompat`: `s_blocks_count_hi` counts.
const IS_64BIT: u32 = 0x80;
/// `s_feature_ro_compat`: the superblock has a checksum.
const METADATA_CSUM: u32 = 0x400;
/// Features without which Linux 6.12 does not mount: filetype, recover, meta_bg, extents, 64bit,
/// mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold.
const INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x3_0000;
/// Features without which Linux 6.12 mounts to be read only: sparse_super, large_file, btree_dir,
/// huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc, metadata_csum, project, verity,
/// orphan_present.
const READ_ONLY: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x8000 | 0x1_0000;

/// A file system that a guest can have as its root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootFileSystem {
    /// Its size, bytes. What a file has behind it is no part of it.
    pub bytes: u64,
    /// Features of `s_feature_ro_compat` for which Linux mounts it to be read only; 0 when there
    /// are none.
    pub read_only: u32,
    /// The superblock ends in a checksum of itself (CRC-32C).
    pub has_checksum: bool,
}

impl RootFileSystem {
    /// The size of the smallest root disk that has it, bytes.
    #[must_use]
    pub fn root_bytes(&self) -> u64 {
        self.bytes.checked_next_multiple_of(ROOT_STEP_BYTES).unwrap_or(MAX_DISK_BYTES)
    }
}

/// Why a file is no root disk, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARootDisk {
    /// No bytes.
    #[error("the file is empty")]
    Empty,
    /// Something else that is known.
    #[error("it is {what}, and an ext4 file system is needed: {instead}")]
    Other {
        /// What it is.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// Something else.
    #[error("no ext4 file system begins at its first byte: {NEW}")]
    Unknown,
    /// `s_log_block_size`.
    #[error("its blocks have 2^{0} KiB, and Linux mounts 1, 2 and 4 KiB: {NEW} -b 4096")]
    BlockSize(u32),
    /// `s_blocks_count` is 0.
    #[error("its superblock says that it has no blocks; it is damaged: e2fsck -f FILE may mend it")]
    NoBlocks,
    /// `s_checksum` is not that of the superblock. [`examine`] does not look at it.
    #[error("its superblock is damaged: e2fsck -f FILE may mend it")]
    Checksum,
    /// The file ends early.
    #[error("its file system has {bytes} bytes and the file {length}: it was not copied to its end; copy it again")]
    Truncated {
        /// Of the file system.
        bytes: u64,
        /// Of the file, bytes.
        length: u64,
    },
    /// Over [`MAX_DISK_BYTES`].
    #[error(
        "its file system has {0} bytes, and the largest root disk has 128G: make it smaller with resize2fs FILE SIZE"
    )]
    TooLarge(u64),
    /// `s_feature_incompat` has bits that are not known.
    #[error("it has features that Linux 6.12 cannot mount (incompat {0:#x}): {NEW}")]
    Features(u32),
    /// It is the journal of another file system.
    #[error("it is the journal of another ext4 file system: give the file system itself")]
    JournalOnly,
    /// Its journal is somewhere else.
    #[error("its journal is on another disk, which no guest has: tune2fs -O ^has_journal FILE && tune2fs -j FILE")]
    ExternalJournal,
}

/// How an ext4 file system is made of a tree.
const NEW: &str = "make one of the tree: mke2fs -t ext4 -d FOLDER FILE SIZE";
const PARTITION: &str = "take the partition of the root file system out of it: partx --show FILE names its START and SECTORS; dd if=FILE of=rootfs.ext4 bs=512 skip=START count=SECTORS";
const RAW: &str = "make a raw disk of it (qemu-img convert -O raw FILE disk.raw), and take the partition of the root file system out of that";
const UNPACK: &str = "decompress it first";
const COPY: &str = "make an ext4 file system of its tree (mke2fs -t ext4 -d FOLDER FILE SIZE), or import the tree as a tar: banger image import";
const REGISTER: &str = "an ext4 file system is registered as it is: banger image register --rootfs FILE NAME";
const IMPORT: &str = "import it: banger image import FILE --name NAME";

/// What users bring instead, by its first bytes: where these are, the bytes, what it is, what to
/// do. A partitioned disk comes last: the mark of a boot sector may stand before other things too.
const OTHERS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"QFI\xfb", "a qcow2 disk", RAW),
    (0, b"KDMV", "a VMDK disk", RAW),
    (0, b"vhdxfile", "a VHDX disk", RAW),
    (0, b"LUKS\xba\xbe", "an encrypted disk (LUKS)", COPY),
    (0, b"XFSB", "an xfs file system", COPY),
    (0, b"hsqs", "a squashfs file system", COPY),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs file system", COPY),
    (1024, b"\x10\x20\xf5\xf2", "an f2fs file system", COPY),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system", COPY),
    (0x8001, b"CD001", "an ISO image", COPY),
    (257, b"ustar", "a tar archive", IMPORT),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", UNPACK),
    (0, b"\x50\x2a\x4d\x18", "compressed with zstd", UNPACK),
    (512, b"LABELONE", "a volume of LVM", COPY),
    (512, b"EFI PART", "a partitioned disk (GPT)", PARTITION),
    (4096, b"EFI PART", "a partitioned disk (GPT)", PARTITION),
    (510, b"\x55\xaa", "a partitioned disk (MBR)", PARTITION),
];

/// Looks at the beginning of a file of `length` bytes. One that was not unmounted is fine: the
/// guest's kernel replays its journal.
///
/// # Errors
/// [`NotARootDisk`].
pub fn examine(head: &[u8], length: u64) -> Result<RootFileSystem, NotARootDisk> {
    if length == 0 {
        return Err(NotARootDisk::Empty);
    }
    // Before all others: what stands before the superblock is a boot sector's, if anybody's.
    let superblock = head.get(SUPERBLOCK_AT..).and_then(|rest| rest.first_chunk::<SUPERBLOCK_BYTES>());
    match superblock.map(Fields) {
        Some(fields) if fields.word(0x38) == MAGIC => examine_fields(&fields, length),
        _ => Err(other(head)),
    }
}

/// What a file is that is given where an archive is needed, and what to do with it. `None`: it may
/// be an archive, as far as its first bytes say.
#[must_use]
pub fn no_archive(head: &[u8], length: u64) -> Option<(&'static str, String)> {
    // What stands before a superblock is nothing, or a boot sector. In an archive that is data.
    let boot = head.get(..SUPERBLOCK_AT).is_some_and(|boot| boot.iter().all(|byte| *byte == 0))
        || head.get(510..512) == Some(b"\x55\xaa".as_slice());
    match examine(head, length) {
        Err(NotARootDisk::Empty | NotARootDisk::Unknown | NotARootDisk::Other { instead: IMPORT | UNPACK, .. }) => None,
        Err(NotARootDisk::Other { what, instead }) => Some((what, format!("{instead}; {REGISTER}"))),
        Ok(_) | Err(_) => boot.then(|| ("an ext4 file system", REGISTER.to_owned())),
    }
}

fn other(head: &[u8]) -> NotARootDisk {
    let is =
        |(at, magic, ..): &&(usize, &[u8], &str, &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    OTHERS.iter().find(is).map_or(NotARootDisk::Unknown, |(.., what, instead)| NotARootDisk::Other { what, instead })
}

fn examine_fields(fields: &Fields<'_>, length: u64) -> Result<RootFileSystem, NotARootDisk> {
    let (compatible, incompatible, read_only) = (fields.long(0x5c), fields.long(0x60), fields.long(0x64));
    if incompatible & JOURNAL_DEVICE != 0 {
        return Err(NotARootDisk::JournalOnly);
    }
    let unknown = incompatible & !INCOMPATIBLE;
    if unknown != 0 {
        return Err(NotARootDisk::Features(unknown));
    }
    // `s_journal_inum`: the journal's inode, where it is inside.
    if compatible & HAS_JOURNAL != 0 && fields.long(0xe0) == 0 {
        return Err(NotARootDisk::ExternalJournal);
    }
    // 2^(10 + s_log_block_size).
    let block: u64 = match fields.long(0x18) {
        0 => 1024,
        1 => 2048,
        2 => 4096,
        log => return Err(NotARootDisk::BlockSize(log)),
    };
    let high = if incompatible & IS_64BIT == 0 { 0 } else { u64::from(fields.long(0x150)) };
    let blocks = high << 32 | u64::from(fields.long(0x4));
    let bytes = blocks.saturating_mul(block);
    match bytes {
        0 => Err(NotARootDisk::NoBlocks),
        _ if bytes > MAX_DISK_BYTES => Err(NotARootDisk::TooLarge(bytes)),
        _ if bytes > length => Err(NotARootDisk::Truncated { bytes, length }),
        _ => Ok(RootFileSystem {
            bytes,
            read_only: read_only & !READ_ONLY,
            has_checksum: read_only & METADATA_CSUM != 0,
        }),
    }
}

/// The superblock; its fields are little-endian.
struct Fields<'a>(&'a [u8; SUPERBLOCK_BYTES]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn long(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a file system of 300 MiB in blocks of 4 KiB, as mke2fs makes it, after `change`.
    fn head(changes: &[(usize, u32)]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        let usual = [(0x4, 76_800), (0x18, 2), (0x38, 0xef53), (0x4c, 1), (0x5c, 0x3c), (0x60, 0x2c2), (0x64, 0x46b)];
        for (at, value) in usual.iter().chain(&[(0xe0, 8)]).chain(changes) {
            head[SUPERBLOCK_AT + at..SUPERBLOCK_AT + at + 4].copy_from_slice(&u32::to_le_bytes(*value));
        }
        head
    }

    const LENGTH: u64 = 300 << 20;

    #[test]
    fn a_file_system_says_how_large_it_is() {
        let seen = examine(&head(&[]), LENGTH).unwrap();
        assert_eq!(seen, RootFileSystem { bytes: LENGTH, read_only: 0, has_checksum: true });
        assert_eq!(seen.root_bytes(), 384 << 20);
        // Shorter than its file, with smaller blocks, dirty, without a journal, of ext2.
        for (changes, bytes) in [
            (&[(0x4, 1)][..], 4096),
            (&[(0x18, 0)], 75 << 20),
            (&[(0x18, 1)], 150 << 20),
            (&[(0x60, 0x2c6)], LENGTH),
            (&[(0x5c, 0x38), (0xe0, 0)], LENGTH),
            (&[(0x5c, 0), (0x60, 0), (0x64, 0), (0xe0, 0)], LENGTH),
            // Does not count without 64bit.
            (&[(0x60, 0x242), (0x150, 7)], LENGTH),
            (&[(0x60, 0x3_e7d6)], LENGTH),
        ] {
            assert_eq!(examine(&head(changes), LENGTH).unwrap().bytes, bytes, "{changes:x?}");
        }
        assert_eq!(examine(&head(&[(0x4, 1 << 25)]), u64::MAX).unwrap().root_bytes(), MAX_DISK_BYTES);
        assert_eq!(examine(&head(&[(0x64, 0x546b)]), LENGTH).unwrap().read_only, 0x5000);
        // The beginning of the file is a boot sector's.
        let mut boot = head(&[]);
        boot[510..512].copy_from_slice(b"\x55\xaa");
        assert!(examine(&boot, LENGTH).is_ok());
    }

    #[test]
    fn what_no_guest_could_mount_is_refused_with_what_it_is() {
        let gib = |n: u64| n << 30;
        for (changes, length, why) in [
            (&[(0x4, 0)][..], LENGTH, NotARootDisk::NoBlocks),
            (&[], LENGTH - 1, NotARootDisk::Truncated { bytes: LENGTH, length: LENGTH - 1 }),
            (&[(0x4, (1 << 25) + 1)], u64::MAX, NotARootDisk::TooLarge(gib(128) + 4096)),
            (&[(0x150, 1)], u64::MAX, NotARootDisk::TooLarge(gib(16 << 10) + LENGTH)),
            (&[(0x150, u32::MAX)], u64::MAX, NotARootDisk::TooLarge(u64::MAX)),
            (&[(0x18, 3)], LENGTH, NotARootDisk::BlockSize(3)),
            (&[(0x18, u32::MAX)], LENGTH, NotARootDisk::BlockSize(u32::MAX)),
            (&[(0x60, 0x2c3)], LENGTH, NotARootDisk::Features(1)),
            (&[(0x60, 0x8004_12c2)], LENGTH, NotARootDisk::Features(0x8004_1000)),
            (&[(0x60, 0x8)], LENGTH, NotARootDisk::JournalOnly),
            (&[(0xe0, 0)], LENGTH, NotARootDisk::ExternalJournal),
            (&[(0x38, 0xef54)], LENGTH, NotARootDisk::Unknown),
        ] {
            assert_eq!(examine(&head(changes), length), Err(why), "{changes:x?}");
        }
        assert_eq!(examine(&[], 0), Err(NotARootDisk::Empty));
        // All lengths of a head that ends early.
        let whole = head(&[]);
        for end in 0..SUPERBLOCK_AT + SUPERBLOCK_BYTES {
            assert_eq!(examine(&whole[..end], LENGTH), Err(NotARootDisk::Unknown), "{end}");
        }
    }

    #[test]
    fn a_file_system_is_no_archive() {
        let mut boot = head(&[]);
        boot[..3].copy_from_slice(b"\xeb\x58\x90");
        boot[510..512].copy_from_slice(b"\x55\xaa");
        // What no guest could mount is one as well.
        for (head, length) in [(head(&[]), LENGTH), (boot, LENGTH), (head(&[(0x60, 0x2c3)]), 1)] {
            let (what, instead) = no_archive(&head, length).unwrap();
            assert!(what == "an ext4 file system" && instead.contains("image register --rootfs"), "{instead}");
        }
        // Data that looks like a superblock.
        let mut archive = head(&[]);
        archive[..7].copy_from_slice(b"etc/x\0\0");
        for none in [archive, vec![0; HEAD_BYTES], Vec::new()] {
            assert_eq!(no_archive(&none, LENGTH), None);
        }
    }

    #[test]
    fn what_users_bring_instead_is_named() {
        for (at, magic, what, instead) in OTHERS {
            let mut head = vec![0; HEAD_BYTES];
            head[*at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(examine(&head, LENGTH), Err(NotARootDisk::Other { what, instead }));
            assert_eq!(examine(&head[..*at], LENGTH), Err(NotARootDisk::Unknown));
        }
        // Where an archive is needed, an archive is none of them.
        for (at, magic, what, instead) in OTHERS {
            let mut head = vec![1; HEAD_BYTES];
            head[*at..at + magic.len()].copy_from_slice(magic);
            let found = no_archive(&head, LENGTH);
            assert_eq!(found.map(|(what, _)| what), Some(*what).filter(|_| ![IMPORT, UNPACK].contains(instead)));
        }
        // A disk with GPT has the mark of a boot sector before it.
        let mut disk = vec![0; HEAD_BYTES];
        disk[510..520].copy_from_slice(b"\x55\xaaEFI PART");
        assert!(examine(&disk, LENGTH).unwrap_err().to_string().contains("GPT"));
    }
}
