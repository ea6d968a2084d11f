//! Superblock, descriptors and bitmaps (`struct ext4_super_block`, `struct ext4_group_desc`,
//! `fs/ext4/ext4.h`), and the superblock of the journal (`journal_superblock_t`,
//! `include/linux/jbd2.h`).

use super::bytes::{Block, checksum, low16, low32, put, put_u16, put_u32};
use super::geometry::{DESCRIPTOR, DESCRIPTOR_BLOCKS, Geometry};
use super::{BLOCK, BLOCK_LEN, GROUP_BLOCKS};

/// Where the superblock of the first group is, bytes; its copies begin their blocks.
pub(super) const FIRST_AT: u64 = 1024;
/// Bytes of a superblock.
pub(super) const SUPERBLOCK: usize = 1024;

/// `has_journal`, `ext_attr`, `dir_index`; and `resize_inode`.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
const RESIZE_INODE: u32 = 0x10;
/// `filetype`, `extents`.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// `sparse_super`, `large_file`, `huge_file`, `dir_nlink`, `extra_isize`, `metadata_csum`.
const READ_ONLY: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// Names are hashed as unsigned characters (`EXT2_FLAGS_UNSIGNED_HASH`).
const UNSIGNED_HASH: u32 = 2;
/// Mount options: `user_xattr`, `acl`.
const MOUNT_OPTIONS: u32 = 0x4 | 0x8;

/// Flags of a group: nothing is in its inode table or bitmap, in its block bitmap; the table is
/// zero where it is not used.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

/// A finished file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole<'a> {
    pub(super) geometry: Geometry,
    /// Blocks in all.
    pub(super) blocks: u64,
    /// No block of contents is at or behind this one.
    pub(super) end: u64,
    /// Inodes 1 to this are in use.
    pub(super) last_ino: u32,
    /// Folders in each group's inode table; groups that are not there have none.
    pub(super) folders: &'a [u16],
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u32; 4],
    pub(super) label: &'a str,
    /// Of its making, seconds since the epoch.
    pub(super) time: u32,
    /// `i_block` and size of the journal, of which the superblock has a copy.
    pub(super) journal: ([u8; 60], u64),
    /// Of all checksums.
    pub(super) seed: u32,
}

