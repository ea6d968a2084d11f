//! Writes a tree as ext4. The second check of every name happens in here, in the writer (`mkext4`).
//!
//! The same tree and parameters give the same bytes: UUID and times come from the caller, nothing from a clock.

use super::archive::Meta;
use super::error::ImageError;
use super::extent::Extent;
use super::source::{Progress, Window, check};
use super::tree::{Content, NodeId, NodeKind, Tree};
use banger_policy::Digest;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Options, RegionSink, SpecialKind};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Smallest file system that holds a journal: mkext4 wants 2048 blocks of 4 KiB.
pub(crate) const MIN_SIZE: u64 = 16 << 20;
/// Largest disk of the contract.
pub(crate) const MAX_SIZE: u64 = 128 << 30;

/// What is not in the tree.
pub(crate) struct Ext4<'a> {
    pub(crate) extent: Extent,
    /// Length of the file, bytes: not less than the file system's. Behind that it is one hole.
    pub(crate) file_bytes: u64,
    pub(crate) uuid: [u8; 16],
    /// At most 16 bytes.
    pub(crate) label: &'a str,
    /// Permission bits of the file on the host.
    pub(crate) host_mode: u32,
}

/// # Errors
/// [`ImageError::BuildSize`].
pub(crate) fn check_size(size: u64) -> Result<(), ImageError> {
    if !size.is_multiple_of(4096) {
        return Err(ImageError::BuildSize { size, why: "it is not a multiple of 4096" });
    }
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(ImageError::BuildSize { size, why: "it is outside 16 MiB to 128 GiB" });
    }
    Ok(())
}

