//! After a start of the daemon: which VMs still run, and what a crash left half done. Each VM's own part runs in its
//! actor before any order; calls are answered meanwhile. What belongs to no VM is [`super::orphans`]' business.

use super::actor::Actor;
use super::machine::Seat;
use super::orphans::holds;
use super::{Context, Vms};
use crate::db::{Mirror, VmRow};
use crate::error::chain;
use banger_policy::lifecycle::{Event, State};
use banger_policy::vm::RestartPolicy;
use banger_proto::helper::ProcessState;
use banger_proto::model::ApiError;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Why a VM that is recorded as running ended with the host.
const REBOOTED: &str = "the host rebooted";
/// Why it ended otherwise.
const ENDED: &str = "it ended while the daemon was not running";

/// Why it does not run though the row still says so.
const ENDED_UNSEEN: &str = "its VMM has ended";

/// How long an agent may take to find a daemon that has just begun; it tries each half second.
const AGENT: Duration = Duration::from_secs(10);
/// How long the monitor may take to say why a VMM has ended.
const REASON: Duration = Duration::from_secs(2);
/// Between two attempts to read the rows.
const PAUSE: Duration = Duration::from_secs(5);

/// It ran in another boot of the host, or until the host went down.
pub(super) fn rebooted(row: &VmRow, ctx: &Context) -> bool {
    row.boot_id.as_ref().is_some_and(|boot| *boot != ctx.boot_id)
}

