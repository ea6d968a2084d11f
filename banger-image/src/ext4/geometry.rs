//! Where the metadata of each group lies.

use super::{BLOCK, Ext4Error, GROUP_BLOCKS};

/// Blocks of descriptors, in use and reserved: 1,024 groups of 32 bytes, which is 128 GiB.
pub(super) const DESCRIPTOR_BLOCKS: u64 = 8;
/// Bytes of a group's descriptor.
pub(super) const DESCRIPTOR: u64 = 32;
/// Inodes in a block of an inode table: each has 256 bytes.
pub(super) const INODES_PER_BLOCK: u32 = 16;
/// Inodes of a group when the size is not given: one for 16 KiB, as mke2fs makes them; more where
/// a tree of many small files would take more than half of the groups for its inodes alone. Groups
/// that the guest adds have as many.
const USUAL_INODES: u32 = 8192;
/// The most that one block of bitmap can hold.
const MOST_INODES: u32 = 32_768;
/// A last group with fewer blocks for data than this is left out, as mke2fs does.
const SMALLEST_LAST: u64 = 64;

/// How large the file system shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// As few groups of 128 MiB as its contents allow, and never more than so many bytes, rounded
    /// up.
    Smallest {
        /// Bytes.
        most: u64,
    },
    /// So many bytes, which is a multiple of 4096, with so many inodes at least.
    Exactly {
        /// Bytes.
        bytes: u64,
        /// Inodes.
        inodes: u32,
    },
}

/// The layout of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) inodes_per_group: u32,
    /// Blocks that there may be.
    pub(super) most_blocks: u64,
}

/// So many inodes, and some for what a boot makes before the file system has grown.
fn with_spare(inodes: u32) -> u64 {
    let inodes = u64::from(inodes);
    inodes + inodes / 8 + 1024
}

impl Geometry {
    /// The layout for a tree that needs so many inodes.
    ///
    /// # Errors
    /// [`Ext4Error::Size`], [`Ext4Error::Inodes`].
    pub(super) fn new(size: Size, needed: u32) -> Result<Self, Ext4Error> {
        match size {
            Size::Smallest { most } => {
                let most_blocks = (most / BLOCK).next_multiple_of(GROUP_BLOCKS);
                let half = (most_blocks / GROUP_BLOCKS / 2).max(1);
                let each = with_spare(needed).div_ceil(half).next_multiple_of(u64::from(INODES_PER_BLOCK));
                let each = u32::try_from(each).unwrap_or(MOST_INODES);
                Ok(Self { inodes_per_group: each.clamp(USUAL_INODES, MOST_INODES), most_blocks })
            }
            Size::Exactly { bytes, inodes } => {
                if !bytes.is_multiple_of(BLOCK) {
                    return Err(Ext4Error::Size("a file system's size must be a multiple of 4096 bytes"));
                }
                let groups = (bytes / BLOCK).div_ceil(GROUP_BLOCKS).max(1);
                let each = u64::from(inodes).div_ceil(groups).next_multiple_of(u64::from(INODES_PER_BLOCK));
                let inodes_per_group = u32::try_from(each).ok().filter(|each| *each <= MOST_INODES);
                let inodes_per_group =
                    inodes_per_group.ok_or(Ext4Error::Inodes { files: u64::from(inodes), most: bytes })?.max(64);
                let mut geometry = Self { inodes_per_group, most_blocks: bytes / BLOCK };
                let last = geometry.most_blocks % GROUP_BLOCKS;
                if last > 0 && last < geometry.overhead(groups - 1) + SMALLEST_LAST {
                    geometry.most_blocks -= last;
                }
                if geometry.most_blocks == 0 {
                    return Err(Ext4Error::Size("a file system of so few bytes has no room for its own tables"));
                }
                Ok(geometry)
            }
        }
    }

