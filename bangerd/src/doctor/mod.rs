//! The checks that only the daemon can make: a check is a function that says what was found and,
//! when that is not well, the command that mends it. [`crate::rpc`] asks.
//!
//! A check must be cheap, because any user may ask: it reads a few files of `/proc` and `/sys`, and
//! starts no program. The one thing that costs a process and a
//! sum, which Firecracker there is, is kept ([`Programs`]).

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
use crate::vm::program::{Program, Programs};
use banger_policy::distribution::{Family, OS_RELEASE};
use banger_proto::model::{ApiError, Check};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// For how long an answer is given again. Each costs a process, a walk through the helper's ledger
/// and the database, and any user may ask.
const FRESH: Duration = Duration::from_secs(1);
/// Where a Firecracker is put when there is none, and the configuration names no other place.
const FIRST_PLACE: &str = "/usr/local/bin/firecracker";

/// The checks, and what they found last. Callers who come at the same time get one answer.
#[derive(Debug)]
pub(crate) struct Doctor {
    config: Live,
    /// Wins over the configured one.
    firecracker: Option<PathBuf>,
    programs: Arc<Programs>,
    found: Mutex<Option<(Instant, Vec<Check>)>>,
}

impl Doctor {
    /// `firecracker`: the one that the command line names.
    pub(crate) fn new(config: Live, firecracker: Option<PathBuf>, programs: Arc<Programs>) -> Self {
        Self { config, firecracker, programs, found: Mutex::default() }
    }

    /// The VMM that the next VM is started with.
    fn vmm(&self) -> Result<PathBuf, MachineError> {
        find_vmm(self.firecracker.as_deref().or(self.config.now().firecracker_bin.as_deref()))
    }

    /// Where it lies, or is to be put.
    fn place(&self) -> PathBuf {
        self.vmm().unwrap_or_else(|_| {
            let named = self.firecracker.clone().or_else(|| self.config.now().firecracker_bin.clone());
            named.unwrap_or_else(|| FIRST_PLACE.into())
        })
    }

    /// What the next VM is started with.
    pub(crate) async fn program(&self) -> Result<Program, ApiError> {
        self.programs.installed(&self.vmm()?).await
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
    found.extend(upkeep::checks(family));
    found.extend(network::checks(&ctx.config.now()));
    found.extend(subnet::checks(ctx).await);
    found.extend(neighbours::checks(family));
    found.extend(names::checks(ctx, family).await);
    found.extend(state::checks(ctx).await);
    found
}

/// A file of the host, empty when it cannot be read: what must be there is missed by its check.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_together_gets_one_answer_of_the_checks() {
        let world = crate::vm::tests::World::new();
        let (doctor, life) =
            (Doctor::new(Live::new(crate::config::Config::built_in()), None, Arc::default()), world.life());
        let checks = || doctor.checks(&life.vms.ctx);
        // The daemon's own first look asks the helper, too, at some time.
        let asked = || {
            drop(world.take_log());
            life.runtime.block_on(doctor.forget());
            life.runtime.block_on(checks());
            world.take_log()
        };
        let once = (0..3).map(|_| asked()).min_by_key(Vec::len).unwrap_or_default();
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
