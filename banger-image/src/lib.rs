//! From what a user gives (a root file system's tar, an OCI image, an ext4 file system) to an ext4
//! root file system.
//!
//! Called by the daemon's import jobs on a blocking thread, with one spooled file. Everything goes
//! from the archive to a tree in memory and from there to ext4: no entry of an archive ever becomes
//! a file on the host, nothing is mounted, no program runs and no privilege is needed. Nothing is
//! published either: the results stand in a staging folder, and the caller renames it when its
//! database row is ready.
//!
//! It must not know of the database, of the daemon's configuration or of the daemon's wire.
#![forbid(unsafe_code)]

mod acl;
mod archive;
pub mod boot;
mod codec;
mod configuration;
mod container;
mod content;
mod docker;
mod error;
mod ext4;
pub mod hashing;
mod header;
mod index;
mod layers;
mod names;
mod oci;
mod package;
mod pax;
mod plausible;
mod registered;
mod rootfs;
mod source;
mod sparse;
mod spool;
mod tree;
pub mod work_disk;
mod xattr;

#[cfg(test)]
mod tests;

pub use error::ImageError;
pub use names::NameFault;
pub use package::PackageError;
pub use registered::register;
pub use source::Progress;

use banger_policy::limits::MAX_DISK_BYTES;
use banger_policy::rootfs::{HEAD_BYTES, no_archive};
use banger_policy::{Digest, ImageConfig};
use content::Contents;
use ext4::{Size, Written};
use hashing::{Hasher, Of};
use layers::Layer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use source::{Budget, Window};
use spool::{Hashes, spool};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tree::Tree;

/// The most that an image may hold when nobody says otherwise, bytes.
pub const DEFAULT_BUILD_SIZE: u64 = 8 << 30;

pub use banger_policy::id::ROOTFS_FILE;
/// The image's `/root`, from which work disks are made.
pub const SEED_FILE: &str = "work-seed.tar";
/// A work disk, in the folder in which it is made.
pub const WORK_DISK_FILE: &str = "work.ext4";

/// What the tree of one import or work disk may take, bytes, estimated. A Debian desktop of 300,000
/// files takes 450 MiB. Each is made by a process of its own, which has twice that.
const MAX_MEMORY: u64 = 480 << 20;

/// Caps on what an import may expand to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries over all layers; a Debian desktop has 300,000.
    pub entries: u64,
    /// Bytes of memory for the tree and the file system's metadata, estimated. Contents need none.
    pub memory: u64,
    /// Decompressed bytes over all layers.
    pub expanded_bytes: u64,
}

impl Limits {
    /// For an image that holds `build_size` bytes at most: what cannot fit need not be read to its
    /// end.
    #[must_use]
    pub fn for_build_size(build_size: u64) -> Self {
        Self { entries: 2_000_000, memory: MAX_MEMORY, expanded_bytes: build_size }
    }
}

/// What the source was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A root file system; its digest is that of the decompressed tar.
    Tar,
    /// An OCI image; its digest is that of the linux/amd64 manifest.
    Oci,
    /// What `docker save` writes; its digest is that of the configuration, or of all layers where
    /// there is none.
    Docker,
    /// An ext4 file system, taken as it is; its digest is that of its bytes.
    Ext4,
}

/// A finished import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportedRootfs {
    /// Identifies the image: source, most that it may hold, and version of this code. The same
    /// digest means the same bytes.
    pub digest: Digest,
    /// What was imported.
    pub source: SourceKind,
    /// Digest of the source itself, however it was compressed or packed.
    pub source_digest: Digest,
    /// `rootfs.ext4` in the staging folder: mode 0440, sparse, synced.
    pub rootfs_path: PathBuf,
    /// `work-seed.tar` in the staging folder: mode 0440, synced.
    pub seed_path: PathBuf,
    /// Size of the root file system, bytes: as small as its contents allow. No root disk of a VM is
    /// smaller.
    pub build_size: u64,
    /// Bytes of file contents.
    pub content_bytes: u64,
    /// Entries of all layers.
    pub entries: u64,
    /// What an OCI image says about the commands that run in it. It is no part of `digest`: it
    /// belongs to the name that the image gets, and not to the bytes, which several names share.
    pub config: ImageConfig,
    /// Whether it carries a container engine (dockerd or containerd).
    pub docker: bool,
}

impl ImportedRootfs {
    /// What registries call it, if it came with a manifest.
    #[must_use]
    pub fn manifest(&self) -> Option<Digest> {
        (self.source == SourceKind::Oci).then_some(self.source_digest)
    }
}

/// The digest that an import of a source comes to, when it may hold `most` bytes: known before it
/// is made.
#[must_use]
pub fn digest_of(source: &Digest, most: u64) -> Option<Digest> {
    let identity = Sha256::digest(format!("{FORMAT}\nsource {source}\nsize {most}\n"));
    Digest::from_bytes(identity.into()).ok()
}

/// Part of every image digest: raised when the same source would be written differently.
const FORMAT: &str = "banger rootfs 5";

