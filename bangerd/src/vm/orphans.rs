//! What belongs to no VM that the daemon knows: a crash came between the last effect of a deletion and its record, the database is an older copy or
//! was deleted, a row was removed by hand. Found from what is there (the helper's ledger, the VMs' cgroups, folders), never from memory.
//!
//! A sweep each minute releases by itself what it has met twice; an administrator sees and releases it at once by `banger doctor --leaks --fix`.

use super::Context;
use super::teardown::remove_folder;
use crate::error::{chain, internal};
use crate::paths::VmPaths;
use crate::privileged::PrivilegedError;
use banger_policy::VmId;
use banger_proto::helper::{HelperError, Holding};
use banger_proto::model::{ApiError, Leak, LeakKind};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked; also how long an orphan must be one before it is released without being asked.
const SWEEP: Duration = Duration::from_secs(60);
/// How soon the helper is asked again for what it holds, while it does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// An answer fits a frame; with more, an administrator asks again after the first were released.
const SHOWN: usize = 200;

/// One thing that belongs to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Orphan {
    /// A cgroup, with or without processes in it.
    Group { owner: u32, vm: VmId, populated: bool },
    /// A row of the helper's ledger, or a COW file of its own.
    Held { vm: VmId, quarantined: bool, what: String },
    /// A VM's folder, or the folder of its sockets.
    Folder { path: PathBuf, sockets: bool },
}

/// Looks at the start and then each minute, as long as the daemon runs.
pub(super) fn spawn(ctx: &Arc<Context>) {
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let mut met = loop {
            match look(&ctx).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!("cannot look for what belongs to no VM yet: {}", error.message),
            }
            tokio::time::sleep(PAUSE).await;
        };
        // After a crash the rest of a deletion waits for nobody. A VM that runs does, with all that is its: an administrator who has brought back the wrong
        // copy of the database has a minute to notice.
        let alive: Vec<VmId> = met.iter().filter_map(Orphan::running).collect();
        for orphan in met.iter().filter(|orphan| !alive.iter().any(|vm| orphan.is_of(vm, &ctx.paths.vm(vm)))) {
            let _ = release(&ctx, orphan).await;
        }
        let mut tick = interval(SWEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            let Ok(found) = look(&ctx).await else { continue };
            let known: HashSet<Orphan> = met.into_iter().collect();
            for orphan in found.iter().filter(|orphan| known.contains(orphan)) {
                let _ = release(&ctx, orphan).await;
            }
            met = found;
        }
    });
}

/// What there is, for an administrator; with `fix` it is released first.
pub(super) async fn leaks(ctx: &Context, fix: bool) -> Result<Vec<Leak>, ApiError> {
    let mut leaks = Vec::new();
    for orphan in look(ctx).await?.into_iter().take(SHOWN) {
        let mut leak = orphan.leak();
        if fix {
            leak.fixed = Some(release(ctx, &orphan).await);
        }
        leaks.push(leak);
    }
    Ok(leaks)
}

/// How much there is.
pub(crate) async fn count(ctx: &Context) -> Result<usize, ApiError> {
    Ok(look(ctx).await?.len())
}

