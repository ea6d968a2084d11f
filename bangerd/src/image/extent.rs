//! How large the file system of an image is: as small as its contents allow, since every VM's guest grows it to
//! the root disk that the VM has. Everything is counted from above: the tree is gone when the writer would find
//! out that its room was too small.

use super::tree::{NodeId, NodeKind, Tree};
use banger_policy::limits::ROOT_STEP_BYTES;

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Blocks of a group, which is the step of sizes.
const GROUP: u64 = ROOT_STEP_BYTES / BLOCK;
/// Inodes of a group, as a file system of 8 GiB has them (mke2fs: one for 16 KiB). Groups that the guest adds
/// have as many: denser ones would make a disk that grows mostly inode tables.
const INODES: u64 = ROOT_STEP_BYTES / 16384;
/// Blocks of a group that hold no contents: bitmaps, the inode table, and a copy of the superblock and of the
/// descriptors (128 GiB have 1,024 of them, of 32 bytes).
const OVERHEAD: u64 = 2 + INODES / 16 + 1 + 8;
/// Blocks of the journal, as a file system of 8 GiB has it: 64 MiB. It never grows.
const JOURNAL: u64 = 16_384;
/// Free blocks, and an eighth of the contents more, for what a boot writes before anything has grown.
const SLACK: u64 = 1024;
/// The longest symlink target that lies in its inode.
const FAST_SYMLINK: usize = 59;

/// A file system, as the writer shall make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes, a multiple of [`ROOT_STEP_BYTES`].
    pub(crate) bytes: u64,
    /// Inodes.
    pub(crate) inodes: u32,
    /// Blocks.
    pub(crate) journal: u32,
}

impl Extent {
    /// The smallest that holds the tree.
    pub(crate) fn of(tree: &Tree) -> Self {
        let contents = tree.nodes().fold(0_u64, |sum, node| {
            let attributes = u64::from(!node.xattrs.is_empty());
            let blocks = match &node.kind {
                NodeKind::File(content) => file(content.size),
                NodeKind::Dir(children) => folder(children),
                NodeKind::Symlink(target) => u64::from(target.len() > FAST_SYMLINK),
                NodeKind::Char(..) | NodeKind::Block(..) | NodeKind::Fifo => 0,
            };
            sum.saturating_add(blocks).saturating_add(attributes)
        });
        let nodes = u64::try_from(tree.capacity()).unwrap_or(u64::MAX);
        // Eleven are the file system's own, and a boot makes some.
        let inodes = nodes.saturating_add(nodes / 8).saturating_add(1024);
        let blocks = contents.saturating_add(contents / 8).saturating_add(SLACK);
        let mut groups = inodes.div_ceil(INODES).max(1);
        while room(groups) < blocks {
            let more = blocks.saturating_sub(room(groups)).div_ceil(GROUP);
            groups = groups.saturating_add(more.max(1));
        }
        Self {
            bytes: groups.saturating_mul(ROOT_STEP_BYTES),
            inodes: u32::try_from(groups.saturating_mul(INODES)).unwrap_or(u32::MAX),
            journal: u32::try_from(journal(groups)).unwrap_or(u32::MAX),
        }
    }
}

impl Extent {
    /// One of a given size, which is not to be smaller: a work disk's. Room for half as many files again as the
    /// tree brings, or as many as mke2fs would make room for.
    pub(crate) fn sized(bytes: u64, tree: &Tree) -> Self {
        let brought = u32::try_from(tree.capacity()).unwrap_or(u32::MAX);
        let usual = u32::try_from(bytes / 16384).unwrap_or(u32::MAX);
        let blocks = bytes / BLOCK;
        Self {
            bytes,
            inodes: usual.max(brought.saturating_add(brought / 2).saturating_add(1024)),
            // As mke2fs does, for sizes up to that of 8 GiB.
            journal: match blocks {
                0..32_768 => 1024,
                32_768..262_144 => 4096,
                262_144..524_288 => 8192,
                _ => 16_384,
            },
        }
    }
}

/// The writer allows it a quarter of the file system.
fn journal(groups: u64) -> u64 {
    JOURNAL.min(groups.saturating_mul(GROUP) / 4)
}

/// Blocks for contents.
fn room(groups: u64) -> u64 {
    groups.saturating_mul(GROUP.saturating_sub(OVERHEAD)).saturating_sub(journal(groups))
}

/// A file's blocks, and those that say where they are: an extent ends with its group at the latest, four lie in
/// the inode, 340 in a block.
fn file(bytes: u64) -> u64 {
    let blocks = bytes.div_ceil(BLOCK);
    let extents = blocks.div_ceil(GROUP.saturating_sub(OVERHEAD)).saturating_add(1);
    blocks.saturating_add(if extents > 4 { extents.div_ceil(340).saturating_add(1) } else { 0 })
}

/// A folder's blocks: entries of 8 bytes and the name, in fours; leaves of a hash tree are at least half full.
fn folder(children: &std::collections::BTreeMap<Box<str>, NodeId>) -> u64 {
    let entry = |name: &str| u64::try_from(name.len()).unwrap_or(u64::MAX).saturating_add(8).next_multiple_of(4);
    let bytes = children.keys().map(|name| entry(name)).fold(24_u64, u64::saturating_add);
    let leaves = bytes.saturating_mul(2).div_ceil(BLOCK);
    // The index: 8 bytes for a leaf.
    leaves.saturating_add(leaves.div_ceil(256))
}
