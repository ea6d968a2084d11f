//! What became of a VM: asked by its actor before the first order after a start of the daemon, and
//! again whenever the sweep sees that row and host disagree. The decision is the policy's
//! ([`diagnose`]); this file answers the questions that it asks and acts on the finding.

use super::Context;
use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::shared::Shared;
use crate::db::VmRow;
use crate::error::chain;
use crate::handles::Handles;
use banger_policy::lifecycle::{Event, Finding, Look, Process, Question, Recorded, Seen, State, Then, diagnose};
use banger_policy::reach::Mode;
use banger_proto::helper::{Holding, ProcessState};
use std::time::Duration;
use tokio::time::timeout;

/// Why a VM that is recorded as running ended with the host.
const REBOOTED: &str = "the host rebooted";
/// Why a VM is dead that was alive when the last daemon ended.
const ENDED: &str = "it ended while the daemon was not running";
/// Why a VM is dead that was alive while this daemon ran, when nobody has seen more.
const ENDED_UNSEEN: &str = "its VMM has ended";

/// How long an agent may take to find a daemon that has just begun; it tries each half second.
const AGENT: Duration = Duration::from_secs(10);
/// How long the monitor may take to say why a VMM has ended.
const REASON: Duration = Duration::from_secs(2);

/// The VM ran in another boot of the host, or until the host went down. A host that has rebooted
/// its user space alone (systemd-soft-reboot.service(8)) has the boot id that it had: then the
/// daemon's start tells. Later, in the boot in which it was ended, a VM waits for the host to go
/// down.
fn rebooted(row: &VmRow, ctx: &Context, look: Look) -> bool {
    let ended = look == Look::First && row.state != State::Running;
    row.boot_id.as_ref().is_some_and(|boot| ended || *boot != ctx.boot_id)
}

/// Whether a row of the helper's ledger has more than a COW file: what belongs to one boot of a VM.
pub(super) fn holds(holding: &Holding) -> bool {
    holding.tap.is_some() || holding.disk.is_some() || holding.reach != Mode::None || holding.pid.is_some()
}

fn recorded(row: &VmRow, ctx: &Context, look: Look) -> Recorded {
    Recorded {
        state: row.state,
        making: row.making,
        other_boot: rebooted(row, ctx, look),
        names_handles: row.mirror != Handles::default(),
    }
}

/// What one look at the cgroup shows.
fn seen(row: &VmRow, ctx: &Context, watched: bool, look: Look) -> Seen {
    Seen {
        look,
        lives: ctx.machine.populated(row.owner, &row.id),
        certain: ctx.machine.delegated(),
        watched,
        process: None,
        held: None,
    }
}

/// Why a VM whose row says "running" certainly does not run. Reads one file, for answers to users.
pub(super) fn why_dead(row: &VmRow, ctx: &Context) -> Option<&'static str> {
    if row.state != State::Running {
        return None;
    }
    match diagnose(&recorded(row, ctx, Look::Later), &seen(row, ctx, false, Look::Later)) {
        Finding::Happened(Event::FoundRebooted) => Some(REBOOTED),
        Finding::Happened(Event::FoundDead) => Some(ENDED),
        Finding::Happened(_) | Finding::Ask(_) | Finding::True => None,
    }
}

/// Whether row and host disagree, or may; `held`: the helper holds something for the VM.
pub(super) fn disagrees(row: &VmRow, ctx: &Context, shared: &Shared, held: bool) -> bool {
    let mut seen = seen(row, ctx, shared.running().is_some(), Look::Later);
    seen.held = Some(held || seen.lives);
    diagnose(&recorded(row, ctx, Look::Later), &seen) != Finding::True
}

