//! What the daemon may take of the host's disk: everything that it makes there is decided here,
//! before it is made, by the rule of [`banger_policy::room`]. (COW files are the helper's, which
//! decides by the same rule.)
//!
//! An upload or an import does not know its size before its end: [`Room`] looks while it is
//! written.

use banger_policy::room::{self, Short};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why something may not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRoom {
    /// The reserve would be touched.
    #[error("no room for {what}: {short}")]
    Short { what: String, short: Short },
    /// The file system does not say how much is free.
    #[error("{what}")]
    Unknown { what: String, source: io::Error },
}

/// How often it is looked. A disk writes less than half of the reserve in that.
const LOOK: Duration = Duration::from_millis(100);

/// What an unprivileged user may still use of the file system of `folder`, bytes (statvfs(3):
/// `f_bavail`).
///
/// # Errors
/// The kernel's.
pub(crate) fn free(folder: &Path) -> io::Result<u64> {
    let stat = look(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The file system of a path, or of the nearest folder above it that can be asked: the file may not
/// be there yet, and the helper's folder is closed to the daemon.
fn look(path: &Path) -> io::Result<rustix::fs::StatVfs> {
    let mut refused = io::Error::from(io::ErrorKind::NotFound);
    for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
        match rustix::fs::statvfs(folder) {
            Ok(stat) => return Ok(stat),
            Err(error) => refused = error.into(),
        }
    }
    Err(refused)
}

/// May this be made: so many bytes at each of these paths?
///
/// # Errors
/// [`NoRoom::Short`] names what is needed, what is free and the reserve.
pub(crate) fn claim(what: &str, needs: &[(&Path, u64)]) -> Result<(), NoRoom> {
    let mut looked = Vec::with_capacity(needs.len());
    for (path, bytes) in needs {
        looked.push((look(path).map_err(|error| unknown(what, error))?, *bytes));
    }
    for (stat, _) in &looked {
        // What lies on one file system counts together.
        let here = looked.iter().filter(|(other, _)| other.f_fsid == stat.f_fsid);
        let needed = here.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        room::check(needed, free).map_err(|short| refusal(what, short))?;
    }
    Ok(())
}

/// The helper, which looked a moment later, has found too little room.
pub(crate) fn short(what: &str, path: &Path, needed: u64) -> NoRoom {
    match free(path) {
        Ok(free) => refusal(what, Short { needed, free }),
        Err(error) => unknown(what, error),
    }
}

fn refusal(what: &str, short: Short) -> NoRoom {
    NoRoom::Short { what: what.to_owned(), short }
}

fn unknown(what: &str, source: io::Error) -> NoRoom {
    NoRoom::Unknown { what: what.to_owned(), source }
}

/// The file system of a folder, looked at while it is written to.
#[derive(Debug)]
pub(crate) struct Room {
    folder: PathBuf,
    seen: Mutex<Option<(Instant, Option<Short>)>>,
}

impl Room {
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), seen: Mutex::new(None) }
    }

    /// Whether the reserve is touched. A file system that cannot be asked says so when it is
    /// written to.
    pub(crate) fn is_short(&self) -> bool {
        self.look().is_some()
    }

    fn look(&self) -> Option<Short> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((at, short)) if at.elapsed() < LOOK => short,
            _ => {
                let short = free(&self.folder).ok().and_then(|free| room::check(0, free).err());
                *seen = Some((Instant::now(), short));
                short
            }
        }
    }

    /// # Errors
    /// [`NoRoom::Short`] when the reserve is touched.
    pub(crate) fn check(&self, what: &str) -> Result<(), NoRoom> {
        self.look().map_or(Ok(()), |short| Err(refusal(what, short)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::limits::HOST_RESERVE_BYTES;
    use banger_proto::model::{ApiError, ErrorCode};

    #[test]
    fn what_lies_on_one_file_system_counts_together() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("a/b/c"), folder.path().join("d"));
        let half = (free(folder.path()).unwrap() - HOST_RESERVE_BYTES) / 2;
        // Others write to this disk meanwhile.
        let margin = half / 10;
        assert!(claim("a VM", &[(&one, half - margin), (&two, half - margin)]).is_ok());
        assert!(claim("a VM", &[(&one, half + margin), (&two, 0)]).is_ok());
        let error = claim("a VM", &[(&one, half + margin), (&two, half + margin)]).unwrap_err();
        let error = ApiError::from(error);
        assert_eq!(error.code, ErrorCode::NoSpace);
        for part in ["no room for a VM", "512 MiB", "reserve", "free"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
        assert!(error.hint.contains("--root-size") && error.hint.contains("banger vm delete"), "{}", error.hint);
    }

    #[test]
    fn a_folder_that_cannot_be_asked_is_answered_by_the_one_above() {
        assert!(free(Path::new("/proc/1/no/such/folder")).is_ok());
        assert!(free(Path::new("")).is_err());
    }
}
