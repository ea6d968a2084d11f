//! Numbers for the inodes of a tree.

use super::Ext4Error;
use crate::tree::{NodeId, NodeKind, Tree};

/// The root folder (`EXT4_ROOT_INO`), the first inode that is not reserved, and the one behind it.
pub(super) const ROOT_INO: u32 = 2;
pub(super) const LOST_FOUND_INO: u32 = 11;
const FIRST_INO: u32 = 12;
/// The folder at the root in which e2fsck puts what has lost its name.
pub(super) const LOST_FOUND: &[u8] = b"lost+found";

/// Which inode each node is.
#[derive(Debug)]
pub(super) struct Order {
    /// By node; 0 for one without a name.
    inodes: Vec<u32>,
    /// Inode of the folder in which a node was found first.
    parents: Vec<u32>,
    /// Nodes from [`FIRST_INO`] on.
    pub(super) sequence: Vec<NodeId>,
    /// The tree's own `lost+found`.
    pub(super) lost_found: Option<NodeId>,
}

impl Order {
    /// Numbers a folder's contents one after the other, folder by folder.
    ///
    /// # Errors
    /// [`Ext4Error::LostAndFound`].
    pub(super) fn of(tree: &Tree) -> Result<Self, Ext4Error> {
        let capacity = tree.capacity();
        let lost_found = tree.child(Tree::ROOT, LOST_FOUND);
        if lost_found.is_some_and(|id| !matches!(tree.node(id).kind, NodeKind::Dir(_))) {
            return Err(Ext4Error::LostAndFound);
        }
        let mut order =
            Self { inodes: vec![0; capacity], parents: vec![0; capacity], sequence: Vec::new(), lost_found };
        order.set(Tree::ROOT, ROOT_INO, ROOT_INO);
        let mut todo = vec![Tree::ROOT];
        if let Some(id) = lost_found {
            order.set(id, LOST_FOUND_INO, ROOT_INO);
            todo.insert(0, id);
        }
        let mut next = FIRST_INO;
        while let Some(folder) = todo.pop() {
            let NodeKind::Dir(names) = &tree.node(folder).kind else { continue };
            let own = order.ino(folder);
            let below = todo.len();
            for child in names.values() {
                if order.ino(child.id) != 0 {
                    continue;
                }
                order.set(child.id, next, own);
                order.sequence.push(child.id);
                next += 1;
                if matches!(tree.node(child.id).kind, NodeKind::Dir(_)) {
                    todo.push(child.id);
                }
            }
            todo.get_mut(below..).unwrap_or_default().reverse();
        }
        Ok(order)
    }

    fn set(&mut self, id: NodeId, ino: u32, parent: u32) {
        let index = Tree::index(id);
        if let (Some(inode), Some(slot)) = (self.inodes.get_mut(index), self.parents.get_mut(index)) {
            (*inode, *slot) = (ino, parent);
        }
    }

    pub(super) fn ino(&self, id: NodeId) -> u32 {
        self.inodes.get(Tree::index(id)).copied().unwrap_or_default()
    }

    pub(super) fn parent(&self, id: NodeId) -> u32 {
        self.parents.get(Tree::index(id)).copied().unwrap_or_default()
    }

    /// The highest number that is in use.
    pub(super) fn last(&self) -> u32 {
        u32::try_from(self.sequence.len()).unwrap_or(u32::MAX).saturating_add(FIRST_INO - 1)
    }
}
