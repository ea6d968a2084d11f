//! What the daemon mends by itself, at its start and then each minute: a VM whose row and host
//! disagree is looked at again by its actor, and what belongs to no VM ([`orphans`]) is released.
//!
//! The sweep releases by itself what it has found twice, but for what has data in it: no crash
//! leaves a disk without a row (the row is written first and removed last), so a disk without one
//! means another database, and the right one may come back. An administrator sees and removes all
//! of it by `banger doctor --leaks --fix`.

mod orphans;
mod release;

use super::error::VmError;
use super::order::Order;
use super::{Context, Vms, reconcile};
use crate::error::chain;
use crate::store::Store;
use banger_policy::VmId;
use banger_proto::helper::Holding;
use banger_proto::model::Leaks;
use orphans::{Orphan, Seen, look};
use release::{Data, release};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Between two looks; also how long an orphan must be one before it is released without being
/// asked.
const SWEEP: Duration = Duration::from_secs(60);
/// How much later it is looked again when nothing runs, nothing is held and nothing was found: a
/// host without VMs is left to sleep.
const AT_REST: Duration = Duration::from_secs(4 * 60);
/// How soon database and helper are asked again, while they do not answer.
const PAUSE: Duration = Duration::from_secs(5);
/// An answer fits a frame; with more, an administrator asks again after the first were released.
const SHOWN: usize = 200;

impl Vms {
    /// One actor for each row, each of which looks after its own; then what belongs to no row.
    pub(crate) fn reconcile_in_background(self: &Arc<Self>) {
        let vms = Arc::clone(self);
        tokio::spawn(async move {
            let rows = loop {
                match vms.ctx.db.vms(None, None, u32::MAX).await {
                    Ok(rows) => break rows,
                    Err(error) => tracing::error!("cannot read the VMs: {}", chain(&error)),
                }
                sleep(PAUSE).await;
            };
            rows.into_iter().for_each(|row| drop(vms.actor(row)));
            again_and_again(&vms.ctx).await;
        });
    }
}

/// Looks at the start and then again and again, as long as the daemon runs: each minute while there
/// is anything that could change.
async fn again_and_again(ctx: &Context) {
    let mut before = loop {
        match look(ctx).await {
            Ok(seen) => {
                order_second_looks(ctx, &seen);
                break seen;
            }
            Err(error) => tracing::warn!("cannot look for what belongs to no VM yet: {}", error.message()),
        }
        sleep(PAUSE).await;
    };
    release_after_a_crash(ctx, &before.orphans).await;
    loop {
        if before.is_at_rest() {
            drop(timeout(AT_REST, ctx.handles.any()).await);
        }
        sleep(SWEEP).await;
        let Ok(seen) = look(ctx).await else { continue };
        order_second_looks(ctx, &seen);
        let known: HashSet<Orphan> = before.orphans.into_iter().collect();
        for orphan in seen.orphans.iter().filter(|orphan| known.contains(orphan) && !orphan.is_data()) {
            let _ = release(ctx, orphan, Data::Kept).await;
        }
        before = seen;
    }
}

/// After a crash the rest of a deletion waits for nobody. A VM that runs does, with all that is
/// its: an administrator who has brought back the wrong copy of the database has a minute to
/// notice.
async fn release_after_a_crash(ctx: &Context, found: &[Orphan]) {
    let alive: Vec<VmId> = found.iter().filter_map(Orphan::running).collect();
    for orphan in found.iter().filter(|orphan| !alive.iter().any(|vm| orphan.is_of(vm, &ctx.paths.vm(vm)))) {
        let _ = release(ctx, orphan, Data::Kept).await;
    }
}

/// Has the actor look again whose VM's row disagrees with the host: what an earlier attempt could
/// not release while the helper was away, or could not record on a full disk. The look is an order
/// like any other: one that is at work now explains what is seen.
fn order_second_looks(ctx: &Context, seen: &Seen) {
    let holdings: HashMap<VmId, &Holding> = seen.held.iter().map(|holding| (holding.vm, holding)).collect();
    for row in &seen.rows {
        let Some(entry) = ctx.actors.lock().get(&row.id).cloned() else { continue };
        let held = holdings.get(&row.id).is_some_and(|holding| reconcile::holds(holding));
        if entry.shared.is_settled() && reconcile::disagrees(row, ctx, &entry.shared, held) {
            // An actor that is gone has no VM to look at.
            drop(entry.orders.send(Order::Look));
        }
    }
}

/// The sweep's look, now.
#[cfg(test)]
pub(super) async fn once(ctx: &Context) {
    if let Ok(seen) = look(ctx).await {
        order_second_looks(ctx, &seen);
    }
}

/// Whether the next look may wait.
#[cfg(test)]
pub(super) async fn is_at_rest(ctx: &Context) -> bool {
    look(ctx).await.is_ok_and(|seen| seen.is_at_rest())
}

/// What there is, for an administrator; with `fix` it is released first.
pub(super) async fn leaks(ctx: &Context, store: &Store, fix: bool) -> Result<Leaks, VmError> {
    let mut leaks = Vec::new();
    let orphans = look(ctx).await?.orphans;
    let more = u64::try_from(orphans.len().saturating_sub(SHOWN)).unwrap_or(u64::MAX);
    for orphan in orphans.into_iter().take(SHOWN) {
        let mut leak = orphan.leak();
        if fix {
            leak.fixed = Some(release(ctx, &orphan, Data::Removed(store)).await);
        }
        leaks.push(leak);
    }
    Ok(Leaks { leaks, more })
}

/// How much there is.
pub(crate) async fn count(ctx: &Context) -> Result<usize, VmError> {
    Ok(look(ctx).await?.orphans.len())
}