/// A UUID (RFC 9562 version 8: of our own making) from the first bytes of a digest.
pub(crate) fn uuid(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Writes `tree` to the new file `path`, sparse, and syncs it.
///
/// # Errors
/// `BuildSize`, `Ext4` (does not fit), `Entry` (`lost+found` is not an empty folder), `Write`, `Read`, `Cancelled`.
pub(crate) fn write(
    tree: Tree,
    windows: &[Window],
    ext4: &Ext4<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<u64, ImageError> {
    let plan = Plan::new(tree, ext4, progress)?;
    check(progress)?;
    let layout = plan.builder.seal().map_err(|error| refused(&error))?;
    let write_error = |source| ImageError::Write { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(ext4.host_mode).open(path).map_err(write_error)?;
    // Whatever the umask was.
    file.set_permissions(Permissions::from_mode(ext4.host_mode)).map_err(write_error)?;
    file.set_len(ext4.file_bytes).map_err(write_error)?;
    let mut sink = Sink { file: &file, done: 0, total: plan.bytes, progress };
    let outcome = (|| {
        let mut writer = layout.writer(&mut sink)?;
        for (handle, content) in &plan.files {
            let window = windows.get(content.window).and_then(|window| window.part(content.offset, content.size));
            let window = window.ok_or_else(|| mkext4::Error::Io(io::ErrorKind::UnexpectedEof.into()))?;
            writer.fill(*handle, &mut window.reader())?;
        }
        writer.finish()
    })();
    match outcome {
        Ok(_) => {}
        Err(_) if progress.cancelled() => return Err(ImageError::Cancelled),
        Err(mkext4::Error::Io(source)) => return Err(write_error(source)),
        Err(error) => return Err(refused(&error)),
    }
    file.sync_all().map_err(write_error)?;
    Ok(plan.bytes)
}

fn refused(error: &mkext4::Error) -> ImageError {
    let why = error.to_string();
    let full = why.contains("too small") || why.contains("image full");
    ImageError::Ext4 { why: if full { format!("{why}; use a larger build size") } else { why } }
}

/// The tree, declared to the writer.
struct Plan {
    builder: FsBuilder,
    /// In order of declaration, which is the order on disk.
    files: Vec<(InodeHandle, Content)>,
    bytes: u64,
}

impl Plan {
    fn new(tree: Tree, ext4: &Ext4<'_>, progress: &dyn Progress) -> Result<Self, ImageError> {
        let newest = tree.nodes().map(|node| node.meta.mtime.0).max().unwrap_or_default();
        let epoch = newest.clamp(0, i64::from(u32::MAX));
        let mut options = Options::new(ext4.extent.bytes, ext4.uuid, epoch);
        options.label = Some(ext4.label.to_owned());
        // Blocks kept for root protect a host from its users; here root is the user.
        options.reserved_percent = 0;
        options.inodes = InodeCount::Exact(ext4.extent.inodes);
        options.journal_blocks = Some(ext4.extent.journal);
        let builder = FsBuilder::new(options).map_err(|error| refused(&error))?;
        let mut plan = Self { builder, files: Vec::new(), bytes: 0 };
        plan.declare(&tree, progress)?;
        Ok(plan)
    }

    fn declare(&mut self, tree: &Tree, progress: &dyn Progress) -> Result<(), ImageError> {
        let mut handles: Vec<Option<InodeHandle>> = vec![None; tree.capacity()];
        let mut todo = vec![(Tree::ROOT, mkext4::ROOT)];
        let root = tree.node(Tree::ROOT);
        self.builder.set_meta(mkext4::ROOT, meta(&root.meta)).map_err(|error| refused(&error))?;
        self.xattrs(tree, Tree::ROOT, mkext4::ROOT)?;
        while let Some((dir, parent)) = todo.pop() {
            check(progress)?;
            let NodeKind::Dir(children) = &tree.node(dir).kind else {
                continue;
            };
            for (name, id) in children {
                if dir == Tree::ROOT && name.as_ref() == "lost+found" {
                    lost_and_found(tree, *id)?;
                    continue;
                }
                let seen = handles.get_mut(Tree::index(*id));
                if let Some(Some(handle)) = seen {
                    self.builder.hardlink(parent, name, *handle).map_err(|error| refused(&error))?;
                    continue;
                }
                let handle = self.node(tree, *id, parent, name).map_err(|error| refused(&error))?;
                if let Some(slot) = seen {
                    *slot = Some(handle);
                }
                self.xattrs(tree, *id, handle)?;
                if matches!(tree.node(*id).kind, NodeKind::Dir(_)) {
                    todo.push((*id, handle));
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, tree: &Tree, id: NodeId, parent: InodeHandle, name: &str) -> mkext4::Result<InodeHandle> {
        let node = tree.node(id);
        let meta = meta(&node.meta);
        let builder = &mut self.builder;
        let mut special = |kind| builder.mknod(parent, name, meta, kind);
        match &node.kind {
            NodeKind::Char(major, minor) => special(SpecialKind::Char { major: *major, minor: *minor }),
            NodeKind::Block(major, minor) => special(SpecialKind::Block { major: *major, minor: *minor }),
            NodeKind::Fifo => special(SpecialKind::Fifo),
            NodeKind::Dir(_) => builder.mkdir(parent, name, meta),
            NodeKind::Symlink(target) => builder.symlink(parent, name, target, meta),
            NodeKind::File(content) => {
                let handle = builder.file(parent, name, meta, content.size)?;
                if content.size > 0 {
                    self.files.push((handle, *content));
                    self.bytes = self.bytes.saturating_add(content.size);
                }
                Ok(handle)
            }
        }
    }

    fn xattrs(&mut self, tree: &Tree, id: NodeId, handle: InodeHandle) -> Result<(), ImageError> {
        for xattr in &tree.node(id).xattrs {
            self.builder.set_xattr(handle, &xattr.name, &xattr.value).map_err(|error| refused(&error))?;
        }
        Ok(())
    }
}

/// The writer makes its own `lost+found`; one with something in it would be lost.
fn lost_and_found(tree: &Tree, id: NodeId) -> Result<(), ImageError> {
    match &tree.node(id).kind {
        NodeKind::Dir(children) if children.is_empty() => Ok(()),
        _ => Err(ImageError::Entry {
            layer: "the image".to_owned(),
            entry: "lost+found".to_owned(),
            why: "it must be an empty folder on ext4".to_owned(),
        }),
    }
}

fn meta(meta: &Meta) -> mkext4::Meta {
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, meta.mtime)
}

/// Positioned writes; zeros stay holes. Ends at the next write when cancelled.
struct Sink<'a> {
    file: &'a File,
    done: u64,
    total: u64,
    progress: &'a dyn Progress,
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.progress.cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.write_all_at(bytes, offset)?;
        self.done += bytes.len() as u64;
        self.progress.bytes(self.done.min(self.total), self.total);
        Ok(())
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
