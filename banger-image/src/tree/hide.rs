//! What a layer hides of the layers below it.

use super::{Child, IMPLICIT, NodeId, NodeKind, Tree};

/// A folder that is met while what is below another one is hidden.
struct Met {
    id: NodeId,
    /// Where it is; not for the one that all others are below.
    place: Option<(NodeId, Box<[u8]>)>,
    /// Whether the present layer has put it there.
    own: bool,
}

impl Tree {
    /// The folder at `path` for what hides things: links of lower layers are not followed, and what
    /// is no folder hides nothing.
    fn find_hidden(&mut self, path: &[u8]) -> Option<NodeId> {
        let mut here = Self::ROOT;
        let mut walked = 0;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            walked += part.len() + 1;
            let child = self.entry(here, part)?;
            here = match &self.node(child.id).kind {
                NodeKind::Dir(_) => child.id,
                NodeKind::Symlink(_) if child.layer == self.layer => {
                    let upto = path.get(..walked.min(path.len())).unwrap_or_default().to_owned();
                    self.find_dir(&upto).ok().flatten()?
                }
                _ => return None,
            };
        }
        Some(here)
    }

    /// Hides what the layers below have put at `name` in the folder at `path`. What this layer has
    /// put there stays, wherever its entry stands in the archive.
    pub(crate) fn hide(&mut self, path: &[u8], name: &[u8]) {
        let Some(dir) = self.find_hidden(path) else { return };
        let Some(child) = self.entry(dir, name) else { return };
        if !matches!(self.node(child.id).kind, NodeKind::Dir(_)) {
            if child.layer != self.layer {
                self.remove(dir, name);
            }
        } else if self.purge(child.id) || child.layer == self.layer {
            // A folder of a layer below that this one has something in: it is made anew around
            // that.
            if child.layer != self.layer {
                self.describe(child.id, IMPLICIT, Box::default());
            }
        } else {
            self.remove(dir, name);
        }
    }

    /// Hides all that the layers below have put into the folder at `path`.
    pub(crate) fn hide_all(&mut self, path: &[u8]) {
        if let Some(dir) = self.find_hidden(path) {
            self.purge(dir);
        }
    }

    /// Removes what layers below have put into a folder, at any depth; true when something of this
    /// layer is left in it.
    fn purge(&mut self, folder: NodeId) -> bool {
        // Folders in the order in which they are met: each stands behind the one that it is in.
        let mut folders = vec![Met { id: folder, place: None, own: true }];
        let mut next = 0;
        while let Some(id) = folders.get(next).map(|met| met.id) {
            next += 1;
            if self.purged.contains(&id) {
                continue;
            }
            let NodeKind::Dir(children) = &self.node(id).kind else { continue };
            for (name, child) in children {
                if matches!(self.node(child.id).kind, NodeKind::Dir(_)) {
                    let place = Some((id, name.clone()));
                    folders.push(Met { id: child.id, place, own: child.layer == self.layer });
                }
            }
        }
        let mut left = false;
        while let Some(Met { id, place, own }) = folders.pop() {
            if self.purged.insert(id) {
                for name in self.lower_files(id) {
                    self.remove(id, &name);
                }
            }
            let is_empty = matches!(&self.node(id).kind, NodeKind::Dir(children) if children.is_empty());
            match place {
                None => left = !is_empty,
                Some(_) if own => {}
                Some((parent, name)) if is_empty => self.remove(parent, &name),
                // Of a layer below, and this one has put something into it: it is made anew around
                // that.
                Some(_) => self.describe(id, IMPLICIT, Box::default()),
            }
        }
        left
    }

    /// Names in a folder that are of layers below and lead to no folder.
    fn lower_files(&self, folder: NodeId) -> Vec<Box<[u8]>> {
        let NodeKind::Dir(children) = &self.node(folder).kind else { return Vec::new() };
        let is_hidden =
            |child: &Child| child.layer != self.layer && !matches!(self.node(child.id).kind, NodeKind::Dir(_));
        children.iter().filter(|(_, child)| is_hidden(child)).map(|(name, _)| name.clone()).collect()
    }
}
