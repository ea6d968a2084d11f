//! All modules of a kernel's release as a read-only ext4 file system: `lib/modules/RELEASE`, which
//! a guest mounts there.
//!
//! Called by the import of a kernel with the files that came along. What a guest needs to boot goes
//! into the initramfs all the same; this is for what programs ask for later, such as overlay,
//! nf_tables, tun and fuse.

use super::error::KernelImportError;
use crate::ImageError;
use crate::content::{Content, Contents};
use crate::ext4::Size;
use crate::names::{EntryPath, printable};
use crate::rootfs::{self, Ext4};
use crate::source::{Progress, Window};
use crate::tree::{IMPLICIT, Meta, NodeKind, Tree};
use banger_policy::Digest;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A full kernel of a distribution has about 0.6 GiB of modules, not compressed.
const MOST: u64 = 4 << 30;

/// Writes `files`, by their paths below the folder of modules, to the new file `path`, synced and
/// as long as its file system. `identity` names it.
///
/// # Errors
/// [`KernelImportError::Archive`] for a name that no file system of ours has; `Write`, `Cancelled`.
pub(super) fn write<'a>(
    files: impl Iterator<Item = (&'a str, &'a Window)>,
    identity: &Digest,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), KernelImportError> {
    let mut tree = Tree::new();
    let mut windows = Vec::new();
    for (name, window) in files {
        let bad = |why: String| {
            let entry = printable(name.as_bytes());
            KernelImportError::Archive(ImageError::Entry { layer: "the modules".to_owned(), entry, why })
        };
        let entry = EntryPath::parse(name.as_bytes()).map_err(|fault| bad(fault.to_string()))?;
        let number = u32::try_from(windows.len()).map_err(|error| bad(error.to_string()))?;
        let content = NodeKind::File(Content { window: number, offset: 0, size: window.len() });
        let meta = Meta { mode: 0o644, ..IMPLICIT };
        tree.put(&entry, content, meta, Box::default()).map_err(|error| bad(error.to_string()))?;
        windows.push(window.clone());
    }
    let (size, uuid) = (Size::Smallest { most: MOST }, rootfs::uuid(identity));
    // Its end is known when it is written; until then it is ours to change.
    let ext4 = Ext4 { size, file_bytes: MOST, uuid, label: "modules", host_mode: 0o640 };
    let written = rootfs::write(&tree, &Contents(&windows), &ext4, path, progress)?;
    let file = File::options().write(true).open(path).map_err(KernelImportError::Write)?;
    file.set_len(written.bytes)
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o440)))
        .and_then(|()| file.sync_all())
        .map_err(KernelImportError::Write)
}