/// Imports `source`, which may hold `most` bytes and is recognised by its content: a root file
/// system's tar, or a tar of an OCI layout or of what `docker save` writes, plain or compressed
/// with gzip, zstd, xz, bzip2 or lz4. `reference` says which of several images of an archive is
/// meant: its name or tag there, or its manifest's digest. `hasher` computes the digests beside the
/// decompression, and is confined as the caller is.
///
/// `staging` is an existing, empty folder of the caller on the file system of the images; on
/// failure the caller removes it. Memory: about [`Limits::memory`] at most. A cancelled import ends
/// within a second, but for the layout of a file system of millions of entries, which takes some.
///
/// # Errors
/// [`ImageError`]; nothing but files in `staging` is left behind.
pub fn import(
    source: File,
    staging: &Path,
    most: u64,
    reference: Option<&str>,
    limits: Limits,
    hasher: &Hasher,
    progress: &dyn Progress,
) -> Result<ImportedRootfs, ImageError> {
    rootfs::check_size(most)?;
    let source = Window::whole(source)?;
    if source.len() == 0 {
        return Err(ImageError::EmptyFile);
    }
    progress.stage("read archive");
    // What contains the layers is not one of them: it has a budget of its own, of the same size.
    let mut container = Budget::new(limits.expanded_bytes, limits.entries);
    let whole = hasher.begin(Of::Plain);
    let hashes = Hashes { plain: Some(&whole), ..Hashes::default() };
    let outer = spool(&source, "the archive", staging, hashes, &mut container, progress)?;
    let mut budget = Budget { memory_limit: limits.memory, ..Budget::new(limits.expanded_bytes, limits.entries) };
    let opened = oci::open(&outer, reference, staging, &limits, progress);
    let (kind, source_digest, layers, config) = match opened.map_err(|error| or_disk(error, &outer, &source))? {
        Some(image) => {
            progress.stage("verify and unpack layers");
            let layers = oci::layers(&image, staging, hasher, &mut budget, progress)?;
            (image.kind, image.digest, layers, image.config)
        }
        None => {
            let digest = digest(whole.finish(&outer, progress)?)?;
            (SourceKind::Tar, digest, vec![Layer::root(outer)], ImageConfig::default())
        }
    };
    progress.stage("merge layers");
    let mut tree = Tree::new();
    for (window, layer) in (0..).zip(&layers) {
        let applied = layers::apply(&mut tree, layer, window, &mut budget, progress);
        let is_whole = kind == SourceKind::Tar;
        applied.map_err(|error| if is_whole { or_disk(error, &layer.window, &source) } else { error })?;
    }
    if kind == SourceKind::Tar {
        plausible::check(&tree, progress)?;
    }
    let windows: Vec<Window> = layers.into_iter().map(|layer| layer.window).collect();
    progress.stage("write work disk seed");
    let seed_path = staging.join(SEED_FILE);
    work_disk::write_seed(&mut tree, &windows, &seed_path, progress)?;
    progress.stage("write root file system");
    let digest =
        digest_of(&source_digest, most).ok_or_else(|| ImageError::Oci { why: "its digest is 0".to_owned() })?;
    let rootfs_path = staging.join(ROOTFS_FILE);
    let uuid = rootfs::uuid(&digest);
    let size = Size::Smallest { most };
    let ext4 = rootfs::Ext4 { size, file_bytes: MAX_DISK_BYTES, uuid, label: "rootfs", host_mode: 0o440 };
    let written = rootfs::write(&tree, &Contents(&windows), &ext4, &rootfs_path, progress)?;
    let Written { bytes: build_size, content_bytes } = written;
    let entries = budget.entries;
    Ok(ImportedRootfs {
        digest,
        source: kind,
        source_digest,
        rootfs_path,
        seed_path,
        build_size,
        content_bytes,
        entries,
        config,
        docker: has_engine(&mut tree),
    })
}

/// What is no archive, or an empty one, may be a disk: the beginning of an ext4 file system looks
/// like the end of an archive.
fn or_disk(error: ImageError, outer: &Window, source: &Window) -> ImageError {
    if !matches!(error, ImageError::NotTar { .. } | ImageError::NoEntries { .. }) {
        return error;
    }
    let mut head = Vec::new();
    // The error that there is says more than one of reading.
    let _ = outer.reader().take(HEAD_BYTES as u64).read_to_end(&mut head);
    match no_archive(&head, outer.len()) {
        Some((found, instead)) => {
            let unpack = if outer.is(source) { "" } else { "decompress it; " };
            ImageError::Disk { found, instead: format!("{unpack}{instead}") }
        }
        None => error,
    }
}

/// Whether a daemon of a container engine is where programs are.
fn has_engine(tree: &mut Tree) -> bool {
    let folders = ["usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "bin", "sbin"];
    folders.iter().any(|folder| {
        let folder = tree.find_dir(folder.as_bytes()).ok().flatten();
        folder.is_some_and(|id| [&b"dockerd"[..], b"containerd"].iter().any(|name| tree.child(id, name).is_some()))
    })
}

fn digest(bytes: [u8; 32]) -> Result<Digest, ImageError> {
    Digest::from_bytes(bytes).map_err(|error| ImageError::Oci { why: error.to_string() })
}