impl Whole<'_> {
    pub(super) fn groups(&self) -> u64 {
        self.blocks.div_ceil(GROUP_BLOCKS)
    }

    /// Blocks of descriptors in use, and those that are reserved.
    pub(super) fn descriptor_blocks(&self) -> (u64, u64) {
        let used = (self.groups() * DESCRIPTOR).div_ceil(BLOCK);
        (used, DESCRIPTOR_BLOCKS.saturating_sub(used))
    }

    fn group_blocks(&self, group: u64) -> u64 {
        GROUP_BLOCKS.min(self.blocks - group * GROUP_BLOCKS)
    }

    /// Blocks from the group's beginning on that are in use.
    fn used_blocks(&self, group: u64) -> u64 {
        let contents = self.end.saturating_sub(group * GROUP_BLOCKS).min(self.group_blocks(group));
        contents.max(self.geometry.overhead(group))
    }

    fn used_inodes(&self, group: u64) -> u32 {
        let each = u64::from(self.geometry.inodes_per_group);
        let used = u64::from(self.last_ino).saturating_sub(group * each).min(each);
        u32::try_from(used).unwrap_or_default()
    }

    /// Whether nothing is in a group but its metadata. The last group is always written: its bitmap
    /// has an end.
    fn is_blank(&self, group: u64) -> bool {
        group > 0
            && group + 1 < self.groups()
            && self.used_inodes(group) == 0
            && self.used_blocks(group) == self.geometry.overhead(group)
    }

    /// Bitmaps of blocks and of inodes; `None` for a group whose bitmaps need not be written.
    pub(super) fn bitmaps(&self, group: u64) -> Option<[Block; 2]> {
        if self.is_blank(group) {
            return None;
        }
        let blocks = bitmap(self.used_blocks(group), self.group_blocks(group));
        let inodes = bitmap(u64::from(self.used_inodes(group)), u64::from(self.geometry.inodes_per_group));
        Some([blocks, inodes])
    }

    /// The descriptors of all groups, in whole blocks.
    pub(super) fn descriptors(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for group in 0..self.groups() {
            all.extend_from_slice(&self.descriptor(group));
        }
        all.resize(all.len().next_multiple_of(BLOCK_LEN), 0);
        all
    }

    fn descriptor(&self, group: u64) -> [u8; 32] {
        let mut raw = [0; 32];
        let folders = usize::try_from(group).ok().and_then(|group| self.folders.get(group)).copied().unwrap_or(0);
        let used = self.used_inodes(group);
        let free = self.geometry.inodes_per_group - used;
        put_u32(&mut raw, 0, low32(self.geometry.bitmaps(group)));
        put_u32(&mut raw, 4, low32(self.geometry.bitmaps(group) + 1));
        put_u32(&mut raw, 8, low32(self.geometry.table(group)));
        put_u16(&mut raw, 12, low16(low32(self.group_blocks(group) - self.used_blocks(group))));
        put_u16(&mut raw, 14, low16(free));
        put_u16(&mut raw, 16, folders);
        let blank = if self.is_blank(group) { INODE_UNINIT | BLOCK_UNINIT } else { 0 };
        put_u16(&mut raw, 18, INODE_ZEROED | blank);
        if let Some([blocks, inodes]) = self.bitmaps(group) {
            put_u16(&mut raw, 24, low16(checksum(self.seed, &blocks)));
            let bytes = usize::try_from(self.geometry.inodes_per_group / 8).unwrap_or(BLOCK_LEN);
            put_u16(&mut raw, 26, low16(checksum(self.seed, inodes.get(..bytes).unwrap_or_default())));
        }
        put_u16(&mut raw, 28, low16(free));
        let sum = checksum(checksum(self.seed, &low32(group).to_le_bytes()), &raw);
        put_u16(&mut raw, 30, low16(sum));
        raw
    }

    /// The superblock as `group` has it.
    pub(super) fn superblock(&self, group: u64) -> [u8; SUPERBLOCK] {
        let mut raw = [0; SUPERBLOCK];
        let groups = self.groups();
        let (_, reserved) = self.descriptor_blocks();
        let free: u64 = (0..groups).map(|group| self.group_blocks(group) - self.used_blocks(group)).sum();
        let inodes = u64::from(self.geometry.inodes_per_group) * groups;
        let group_blocks = low32(GROUP_BLOCKS);
        for (at, value) in [
            (0, low32(inodes)),
            (4, low32(self.blocks)),
            (12, low32(free)),
            (16, low32(inodes - u64::from(self.last_ino))),
            // Blocks and clusters of 2^(10+2) bytes.
            (24, 2),
            (28, 2),
            (32, group_blocks),
            (36, group_blocks),
            (40, self.geometry.inodes_per_group),
            // Last written, last checked.
            (48, self.time),
            (64, self.time),
            // Revision 1: with sizes of inodes.
            (76, 1),
            (84, super::order::LOST_FOUND_INO),
            (92, COMPATIBLE | if reserved > 0 { RESIZE_INODE } else { 0 }),
            (96, INCOMPATIBLE),
            (100, READ_ONLY),
            (224, JOURNAL_INO),
            (256, MOUNT_OPTIONS),
            (264, self.time),
            (352, UNSIGNED_HASH),
        ] {
            put_u32(&mut raw, at, value);
        }
        for (at, value) in [
            // No check after a number of mounts.
            (54, 0xffff),
            (56, 0xef53),
            // Clean; an error does not stop the file system, as mke2fs has it.
            (58, 1),
            (60, 1),
            (88, 256),
            (90, low16(low32(group))),
            (206, low16(low32(reserved))),
            // Least and wanted bytes of an inode beyond the old 128.
            (348, 32),
            (350, 32),
        ] {
            put_u16(&mut raw, at, value);
        }
        put(&mut raw, 104, &self.uuid);
        put(&mut raw, 120, self.label.as_bytes().get(..16).unwrap_or(self.label.as_bytes()));
        for (at, word) in (236..).step_by(4).zip(self.hash_seed) {
            put_u32(&mut raw, at, word);
        }
        // Hash `half_md4`; a copy of the journal's inode follows at 268: its map, and its size,
        // high part first.
        put(&mut raw, 252, &[1, 1]);
        put(&mut raw, 268, &self.journal.0);
        put_u32(&mut raw, 268 + 60, low32(self.journal.1 >> 32));
        put_u32(&mut raw, 268 + 64, low32(self.journal.1));
        // Checksums are CRC-32C.
        put(&mut raw, 373, &[1]);
        let sum = checksum(!0, raw.get(..SUPERBLOCK - 4).unwrap_or_default());
        put_u32(&mut raw, SUPERBLOCK - 4, sum);
        raw
    }
}

/// `EXT4_JOURNAL_INO`.
pub(super) const JOURNAL_INO: u32 = 8;

/// The first `used` of `count` bits, and all behind `count`.
fn bitmap(used: u64, count: u64) -> Block {
    let mut block: Block = [0; BLOCK_LEN];
    for (first, byte) in (0_u64..).step_by(8).zip(&mut block) {
        // The bits of this byte from such a bit on.
        let from = |bit: u64| 0xff_u8.checked_shl(low32(bit.saturating_sub(first).min(8))).unwrap_or(0);
        *byte = !from(used) | from(count);
    }
    block
}

/// The first block of an empty journal; all fields of it are big-endian.
pub(super) fn journal(blocks: u32, uuid: [u8; 16]) -> Block {
    let mut raw: Block = [0; BLOCK_LEN];
    for (at, value) in [
        (0, 0xc03b_3998_u32),
        // A superblock of version 2.
        (4, 4),
        (12, 4096),
        (16, blocks),
        // Log begins in block 1, with number 1; nothing is in it.
        (20, 1),
        (24, 1),
        // Users.
        (64, 1),
    ] {
        put(&mut raw, at, &value.to_be_bytes());
    }
    put(&mut raw, 48, &uuid);
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_in_use_and_bits_behind_the_end() {
        let block = bitmap(11, 20);
        assert_eq!(block[..4], [0xff, 0b111, 0xf0, 0xff]);
        assert!(bitmap(0, 32_768).iter().all(|byte| *byte == 0));
    }
}
