//! Small things that several parts of the daemon need and none of them owns.

use crate::error::failed;
use banger_proto::model::{ApiError, ErrorCode};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Random bytes of the kernel.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), ApiError> {
    let filled = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty());
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    filled.map(drop).map_err(|errno| failed("random numbers", &std::io::Error::from(errno)))
}

/// Runs work that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a worker thread ended: {error}")))?
}

/// What a sparse file takes, bytes; `st_blocks` counts 512-byte units (stat(2)).
pub(crate) fn allocated(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.blocks() * 512)
}

/// A path as it is shown.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
