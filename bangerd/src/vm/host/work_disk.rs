//! The work disk of a new VM, which the confined converter makes from the image's seed.
//!
//! The seed is what an import made of a user's archive: whoever has taken a converter over there
//! may have written it, so the daemon does not parse it either.

use super::super::machine::{MachineError, Seat};
use super::Host;
use crate::convert::{ConvertError, Made, What};
use crate::util::fill_random;
use banger_image::{Progress, SEED_FILE, WORK_DISK_FILE};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Ends the converter when the user has cancelled the VM.
struct Cancelled(CancellationToken);

impl Progress for Cancelled {
    fn stage(&self, _: &'static str) {}

    fn warn(&self, text: &str) {
        tracing::warn!("the work disk: {text}");
    }

    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Host {
    pub(super) fn make_work_disk(&self, seat: &Seat, cancelled: CancellationToken) -> Result<(), MachineError> {
        let path = seat.paths.work_disk();
        if path.exists() {
            return Ok(());
        }
        let mut uuid = [0; 16];
        fill_random(&mut uuid)?;
        let size = seat.spec.work_disk_size_bytes;
        let (seed, has_seed) = seed(&self.paths.image_dir(&seat.image).join(SEED_FILE)).map_err(MachineError::Seed)?;
        // The converter may write to this folder alone: not to the VM's other files. The disk gets
        // its name only when it is whole, so a crash leaves none that looks whole.
        let staging = seat.paths.work_disk_staging();
        drop(fs::remove_dir_all(&staging));
        fs::create_dir(&staging).map_err(MachineError::NameWorkDisk)?;
        let what = What::WorkDisk { size, uuid, has_seed };
        match self.converter.run(what, seed, &staging, &Cancelled(cancelled))? {
            Made::WorkDisk => {}
            Made::Image(_) | Made::Kernel(_) => return Err(MachineError::NoWorkDisk),
        }
        crate::fail::point("work disk", "written");
        let made = staging.join(WORK_DISK_FILE);
        if !is_disk(&made, size) {
            return Err(MachineError::NoWorkDisk);
        }
        fs::rename(&made, &path).map_err(MachineError::NameWorkDisk)?;
        crate::fail::point("work disk", "named");
        fs::remove_dir_all(&staging).map_err(MachineError::NameWorkDisk)
    }
}

/// The image's seed; an image of an earlier version may have none.
fn seed(path: &Path) -> io::Result<(File, bool)> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((File::open("/dev/null")?, false)),
        seed => Ok((seed?, true)),
    }
}

/// What a converter says that it has made may be anything.
fn is_disk(path: &Path, size: u64) -> bool {
    path.symlink_metadata().is_ok_and(|made| made.is_file() && made.len() == size)
}

impl From<ConvertError> for MachineError {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Cancelled => Self::Cancelled(crate::jobs::Cancelled),
            ConvertError::Full => Self::NameWorkDisk(io::ErrorKind::StorageFull.into()),
            error => Self::WorkDisk(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_a_plain_file_of_the_right_length_is_taken_for_a_work_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        File::create(path("disk")).unwrap().set_len(4096).unwrap();
        std::os::unix::fs::symlink(path("disk"), path("link")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        assert!(is_disk(&path("disk"), 4096) && !is_disk(&path("disk"), 8192));
        assert!(["link", "folder", "missing"].iter().all(|name| !is_disk(&path(name), 4096)));
    }

    #[test]
    fn an_image_without_a_seed_has_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!seed(&folder.path().join("none")).unwrap().1);
        fs::write(folder.path().join("seed"), "x").unwrap();
        assert!(seed(&folder.path().join("seed")).unwrap().1);
        assert!(seed(&folder.path().join("seed/below")).is_err(), "what cannot be read is no image without a seed");
    }
}
