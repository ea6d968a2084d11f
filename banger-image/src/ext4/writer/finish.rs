//! What is known at the end: the size, and with it journal, reserved descriptors, bitmaps and
//! superblocks.

use super::super::bytes::{Block, low32, put_u32};
use super::super::geometry::{Size, has_superblock};
use super::super::inode::{self, Inode};
use super::super::superblock::{self, FIRST_AT, JOURNAL_INO, Whole};
use super::super::{BLOCK, BLOCK_LEN, Ext4Error, GROUP_BLOCKS};
use super::{Spec, Writer};

/// `EXT4_RESIZE_INO`.
const RESIZE_INO: u32 = 7;
/// Blocks of the journal as a file system of 8 GiB has it, 64 MiB. It never grows.
const JOURNAL: u64 = 16_384;
/// Free blocks, and an eighth of the contents more, for what a boot writes before the file system
/// has grown.
const SLACK: u64 = 1024;

impl Writer<'_> {
    /// Journal, reserved descriptors, tables and superblocks. Returns the bytes of the file system.
    pub(super) fn finish(&mut self, spec: &Spec<'_>) -> Result<u64, Ext4Error> {
        let (blocks, journal_blocks) = self.size(spec)?;
        let journal = self.journal(journal_blocks, spec.uuid)?;
        let mut whole = Whole {
            geometry: self.geometry,
            blocks,
            end: self.allocator.end(),
            last_ino: self.order.last(),
            folders: &[],
            uuid: spec.uuid,
            hash_seed: self.hash_seed,
            label: spec.label,
            time: u32::try_from(self.time).unwrap_or_default(),
            journal,
            seed: self.seed,
        };
        self.reserved_descriptors(&whole)?;
        whole.end = self.allocator.end();
        let folders = std::mem::take(&mut self.folders);
        whole.folders = &folders;
        if let Some((block, contents)) = self.table.open.take() {
            self.out.block(block, &contents)?;
        }
        self.out.block(self.geometry.table(0), &self.table.first)?;
        let descriptors = whole.descriptors();
        for group in 0..whole.groups() {
            if let Some([blocks, inodes]) = whole.bitmaps(group) {
                self.out.block(self.geometry.bitmaps(group), &blocks)?;
                self.out.block(self.geometry.bitmaps(group) + 1, &inodes)?;
            }
            if has_superblock(group) {
                let at = if group == 0 { FIRST_AT } else { group * GROUP_BLOCKS * BLOCK };
                self.out.bytes(at, &whole.superblock(group))?;
                self.out.blocks(group * GROUP_BLOCKS + 1, &descriptors)?;
            }
        }
        self.out.flush()?;
        Ok(blocks * BLOCK)
    }

    /// Blocks of the file system, and of its journal.
    fn size(&self, spec: &Spec<'_>) -> Result<(u64, u64), Ext4Error> {
        let used = self.allocator.used;
        match spec.size {
            Size::Exactly { .. } => {
                let blocks = self.geometry.most_blocks;
                // As mke2fs does, for sizes up to that of 8 GiB.
                let journal = match blocks {
                    0..32_768 => 1024,
                    32_768..262_144 => 4096,
                    262_144..524_288 => 8192,
                    _ => JOURNAL,
                };
                Ok((blocks, journal))
            }
            Size::Smallest { most } => {
                let mut groups = self.geometry.groups_of(self.order.last());
                loop {
                    let blocks = groups * GROUP_BLOCKS;
                    if blocks > self.geometry.most_blocks {
                        return Err(Ext4Error::Full { most });
                    }
                    let journal = JOURNAL.min(blocks / 4);
                    if self.geometry.room(blocks) >= used + used / 8 + journal + SLACK {
                        return Ok((blocks, journal));
                    }
                    groups += 1;
                }
            }
        }
    }

    fn journal(&mut self, blocks: u64, uuid: [u8; 16]) -> Result<([u8; 60], u64), Ext4Error> {
        self.extents.clear();
        let count = low32(blocks);
        let out = &mut self.out;
        self.extents.map(&mut self.allocator, 0, blocks, |logical, run| {
            if logical == 0 {
                out.block(run.first, &superblock::journal(count, uuid))?;
            }
            Ok(())
        })?;
        let map = self.extents.finish(&mut self.allocator, &mut self.out, inode::seed(self.seed, JOURNAL_INO))?;
        let size = blocks * BLOCK;
        let inode = Inode { size, blocks: self.extents.blocks, map, ..Inode::internal(self.time) };
        self.put(JOURNAL_INO, &inode)?;
        Ok((map, size))
    }

    /// The file that owns the blocks which are reserved for descriptors: a doubly indirect block
    /// names those of the first group, and each of them its copies (`ext4_resize_inode`;
    /// `reserve_backup_gdb` in `fs/ext4/resize.c`).
    fn reserved_descriptors(&mut self, whole: &Whole<'_>) -> Result<(), Ext4Error> {
        /// Block numbers in a block; and blocks that an inode names itself.
        const NUMBERS: u64 = BLOCK / 4;
        const DIRECT: u64 = 12;
        /// Where the inode has the number of the doubly indirect block.
        const DOUBLY: usize = 4 * 13;
        let (used, reserved) = whole.descriptor_blocks();
        if reserved == 0 {
            return Ok(());
        }
        let top = self.allocator.one()?;
        let mut doubly: Block = [0; BLOCK_LEN];
        let mut blocks = 1;
        for number in used..used + reserved {
            // The primary superblock is in the block before the first of them.
            let primary = 1 + number;
            let mut copies: Block = [0; BLOCK_LEN];
            let mut at = 0;
            for group in (1..whole.groups()).filter(|group| has_superblock(*group)) {
                put_u32(&mut copies, at, low32(group * GROUP_BLOCKS + primary));
                at += 4;
                blocks += 1;
            }
            self.out.block(primary, &copies)?;
            blocks += 1;
            put_u32(&mut doubly, usize::try_from(number % NUMBERS).unwrap_or_default() * 4, low32(primary));
        }
        self.out.block(top, &doubly)?;
        let mut map = [0; 60];
        put_u32(&mut map, DOUBLY, low32(top));
        let size = (NUMBERS * NUMBERS + NUMBERS + DIRECT) * BLOCK;
        self.put(RESIZE_INO, &Inode { size, blocks, map, flags: 0, ..Inode::internal(self.time) })
    }
}