/// Why a VM whose row says that it runs certainly does not; a look at one file. Without delegated groups nothing is certain before it was looked for.
pub(super) fn glance(row: &VmRow, ctx: &Context) -> Option<&'static str> {
    if row.state != State::Running || ctx.machine.populated(row.owner, &row.id) {
        None
    } else if rebooted(row, ctx) {
        Some(REBOOTED)
    } else {
        ctx.machine.delegated().then_some(ENDED)
    }
}

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
            tracing::info!("its creation or removal was cut short; removed");
            return matches!(self.apply(Event::Delete, None, "").await, Ok(None));
        }
        let lives = self.ctx.machine.populated(self.row.owner, &self.row.id);
        // No process outlives the host: one that lives though the row is of another boot is of a time after an older copy of the database.
        if self.row.state == State::Running && (lives || !rebooted(&self.row, &self.ctx)) {
            match self.find(&seat).await {
                Ok(true) => {
                    tracing::info!("found running");
                    self.found_alive().await;
                }
                Ok(false) => self.quietly(Event::FoundDead, ENDED).await,
                // Not known is not dead: nothing is torn down under a guest that may live.
                Err(error) => tracing::error!("cannot tell whether it runs: {}", error.message),
            }
        } else if self.take_back_unrecorded(&seat).await {
        } else if rebooted(&self.row, &self.ctx) {
            tracing::info!("it ran when the host went down");
            self.found_rebooted(&seat).await;
        } else if self.holds_something(&seat).await {
            tracing::info!("a start or a teardown was cut short; cleaned up");
            let reason = self.row.last_error.clone();
            self.quietly(Event::FoundDead, &reason).await;
        }
        false
    }

    async fn found_rebooted(&mut self, seat: &Seat) {
        self.quietly(Event::FoundRebooted, REBOOTED).await;
        if self.row.restart == RestartPolicy::Always && self.row.state == State::Stopped {
            self.resume_in_turn(seat);
        }
    }

    /// Of a VM whose row says that it does not run, and has nothing of a start that a crash cut short: does it run as well as one can? Then it is
    /// taken back. True when there is nothing else to be done about it: it runs, or cannot be looked at.
    async fn take_back_unrecorded(&mut self, seat: &Seat) -> bool {
        if self.row.mirror != Mirror::default() || !self.ctx.machine.populated(self.row.owner, &self.row.id) {
            return false;
        }
        if self.shared.running().is_none() {
            match self.find(seat).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    tracing::error!("cannot tell whether it runs: {}", error.message);
                    return true;
                }
            }
        }
        let Some(running) = self.shared.running() else { return false };
        if !matches!(timeout(AGENT, running.ready(AGENT)).await, Ok(Ok(()))) {
            return false;
        }
        tracing::warn!("found running, and the database does not say so: is it an older copy?");
        self.found_alive().await;
        if self.row.state != State::Running {
            // It could not be recorded: the next look tries again.
            self.row.mirror = Mirror::default();
        }
        true
    }

    async fn found_alive(&mut self) {
        self.quietly(Event::FoundAlive, "").await;
        // A change that a crash cut short, or that an older row does not know.
        if self.row.state == State::Running
            && let Err(error) = self.align_nat().await
        {
            tracing::warn!("{}", error.message);
        }
    }

    /// Alive: the row says running, the process is found in the VM's own cgroup, and the helper knows that process
    /// as this VM's. An alive VM is taken back.
    async fn find(&mut self, seat: &Seat) -> Result<bool, ApiError> {
        let saved = self.held(seat);
        let Some(running) = self.ctx.machine.adopt(seat, &saved).await? else { return Ok(false) };
        match self.ctx.privileged.of(seat.owner).process_running(seat.id, running.pid()).await {
            Ok(ProcessState::Running) => {}
            Ok(other) => {
                tracing::warn!(?other, pid = running.pid(), "the helper does not know this process as the VM's");
                return Ok(false);
            }
            // Without the helper's word the cgroup, whose path comes from the VM's id, is proof enough to keep it alive.
            Err(error) => tracing::warn!("the helper cannot say: {}", chain(&error)),
        }
        self.watch(running);
        Ok(true)
    }

    /// The host shows something else than the row says, for longer than an order takes: what was missed before is made good.
    pub(super) async fn look_again(&mut self) {
        let Ok(seat) = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.network) else { return };
        let lives = self.ctx.machine.populated(self.row.owner, &self.row.id);
        if rebooted(&self.row, &self.ctx) && !lives && matches!(self.row.state, State::Running | State::Error) {
            // What could not be recorded, or released, when it was looked at first.
            self.found_rebooted(&seat).await;
        } else if self.row.state != State::Running {
            if !self.take_back_unrecorded(&seat).await && self.holds_something(&seat).await {
                tracing::info!("something of it was left; cleaned up");
                let reason = self.row.last_error.clone();
                self.quietly(Event::FoundDead, &reason).await;
            }
        } else if let Some(running) = self.shared.running() {
            if self.ctx.machine.delegated() && !lives {
                // Its monitor is about to say so, and knows why.
                let reason = timeout(REASON, running.ended()).await.unwrap_or_else(|_| ENDED_UNSEEN.to_owned());
                self.quietly(Event::FoundDead, &reason).await;
            }
        } else {
            match self.find(&seat).await {
                Ok(true) => self.found_alive().await,
                Ok(false) => {
                    let known = self.shared.ended();
                    let reason = if known.is_empty() { ENDED_UNSEEN } else { &known };
                    self.quietly(Event::FoundDead, reason).await;
                }
                Err(error) => tracing::error!("cannot tell whether it runs: {}", error.message),
            }
        }
    }

    /// Is there anything of a VM that does not run: a process, a handle, or a row in the helper's ledger?
    async fn holds_something(&self, seat: &Seat) -> bool {
        if !self.held(seat).is_zero() || self.ctx.machine.populated(seat.owner, &seat.id) {
            return true;
        }
        match self.ctx.privileged.of(seat.owner).identity(seat.id).await {
            Ok(holding) => holds(&holding),
            Err(_) => false,
        }
    }
}

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
                tokio::time::sleep(PAUSE).await;
            };
            rows.into_iter().for_each(|row| drop(vms.actor(row)));
            super::orphans::spawn(&vms.ctx);
        });
    }
}
