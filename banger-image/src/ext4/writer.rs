//! The order in which a file system is written: contents and inodes in one pass, what counts them
//! at the end.

use super::alloc::{Allocator, Run};
use super::bytes::{Block, low32, put, put_u32};
use super::extents::{Extents, SHORTEST_HOLE};
use super::folder::{self, Folder, Name, Own};
use super::geometry::{Geometry, INODES_PER_BLOCK, Size, has_superblock};
use super::inode::{self, FLAG_EXTENTS, FLAG_INDEX, INODE, Inode};
use super::order::{LOST_FOUND, LOST_FOUND_INO, Order, ROOT_INO};
use super::out::Out;
use super::superblock::{self, FIRST_AT, JOURNAL_INO, Whole};
use super::{BLOCK, BLOCK_LEN, Ext4Error, GROUP_BLOCKS, xattr};
use crate::content::Contents;
use crate::source::Progress;
use crate::tree::{Meta, NodeId, NodeKind, Tree};
use std::fs::File;

/// `EXT4_RESIZE_INO`, `EXT4_LINK_MAX`.
const RESIZE_INO: u32 = 7;
const LINK_MAX: u32 = 65_000;
/// Inodes in the block of a table that has those of the file system itself: kept until the end.
const FIRST_BLOCK: u32 = INODES_PER_BLOCK;
/// What is read of a file at once, bytes.
const CHUNK: usize = 1 << 20;
/// Blocks of the journal as a file system of 8 GiB has it, 64 MiB. It never grows.
const JOURNAL: u64 = 16_384;
/// Free blocks, and an eighth of the contents more, for what a boot writes before the file system
/// has grown.
const SLACK: u64 = 1024;
/// Files are longer than any disk of ours when they have so many blocks.
const MOST_FILE_BLOCKS: u64 = u32::MAX as u64;

/// What is not in the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) size: Size,
    pub(crate) uuid: [u8; 16],
    /// At most 16 bytes.
    pub(crate) label: &'a str,
}

/// A file system that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes of the file system.
    pub(crate) bytes: u64,
    /// Bytes of file contents, holes included.
    pub(crate) content_bytes: u64,
}

/// Writes `tree` to `file`, which is empty and as long as it shall be.
///
/// # Errors
/// [`Ext4Error`]; the file is not usable then. When `progress` is cancelled, an I/O error of kind
/// `Interrupted`.
pub(crate) fn write(
    tree: &Tree,
    contents: &Contents<'_>,
    spec: &Spec<'_>,
    file: &File,
    progress: &dyn Progress,
) -> Result<Written, Ext4Error> {
    let order = Order::of(tree)?;
    let geometry = Geometry::new(spec.size)?;
    let newest = order.sequence.iter().map(|id| tree.node(*id).meta.mtime.0).filter(|time| *time <= PLAUSIBLE).max();
    let time = newest.unwrap_or_default().clamp(0, PLAUSIBLE);
    let seed = super::bytes::checksum(!0, &spec.uuid);
    let mut writer = Writer {
        tree,
        contents,
        order: &order,
        progress,
        geometry,
        seed,
        hash_seed: hash_seed(spec.uuid),
        time,
        allocator: Allocator::new(geometry),
        out: Out::new(file),
        table: Table::default(),
        folders: Vec::new(),
        extents: Extents::default(),
        chunk: vec![0; CHUNK],
        done: 0,
        content_bytes: 0,
    };
    writer.check_inodes(spec.size)?;
    writer.tree()?;
    let bytes = writer.finish(spec)?;
    Ok(Written { bytes, content_bytes: writer.content_bytes })
}

/// A time behind this does not date the file system: 2100-01-01.
const PLAUSIBLE: i64 = 4_102_444_800;

pub(super) fn hash_seed(uuid: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(uuid.chunks_exact(4)) {
        *word = bytes.iter().fold(0x5bd1_e995, |sum: u32, byte| sum.rotate_left(8) ^ u32::from(*byte));
    }
    words
}

