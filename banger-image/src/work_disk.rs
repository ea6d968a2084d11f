//! Work disks: the ext4 that a guest mounts on `/root`, made from what the image has there.
//!
//! At import the image's `/root` is kept as a small tar beside the root file system
//! ([`SEED_FILE`]): a VM's work disk is then made without reading the root file system, which only
//! guests ever parse.
//!
//! [`SEED_FILE`]: super::SEED_FILE

use super::Limits;
use super::content::Contents;
use super::error::ImageError;
use super::ext4::Size;
use super::layers::{self, Layer};
use super::pax;
use super::rootfs::{self, Ext4};
use super::source::{Budget, Progress, Window, check};
use super::tree::{Meta, NodeId, NodeKind, Tree};
use super::xattr::{self, Xattr};
use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Read, Seek as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// Bytes of all paths below an image's `/root`, which its seed repeats with every entry. A home
/// folder with a hundred thousand files has 10 MB of them; two million entries with paths of 4 KB
/// would make 8 GB out of a small archive.
const MAX_PATHS: u64 = 128 << 20;

/// What becomes a hole in a seed when it is zero, bytes.
const STRETCH: usize = 64 << 10;

/// What a work disk is made of.
#[derive(Debug)]
pub struct WorkDisk {
    /// Size of the disk, bytes; a multiple of 4096.
    pub size: u64,
    /// The image's [`super::SEED_FILE`].
    pub seed: Option<File>,
    /// UUID of the file system: 16 bytes that no other disk has.
    pub uuid: [u8; 16],
}

/// Writes a work disk to the new file `path`: sparse, mode 0600, synced. Its root folder is as the
/// image has `/root`.
///
/// # Errors
/// [`ImageError`]; a file that was begun is left for the caller to remove, with the rest of the
/// VM's folder.
pub fn create(disk: WorkDisk, path: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    rootfs::check_size(disk.size)?;
    let mut tree = Tree::new();
    let mut windows = Vec::new();
    // The seed is a part of an image that was imported within these limits. Its entries are not
    // counted: beside those of the archive it has the folders that no entry described.
    let limits = Limits::for_build_size(disk.size);
    let mut budget = Budget { memory_limit: limits.memory, ..Budget::new(limits.expanded_bytes, u64::MAX) };
    match disk.seed {
        Some(seed) => {
            let layer = Layer { whiteouts: false, ..Layer::root(Window::whole(seed)?) };
            layers::apply(&mut tree, &layer, 0, &mut budget, progress)?;
            windows.push(layer.window);
        }
        None => tree.node_mut(Tree::ROOT).meta = dir_meta(),
    }
    let size = Size::Exactly { bytes: disk.size, inodes: inodes(disk.size, &tree) };
    let ext4 = Ext4 { size, file_bytes: disk.size, uuid: disk.uuid, label: "work", host_mode: 0o600 };
    rootfs::write(&tree, &Contents(&windows), &ext4, path, progress).map(drop)
}

/// As many as mke2fs would make room for, or half as many again as the seed brings.
fn inodes(bytes: u64, tree: &Tree) -> u32 {
    let brought = u32::try_from(tree.capacity()).unwrap_or(u32::MAX);
    let usual = u32::try_from(bytes / 16_384).unwrap_or(u32::MAX);
    usual.max(brought.saturating_add(brought / 2).saturating_add(1024))
}

/// Writes the `/root` of an image as a PAX tar. An image without one has a seed with the folder
/// alone.
///
/// # Errors
/// `Write`, `Cancelled`.
pub(super) fn write_seed(
    tree: &mut Tree,
    windows: &[Window],
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    // An image in which /root is a file or a loop boots nevertheless; its work disk starts empty.
    let root = tree.find_dir(b"root").ok().flatten();
    let result = (|| {
        let file = File::options().write(true).create_new(true).mode(0o440).open(path)?;
        file.set_permissions(Permissions::from_mode(0o440))?;
        let mut seed =
            Seed { tree, windows, out: Builder::new(BufWriter::new(file)), names: HashMap::new(), path_bytes: 0 };
        match root {
            Some(root) => seed.folder(root, progress)?,
            None => seed.header(b".", &dir_meta(), EntryType::Directory, 0, &[])?,
        }
        seed.out.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    })();
    check(progress)?;
    result.map_err(|source| match source.kind() {
        io::ErrorKind::QuotaExceeded if source.raw_os_error().is_none() => ImageError::LongPaths { limit: MAX_PATHS },
        _ => ImageError::Write { path: path.to_owned(), source },
    })
}

/// Copies to the end. Long stretches of zeros become holes: an archive may have gigabytes of them
/// in a few bytes.
fn copy(from: &mut impl Read, to: &mut BufWriter<File>) -> io::Result<()> {
    let mut stretch = Vec::new();
    loop {
        stretch.clear();
        let length = from.take(STRETCH as u64).read_to_end(&mut stretch)?;
        if length < STRETCH {
            return to.write_all(&stretch);
        }
        if stretch.iter().all(|byte| *byte == 0) {
            // What follows is never nothing: an archive ends with a block.
            to.seek_relative(STRETCH as i64)?;
        } else {
            to.write_all(&stretch)?;
        }
    }
}

fn dir_meta() -> Meta {
    Meta { mode: 0o700, uid: 0, gid: 0, mtime: (0, 0) }
}

struct Seed<'a> {
    tree: &'a Tree,
    windows: &'a [Window],
    out: Builder<BufWriter<File>>,
    /// First name of each node that has several, for hard links.
    names: HashMap<NodeId, Vec<u8>>,
    /// Bytes of paths written so far.
    path_bytes: u64,
}

