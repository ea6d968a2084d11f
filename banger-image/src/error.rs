//! Why an import fails. Every variant says what was wrong with the input and where, so that the
//! daemon can pass the sentence on to the user; none carries a host path but the two that are about
//! the host.

use super::names::NameFault;
use banger_policy::image::ConfigFault;
use banger_policy::rootfs::NotARootDisk;
use std::io;
use std::path::PathBuf;

/// Failure of [`super::import`] and of [`super::work_disk`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The caller's [`super::Progress::cancelled`] said so.
    #[error("cancelled")]
    Cancelled,
    /// Zero bytes.
    #[error("the file is empty; export the root file system again")]
    EmptyFile,
    /// A valid archive that holds nothing.
    #[error("{layer} has no entries: a root file system was expected; export it again")]
    NoEntries {
        /// Which archive.
        layer: String,
    },
    /// Neither a tar nor a supported compression of one.
    #[error(
        "{layer} is not a tar archive; give a root file system as .tar, .tar.gz, .tar.zst, .tar.xz, .tar.bz2 or .tar.lz4, \
         or an OCI image (layout folder, or archive as `docker save` and `skopeo copy` write it)"
    )]
    NotTar {
        /// Which archive.
        layer: String,
    },
    /// A disk or a file system.
    #[error("it is {found}, and an archive is needed; {instead}")]
    Disk {
        /// What it is.
        found: &'static str,
        /// What to do.
        instead: String,
    },
    /// The bytes end early.
    #[error("{layer} is truncated ({at}); it was not copied or downloaded to its end: fetch it again")]
    Truncated {
        /// Which archive.
        layer: String,
        /// Where it stopped.
        at: String,
    },
    /// A compression that is known and not supported.
    #[error("{layer} is compressed with {format}, which is not supported; recompress it with zstd, gzip or xz")]
    Compression {
        /// Which archive.
        layer: String,
        /// The format's name.
        format: &'static str,
    },
    /// A way of compressing that needs more than we give it.
    #[error("{layer}: {why}")]
    Wide {
        /// Which archive.
        layer: String,
        /// What it needs, and what to do.
        why: String,
    },
    /// The compressed stream is damaged.
    #[error("{layer} cannot be decompressed; fetch it again")]
    Corrupt {
        /// Which archive.
        layer: String,
        /// The decoder's word.
        #[source]
        source: io::Error,
    },
    /// A tar header that cannot be right.
    #[error("{layer}: bad tar header at byte {offset}: {why}; the archive is damaged, make it again")]
    Header {
        /// Which archive.
        layer: String,
        /// Byte offset in the decompressed archive.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A configuration that no process could have, or that does not fit a record.
    #[error("the image's configuration is refused: {fault}")]
    Config {
        /// What is wrong with it.
        fault: ConfigFault,
    },
    /// A name that is refused.
    #[error("{layer}: entry \"{entry}\" is refused: {fault}; such an archive is damaged or hostile")]
    Name {
        /// Which archive.
        layer: String,
        /// The entry, made printable.
        entry: String,
        /// Why.
        fault: NameFault,
    },
    /// An entry that cannot be placed in the tree.
    #[error("{layer}: entry \"{entry}\": {why}")]
    Entry {
        /// Which archive.
        layer: String,
        /// The entry, made printable.
        entry: String,
        /// Why.
        why: String,
    },
    /// Something that is legitimate and that we would lose.
    #[error("{layer}: entry \"{entry}\" has {what}, which cannot be kept; {instead}")]
    Unsupported {
        /// Which archive.
        layer: String,
        /// The entry, made printable.
        entry: String,
        /// What.
        what: String,
        /// What to do.
        instead: &'static str,
    },
    /// A tree that is no root file system.
    #[error("this is no root file system: {found}; {instead}")]
    NotARoot {
        /// What is at its top.
        found: String,
        /// What to do.
        instead: String,
    },
    /// Too many entries.
    #[error("the image has more than {limit} entries; that many are not accepted")]
    TooManyEntries {
        /// The cap.
        limit: u64,
    },
    /// Too many headers that are no entries.
    #[error("the archives of the image have more than {limit} extended headers; that many are not accepted")]
    TooManyHeaders {
        /// The cap.
        limit: u64,
    },
    /// More names, folders, symlinks and attributes than we hold in memory.
    #[error("the image's names, folders and attributes take more than {limit} bytes; that much is not accepted")]
    TooMuchMetadata {
        /// The cap.
        limit: u64,
    },
    /// The paths below `/root` are too long for their number.
    #[error("the paths below the image's /root have more than {limit} bytes in all; that much is not accepted")]
    LongPaths {
        /// The cap.
        limit: u64,
    },
    /// The index and manifests of an OCI image are a labyrinth.
    #[error("the OCI image's index and manifests have more than {limit} {what}; that many are not accepted")]
    TooMuchIndex {
        /// The cap.
        limit: u64,
        /// What there is too much of.
        what: &'static str,
    },
    /// The expanded image does not fit its file system.
    #[error("the image expands to more than {limit} bytes; import it with a larger build size")]
    TooLarge {
        /// The cap.
        limit: u64,
    },
    /// Something is wrong with the OCI image.
    #[error("the OCI image is not usable: {why}")]
    Oci {
        /// What.
        why: String,
    },
    /// A blob is not what its descriptor says.
    #[error("blob {digest} of the OCI image does not match its {what}; it is damaged: export or pull the image again")]
    Blob {
        /// The descriptor's digest.
        digest: String,
        /// `digest`, `size` or `diff id`.
        what: &'static str,
    },
    /// The ext4 writer refuses.
    #[error("the root file system cannot be written: {why}")]
    Ext4 {
        /// What it says.
        why: String,
    },
    /// A file system that no guest can have as its root.
    #[error("this is no root disk")]
    NotARootDisk(#[source] NotARootDisk),
    /// The caller's parameter.
    #[error("build size {size} is refused: {why}")]
    BuildSize {
        /// Bytes.
        size: u64,
        /// Why.
        why: &'static str,
    },
    /// Reading the spooled source.
    #[error("the spooled file cannot be read")]
    Read {
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The [`Hasher`](super::hashing::Hasher)'s thread.
    #[error("the thread that computes digests has ended")]
    Hashing,
    /// Writing to the staging folder; most often a full disk.
    #[error("cannot write {}", .path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}
