//! Writes a tree to a file on the host, by [`super::ext4`].
//!
//! The same tree and parameters give the same bytes: UUID and times come from the caller, nothing
//! from a clock.

use super::content::Contents;
use super::error::ImageError;
use super::ext4::{self, Ext4Error, Size, Spec, Written};
use super::source::{Progress, check};
use super::tree::Tree;
use banger_policy::Digest;
use banger_policy::limits::MAX_DISK_BYTES;
use std::fs::{OpenOptions, Permissions};
use std::io::ErrorKind::AlreadyExists;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Smallest disk: journal and tables have room in it.
pub(crate) const MIN_SIZE: u64 = 16 << 20;

/// What is not in the tree.
pub(crate) struct Ext4<'a> {
    pub(crate) size: Size,
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
    if !(MIN_SIZE..=MAX_DISK_BYTES).contains(&size) {
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
/// `Ext4` (does not fit, or ext4 cannot hold it), `Write`, `Cancelled`.
pub(crate) fn write(
    tree: &Tree,
    contents: &Contents<'_>,
    ext4: &Ext4<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Written, ImageError> {
    check(progress)?;
    let result = write_new(tree, contents, ext4, path, progress);
    if result.is_err() && !matches!(&result, Err(ImageError::Write { source, .. }) if source.kind() == AlreadyExists) {
        // Half of a file system is nobody's.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn write_new(
    tree: &Tree,
    contents: &Contents<'_>,
    ext4: &Ext4<'_>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Written, ImageError> {
    let write_error = |source| ImageError::Write { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(ext4.host_mode).open(path).map_err(write_error)?;
    // Whatever the umask was.
    file.set_permissions(Permissions::from_mode(ext4.host_mode)).map_err(write_error)?;
    file.set_len(ext4.file_bytes).map_err(write_error)?;
    let spec = Spec { size: ext4.size, uuid: ext4.uuid, label: ext4.label };
    let written = match ext4::write(tree, contents, &spec, &file, progress) {
        Ok(written) => written,
        Err(_) if progress.cancelled() => return Err(ImageError::Cancelled),
        Err(Ext4Error::Io(source)) => return Err(write_error(source)),
        Err(error @ (Ext4Error::Full { .. } | Ext4Error::Inodes { .. })) => {
            return Err(ImageError::Ext4 { why: format!("{error}; allow more with a larger size") });
        }
        Err(error) => return Err(ImageError::Ext4 { why: error.to_string() }),
    };
    file.sync_all().map_err(write_error)?;
    Ok(written)
}