/// Processes first, then what they held, then files: the order in which they can be released.
async fn look(ctx: &Context) -> Result<Vec<Orphan>, ApiError> {
    // Things first, rows second: a row is written before anything is made for it, so what has no row now never had one.
    let groups = ctx.machine.groups();
    let mut held = Vec::new();
    let mut after = None;
    loop {
        let page = ctx.privileged.list(after).await.map_err(|error| error.api("what the helper holds"))?;
        held.extend(page.holdings);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let folders = entries(&ctx.paths.vms());
    let sockets = entries(&ctx.paths.runtime.join("vm"));
    let rows = ctx.db.vms(None, None, u32::MAX).await.map_err(|error| internal(&error))?;
    let ids: HashSet<VmId> = rows.iter().map(|row| row.id).collect();
    let homes: HashSet<PathBuf> = ids.iter().map(|id| ctx.paths.vm(id)).flat_map(|vm| [vm.dir, vm.runtime]).collect();

    let mut orphans = Vec::new();
    let unknown = groups.into_iter().filter(|(_, vm)| !ids.contains(vm));
    orphans.extend(unknown.map(|(owner, vm)| Orphan::Group {
        owner,
        vm,
        populated: ctx.machine.populated(owner, &vm),
    }));
    let unknown = held.iter().filter(|holding| !ids.contains(&holding.vm));
    orphans.extend(unknown.map(|holding| Orphan::Held {
        vm: holding.vm,
        quarantined: holding.quarantined,
        what: what(holding),
    }));
    for (paths, sockets) in [(folders, false), (sockets, true)] {
        let unknown = paths.into_iter().filter(|path| !homes.contains(path));
        orphans.extend(unknown.map(|path| Orphan::Folder { path, sockets }));
    }
    Ok(orphans)
}

/// True when it is gone. What could not be done is in the journal.
async fn release(ctx: &Context, orphan: &Orphan) -> bool {
    let leak = orphan.leak();
    let released = match orphan {
        Orphan::Group { owner, vm, .. } => {
            // An actor of a row that somebody removed by hand would go on with it.
            ctx.forget(vm);
            ctx.machine.end_group(*owner, vm).await
        }
        Orphan::Held { quarantined: true, .. } => {
            tracing::error!("{} {}: quarantined, left alone; an administrator must look", leak.kind, leak.name);
            return false;
        }
        Orphan::Held { vm, .. } => {
            let released = gone(ctx.privileged.release(*vm).await);
            released.and(gone(ctx.privileged.discard_disk(*vm).await))
        }
        Orphan::Folder { path, .. } => remove_folder(path),
    };
    match released {
        Ok(()) => tracing::warn!("{} {} belonged to no VM ({}): released", leak.kind, leak.name, leak.detail),
        Err(ref error) => tracing::warn!("{} {} belongs to no VM: {}", leak.kind, leak.name, error.message),
    }
    released.is_ok()
}

/// Never held is as good as released.
fn gone(result: Result<(), PrivilegedError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.refusal() == Some(HelperError::NotYours) => Ok(()),
        other => other.map_err(|error| {
            tracing::debug!("{}", chain(&error));
            error.api("the helper")
        }),
    }
}

impl Orphan {
    /// The VM of a cgroup in which something runs.
    fn running(&self) -> Option<VmId> {
        match self {
            Self::Group { vm, populated: true, .. } => Some(*vm),
            _ => None,
        }
    }

    fn is_of(&self, vm: &VmId, paths: &VmPaths) -> bool {
        match self {
            Self::Group { vm: mine, .. } | Self::Held { vm: mine, .. } => mine == vm,
            // The name of a socket folder cannot be turned back into an id.
            Self::Folder { path, .. } => *path == paths.dir || *path == paths.runtime,
        }
    }

    fn leak(&self) -> Leak {
        let (kind, name, detail) = match self {
            Self::Group { owner, vm, populated } => {
                let detail = if *populated { "processes run in it" } else { "empty" };
                (LeakKind::Cgroup, vm.to_string(), format!("of uid {owner}, {detail}"))
            }
            Self::Held { vm, quarantined, what } => {
                let detail = if *quarantined { format!("{what}; quarantined") } else { what.clone() };
                (LeakKind::Holding, vm.to_string(), detail)
            }
            Self::Folder { path, sockets } => {
                let detail = if *sockets { "sockets of a VM" } else { "work disk, console and handles of a VM" };
                (LeakKind::Folder, path.display().to_string(), detail.to_owned())
            }
        };
        Leak { kind, name, detail, fixed: None }
    }
}

fn what(holding: &Holding) -> String {
    let tap = holding.tap.as_ref().map(|tap| format!("tap {}", tap.tap_device));
    let disk =
        holding.disk.as_ref().map(|disk| format!("disk {} on {}, {}", disk.dm_dev, disk.base_loop, disk.cow_loop));
    let cow = holding.cow.as_ref().map(|cow| format!("COW file of {} bytes", cow.allocated_bytes));
    let nat = holding.nat.then(|| "NAT".to_owned());
    let all: Vec<String> = [tap, disk, cow, nat].into_iter().flatten().collect();
    if all.is_empty() { "a row of the ledger".to_owned() } else { all.join(", ") }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
