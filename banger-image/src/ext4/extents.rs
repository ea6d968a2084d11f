//! The map from a file's blocks to those of the disk (`ext4_extent_header` and the like,
//! `fs/ext4/ext4_extents.h`).

use super::alloc::{Allocator, Run};
use super::bytes::{Block, checksum, low16, low32, put_u16, put_u32};
use super::out::Out;
use super::{BLOCK_LEN, Ext4Error};

/// Blocks of one extent at most (`EXT_INIT_MAX_LEN`).
const MOST: u64 = 32_768;
/// Entries in an inode, and in a block of 4 KiB with its checksum.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = 340;
/// Where a block's checksum is: behind all its entries.
const TAIL: usize = 12 + 12 * IN_BLOCK;
/// A stretch of zeros that is shorter stays a part of the file's extents, so that no file has
/// millions of them. It takes no room on the host either way.
pub(super) const SHORTEST_HOLE: u64 = 16;

/// Blocks of a file that follow each other in the file and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    logical: u32,
    physical: u64,
    count: u16,
}

/// The extents of one file, in the making. Its blocks come in rising order.
#[derive(Debug, Default)]
pub(super) struct Extents {
    extents: Vec<Extent>,
    /// Blocks that the file has, those of the map included.
    pub(super) blocks: u64,
}

impl Extents {
    pub(super) fn clear(&mut self) {
        self.extents.clear();
        self.blocks = 0;
    }

    /// The block behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.extents.last().map_or(0, |last| u64::from(last.logical) + u64::from(last.count))
    }

    /// Allocates blocks for `count` blocks of the file from `logical` on; `placed` hears of each
    /// run.
    ///
    /// # Errors
    /// [`Ext4Error::Full`], and those of `placed`.
    pub(super) fn map(
        &mut self,
        allocator: &mut Allocator,
        mut logical: u64,
        count: u64,
        mut placed: impl FnMut(u64, Run) -> Result<(), Ext4Error>,
    ) -> Result<(), Ext4Error> {
        let end = logical + count;
        while logical < end {
            let run = allocator.run((end - logical).min(MOST))?;
            self.push(logical, run);
            placed(logical, run)?;
            logical += run.count;
        }
        self.blocks += count;
        Ok(())
    }

    fn push(&mut self, logical: u64, run: Run) {
        if let Some(last) = self.extents.last_mut()
            && u64::from(last.logical) + u64::from(last.count) == logical
            && last.physical + u64::from(last.count) == run.first
            && let Some(count) = u16::try_from(u64::from(last.count) + run.count).ok().filter(|n| u64::from(*n) <= MOST)
        {
            last.count = count;
            return;
        }
        let count = u16::try_from(run.count).unwrap_or_default();
        self.extents.push(Extent { logical: low32(logical), physical: run.first, count });
    }

    /// Writes what does not fit the inode into blocks of its own, and returns the inode's part.
    ///
    /// # Errors
    /// [`Ext4Error::Full`], and those of the write.
    pub(super) fn finish(
        &mut self,
        allocator: &mut Allocator,
        out: &mut Out<'_>,
        seed: u32,
    ) -> Result<[u8; 60], Ext4Error> {
        let mut depth = 0_u16;
        // Logical block and entry of the level that is looked at.
        let mut level: Vec<(u32, [u8; 12])> = self.extents.iter().map(|e| (e.logical, leaf(e))).collect();
        while level.len() > IN_INODE {
            let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
            for entries in level.chunks(IN_BLOCK) {
                let mut block: Block = [0; BLOCK_LEN];
                node(&mut block, entries, IN_BLOCK, depth);
                let sum = checksum(seed, block.get(..TAIL).unwrap_or_default());
                put_u32(&mut block, TAIL, sum);
                let at = allocator.one()?;
                self.blocks += 1;
                out.block(at, &block)?;
                let logical = entries.first().map_or(0, |(logical, _)| *logical);
                above.push((logical, index(logical, at)));
            }
            level = above;
            depth += 1;
        }
        let mut root = [0; 60];
        node(&mut root, &level, IN_INODE, depth);
        Ok(root)
    }
}

fn node(buf: &mut [u8], entries: &[(u32, [u8; 12])], most: usize, depth: u16) {
    put_u16(buf, 0, 0xf30a);
    put_u16(buf, 2, u16::try_from(entries.len()).unwrap_or_default());
    put_u16(buf, 4, u16::try_from(most).unwrap_or_default());
    put_u16(buf, 6, depth);
    for (slot, (_, entry)) in buf.get_mut(12..).unwrap_or_default().chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf(extent: &Extent) -> [u8; 12] {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, extent.logical);
    put_u16(&mut entry, 4, extent.count);
    put_u16(&mut entry, 6, low16(low32(extent.physical >> 32)));
    put_u32(&mut entry, 8, low32(extent.physical));
    entry
}

fn index(logical: u32, block: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, logical);
    put_u32(&mut entry, 4, low32(block));
    put_u16(&mut entry, 8, low16(low32(block >> 32)));
    entry
}
