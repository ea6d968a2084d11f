//! Writes a tree as an ext4 file system, front to back, without a mount and without a temporary
//! copy.
//!
//! Source of the format: `Documentation/filesystems/ext4/` of the Linux kernel, and
//! `fs/ext4/ext4.h`. The features are those of mke2fs's default, less `64bit` and `flex_bg`: each
//! group of 128 MiB holds its own bitmaps and inode table, so the place of every block is known
//! before it is known how many groups there will be. `resize_inode` reserves the descriptors of 128
//! GiB, to which a guest grows its disk.
//!
//! Inodes are numbered in one walk over the tree and written in a second one, in the order of their
//! numbers. Blocks are allocated one after the other and never freed, so no bitmap is kept: a block
//! is in use when it is metadata or lies before the next free one. Beside the tree this takes
//! twelve bytes of memory for each of its nodes, and the names of one folder at a time.
//!
//! The same tree and parameters give the same bytes: UUID and times come from the caller. What is
//! zero is not written: the caller's file is new and sparse.

mod alloc;
mod bytes;
mod extents;
mod folder;
mod geometry;
mod hash;
mod inode;
mod order;
mod out;
mod superblock;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

pub(crate) use bytes::checksum;
pub(crate) use geometry::Size;
pub(crate) use writer::{Spec, Written, write};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// The same as a length of memory.
const BLOCK_LEN: usize = 4096;
/// Blocks of a group: as many as one block of bitmap has bits.
const GROUP_BLOCKS: u64 = 32_768;

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ext4Error {
    /// The contents need more blocks than the file system may have.
    #[error("its contents do not fit into {}M", .most >> 20)]
    Full {
        /// Bytes that the file system may have.
        most: u64,
    },
    /// There are more files than inodes.
    #[error("its {files} files and folders do not fit into {}M", .most >> 20)]
    Inodes {
        /// Inodes that the tree needs.
        files: u64,
        /// Bytes that the file system may have.
        most: u64,
    },
    /// A folder with more names than an index of two levels can hold.
    #[error("a folder has {names} names, more than its index can hold")]
    Folder {
        /// Names in the folder.
        names: usize,
    },
    /// A file that is longer than ext4 allows with blocks of 4 KiB (2^32 blocks).
    #[error("a file of {size} bytes is longer than ext4 allows")]
    File {
        /// Bytes.
        size: u64,
    },
    /// A name that must not stand in a folder. The tree has refused such names already.
    #[error("a name is refused: {0}")]
    Name(crate::names::NameFault),
    /// `lost+found` at the root is not a folder.
    #[error("`lost+found` must be a folder on ext4")]
    LostAndFound,
    /// The caller's parameter.
    #[error("{0}")]
    Size(&'static str),
    /// The source cannot be read, or the target not be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
