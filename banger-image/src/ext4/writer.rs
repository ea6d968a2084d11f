//! The order in which a file system is written: contents and inodes in one pass, what counts them
//! at the end.

mod contents;
mod finish;

use super::alloc::Allocator;
use super::bytes::{Block, put};
use super::extents::Extents;
use super::folder::{self, Folder, Name, Own};
use super::geometry::{Geometry, INODES_PER_BLOCK, Size};
use super::inode::{self, FLAG_EXTENTS, FLAG_INDEX, INODE, Inode};
use super::order::{LOST_FOUND, LOST_FOUND_INO, Order, ROOT_INO};
use super::out::Out;
use super::{BLOCK, BLOCK_LEN, Ext4Error, GROUP_BLOCKS, xattr};
use crate::content::Contents;
use crate::source::Progress;
use crate::tree::{Meta, NodeId, NodeKind, Tree};
use std::fs::File;

/// `EXT4_LINK_MAX`.
const LINK_MAX: u32 = 65_000;
/// Inodes in the block of a table that has those of the file system itself: kept until the end.
const FIRST_BLOCK: u32 = INODES_PER_BLOCK;
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
    let geometry = Geometry::new(spec.size, order.last())?;
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
        chunk: vec![0; contents::CHUNK],
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
