//! The blocks of a folder: one with its names, or an index by hash above blocks of names
//! (`fs/ext4/namei.c`, `Documentation/filesystems/ext4/directory.rst`).

use super::bytes::{Block, checksum, put, put_u16, put_u32};
use super::hash::half_md4;
use super::{BLOCK_LEN, Ext4Error};

/// Bytes of an entry before its name.
const ENTRY: usize = 8;
/// Bytes at the end of a block of names that hold its checksum and look like an entry without a
/// name.
const TAIL: usize = 12;
/// Bytes for names in a block.
const ROOM: usize = BLOCK_LEN - TAIL;
/// Where the entries of an index begin: in its first block, and in the others.
const ROOT_AT: usize = 32;
const NODE_AT: usize = 8;
/// Entries of an index, less one that holds the checksum.
const ROOT_MOST: usize = (BLOCK_LEN - ROOT_AT) / 8 - 1;
const NODE_MOST: usize = (BLOCK_LEN - NODE_AT) / 8 - 1;
/// `half_md4`; that characters are unsigned is said in the superblock.
const HASH_VERSION: u8 = 1;

pub(super) const KIND_FILE: u8 = 1;
pub(super) const KIND_FOLDER: u8 = 2;
pub(super) const KIND_CHAR: u8 = 3;
pub(super) const KIND_BLOCK: u8 = 4;
pub(super) const KIND_FIFO: u8 = 5;
pub(super) const KIND_SYMLINK: u8 = 7;

/// A name in a folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: u32,
    pub(super) kind: u8,
}

/// A folder and its parent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) ino: u32,
    pub(super) parent: u32,
    /// Of the folder's checksums.
    pub(super) seed: u32,
}

/// How the names of a folder are laid out.
#[derive(Debug)]
pub(super) struct Folder<'a> {
    own: Own,
    names: &'a [Name<'a>],
    /// Hashes, and positions in `names`; empty for a folder of one block.
    order: Vec<(u32, u32)>,
    /// First hash of each block of names, and where it begins in `order`.
    leaves: Vec<(u32, usize)>,
}

fn length(name: &[u8]) -> usize {
    (ENTRY + name.len()).next_multiple_of(4)
}

