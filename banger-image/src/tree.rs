//! The file tree of an image in memory: names, owners and where the contents are, never the
//! contents.
//!
//! Layers are applied to it (`layers`), then it is written (`rootfs`). All of it is bookkeeping: a
//! symlink is a string that is followed inside the tree only, so no archive can reach anything
//! else. About 200 bytes an entry.

mod hide;

use super::acl;
use super::content::{Bytes, Content, Contents, Sparse};
use super::names::{EntryPath, MAX_PATH, NameFault, component, printable};
use super::xattr::{ACCESS, CAPABILITY, Xattr};
use std::collections::{BTreeMap, HashSet};

/// The kernel's own limit of symlinks in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: u32 = 40;
/// ext4's limit of names of one file (`EXT4_LINK_MAX`).
const MAX_LINKS: u32 = 65_000;

/// Owner, permissions, time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Of the last change: seconds since the epoch, and nanoseconds behind them.
    pub(crate) mtime: (i64, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

/// What a name in a folder leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) id: NodeId,
    /// Number of the layer that has put the name there.
    layer: u16,
}

/// The names of a folder.
pub(crate) type Names = BTreeMap<Box<[u8]>, Child>;

#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Dir(Names),
    File(Content),
    Sparse(Box<Sparse>),
    Symlink(Box<[u8]>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl NodeKind {
    /// The bytes of a file; `None` for what is no file, and for a file whose window is not there.
    pub(crate) fn bytes<'b>(&'b self, contents: &'b Contents<'_>) -> Option<Bytes<'b>> {
        match self {
            Self::File(content) => contents.bytes(*content, content.size, &[]),
            Self::Sparse(sparse) => contents.bytes(sparse.data, sparse.size, &sparse.pieces),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) meta: Meta,
    pub(crate) xattrs: Box<[Xattr]>,
    /// Names of this node; a folder has one.
    links: u32,
    /// Length of a folder's own path below the root, bytes. A folder never moves, so it never
    /// changes.
    path_bytes: u32,
}

/// Why an entry has no place in the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("\"{0}\" on its path is not a folder")]
    NotADirectory(String),
    #[error("its path has too many levels of symlinks")]
    SymlinkLoop,
    #[error("its path, symlinks followed, has more than {MAX_PATH} bytes: no program could open it")]
    PathTooLong,
    #[error("a link on its path leads to {0}")]
    Name(NameFault),
    #[error("the root must be a folder")]
    Root,
    #[error("hard link to \"{0}\", which is not in the image")]
    LinkTargetMissing(String),
    #[error("hard link to the folder \"{0}\"")]
    LinkToDirectory(String),
    #[error("more than 65000 hard links to \"{0}\"")]
    TooManyLinks(String),
}

impl Node {
    /// Whether hard links make it reachable by several names.
    pub(crate) fn has_more_names(&self) -> bool {
        self.links > 1
    }

    /// Names of what is no folder.
    pub(crate) fn links(&self) -> u32 {
        self.links
    }
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// The layer that is being applied.
    layer: u16,
    /// Folders in which it has hidden everything already: an archive may ask for that as often as
    /// it likes.
    purged: HashSet<NodeId>,
    memory: u64,
}

/// What one entry costs, bytes: here, and its numbers in the writer. Measured, resident: see
/// `tests/growth.rs`.
const ENTRY_MEMORY: u64 = 260;

/// A folder's list of names, which is made with room for eleven.
const FOLDER_MEMORY: u64 = 340;

/// What stands for folders that no entry describes.
pub(crate) const IMPLICIT: Meta = Meta { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };

impl Tree {
    pub(crate) const ROOT: NodeId = NodeId(0);

    pub(crate) fn new() -> Self {
        let kind = NodeKind::Dir(Names::new());
        let root = Node { kind, meta: IMPLICIT, xattrs: Box::default(), links: 1, path_bytes: 0 };
        Self { nodes: vec![root], layer: 0, purged: HashSet::new(), memory: 0 }
    }

