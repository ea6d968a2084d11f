//! Whether a plain archive is a root file system, before that is found out at the first boot.
//!
//! What is known to be something else is refused. What merely has none of a root's folders gets a
//! warning: an archive with a single static program boots.

use super::error::ImageError;
use super::names::printable;
use super::source::Progress;
use super::tree::{Names, NodeKind, Tree};

/// One of these is at the top of every root file system.
const TOP: [&[u8]; 4] = [b"bin", b"sbin", b"usr", b"etc"];
/// Folders with a single name that are gone through.
const DEPTH: usize = 8;
/// Names that a message shows.
const SHOWN: usize = 6;

/// # Errors
/// [`ImageError::NotARoot`] with what was found, and what to do.
pub(crate) fn check(tree: &Tree, progress: &dyn Progress) -> Result<(), ImageError> {
    let NodeKind::Dir(top) = &tree.node(Tree::ROOT).kind else { return Ok(()) };
    if is_root(top) {
        return Ok(());
    }
    let below = |name: &[u8]| {
        let id = tree.child(Tree::ROOT, name)?;
        match &tree.node(id).kind {
            NodeKind::Dir(names) if is_root(names) => Some(printable(name)),
            _ => None,
        }
    };
    let names: Vec<String> = top.keys().take(SHOWN).map(|name| printable(name)).collect();
    let more = if top.len() > SHOWN { ", ..." } else { "" };
    if top.contains_key(&b"metadata.yaml"[..]) && below(b"rootfs").is_some() {
        let found = "it is an image of Incus or LXD (metadata.yaml and rootfs)".to_owned();
        let instead = "unpack it, and give what is in rootfs: `tar -C rootfs -cf root.tar .`".to_owned();
        return Err(ImageError::NotARoot { found, instead });
    }
    if let Some(folder) = top.keys().find_map(|name| below(name)) {
        let found = format!("everything is in the folder \"{folder}\"");
        let instead = format!("give what is in it: `tar -C \"{folder}\" -cf root.tar .`");
        return Err(ImageError::NotARoot { found, instead });
    }
    if let Some((folder, what)) = image_below(tree) {
        let found = format!("the folder \"{folder}\" holds {what}");
        let instead = format!("give what is in it: `tar -C \"{folder}\" -cf image.tar .`");
        return Err(ImageError::NotARoot { found, instead });
    }
    let names = names.join(", ");
    progress.warn(&format!("nothing of bin, sbin, usr and etc is at its top, which has: {names}{more}; will it boot?"));
    Ok(())
}

/// The one folder at the top with an image in it, or the one below it, and what marks the image.
fn image_below(tree: &Tree) -> Option<(String, &'static str)> {
    let mut path = Vec::new();
    let mut id = Tree::ROOT;
    for _ in 0..DEPTH {
        let NodeKind::Dir(names) = &tree.node(id).kind else { return None };
        let has = |name: &str| names.contains_key(name.as_bytes());
        let found = match () {
            () if has("oci-layout") && has("index.json") => Some("an OCI layout"),
            () if has("manifest.json") => Some("a manifest.json, as `docker save` and skopeo write it"),
            () if has("repositories") => Some("repositories, as `docker save` wrote them"),
            () => None,
        };
        if let Some(what) = found.filter(|_| !path.is_empty()) {
            return Some((path.join("/"), what));
        }
        let (name, child) = names.first_key_value().filter(|_| names.len() == 1)?;
        path.push(printable(name));
        id = child.id;
    }
    None
}

fn is_root(names: &Names) -> bool {
    TOP.iter().any(|top| names.contains_key(*top))
}