impl Seed<'_> {
    fn folder(&mut self, root: NodeId, progress: &dyn Progress) -> io::Result<()> {
        // One path that grows and shrinks, and a position in each folder on it: the archive decides
        // how many names a folder has and how long its path is, so no path is kept per entry.
        let mut path = b".".to_vec();
        self.node(root, &path)?;
        let tree = self.tree;
        let children = |id: NodeId| match &tree.node(id).kind {
            NodeKind::Dir(children) => Some(children.iter()),
            _ => None,
        };
        let mut open: Vec<_> = children(root).map(|names| (path.len(), names)).into_iter().collect();
        while let Some((above, names)) = open.last_mut() {
            if progress.cancelled() {
                return Ok(());
            }
            path.truncate(*above);
            let Some((name, child)) = names.next() else {
                open.pop();
                continue;
            };
            // A file system has its own at the top, which is a folder.
            if path == b"." && **name == *b"lost+found" && children(child.id).is_none() {
                continue;
            }
            path.push(b'/');
            path.extend_from_slice(name);
            self.node(child.id, &path)?;
            open.extend(children(child.id).map(|names| (path.len(), names)));
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId, path: &[u8]) -> io::Result<()> {
        let node = self.tree.node(id);
        if let Some(first) = self.names.get(&id) {
            let first = first.clone();
            return self.header(path, &node.meta, EntryType::Link, 0, &[("linkpath", first.as_slice())]);
        }
        if node.has_more_names() {
            self.names.insert(id, path.to_owned());
        }
        let device = |major: &u32, minor: &u32| [major.to_string(), minor.to_string()];
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let mut size = 0;
        let mut map = String::new();
        let kind = match &node.kind {
            NodeKind::Dir(_) => EntryType::Directory,
            NodeKind::File(content) => {
                size = content.size;
                EntryType::Regular
            }
            NodeKind::Sparse(sparse) => {
                // As GNU tar does it in format 1.0: the map is a part of the data, so its length
                // has no limit.
                map = format!("{}\n", sparse.pieces.len());
                for piece in &sparse.pieces {
                    map.push_str(&format!("{}\n{}\n", piece.at, piece.size));
                }
                map.extend(std::iter::repeat_n('\0', map.len().next_multiple_of(512) - map.len()));
                size = sparse.data.size + map.len() as u64;
                for (key, value) in [("major", 1), ("minor", 0), ("realsize", sparse.size)] {
                    pax.push((format!("GNU.sparse.{key}"), value.to_string().into_bytes()));
                }
                EntryType::Regular
            }
            NodeKind::Symlink(target) => {
                pax.push(("linkpath".to_owned(), target.to_vec()));
                EntryType::Symlink
            }
            NodeKind::Char(major, minor) | NodeKind::Block(major, minor) => {
                let [major, minor] = device(major, minor);
                pax.push(("SCHILY.devmajor".to_owned(), major.into_bytes()));
                pax.push(("SCHILY.devminor".to_owned(), minor.into_bytes()));
                if matches!(node.kind, NodeKind::Char(..)) { EntryType::Char } else { EntryType::Block }
            }
            NodeKind::Fifo => EntryType::Fifo,
        };
        let attribute = |x: &Xattr| (format!("SCHILY.xattr.{}", pax::encoded(&x.name)), xattr::to_archive(x));
        pax.extend(node.xattrs.iter().map(attribute));
        let pax: Vec<(&str, &[u8])> = pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        self.header(path, &node.meta, kind, size, &pax)?;
        let content = match &node.kind {
            NodeKind::File(content) => Some(content),
            NodeKind::Sparse(sparse) => Some(&sparse.data),
            _ => None,
        };
        if let Some(content) = content {
            let window = usize::try_from(content.window).ok().and_then(|window| self.windows.get(window));
            let window = window.and_then(|w| w.part(content.offset, content.size));
            let window = window.ok_or(io::ErrorKind::UnexpectedEof)?;
            let out = self.out.get_mut();
            out.write_all(map.as_bytes())?;
            copy(&mut window.reader(), out)?;
            let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or_default();
            out.write_all(&vec![0; padding])?;
        }
        Ok(())
    }

    /// All that may exceed a ustar header goes into PAX records.
    fn header(
        &mut self,
        path: &[u8],
        meta: &Meta,
        kind: EntryType,
        size: u64,
        pax: &[(&str, &[u8])],
    ) -> io::Result<()> {
        self.path_bytes = self.path_bytes.saturating_add(path.len() as u64);
        if self.path_bytes > MAX_PATHS {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many long paths"));
        }
        let (seconds, nanos) = meta.mtime;
        // The record has sign and magnitude: nanoseconds count away from zero.
        let mtime = if seconds < 0 && nanos > 0 {
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
        } else {
            format!("{seconds}.{nanos:09}")
        };
        let (uid, gid, length) = (meta.uid.to_string(), meta.gid.to_string(), size.to_string());
        let common = [("uid", &uid), ("gid", &gid), ("size", &length), ("mtime", &mtime)];
        let common = common.map(|(key, value)| (key, value.as_bytes()));
        let common = [("path", path)].into_iter().chain(common);
        self.out.append_pax_extensions(common.chain(pax.iter().copied()))?;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(u32::from(meta.mode));
        header.set_size(size);
        header.set_mtime(0);
        header.set_cksum();
        self.out.get_mut().write_all(header.as_bytes())
    }
}