impl Actor {
    /// Finds out what became of this VM, and brings row and host together. True when the VM is
    /// gone.
    pub(super) async fn reconcile(&mut self, look: Look) -> bool {
        let seat = match Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network) {
            Ok(seat) => seat,
            Err(error) => {
                tracing::error!("{}", error.message());
                return false;
            }
        };
        let mut seen = seen(&self.row, &self.ctx, self.shared.running().is_some(), look);
        let event = loop {
            match diagnose(&recorded(&self.row, &self.ctx, look), &seen) {
                Finding::True => return false,
                Finding::Ask(Question::Process) => seen.process = Some(self.process(&seat).await),
                Finding::Ask(Question::Held) => seen.held = Some(self.holds_something(&seat).await),
                Finding::Happened(event) => break event,
            }
        };
        self.found(event, look).await
    }

    /// Acts on a finding. True when the VM is gone.
    async fn found(&mut self, event: Event, look: Look) -> bool {
        match event {
            Event::Delete => {
                tracing::info!("its creation or removal was cut short; removed");
                return matches!(self.apply(Event::Delete, None, "").await, Ok(Then::Gone));
            }
            Event::FoundAlive => self.found_alive().await,
            Event::FoundRebooted => self.found_rebooted().await,
            _ => {
                let reason = self.why_it_ended(look).await;
                self.quietly(event, &reason).await;
            }
        }
        false
    }

    async fn found_rebooted(&mut self) {
        tracing::info!("it ran when the host went down");
        self.quietly(Event::FoundRebooted, REBOOTED).await;
        if self.row.waits_to_run() && self.row.state == State::Stopped {
            self.resume_in_turn();
        }
    }

    async fn found_alive(&mut self) {
        let recorded = self.row.state == State::Running;
        if recorded {
            tracing::info!("found running");
        } else {
            tracing::warn!("found running, and the database does not say so: is it an older copy?");
        }
        self.quietly(Event::FoundAlive, "").await;
        if self.row.state != State::Running {
            // It could not be recorded: the next look tries again.
            self.row.mirror = Handles::default();
            return;
        }
        self.open_ports(None).await;
        // A change that a crash cut short, or that an older row does not know. With names in the
        // list it waits for their addresses, or the guest would be cut off from them for a moment.
        if !self.names().is_empty() {
            self.ask_names();
        } else if let Err(error) = self.align_network().await {
            tracing::warn!("{}", error.message());
        }
    }

    /// The reason for a VM that was found dead, as its row will show it.
    async fn why_it_ended(&self, look: Look) -> String {
        if self.row.state != State::Running {
            tracing::info!("a start or a teardown was cut short; cleaned up");
            return self.row.last_error.clone();
        }
        if let Some(why) = self.ctx.machine.out_of_memory(self.row.owner, &self.row.id) {
            return why.to_string();
        }
        if look == Look::First {
            return ENDED.to_owned();
        }
        let known = match self.shared.running() {
            // Its monitor is about to report the end, and knows why.
            Some(running) => timeout(REASON, running.ended()).await.unwrap_or_default(),
            None => self.shared.ended(),
        };
        if known.is_empty() { ENDED_UNSEEN.to_owned() } else { known }
    }

    /// Looks for the VM's process, and takes it back when there is one. Of a VM whose row does not
    /// say "running" the guest must answer, too.
    async fn process(&mut self, seat: &Seat) -> Process {
        let found = if self.shared.running().is_some() { Ok(true) } else { self.adopt(seat).await };
        match found {
            Ok(true) => {}
            Ok(false) => return Process::Gone,
            Err(error) => {
                tracing::error!("cannot tell whether it runs: {}", error.message());
                return Process::Unknown;
            }
        }
        if self.row.state == State::Running {
            return Process::Alive;
        }
        let Some(running) = self.shared.running() else { return Process::Gone };
        match timeout(AGENT, running.ready(AGENT)).await {
            Ok(Ok(())) => Process::Alive,
            Ok(Err(_)) | Err(_) => Process::Silent,
        }
    }

    /// A VM's process is its own when it is found in the VM's cgroup and the helper knows it as
    /// this VM's. From then on its end is watched for.
    async fn adopt(&mut self, seat: &Seat) -> Result<bool, VmError> {
        let saved = self.held(seat);
        let Some(running) = self.ctx.machine.adopt(seat, &saved).await? else { return Ok(false) };
        match self.ctx.privileged.of(seat.owner).process_running(seat.id, running.pid()).await {
            Ok(ProcessState::Running) => {}
            Ok(other) => {
                tracing::warn!(?other, pid = running.pid(), "the helper does not know this process as the VM's");
                return Ok(false);
            }
            // Without the helper's word the cgroup, whose path comes from the VM's id, is proof
            // enough to keep it alive.
            Err(error) => tracing::warn!("the helper cannot say: {}", chain(&error)),
        }
        self.watch(running);
        Ok(true)
    }

    /// Is there anything of a VM that does not run: a process, a handle, or a row in the helper's
    /// ledger?
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
