//! What belongs to no VM that the daemon knows: a crash came between the last effect of a deletion and its record, the database is an older copy or
//! was deleted, a row was removed by hand. Found from what is there (the helper's ledger, the VMs' cgroups, folders), never from memory.
//!
//! A sweep each minute releases by itself what it has met twice, but for what has data in it: no crash leaves a disk without a row (the row is written
//! first and removed last), so a disk without one means another database, and the right one may come back. An administrator sees and removes it
//! all by `banger doctor --leaks --fix`.
//!
//! The same sweep has the actor of a VM look again whose row says something else than the host shows: what an earlier attempt could not release while
//! the helper was away, or could not record on a full disk.

use super::Context;
use super::order::Order;
use super::reconcile::rebooted;
use super::teardown::remove_folder;
use crate::db::VmRow;
use crate::db::store::{IMAGES, KERNELS};
use crate::error::{chain, internal};
use crate::paths::VmPaths;
use crate::privileged::PrivilegedError;
use crate::store;
use banger_policy::VmId;
use banger_policy::lifecycle::State;
use banger_proto::helper::{HelperError, Holding};
use banger_proto::model::{ApiError, Leak, LeakKind, Leaks};
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
    Group {
        owner: u32,
        vm: VmId,
        populated: bool,
    },
    /// A row of the helper's ledger, or a COW file of its own.
    Held {
        vm: VmId,
        quarantined: bool,
        only_cow: bool,
        what: String,
    },
    Folder {
        path: PathBuf,
        of: Folder,
    },
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Folder {
    /// A VM's work disk, console and handles.
    Disk,
    Sockets,
    /// An image or a kernel.
    Store,
}

/// Looks at the start and then each minute, as long as the daemon runs.
pub(super) fn spawn(ctx: &Arc<Context>) {
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        let mut met = loop {
            match look_and_order(&ctx).await {
                Ok(found) => break found,
                Err(error) => tracing::warn!("cannot look for what belongs to no VM yet: {}", error.message),
            }
            tokio::time::sleep(PAUSE).await;
        };
        // After a crash the rest of a deletion waits for nobody. A VM that runs does, with all that is its: an administrator who has brought back the wrong
        // copy of the database has a minute to notice.
        let alive: Vec<VmId> = met.iter().filter_map(Orphan::running).collect();
        for orphan in met.iter().filter(|orphan| !alive.iter().any(|vm| orphan.is_of(vm, &ctx.paths.vm(vm)))) {
            let _ = release(&ctx, orphan, Data::Kept).await;
        }
        let mut tick = interval(SWEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            let Ok(found) = look_and_order(&ctx).await else { continue };
            let known: HashSet<Orphan> = met.into_iter().collect();
            for orphan in found.iter().filter(|orphan| known.contains(orphan) && !orphan.is_data()) {
                let _ = release(&ctx, orphan, Data::Kept).await;
            }
            met = found;
        }
    });
}

/// What there is, for an administrator; with `fix` it is released first.
pub(super) async fn leaks(ctx: &Context, fix: bool) -> Result<Leaks, ApiError> {
    let mut leaks = Vec::new();
    let orphans = look(ctx).await?.orphans;
    let more = u64::try_from(orphans.len().saturating_sub(SHOWN)).unwrap_or(u64::MAX);
    for orphan in orphans.into_iter().take(SHOWN) {
        let mut leak = orphan.leak();
        if fix {
            leak.fixed = Some(release(ctx, &orphan, Data::Removed).await);
        }
        leaks.push(leak);
    }
    Ok(Leaks { leaks, more })
}

/// How much there is.
pub(crate) async fn count(ctx: &Context) -> Result<usize, ApiError> {
    Ok(look(ctx).await?.orphans.len())
}

/// What becomes of disks, images and kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Kept,
    Removed,
}

/// What a look has found.
struct Seen {
    /// Processes first, then what they held, then files: the order in which they can be released.
    orphans: Vec<Orphan>,
    rows: Vec<VmRow>,
    held: Vec<Holding>,
}

