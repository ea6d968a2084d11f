//! The checks that only the daemon can make: a check is a function that says what was found and,
//! when that is not well, the command that mends it. [`crate::rpc`] asks.
//!
//! A check must be cheap, because any user may ask: it reads a few files of `/proc` and `/sys`, and
//! starts no program. The one thing that costs a process, Firecracker's version, is kept.

mod host;
mod names;
mod neighbours;
mod network;
mod product;
mod state;
mod subnet;
mod upkeep;

use crate::config::Live;
use crate::vm::Context;
use crate::vm::host::find_vmm;
use crate::vm::machine::MachineError;
use banger_policy::distribution::{Family, OS_RELEASE};
use banger_proto::model::{ApiError, Check};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// For how long an answer is given again. Each costs a process, a walk through the helper's ledger
/// and the database, and any user may ask.
const FRESH: Duration = Duration::from_secs(1);
/// For how long a binary is not asked again that gave no version. Its file says when there is
/// another one.
const NO_VERSION: Duration = Duration::from_secs(10);

/// Which file a version line is of: another one in its place is asked anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binary {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Binary {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = path.metadata()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { path: path.to_owned(), device: meta.dev(), inode: meta.ino(), bytes: meta.len(), changed })
    }
}

/// The VMM's binary does not say what it is.
#[derive(Debug, thiserror::Error)]
#[error("firecracker")]
pub(crate) struct Firecracker(#[source] Box<dyn std::error::Error + Send + Sync>);

/// What a binary has said of itself, and when.
#[derive(Debug)]
struct Asked {
    binary: Binary,
    at: Instant,
    version: Result<String, ApiError>,
}

/// The checks, and what they found last. Callers who come at the same time get one answer.
#[derive(Debug)]
pub(crate) struct Doctor {
    config: Live,
    /// Wins over the configured one.
    firecracker: Option<PathBuf>,
    version: Mutex<Option<Asked>>,
    found: Mutex<Option<(Instant, Vec<Check>)>>,
}

impl Doctor {
    /// `firecracker`: the one that the command line names.
    pub(crate) fn new(config: Live, firecracker: Option<PathBuf>) -> Self {
        Self { config, firecracker, version: Mutex::default(), found: Mutex::default() }
    }

    /// The VMM that the next VM is started with.
    fn vmm(&self) -> Result<PathBuf, MachineError> {
        find_vmm(self.firecracker.as_deref().or(self.config.now().firecracker_bin.as_deref()))
    }

    /// The VMM's own version line, asked once of each binary.
    pub(crate) async fn vmm_version(&self) -> Result<String, ApiError> {
        let path = self.vmm()?;
        let binary = Binary::of(&path).map_err(|error| ApiError::from(Firecracker(Box::new(error))))?;
        let mut known = self.version.lock().await;
        if let Some(asked) = known.as_ref()
            && asked.binary == binary
            && (asked.version.is_ok() || asked.at.elapsed() < NO_VERSION)
        {
            return asked.version.clone();
        }
        let version = banger_vmm::api::version(&path).await;
        let version = version.map_err(|error| ApiError::from(Firecracker(Box::new(error))));
        *known = Some(Asked { binary, at: Instant::now(), version: version.clone() });
        version
    }

    /// All checks; at most [`FRESH`] old.
    pub(crate) async fn checks(&self, ctx: &Context) -> Vec<Check> {
        let mut found = self.found.lock().await;
        if let Some((at, checks)) = found.as_ref()
            && at.elapsed() < FRESH
        {
            return checks.clone();
        }
        let now = checks(ctx, self).await;
        *found = Some((Instant::now(), now.clone()));
        now
    }

    /// Something was mended: the next caller gets a new answer.
    pub(crate) async fn forget(&self) {
        self.found.lock().await.take();
    }
}

async fn checks(ctx: &Context, doctor: &Doctor) -> Vec<Check> {
    let family = Family::of(&read(OS_RELEASE));
    let mut found = product::checks(ctx, doctor, family).await;
    found.extend(host::checks(ctx));
    found.extend(upkeep::checks());
    found.extend(network::checks(&ctx.config.now()));
    found.extend(subnet::checks(ctx).await);
    found.extend(neighbours::checks());
    found.extend(names::checks(&ctx.config.now().dns).await);
    found.extend(state::checks(ctx).await);
    found
}

/// A file of the host, empty when it cannot be read: what must be there is missed by its check.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// A program that counts how often it was started.
    #[tokio::test]
    async fn a_binary_says_its_version_once() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (path, count) = (dir.path().join("firecracker"), dir.path().join("count"));
        let write = |version: &str| {
            let script = format!("#!/bin/sh\necho x >> {}\necho {version}\n", count.display());
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        write("Firecracker v1");
        let doctor = std::sync::Arc::new(Doctor::new(Live::new(crate::config::Config::built_in()), Some(path.clone())));
        let askers = (0..32).map(|_| {
            let doctor = std::sync::Arc::clone(&doctor);
            tokio::spawn(async move { doctor.vmm_version().await })
        });
        for answer in futures::future::join_all(askers).await {
            assert_eq!(answer.unwrap().unwrap(), "Firecracker v1");
        }
        let started = || std::fs::read_to_string(&count).unwrap().lines().count();
        assert_eq!(started(), 1);
        write("Firecracker v22");
        assert_eq!(doctor.vmm_version().await.unwrap(), "Firecracker v22");
        assert_eq!(started(), 2);
        // One that has none is not asked at each call either.
        write("; exit 1");
        for _ in 0..32 {
            doctor.vmm_version().await.unwrap_err();
        }
        assert_eq!(started(), 3);
    }

    #[test]
    fn whoever_comes_together_gets_one_answer_of_the_checks() {
        let world = crate::vm::tests::World::new();
        let (doctor, life) = (Doctor::new(Live::new(crate::config::Config::built_in()), None), world.life());
        let checks = || doctor.checks(&life.vms.ctx);
        drop(world.take_log());
        life.runtime.block_on(checks());
        let once = world.take_log();
        assert!(!once.is_empty(), "the checks ask the helper");
        life.runtime.block_on(doctor.forget());
        let began = Instant::now();
        let answers = life.runtime.block_on(futures::future::join_all((0..32).map(|_| checks())));
        // On a host so slow that an answer is old when the last one comes, nothing can be said.
        if began.elapsed() < FRESH {
            assert_eq!((answers.len(), world.take_log()), (32, once));
        }
    }
}
