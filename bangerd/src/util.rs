//! Small things that several parts of the daemon need and none of them owns.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use tokio::task::JoinError;

/// The kernel gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("cannot get random numbers")]
pub(crate) struct NoRandom(#[source] io::Error);

/// A thread that did work for somebody ended without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread ended")]
pub(crate) struct WorkerEnded(#[source] JoinError);

/// Random bytes of the kernel.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), NoRandom> {
    let filled = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty());
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    filled.map(drop).map_err(|errno| NoRandom(errno.into()))
}

/// Runs work that blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static, E: From<WorkerEnded> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.map_err(WorkerEnded)?
}

/// The same for work that says itself what goes wrong.
///
/// Whatever changes a file may wait for the disk, and not only in fsync(2): a rename waits behind
/// the journal. The runtime's own threads, which answer everybody, must not.
pub(crate) async fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!("{}", crate::error::chain(&WorkerEnded(error)));
    }
}

/// What a sparse file takes, bytes; `st_blocks` counts 512-byte units (stat(2)).
pub(crate) fn allocated(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.blocks() * 512)
}

/// What all files in a folder and below take on the disk, bytes; 0 without the folder. Links are
/// not followed.
pub(crate) fn allocated_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => allocated_below(&entry.path()),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(of).sum()
}

/// A path as it is shown.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
