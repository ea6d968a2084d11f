//! After a start of the daemon: which VMs still run, what a crash left half done, and what the helper holds for
//! VMs that no longer exist. Each VM's own part runs in its actor before any order; calls are answered meanwhile.

use super::actor::Actor;
use super::machine::Seat;
use super::{Context, Vms};
use crate::error::chain;
use banger_policy::VmId;
use banger_policy::lifecycle::{Event, State};
use banger_proto::helper::{HelperError, ProcessState};
use banger_proto::model::ApiError;
use std::sync::Arc;
use std::time::Duration;

/// How often the helper is asked again for what it holds, while it does not answer.
const PAUSE: Duration = Duration::from_secs(5);

impl Actor {
    /// Finds out what became of this VM. True when nothing is left of it.
    pub(super) async fn reconcile(&mut self) -> bool {
        let seat = match Seat::new(&self.row, &self.ctx.paths, self.ctx.config.network) {
            Ok(seat) => seat,
            Err(error) => {
                tracing::error!("{}", error.message);
                return false;
            }
        };
        if self.row.making {
            tracing::info!("its creation was cut short; removed");
            return matches!(self.apply(Event::Delete, None, "").await, Ok(None));
        }
        if self.row.state == State::Running {
            match self.find(&seat).await {
                Ok(true) => {
                    tracing::info!("found running");
                    self.quietly(Event::FoundAlive, "").await;
                }
                Ok(false) => self.quietly(Event::FoundDead, "it ended while the daemon was not running").await,
                // Not known is not dead: nothing is torn down under a guest that may live.
                Err(error) => tracing::error!("cannot tell whether it runs: {}", error.message),
            }
        } else if self.holds_something(&seat).await {
            tracing::info!("a start or a teardown was cut short; cleaned up");
            let reason = self.row.last_error.clone();
            self.quietly(Event::FoundDead, &reason).await;
        }
        false
    }

    /// Alive: the row says running, the process is found in the VM's own cgroup, and the helper knows that process
    /// as this VM's. An alive VM is taken back.
    async fn find(&mut self, seat: &Seat) -> Result<bool, ApiError> {
        let saved = self.held(seat);
        let Some(running) = self.ctx.machine.adopt(seat, &saved).await? else { return Ok(false) };
        match self.ctx.privileged.process_running(seat.id, running.pid()).await {
            Ok(ProcessState::Running) => {}
            Ok(other) => {
                tracing::warn!(?other, pid = running.pid(), "the helper does not know this process as the VM's");
                return Ok(false);
            }
            Err(error) if error.refusal().is_some() => {
                tracing::warn!("the helper does not know this VM: {}", chain(&error));
                return Ok(false);
            }
            // Without the helper the cgroup, whose path comes from the VM's id, is proof enough to keep it alive.
            Err(error) => tracing::warn!("the helper cannot be asked: {}", chain(&error)),
        }
        self.watch(running);
        Ok(true)
    }

    /// Is there anything of a VM that does not run: a process, a handle, or a row in the helper's ledger?
    async fn holds_something(&self, seat: &Seat) -> bool {
        if !self.held(seat).is_zero() || self.ctx.machine.populated(seat.owner, &seat.id) {
            return true;
        }
        match self.ctx.privileged.identity(seat.id).await {
            Ok(holding) => holding.tap.is_some() || holding.disk.is_some() || holding.nat || holding.pid.is_some(),
            Err(_) => false,
        }
    }
}

impl Vms {
    /// One actor for each row, each of which looks after its own; then what belongs to no row.
    pub(crate) fn reconcile_in_background(self: &Arc<Self>) {
        let vms = Arc::clone(self);
        tokio::spawn(async move {
            match vms.ctx.db.vms(None, None, u32::MAX).await {
                Ok(rows) => rows.into_iter().for_each(|row| drop(vms.actor(row))),
                Err(error) => tracing::error!("cannot read the VMs: {}", chain(&error)),
            }
            remove_strays(&vms.ctx).await;
        });
    }
}

/// Kernel objects, overlays and folders of VMs without a row: a crash came between the last effect of a deletion
/// and its record, or the database is an older copy.
async fn remove_strays(ctx: &Context) {
    let mut after = None;
    loop {
        // The helper first, the rows second: a row is written before anything is made, so what is seen here
        // without a row afterwards belongs to nobody.
        let page = match ctx.privileged.list(after).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!("cannot compare with the helper yet: {}", chain(&error));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        for holding in &page.holdings {
            if has_no_row(ctx, holding.vm).await {
                remove_stray(ctx, holding.vm, holding.quarantined).await;
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    for entry in std::fs::read_dir(ctx.paths.vms()).into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok());
        if let Some(id) = id
            && has_no_row(ctx, id).await
        {
            tracing::warn!(banger_vm = %id, "a folder without a VM; removed");
            if let Err(error) = super::teardown::remove_folder(&entry.path()) {
                tracing::warn!("{}", error.message);
            }
        }
    }
}

async fn has_no_row(ctx: &Context, vm: VmId) -> bool {
    matches!(ctx.db.vm(vm).await, Ok(None))
}

async fn remove_stray(ctx: &Context, vm: VmId, quarantined: bool) {
    if quarantined {
        tracing::error!(banger_vm = %vm, "the helper holds a quarantined VM without a row; an administrator must look");
        return;
    }
    tracing::warn!(banger_vm = %vm, "the helper holds a VM without a row; released");
    let released = ctx.privileged.release(vm).await;
    let discarded = ctx.privileged.discard_disk(vm).await;
    for error in [released.err(), discarded.err()].into_iter().flatten() {
        if error.refusal() != Some(HelperError::NotYours) {
            tracing::warn!(banger_vm = %vm, "{}", chain(&error));
        }
    }
}
