//! Imports take what the host's disk has, but for what VMs that run may still need: their work disks are not reserved.

use crate::error::no_space;
use banger_proto::model::ApiError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What an import leaves free, bytes.
pub(super) const LEFT: u64 = 512 << 20;
/// How often it is looked. A disk writes less than half of [`LEFT`] in that.
const LOOK: Duration = Duration::from_millis(100);

/// What an unprivileged user may still use of the file system of `folder`, bytes (statvfs(3): `f_bavail`).
///
/// # Errors
/// The kernel's.
pub(crate) fn free(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The file system of a folder, looked at while it is written to.
#[derive(Debug)]
pub(super) struct Room {
    folder: PathBuf,
    seen: Mutex<Option<(Instant, bool)>>,
}

impl Room {
    pub(super) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), seen: Mutex::new(None) }
    }

    /// Whether there is less than what is to be left. One that cannot be looked at says so when it is written to.
    pub(super) fn is_short(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((at, short)) if at.elapsed() < LOOK => short,
            _ => {
                let short = free(&self.folder).is_ok_and(|free| free < LEFT);
                *seen = Some((Instant::now(), short));
                short
            }
        }
    }

    /// # Errors
    /// `NoSpace` when it is short.
    pub(super) fn check(&self, what: &str) -> Result<(), ApiError> {
        if !self.is_short() {
            return Ok(());
        }
        let left = LEFT >> 20;
        Err(no_space(format!("{what}: the host's disk has less than {left} MiB left, which VMs that run may need")))
    }
}
