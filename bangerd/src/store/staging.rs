//! Where an import is made before it is published by one rename.

use super::error::StoreError;
use super::{STAGING, mark, remove};
use crate::jobs::{Cancelled, Job};
use crate::util::{blocking, on_a_thread};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// A staging folder; what is still there at its end is removed.
pub(super) struct Staging(PathBuf);

impl Staging {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Inside the folder of what it becomes: the rename must not cross file systems, and files must
    /// get the group that the folder hands down, by which the helper reads images.
    pub(super) async fn new(folder: &Path, job: &Job) -> Result<Self, StoreError> {
        let staging = Self(folder.join(format!("{STAGING}{}", job.id())));
        let path = staging.0.clone();
        let make = move || {
            remove(&path);
            let made = std::fs::DirBuilder::new().mode(0o710).create(&path);
            made.map_err(StoreError::Staging)?;
            mark(&path);
            crate::fail::point("import", "staging folder made");
            Ok::<_, StoreError>(())
        };
        blocking(make).await?;
        Ok(staging)
    }

    /// Removes what is still there, which may be gigabytes.
    pub(super) async fn end(self) {
        let path = self.0.clone();
        on_a_thread(move || remove(&path)).await;
    }

    /// The digest is a converter's word: whoever took one over could name another user's content,
    /// and would be given it.
    pub(super) async fn is_same(
        &self,
        published: &Path,
        files: &[PathBuf],
        cancel: CancellationToken,
    ) -> Result<(), StoreError> {
        let pairs: Vec<_> = files.iter().map(|file| (self.0.join(file), published.join(file))).collect();
        let compare = move || {
            for (made, known) in &pairs {
                let go_on = || !cancel.is_cancelled();
                match same_bytes(made, known, &go_on).map_err(StoreError::Files)? {
                    _ if cancel.is_cancelled() => return Err(Cancelled.into()),
                    true => {}
                    false => return Err(StoreError::OtherContent),
                }
            }
            Ok(())
        };
        blocking(compare).await
    }

    pub(super) async fn publish(&self, to: &Path) -> Result<(), StoreError> {
        let (made, to) = (self.0.clone(), to.to_owned());
        let publish = move || {
            // The same content without a row: this one gets it.
            remove(&to);
            std::fs::rename(&made, &to).map_err(StoreError::Files)?;
            crate::fail::point("import", "published");
            let folder = to.parent().unwrap_or(Path::new("/"));
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::Files)
        };
        blocking(publish).await
    }
}

/// A folder of the store that was looked into. While it is open, no other folder has its number.
pub(super) struct Folder(File);

impl Folder {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Is it still what has this name?
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let number = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        self.0.metadata().map(number).is_ok_and(|own| path.symlink_metadata().map(number).is_ok_and(|at| at == own))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Whether two sparse files have the same bytes: what has data in one of them is compared, for as
/// long as `go_on` says so.
pub(super) fn same_bytes(one: &Path, other: &Path, go_on: &dyn Fn() -> bool) -> std::io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    Ok(data_is_in(&one, &other, go_on)? && data_is_in(&other, &one, go_on)?)
}

fn data_is_in(one: &File, other: &File, go_on: &dyn Fn() -> bool) -> std::io::Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        let from = match rustix::fs::seek(one, rustix::fs::SeekFrom::Data(at)) {
            Ok(from) => from,
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let to = rustix::fs::seek(one, rustix::fs::SeekFrom::Hole(from))?;
        at = from;
        while at < to {
            let length = usize::try_from(CHUNK.min(to - at)).unwrap_or_default();
            ours.resize(length, 0);
            theirs.resize(length, 0);
            one.read_exact_at(&mut ours, at)?;
            other.read_exact_at(&mut theirs, at)?;
            if ours != theirs || !go_on() {
                return Ok(false);
            }
            at += length as u64;
        }
    }
}
