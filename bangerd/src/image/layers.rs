//! Applies layers to a tree, oldest first, by the rules of the OCI image specification ("Applying Changesets"
//! and "Whiteouts" in `layer.md`).

use super::archive::{Archive, Entry, Kind};
use super::error::ImageError;
use super::names::{NameFault, printable};
use super::source::{Budget, Progress, Window, check};
use super::tree::{Content, NodeKind, Tree, TreeError};
use std::collections::BTreeMap;

/// Prefix of the names that hide something of the layers below.
const WHITEOUT: &str = ".wh.";
/// Hides all that the layers below have in the folder.
const OPAQUE: &str = ".wh..wh..opq";

/// One archive to apply.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) window: Window,
    /// For messages: `layer 2 of 5`, or `the archive`.
    pub(crate) name: String,
    /// False for a plain root file system, in which `.wh.x` is a name like any other.
    pub(crate) whiteouts: bool,
    /// False when a digest has shown that the archive is complete.
    pub(crate) strict_end: bool,
}

impl Layer {
    /// A plain root file system.
    pub(crate) fn root(window: Window) -> Self {
        Self { window, name: "the archive".to_owned(), whiteouts: false, strict_end: true }
    }
}

/// Applies `layer`, whose contents are found in window number `window`.
///
/// Two passes: whiteouts speak of the layers below only, wherever they stand among the layer's own entries, so
/// all of them are applied before any entry. The first pass also refuses every bad name before anything changes.
///
/// # Errors
/// Names layer and entry.
pub(crate) fn apply(
    tree: &mut Tree,
    layer: &Layer,
    window: usize,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let before = budget.entries;
    let mut archive = Archive::new(&layer.window, &layer.name, layer.strict_end);
    while let Some(entry) = archive.next(budget)? {
        check(progress)?;
        if let Some(whiteout) = whiteout(layer, &entry)? {
            hide(tree, &whiteout).map_err(|error| tree_error(layer, &entry, &error))?;
        }
    }
    if !layer.whiteouts && budget.entries == before {
        return Err(ImageError::NoEntries { layer: layer.name.clone() });
    }
    let mut archive = Archive::new(&layer.window, &layer.name, layer.strict_end);
    // The first pass has counted.
    let mut counted = Budget::new(u64::MAX, u64::MAX);
    while let Some(entry) = archive.next(&mut counted)? {
        check(progress)?;
        if whiteout(layer, &entry)?.is_none() {
            place(tree, window, &entry).map_err(|error| tree_error(layer, &entry, &error))?;
            // Folders that no entry describes count too: one path may ask for two thousand of them.
            budget.memory.reach(tree.memory())?;
        }
    }
    Ok(())
}

enum Whiteout<'a> {
    /// Folder and name.
    One(&'a str, &'a str),
    /// All in this folder.
    All(&'a str),
}

fn whiteout<'a>(layer: &Layer, entry: &'a Entry) -> Result<Option<Whiteout<'a>>, ImageError> {
    let Some((dir, name)) = entry.path.split().filter(|_| layer.whiteouts) else {
        return Ok(None);
    };
    if name == OPAQUE {
        return Ok(Some(Whiteout::All(dir)));
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(None);
    };
    match hidden {
        "" | "." | ".." => Err(ImageError::Name {
            layer: layer.name.clone(),
            entry: printable(entry.path.as_str().as_bytes()),
            fault: NameFault::DotDot,
        }),
        // `.wh..wh.plnk` and the like: bookkeeping of AUFS, which may hold targets of hard links.
        _ if hidden.starts_with(WHITEOUT) => Err(ImageError::Unsupported {
            layer: layer.name.clone(),
            entry: printable(entry.path.as_str().as_bytes()),
            what: "AUFS bookkeeping".to_owned(),
            instead: "export the image with a current engine",
        }),
        _ => Ok(Some(Whiteout::One(dir, hidden))),
    }
}

/// What is hidden need not exist.
fn hide(tree: &mut Tree, whiteout: &Whiteout<'_>) -> Result<(), TreeError> {
    match *whiteout {
        Whiteout::One(dir, name) => {
            if let Some(dir) = tree.find_dir(dir)? {
                tree.remove(dir, name);
            }
        }
        Whiteout::All(dir) => {
            if let Some(dir) = tree.find_dir(dir)? {
                tree.clear(dir);
            }
        }
    }
    Ok(())
}

fn place(tree: &mut Tree, window: usize, entry: &Entry) -> Result<(), TreeError> {
    let kind = match &entry.kind {
        Kind::Hardlink(target) => return tree.link(&entry.path, target),
        Kind::Dir => NodeKind::Dir(BTreeMap::new()),
        Kind::File { offset, size } => NodeKind::File(Content { window, offset: *offset, size: *size }),
        Kind::Symlink(target) => NodeKind::Symlink(target.clone()),
        Kind::Char(major, minor) => NodeKind::Char(*major, *minor),
        Kind::Block(major, minor) => NodeKind::Block(*major, *minor),
        Kind::Fifo => NodeKind::Fifo,
    };
    tree.put(&entry.path, kind, entry.meta, entry.xattrs.clone().into_boxed_slice())
}

fn tree_error(layer: &Layer, entry: &Entry, error: &TreeError) -> ImageError {
    ImageError::Entry {
        layer: layer.name.clone(),
        entry: printable(entry.path.as_str().as_bytes()),
        why: error.to_string(),
    }
}