impl<'a> Folder<'a> {
    /// # Errors
    /// [`Ext4Error::Folder`].
    pub(super) fn new(own: Own, names: &'a [Name<'a>], hash_seed: [u32; 4]) -> Result<Self, Ext4Error> {
        let dots = length(b".") + length(b"..");
        let mut folder = Self { own, names, order: Vec::new(), leaves: Vec::new() };
        if names.iter().fold(dots, |sum, name| sum.saturating_add(length(name.name))) <= ROOM {
            return Ok(folder);
        }
        folder.order = (0_u32..).zip(names).map(|(at, name)| (half_md4(name.name, hash_seed), at)).collect();
        folder.order.sort_unstable();
        let mut free = 0;
        let mut before = None;
        for (position, (hash, at)) in folder.order.iter().enumerate() {
            let needed = length(folder.name(*at).map_or(&[], |name| name.name));
            if needed > free {
                // The lowest bit says that names with this hash are in the block before, too.
                let goes_on = u32::from(before == Some(*hash));
                folder.leaves.push((hash | goes_on, position));
                free = ROOM;
            }
            free = free.saturating_sub(needed);
            before = Some(*hash);
        }
        if folder.leaves.len() > ROOT_MOST * NODE_MOST {
            return Err(Ext4Error::Folder { names: names.len() });
        }
        Ok(folder)
    }

    fn name(&self, at: u32) -> Option<&Name<'a>> {
        self.names.get(usize::try_from(at).ok()?)
    }

    pub(super) fn is_indexed(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Blocks of index below the first one.
    fn nodes(&self) -> usize {
        if self.leaves.len() > ROOT_MOST { self.leaves.len().div_ceil(NODE_MOST) } else { 0 }
    }

    /// Blocks in all.
    pub(super) fn blocks(&self) -> usize {
        1 + self.nodes() + self.leaves.len()
    }

    /// The block with this number in the folder.
    pub(super) fn render(&self, number: usize) -> Block {
        let mut block: Block = [0; BLOCK_LEN];
        if !self.is_indexed() {
            let dots = self.dots();
            self.names_into(&mut block, dots.iter().chain(self.names));
        } else if number == 0 {
            self.root(&mut block);
        } else if let Some(leaf) = number.checked_sub(1 + self.nodes()) {
            let from = self.leaves.get(leaf).map_or(0, |(_, from)| *from);
            let to = self.leaves.get(leaf + 1).map_or(self.order.len(), |(_, from)| *from);
            let order = self.order.get(from..to).unwrap_or_default();
            self.names_into(&mut block, order.iter().filter_map(|(_, at)| self.name(*at)));
        } else {
            put_u16(&mut block, 4, 4096);
            let from = (number - 1) * NODE_MOST;
            let to = (from + NODE_MOST).min(self.leaves.len());
            let first_leaf = 1 + self.nodes();
            let entries = (from..to).filter_map(|leaf| Some((self.leaves.get(leaf)?.0, first_leaf + leaf)));
            self.index_into(&mut block, NODE_AT, NODE_MOST, entries);
        }
        block
    }

    fn dots(&self) -> [Name<'static>; 2] {
        [
            Name { name: b".", ino: self.own.ino, kind: KIND_FOLDER },
            Name { name: b"..", ino: self.own.parent, kind: KIND_FOLDER },
        ]
    }

    fn names_into<'b>(&self, block: &mut Block, names: impl Iterator<Item = &'b Name<'b>>) {
        let mut at = 0;
        let mut last = 0;
        for name in names {
            last = at;
            at += entry(block, at, name, length(name.name));
        }
        // The last entry reaches to the tail.
        put_u16(block, last + 4, u16::try_from(ROOM - last).unwrap_or_default());
        put_u16(block, ROOM + 4, 12);
        put(block, ROOM + 7, &[0xde]);
        let sum = checksum(self.own.seed, block.get(..ROOM).unwrap_or_default());
        put_u32(block, ROOM + 8, sum);
    }

    fn root(&self, block: &mut Block) {
        let [dot, dots] = self.dots();
        let at = entry(block, 0, &dot, length(dot.name));
        entry(block, at, &dots, BLOCK_LEN - at);
        // `struct dx_root_info`: its own length, and how many levels are below.
        put(block, 28, &[HASH_VERSION, 8, u8::from(self.nodes() > 0), 0]);
        if self.nodes() == 0 {
            let entries = self.leaves.iter().enumerate().map(|(leaf, (hash, _))| (*hash, 1 + leaf));
            self.index_into(block, ROOT_AT, ROOT_MOST, entries);
        } else {
            let firsts = self.leaves.iter().step_by(NODE_MOST).enumerate();
            self.index_into(block, ROOT_AT, ROOT_MOST, firsts.map(|(node, (hash, _))| (*hash, 1 + node)));
        }
    }

    /// Hashes and blocks. In the place of the first hash, which is below all, are the numbers of
    /// entries.
    fn index_into(&self, block: &mut Block, at: usize, most: usize, entries: impl Iterator<Item = (u32, usize)>) {
        let mut count = 0;
        for (hash, target) in entries {
            put_u32(block, at + 8 * count, hash);
            put_u32(block, at + 8 * count + 4, u32::try_from(target).unwrap_or_default());
            count += 1;
        }
        put_u16(block, at, u16::try_from(most).unwrap_or_default());
        put_u16(block, at + 2, u16::try_from(count).unwrap_or_default());
        let tail = at + 8 * most;
        let sum = checksum(self.own.seed, block.get(..at + 8 * count).unwrap_or_default());
        let sum = checksum(sum, block.get(tail..tail + 4).unwrap_or_default());
        put_u32(block, tail + 4, checksum(sum, &[0; 4]));
    }
}

/// `struct ext4_dir_entry_2`; returns its length.
fn entry(block: &mut Block, at: usize, name: &Name<'_>, length: usize) -> usize {
    put_u32(block, at, name.ino);
    put_u16(block, at + 4, u16::try_from(length).unwrap_or_default());
    put(block, at + 6, &[u8::try_from(name.name.len()).unwrap_or_default(), name.kind]);
    put(block, at + ENTRY, name.name);
    length
}