    /// Groups that hold so many inodes and spare ones; all there may be, where that is fewer.
    pub(super) fn groups_of(&self, inodes: u32) -> u64 {
        let most = (self.most_blocks / GROUP_BLOCKS).max(1);
        with_spare(inodes).div_ceil(u64::from(self.inodes_per_group)).clamp(1, most)
    }

    pub(super) fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group.div_ceil(INODES_PER_BLOCK))
    }

    /// Where the block bitmap of a group is; its inode bitmap and its inode table follow.
    pub(super) fn bitmaps(&self, group: u64) -> u64 {
        let copies = if has_superblock(group) { 1 + DESCRIPTOR_BLOCKS } else { 0 };
        group * GROUP_BLOCKS + copies
    }

    pub(super) fn table(&self, group: u64) -> u64 {
        self.bitmaps(group) + 2
    }

    /// Blocks of metadata at the beginning of a group.
    pub(super) fn overhead(&self, group: u64) -> u64 {
        self.table(group) + self.table_blocks() - group * GROUP_BLOCKS
    }

    /// Group of an inode, and its index in it.
    pub(super) fn place(&self, ino: u32) -> (u64, u32) {
        let index = ino.saturating_sub(1);
        (u64::from(index / self.inodes_per_group), index % self.inodes_per_group)
    }

    /// Blocks for contents in so many blocks of file system.
    pub(super) fn room(&self, blocks: u64) -> u64 {
        (0..blocks.div_ceil(GROUP_BLOCKS)).fold(blocks, |room, group| room.saturating_sub(self.overhead(group)))
    }
}

/// Whether a group has copies of superblock and descriptors: 0, 1 and the powers of 3, 5 and 7
/// (`sparse_super`).
pub(super) fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn copies_are_in_the_groups_that_sparse_super_names() {
        let groups: Vec<u64> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn a_last_group_without_room_is_left_out() {
        for blocks in 4096..140_000 {
            let geometry = Geometry::new(Size::Exactly { bytes: blocks * BLOCK, inodes: 1024 }, 0).unwrap();
            assert!(geometry.most_blocks <= blocks && blocks - geometry.most_blocks < 1024, "{blocks}");
            let last = (geometry.most_blocks - 1) / GROUP_BLOCKS;
            let left = geometry.most_blocks - last * GROUP_BLOCKS;
            assert!(left >= geometry.overhead(last) + SMALLEST_LAST, "{blocks}");
        }
        assert!(Geometry::new(Size::Exactly { bytes: 4097, inodes: 1 }, 0).is_err());
        assert!(Geometry::new(Size::Exactly { bytes: 16 << 20, inodes: u32::MAX }, 0).is_err());
    }

    #[test]
    fn inodes_are_found_in_their_group() {
        let geometry = Geometry::new(Size::Smallest { most: 1 << 30 }, 1000).unwrap();
        assert_eq!(geometry.place(1), (0, 0));
        assert_eq!(geometry.place(8192), (0, 8191));
        assert_eq!(geometry.place(8193), (1, 0));
        assert_eq!(geometry.overhead(0), 1 + 8 + 2 + 512);
        assert_eq!(geometry.overhead(2), 2 + 512);
    }
    /// A million small files fit where their contents do; without many, nothing changes.
    #[test]
    fn many_files_have_more_inodes_in_a_group() {
        let most = 16 << 30;
        let of = |needed| Geometry::new(Size::Smallest { most }, needed).unwrap();
        assert_eq!(of(400_000).inodes_per_group, USUAL_INODES);
        let million = of(1_001_000);
        assert_eq!(million.inodes_per_group % INODES_PER_BLOCK, 0);
        assert!((60..=64).contains(&million.groups_of(1_001_000)), "{million:?}");
        assert_eq!(of(u32::MAX).inodes_per_group, MOST_INODES);
        // Less than the spare ones are left: what there is, is enough.
        let tight = Geometry::new(Size::Smallest { most: 128 << 20 }, 32_000).unwrap();
        assert_eq!((tight.inodes_per_group, tight.groups_of(32_000)), (MOST_INODES, 1));
    }
}