/// Looks, and changes nothing: any user may ask for a count.
async fn look(ctx: &Context) -> Result<Seen, ApiError> {
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
    let mut stored = [entries(&ctx.paths.images()), entries(&ctx.paths.kernels())].concat();
    stored.retain(|path| store::is_finished(path));
    let rows = ctx.db.vms(None, None, u32::MAX).await.map_err(|error| internal(&error))?;
    let ids: HashSet<VmId> = rows.iter().map(|row| row.id).collect();
    let mut homes: HashSet<PathBuf> =
        ids.iter().map(|id| ctx.paths.vm(id)).flat_map(|vm| [vm.dir, vm.runtime]).collect();
    let images = ctx.db.contents(&IMAGES).await.map_err(|error| internal(&error))?;
    homes.extend(images.iter().map(|image| ctx.paths.image_dir(image)));
    let kernels = ctx.db.contents(&KERNELS).await.map_err(|error| internal(&error))?;
    homes.extend(kernels.iter().map(|kernel| ctx.paths.kernel_dir(kernel)));

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
        only_cow: holding.cow.is_some() && !holding.quarantined && !holds(holding),
        what: what(holding),
    }));
    for (paths, of) in [(folders, Folder::Disk), (sockets, Folder::Sockets), (stored, Folder::Store)] {
        let unknown = paths.into_iter().filter(|path| !homes.contains(path));
        orphans.extend(unknown.map(|path| Orphan::Folder { path, of }));
    }
    Ok(Seen { orphans, rows, held })
}

/// For the sweep: what belongs to no VM, and an order to the actor of each VM whose row says something else than the host shows.
async fn look_and_order(ctx: &Context) -> Result<Vec<Orphan>, ApiError> {
    let seen = look(ctx).await?;
    for row in &seen.rows {
        let holding = seen.held.iter().find(|holding| holding.vm == row.id);
        look_again_if_untrue(ctx, row, holding.is_some_and(holds));
    }
    Ok(seen.orphans)
}

/// The sweep's look, now.
#[cfg(test)]
pub(super) async fn sweep(ctx: &Context) {
    drop(look_and_order(ctx).await);
}

/// Whether there is more than a COW file: what belongs to one boot.
pub(super) fn holds(holding: &Holding) -> bool {
    holding.tap.is_some() || holding.disk.is_some() || holding.nat || holding.pid.is_some()
}

/// In its turn: an order that is at work now explains what is seen.
fn look_again_if_untrue(ctx: &Context, row: &VmRow, held: bool) {
    let running = row.state == State::Running;
    let lives = ctx.machine.populated(row.owner, &row.id);
    let Some(entry) = ctx.actors.lock().get(&row.id).cloned() else { return };
    let watched = entry.shared.running().is_some();
    let unfinished = row.state == State::Error && rebooted(row, ctx);
    let untrue = if running { !watched || (ctx.machine.delegated() && !lives) } else { held || lives || unfinished };
    if untrue && entry.shared.is_settled() {
        // An actor that is gone has no VM to look at.
        drop(entry.orders.send(Order::Look));
    }
}

/// True when nothing of it is left. What could not be done is in the journal.
async fn release(ctx: &Context, orphan: &Orphan, data: Data) -> bool {
    let leak = orphan.leak();
    if data == Data::Kept && orphan.is_data() {
        tracing::warn!(
            "{} {} belongs to no VM ({}): kept, `banger doctor --leaks --fix` removes it",
            leak.kind,
            leak.name,
            leak.detail
        );
        return false;
    }
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
            match data {
                Data::Kept => released,
                Data::Removed => released.and(gone(ctx.privileged.discard_disk(*vm).await)),
            }
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
    /// Whether it is nothing but what somebody may want back.
    fn is_data(&self) -> bool {
        match self {
            Self::Group { .. } => false,
            Self::Held { only_cow, .. } => *only_cow,
            Self::Folder { of, .. } => *of != Folder::Sockets,
        }
    }

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
            Self::Held { vm, quarantined, what, .. } => {
                let detail = if *quarantined { format!("{what}; quarantined") } else { what.clone() };
                (LeakKind::Holding, vm.to_string(), detail)
            }
            Self::Folder { path, of } => {
                let detail = match of {
                    Folder::Disk => "work disk, console and handles of a VM",
                    Folder::Sockets => "sockets of a VM",
                    Folder::Store => "an image or a kernel without a record",
                };
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