    /// What is put from now on belongs to another layer.
    pub(crate) fn next_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
        self.purged.clear();
    }

    /// What this tree takes until it is written, removed entries included: an estimate.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    #[expect(clippy::indexing_slicing, reason = "a NodeId only comes from this tree, which never shrinks")]
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[Self::index(id)]
    }

    #[expect(clippy::indexing_slicing, reason = "as in node()")]
    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// Nodes ever made; ids are below it.
    pub(crate) fn capacity(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) const fn index(id: NodeId) -> usize {
        id.0 as usize
    }

    fn entry(&self, dir: NodeId, name: &[u8]) -> Option<Child> {
        match &self.node(dir).kind {
            NodeKind::Dir(children) => children.get(name).copied(),
            _ => None,
        }
    }

    pub(crate) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entry(dir, name).map(|child| child.id)
    }

    /// The folder at `path`, symlinks followed inside the tree; `None` when it does not exist.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`], [`TreeError::SymlinkLoop`].
    pub(crate) fn find_dir(&mut self, path: &[u8]) -> Result<Option<NodeId>, TreeError> {
        self.walk(path, None)
    }

    /// The folder at `path`; missing ones are made, as `mkdir -p` does, with `implicit`.
    fn make_dir(&mut self, path: &[u8], mtime: (i64, u32)) -> Result<NodeId, TreeError> {
        // walk() returns None only when it may not make folders.
        self.walk(path, Some(Meta { mtime, ..IMPLICIT })).map(|dir| dir.unwrap_or(Self::ROOT))
    }

    fn walk(&mut self, path: &[u8], implicit: Option<Meta>) -> Result<Option<NodeId>, TreeError> {
        fn parts(path: &[u8]) -> impl Iterator<Item = Box<[u8]>> + '_ {
            path.rsplit(|byte| *byte == b'/').map(Into::into)
        }
        let mut above: Vec<NodeId> = Vec::new();
        let mut here = Self::ROOT;
        let mut links = 0;
        let mut todo: Vec<Box<[u8]>> = parts(path).collect();
        while let Some(part) = todo.pop() {
            match part.as_ref() {
                b"" | b"." => continue,
                // As in a chroot, the root's parent is the root. Only symlink targets contain `..`.
                b".." => {
                    here = above.pop().unwrap_or(Self::ROOT);
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.child(here, &part) else {
                let Some(meta) = implicit else {
                    return Ok(None);
                };
                // It may have come from a link's target, which is not a name until something is put
                // there.
                component(&part).map_err(TreeError::Name)?;
                let made = self.insert(here, &part, NodeKind::Dir(Names::new()), meta, Box::default())?;
                above.push(std::mem::replace(&mut here, made));
                continue;
            };
            match &self.node(child).kind {
                NodeKind::Dir(_) => above.push(std::mem::replace(&mut here, child)),
                NodeKind::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(TreeError::SymlinkLoop);
                    }
                    if target.starts_with(b"/") {
                        above.clear();
                        here = Self::ROOT;
                    }
                    todo.extend(parts(target));
                }
                _ => return Err(TreeError::NotADirectory(printable(&part))),
            }
        }
        Ok(Some(here))
    }

    /// Puts a node at `path`. A folder over a folder replaces owner, mode and attributes and keeps
    /// the children; anything else replaces what was there. The last component is never followed.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(crate) fn put(
        &mut self,
        path: &EntryPath,
        kind: NodeKind,
        meta: Meta,
        xattrs: Box<[Xattr]>,
    ) -> Result<(), TreeError> {
        let is_dir = matches!(kind, NodeKind::Dir(_));
        let Some((parent, name)) = path.split() else {
            if !is_dir {
                return Err(TreeError::Root);
            }
            self.describe(Self::ROOT, meta, xattrs);
            return Ok(());
        };
        let dir = self.make_dir(parent, meta.mtime)?;
        match self.child(dir, name) {
            Some(child) if is_dir && matches!(self.node(child).kind, NodeKind::Dir(_)) => {
                self.describe(child, meta, xattrs);
                self.attach(dir, name, child);
            }
            _ => {
                self.remove(dir, name);
                self.insert(dir, name, kind, meta, xattrs)?;
            }
        }
        Ok(())
    }

    fn describe(&mut self, folder: NodeId, meta: Meta, xattrs: Box<[Xattr]>) {
        self.account(&xattrs);
        let node = self.node_mut(folder);
        node.meta = meta;
        node.xattrs = xattrs;
    }

    /// Another name for the file at `target`; gives the file.
    ///
    /// # Errors
    /// [`TreeError`].
    pub(crate) fn link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<NodeId, TreeError> {
        let (parent, name) = path.split().ok_or(TreeError::Root)?;
        let shown = || printable(target.as_bytes());
        let (target_parent, target_name) = target.split().ok_or_else(|| TreeError::LinkToDirectory(String::new()))?;
        let node = self.find_dir(target_parent)?.and_then(|dir| self.child(dir, target_name));
        let node = node.ok_or_else(|| TreeError::LinkTargetMissing(shown()))?;
        if matches!(self.node(node).kind, NodeKind::Dir(_)) {
            return Err(TreeError::LinkToDirectory(shown()));
        }
        if self.node(node).links >= MAX_LINKS {
            return Err(TreeError::TooManyLinks(shown()));
        }
        let mtime = self.node(node).meta.mtime;
        let dir = self.make_dir(parent, mtime)?;
        if self.child(dir, name) == Some(node) {
            self.attach(dir, name, node);
            return Ok(node);
        }
        self.path_bytes(dir, name)?;
        self.node_mut(node).links += 1;
        self.remove(dir, name);
        self.attach(dir, name, node);
        Ok(node)
    }

    /// Gives a file what the header of a hard link to it says, as container engines do: lchown(2),
    /// setxattr(2) of each attribute, chmod(2), utimensat(2).
    pub(crate) fn describe_by_link(&mut self, file: NodeId, meta: Meta, xattrs: Vec<Xattr>) {
        self.account(&xattrs);
        let node = self.node_mut(file);
        // chown(2) takes a file's capabilities away, and a symlink has no mode of its own.
        let stays = |old: &Xattr| old.name != CAPABILITY && xattrs.iter().all(|new| new.name != old.name);
        let mut all: Vec<Xattr> = std::mem::take(&mut node.xattrs).into_vec().into_iter().filter(stays).collect();
        all.extend(xattrs);
        if !matches!(node.kind, NodeKind::Symlink(_)) {
            node.meta.mode = meta.mode;
        }
        for access in all.iter_mut().filter(|xattr| xattr.name == ACCESS) {
            acl::change_mode(&mut access.value, meta.mode);
        }
        node.meta = Meta { mode: node.meta.mode, ..meta };
        node.xattrs = all.into_boxed_slice();
    }

    /// Removes a name, and what only it reached. Nothing happens when it does not exist.
    pub(crate) fn remove(&mut self, dir: NodeId, name: &[u8]) {
        let mut gone: Vec<NodeId> = match &mut self.node_mut(dir).kind {
            NodeKind::Dir(children) => children.remove(name).map(|child| child.id).into_iter().collect(),
            _ => Vec::new(),
        };
        // With its own stack: the archive decides how deep the tree is.
        while let Some(id) = gone.pop() {
            let node = self.node_mut(id);
            node.links = node.links.saturating_sub(1);
            if let NodeKind::Dir(children) = &mut node.kind {
                gone.extend(std::mem::take(children).into_values().map(|child| child.id));
            }
        }
    }

    /// Removes the names in a folder that are `unwanted`.
    pub(crate) fn remove_all(&mut self, dir: NodeId, unwanted: impl Fn(&[u8]) -> bool) {
        let NodeKind::Dir(children) = &self.node(dir).kind else { return };
        let names: Vec<Box<[u8]>> = children.keys().filter(|name| unwanted(name)).cloned().collect();
        for name in names {
            self.remove(dir, &name);
        }
    }

    /// Length of the path of `name` in `dir`. An entry's own path is short (`names`), but through
    /// links one folder is put below another without end: fifty thousand deep, each path would be
    /// written with every entry below it.
    fn path_bytes(&self, dir: NodeId, name: &[u8]) -> Result<u32, TreeError> {
        let above = self.node(dir).path_bytes as usize;
        let whole = above + usize::from(above > 0) + name.len();
        if whole > MAX_PATH {
            Err(TreeError::PathTooLong)
        } else {
            u32::try_from(whole).map_err(|_| TreeError::PathTooLong)
        }
    }

    fn insert(
        &mut self,
        dir: NodeId,
        name: &[u8],
        kind: NodeKind,
        meta: Meta,
        xattrs: Box<[Xattr]>,
    ) -> Result<NodeId, TreeError> {
        let path_bytes = self.path_bytes(dir, name)?;
        // The budget of entries is far below 2^32.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        let own = match &kind {
            NodeKind::Dir(_) => FOLDER_MEMORY,
            NodeKind::Symlink(target) => target.len() as u64,
            NodeKind::Sparse(sparse) => 24 * sparse.pieces.len() as u64 + 64,
            _ => 0,
        };
        self.memory += ENTRY_MEMORY + own;
        self.account(&xattrs);
        self.nodes.push(Node { kind, meta, xattrs, links: 1, path_bytes });
        self.attach(dir, name, id);
        Ok(id)
    }

    fn account(&mut self, xattrs: &[Xattr]) {
        let bytes: usize = xattrs.iter().map(|xattr| 64 + xattr.name.len() + xattr.value.len()).sum();
        self.memory += bytes as u64;
    }

    fn attach(&mut self, dir: NodeId, name: &[u8], id: NodeId) {
        // Each name is an allocation of its own, and another one in the folder's index when that is
        // written.
        self.memory += 2 * name.len() as u64;
        let child = Child { id, layer: self.layer };
        if let NodeKind::Dir(children) = &mut self.node_mut(dir).kind {
            match children.get_mut(name) {
                Some(known) => *known = child,
                None => drop(children.insert(name.into(), child)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
