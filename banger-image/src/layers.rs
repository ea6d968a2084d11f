//! Applies layers to a tree, oldest first, by the rules of the OCI image specification ("Applying
//! Changesets" and "Whiteouts" in `layer.md`).

use super::archive::{Archive, Entry, Kind};
use super::content::{Content, Sparse};
use super::error::ImageError;
use super::names::{EntryPath, NameFault, printable};
use super::source::{Budget, Progress, Window, check};
use super::tree::{Names, NodeKind, Tree, TreeError};

/// Prefix of the names that hide something of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Hides all that the layers below have in the folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of what engines of old kept for themselves.
const META: &[u8] = b".wh..wh.";

/// One archive to apply.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) window: Window,
    /// For messages: `layer 2 of 5`, or `the archive`.
    pub(crate) name: String,
    /// False for a plain root file system, in which `.wh.x` is a name like any other.
    pub(crate) whiteouts: bool,
}

impl Layer {
    /// A plain root file system.
    pub(crate) fn root(window: Window) -> Self {
        Self { window, name: "the archive".to_owned(), whiteouts: false }
    }
}

/// Applies `layer`, whose contents are found in window number `window`.
///
/// In one pass: an entry that hides speaks of the layers below, and the tree knows what this one
/// has put there.
///
/// # Errors
/// Names layer and entry.
pub(crate) fn apply(
    tree: &mut Tree,
    layer: &Layer,
    window: u32,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    tree.next_layer();
    let before = budget.entries;
    let mut archive = if layer.whiteouts {
        Archive::of_layer(&layer.window, &layer.name)
    } else {
        Archive::new(&layer.window, &layer.name)
    };
    while let Some(entry) = archive.next(budget, progress)? {
        check(progress)?;
        match whiteout(layer, &entry)? {
            Some(Whiteout::One(dir, name)) => tree.hide(dir, name),
            Some(Whiteout::All(dir)) => tree.hide_all(dir),
            Some(Whiteout::Bookkeeping) if !entry.path.as_bytes().starts_with(META) => {}
            Some(Whiteout::Bookkeeping) | None => {
                place(tree, window, entry, layer.whiteouts).map_err(|(path, error)| tree_error(layer, &path, &error))?
            }
        }
        // Folders that no entry describes count too: one path may ask for two thousand of them.
        budget.reach_memory(tree.memory())?;
    }
    if layer.whiteouts {
        tree.remove_all(Tree::ROOT, |name| name.starts_with(META));
    }
    if !layer.whiteouts && budget.entries == before {
        return Err(ImageError::NoEntries { layer: layer.name.clone() });
    }
    Ok(())
}

enum Whiteout<'a> {
    /// Folder and name.
    One(&'a [u8], &'a [u8]),
    /// All in this folder.
    All(&'a [u8]),
    /// `.wh..wh.plnk` and the like: what AUFS keeps for itself. Docker leaves it out as well
    /// (`WhiteoutMetaPrefix`). At the root it holds files to which hard links lead: it stays until
    /// the layer's end.
    Bookkeeping,
}

fn whiteout<'a>(layer: &Layer, entry: &'a Entry) -> Result<Option<Whiteout<'a>>, ImageError> {
    if !layer.whiteouts {
        return Ok(None);
    }
    let Some((dir, name)) = entry.path.split() else {
        return Ok(None);
    };
    if name == OPAQUE {
        return Ok(Some(Whiteout::All(dir)));
    }
    // Also what lies in such a folder.
    if entry.path.as_bytes().split(|byte| *byte == b'/').any(|part| part.starts_with(META)) {
        return Ok(Some(Whiteout::Bookkeeping));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(ImageError::Name {
            layer: layer.name.clone(),
            entry: printable(entry.path.as_bytes()),
            fault: NameFault::DotDot,
        }),
        Some(hidden) => Ok(Some(Whiteout::One(dir, hidden))),
    }
}

/// `of_go`: as container engines, which are written in Go, apply a layer.
fn place(tree: &mut Tree, window: u32, entry: Entry, of_go: bool) -> Result<(), (EntryPath, TreeError)> {
    let Entry { path, kind, mut meta, xattrs } = entry;
    let content = |offset, size| Content { window, offset, size };
    let kind = match kind {
        Kind::Hardlink(target) => {
            let file = tree.link(&path, &target).map_err(|error| (path, error))?;
            // GNU tar leaves the file as it is, and docker those that AUFS had put away.
            if of_go && !target.as_bytes().starts_with(META) {
                tree.describe_by_link(file, meta, xattrs);
            }
            return Ok(());
        }
        Kind::Dir => NodeKind::Dir(Names::new()),
        Kind::File { offset, size } => NodeKind::File(content(offset, size)),
        Kind::Sparse { offset, stored, size, pieces } => {
            NodeKind::Sparse(Box::new(Sparse { data: content(offset, stored), size, pieces }))
        }
        Kind::Symlink(target) => {
            // Linux gives it this one, whatever is asked for (symlink(7)).
            meta.mode = 0o777;
            NodeKind::Symlink(target)
        }
        Kind::Char(major, minor) => NodeKind::Char(major, minor),
        Kind::Block(major, minor) => NodeKind::Block(major, minor),
        Kind::Fifo => NodeKind::Fifo,
    };
    tree.put(&path, kind, meta, xattrs.into_boxed_slice()).map_err(|error| (path, error))
}

fn tree_error(layer: &Layer, path: &EntryPath, error: &TreeError) -> ImageError {
    ImageError::Entry { layer: layer.name.clone(), entry: printable(path.as_bytes()), why: error.to_string() }
}