/// The blocks of inode tables that are not written yet: the first one, and the last one that was
/// begun.
#[derive(Debug)]
struct Table {
    first: Block,
    /// Block on disk, and its contents.
    open: Option<(u64, Block)>,
}

impl Default for Table {
    fn default() -> Self {
        Self { first: [0; BLOCK_LEN], open: None }
    }
}

struct Writer<'a> {
    tree: &'a Tree,
    contents: &'a Contents<'a>,
    order: &'a Order,
    progress: &'a dyn Progress,
    geometry: Geometry,
    seed: u32,
    hash_seed: [u32; 4],
    time: i64,
    allocator: Allocator,
    out: Out<'a>,
    table: Table,
    folders: Vec<u16>,
    /// Of the inode in the making.
    extents: Extents,
    chunk: Vec<u8>,
    /// Bytes of contents that were read.
    done: u64,
    content_bytes: u64,
}

impl Writer<'_> {
    fn check_inodes(&self, size: Size) -> Result<(), Ext4Error> {
        let groups = self.geometry.most_blocks.div_ceil(GROUP_BLOCKS);
        let files = u64::from(self.order.last());
        if files > groups * u64::from(self.geometry.inodes_per_group) {
            let (Size::Smallest { most } | Size::Exactly { bytes: most, .. }) = size;
            return Err(Ext4Error::Inodes { files, most });
        }
        Ok(())
    }

    /// All inodes of the tree, in the order of their numbers.
    fn tree(&mut self) -> Result<(), Ext4Error> {
        self.node(Tree::ROOT, ROOT_INO)?;
        match self.order.lost_found {
            Some(id) => self.node(id, LOST_FOUND_INO)?,
            None => {
                let meta = Meta { mode: 0o700, uid: 0, gid: 0, mtime: (self.time, 0) };
                self.folder(LOST_FOUND_INO, ROOT_INO, &[], meta, 2, &[])?;
            }
        }
        for id in &self.order.sequence {
            self.check()?;
            self.node(*id, self.order.ino(*id))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Ext4Error> {
        if self.progress.cancelled() {
            Err(std::io::Error::from(std::io::ErrorKind::Interrupted).into())
        } else {
            Ok(())
        }
    }

    fn node(&mut self, id: NodeId, ino: u32) -> Result<(), Ext4Error> {
        let node = self.tree.node(id);
        let mut kind = inode::TYPE_FILE;
        let mut map = [0; 60];
        let mut flags = 0;
        let mut size = 0;
        self.extents.clear();
        match &node.kind {
            NodeKind::Dir(names) => {
                let mut entries = Vec::with_capacity(names.len() + 1);
                let mut subfolders = 0_u32;
                for (name, child) in names {
                    crate::names::component(name).map_err(Ext4Error::Name)?;
                    let kind = kind_of(&self.tree.node(child.id).kind);
                    subfolders += u32::from(kind == folder::KIND_FOLDER);
                    entries.push(Name { name, ino: self.order.ino(child.id), kind });
                }
                if ino == ROOT_INO && self.order.lost_found.is_none() {
                    subfolders += 1;
                    entries.push(Name { name: LOST_FOUND, ino: LOST_FOUND_INO, kind: folder::KIND_FOLDER });
                }
                let links = subfolders.saturating_add(2);
                return self.folder(ino, self.order.parent(id), &entries, node.meta, links, &node.xattrs);
            }
            NodeKind::File(_) | NodeKind::Sparse(_) => {
                size = self.file(node)?;
                flags = FLAG_EXTENTS;
                map = self.extents.finish(&mut self.allocator, &mut self.out, inode::seed(self.seed, ino))?;
            }
            NodeKind::Symlink(target) if target.len() < map.len() => {
                kind = inode::TYPE_SYMLINK;
                size = target.len() as u64;
                put(&mut map, 0, target);
            }
            NodeKind::Symlink(target) => {
                kind = inode::TYPE_SYMLINK;
                size = target.len() as u64;
                flags = FLAG_EXTENTS;
                let mut block: Block = [0; BLOCK_LEN];
                put(&mut block, 0, target);
                let out = &mut self.out;
                self.extents.map(&mut self.allocator, 0, 1, |_, run| Ok(out.block(run.first, &block)?))?;
                map = self.extents.finish(&mut self.allocator, &mut self.out, inode::seed(self.seed, ino))?;
            }
            NodeKind::Char(major, minor) => {
                kind = inode::TYPE_CHAR;
                map = inode::device(*major, *minor);
            }
            NodeKind::Block(major, minor) => {
                kind = inode::TYPE_BLOCK;
                map = inode::device(*major, *minor);
            }
            NodeKind::Fifo => kind = inode::TYPE_FIFO,
        }
        let links = u16::try_from(node.links()).unwrap_or(u16::MAX);
        let inode = self.inode(kind, node.meta, links, flags, map, size);
        self.put_with_attributes(ino, inode, &node.xattrs)
    }

    fn inode(&self, kind: u16, meta: Meta, links: u16, flags: u32, map: [u8; 60], size: u64) -> Inode {
        Inode {
            mode: kind | meta.mode & 0o7777,
            uid: meta.uid,
            gid: meta.gid,
            size,
            links,
            blocks: self.extents.blocks,
            flags,
            map,
            time: meta.mtime,
            ..Inode::internal(0)
        }
    }

    fn folder(
        &mut self,
        ino: u32,
        parent: u32,
        names: &[Name<'_>],
        meta: Meta,
        links: u32,
        attributes: &[crate::xattr::Xattr],
    ) -> Result<(), Ext4Error> {
        let seed = inode::seed(self.seed, ino);
        let folder = Folder::new(Own { ino, parent, seed }, names, self.hash_seed)?;
        self.extents.clear();
        let blocks = folder.blocks() as u64;
        let out = &mut self.out;
        self.extents.map(&mut self.allocator, 0, blocks, |logical, run| {
            for number in 0..run.count {
                let block = folder.render(usize::try_from(logical + number).unwrap_or_default());
                out.block(run.first + number, &block)?;
            }
            Ok(())
        })?;
        let map = self.extents.finish(&mut self.allocator, &mut self.out, seed)?;
        let flags = FLAG_EXTENTS | if folder.is_indexed() { FLAG_INDEX } else { 0 };
        // More subfolders than a file may have links are not counted (`dir_nlink`).
        let links = if links > LINK_MAX { 1 } else { u16::try_from(links).unwrap_or(1) };
        let (group, _) = self.geometry.place(ino);
        let group = usize::try_from(group).unwrap_or_default();
        if self.folders.len() <= group {
            self.folders.resize(group + 1, 0);
        }
        if let Some(count) = self.folders.get_mut(group) {
            *count += 1;
        }
        let inode = self.inode(inode::TYPE_FOLDER, meta, links, flags, map, blocks * BLOCK);
        self.put_with_attributes(ino, inode, attributes)
    }

    /// Writes a file's contents; blocks of zeros become holes. Returns its size.
    fn file(&mut self, node: &crate::tree::Node) -> Result<u64, Ext4Error> {
        let Some(content) = node.kind.bytes(self.contents) else { return Ok(0) };
        let size = content.size();
        if size.div_ceil(BLOCK) > MOST_FILE_BLOCKS {
            return Err(Ext4Error::File { size });
        }
        self.content_bytes = self.content_bytes.saturating_add(size);
        let mut at = 0;
        // Only what has data is looked at: the rest may be terabytes.
        while let Some((data, data_end)) = content.next_data(at) {
            self.check()?;
            let from = data / BLOCK * BLOCK;
            let end = data_end.next_multiple_of(BLOCK).min(size);
            let length = (CHUNK as u64).min(end - from);
            let length = usize::try_from(length).unwrap_or(CHUNK);
            let padded = length.next_multiple_of(BLOCK_LEN);
            let chunk = self.chunk.get_mut(..padded).unwrap_or_default();
            let (filled, rest) = chunk.split_at_mut(length);
            content.read_at(from, filled)?;
            rest.fill(0);
            let (extents, allocator, out) = (&mut self.extents, &mut self.allocator, &mut self.out);
            place(chunk, from / BLOCK, extents, allocator, out)?;
            at = from + length as u64;
            self.done += length as u64;
            self.progress.bytes(self.done, 0);
        }
        Ok(size)
    }

    fn put_with_attributes(
        &mut self,
        ino: u32,
        mut inode: Inode,
        attributes: &[crate::xattr::Xattr],
    ) -> Result<(), Ext4Error> {
        match xattr::in_inode(attributes) {
            Some(room) => inode.attributes = room,
            None => {
                let block = self.allocator.one()?;
                self.out.block(block, &xattr::in_block(attributes, block, self.seed)?)?;
                inode.attribute_block = block;
                inode.blocks += 1;
            }
        }
        self.put(ino, &inode)
    }

    fn put(&mut self, ino: u32, inode: &Inode) -> Result<(), Ext4Error> {
        let raw = inode.render(inode::seed(self.seed, ino));
        let (group, index) = self.geometry.place(ino);
        let at = usize::try_from(index % INODES_PER_BLOCK).unwrap_or_default() * INODE;
        if ino <= FIRST_BLOCK {
            put(&mut self.table.first, at, &raw);
            return Ok(());
        }
        let block = self.geometry.table(group) + u64::from(index / INODES_PER_BLOCK);
        let other = self.table.open.take_if(|(open, _)| *open != block);
        if let Some((done, contents)) = other {
            self.out.block(done, &contents)?;
        }
        let (_, contents) = self.table.open.get_or_insert((block, [0; BLOCK_LEN]));
        put(contents, at, &raw);
        Ok(())
    }

    /// Journal, reserved descriptors, tables and superblocks. Returns the bytes of the file system.
    fn finish(&mut self, spec: &Spec<'_>) -> Result<u64, Ext4Error> {
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
                let inodes = u64::from(self.order.last());
                let inodes = inodes + inodes / 8 + 1024;
                let mut groups = inodes.div_ceil(u64::from(self.geometry.inodes_per_group)).max(1);
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

/// Writes the blocks of `chunk` that are not zero; `first` is the number of its first block in the
/// file.
fn place(
    chunk: &[u8],
    first: u64,
    extents: &mut Extents,
    allocator: &mut Allocator,
    out: &mut Out<'_>,
) -> Result<(), Ext4Error> {
    static ZEROS: Block = [0; BLOCK_LEN];
    let zero = |number: u64| block_of(chunk, number).is_none_or(|block| *block == ZEROS);
    let count = (chunk.len() / BLOCK_LEN) as u64;
    let mut number = 0;
    while number < count {
        if zero(number) {
            number += 1;
            continue;
        }
        let from = number;
        while number < count && !zero(number) {
            number += 1;
        }
        // A short stretch of zeros since the last block is allocated, and not written.
        let gap = (first + from).saturating_sub(extents.end());
        if gap > 0 && gap < SHORTEST_HOLE {
            extents.map(allocator, extents.end(), gap, |_, _| Ok(()))?;
        }
        extents.map(allocator, first + from, number - from, |logical, run: Run| {
            let start = usize::try_from(logical - first).unwrap_or_default() * BLOCK_LEN;
            let length = usize::try_from(run.count).unwrap_or_default() * BLOCK_LEN;
            Ok(out.blocks(run.first, chunk.get(start..start + length).unwrap_or_default())?)
        })?;
    }
    Ok(())
}

fn block_of(chunk: &[u8], number: u64) -> Option<&[u8]> {
    let start = usize::try_from(number).ok()?.checked_mul(BLOCK_LEN)?;
    chunk.get(start..start + BLOCK_LEN)
}

fn kind_of(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::Dir(_) => folder::KIND_FOLDER,
        NodeKind::File(_) | NodeKind::Sparse(_) => folder::KIND_FILE,
        NodeKind::Symlink(_) => folder::KIND_SYMLINK,
        NodeKind::Char(..) => folder::KIND_CHAR,
        NodeKind::Block(..) => folder::KIND_BLOCK,
        NodeKind::Fifo => folder::KIND_FIFO,
    }
}
