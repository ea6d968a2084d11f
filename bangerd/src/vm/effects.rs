//! What an event of a VM's life does: the policy's table says which effects follow, this file runs
//! them and writes what the VM is then.

use super::actor::Actor;
use super::error::{VmError, joined};
use super::machine::Seat;
use crate::handles::Handles;
use crate::jobs::Job;
use banger_policy::lifecycle::{self, Effect, Event, Illegal, State, Then};
use banger_policy::vm::RestartPolicy;

/// A reason is in every answer about the VM, characters.
const REASON: usize = 8 << 10;

impl Actor {
    /// For what nobody asked for: there is only the log to tell.
    pub(super) async fn quietly(&mut self, event: Event, reason: &str) {
        if let Err(error) = self.apply(event, None, reason).await {
            tracing::error!(?event, "{}", error.message());
        }
    }

    /// An event and, when it asks for one, the start.
    pub(super) async fn carry_out(&mut self, event: Event, job: &Job, reason: &str) -> Result<Then, VmError> {
        match self.apply(event, Some(job), reason).await? {
            Then::BringUp => self.start(job).await,
            then => Ok(then),
        }
    }

    /// The table's answer to an event, and its effects. A start is the caller's to run.
    pub(super) async fn apply(&mut self, event: Event, job: Option<&Job>, reason: &str) -> Result<Then, VmError> {
        let outcome = lifecycle::next(self.row.state, event).map_err(|illegal| self.illegal(illegal))?;
        if self.row.state == State::Running && outcome.then == Then::Is(State::Stopped) {
            self.shared.set_ended(reason);
        }
        let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?;
        let mut failed = Ok(());
        for effect in outcome.effects.iter().copied() {
            if failed.is_err() && effect.needs_success() {
                continue;
            }
            if event == Event::Delete && matches!(effect, Effect::KillProcesses | Effect::RemoveFiles) {
                let asked = job.map_or(Ok(()), Job::go_on);
                if let Err(cancelled) = asked {
                    // Its guest has ended for it already, or what it held is released.
                    if self.row.state == State::Running || effect == Effect::RemoveFiles {
                        Box::pin(self.apply(Event::Kill, None, "")).await?;
                    }
                    return Err(cancelled.into());
                }
            }
            if let Some(job) = job
                && let Some(stage) = stage_of(effect)
            {
                job.stage(stage);
            }
            match self.effect(effect, &seat, job).await {
                Err(error) if effect.may_fail() => tracing::warn!("{}", error.message()),
                result => failed = joined([failed, result]),
            }
        }
        self.settle(failed, event, reason).await?;
        match outcome.then {
            Then::BringUp => {}
            Then::Gone => self.ctx.forget(&self.row.id),
            Then::Is(next) => {
                let boot_id = self.boot_after(next, event);
                // To stop what waits for its turn after a reboot is to change it: it no longer
                // waits.
                if next != self.row.state || !outcome.effects.is_empty() || boot_id != self.row.boot_id {
                    self.set_state(next, reason, boot_id).await?;
                }
            }
        }
        Ok(outcome.then)
    }

    /// A teardown that could not finish is a state of its own.
    async fn settle(&mut self, failed: Result<(), VmError>, event: Event, reason: &str) -> Result<(), VmError> {
        let Err(error) = failed else { return Ok(()) };
        if let Ok(outcome) = lifecycle::next(self.row.state, Event::TeardownFailed)
            && let Then::Is(next) = outcome.then
        {
            // Tried again by the sweep each minute: said once.
            let told = if self.row.state == State::Error && reason == self.row.last_error && !reason.is_empty() {
                reason.to_owned()
            } else if reason.is_empty() {
                error.message()
            } else {
                format!("{reason}; {}", error.message())
            };
            self.set_state(next, &told, self.boot_after(next, event)).await?;
        }
        Err(error)
    }

    async fn effect(&mut self, effect: Effect, seat: &Seat, job: Option<&Job>) -> Result<(), VmError> {
        match effect {
            Effect::RecordHandles => {
                let held = self.ctx.handles.cached(&seat.id).unwrap_or_default();
                // The row has them with the state that follows, or not at all.
                self.row.mirror = held.mirror();
                self.ctx.handles.keep(seat.id, &seat.paths, &held).await;
                Ok(())
            }
            Effect::SeedCache => {
                let mut held = self.held(seat);
                held.pid = self.shared.running().map(|running| running.pid());
                self.ctx.handles.seed(seat.id, held);
                Ok(())
            }
            Effect::ShutDownGuest => {
                self.shut_down(job).await;
                Ok(())
            }
            Effect::KillProcesses => self.kill_processes(seat).await,
            Effect::TearDown => self.tear_down(seat).await,
            Effect::ClearHandles | Effect::DropHandles => self.clear_handles(seat).await,
            Effect::RemoveFiles => {
                match self.db().set_vm_unmade(seat.id).await {
                    Ok(()) => self.row.making = true,
                    // A crash before the row is removed then leaves a VM that says which disk is
                    // gone.
                    Err(error) => {
                        tracing::warn!("cannot note that the VM is being removed: {}", crate::error::chain(&error));
                    }
                }
                // Who has begun to read since the order came keeps what is removed on the disk.
                self.ctx.readers.cut(&seat.id);
                self.remove_files(seat).await
            }
            Effect::RemoveRow => Ok(self.db().delete_vm(seat.id).await?),
        }
    }

    /// The boot of the host that the VM belongs to after an event. What ran when the host went down
    /// is remembered until it is known again: to say why it does not run, and to start it again
    /// when that is wanted.
    fn boot_after(&self, next: State, event: Event) -> Option<String> {
        let kept = || self.row.boot_id.clone();
        match (next, event) {
            (State::Running, _) => Some(self.ctx.boot_id.clone()),
            (_, Event::HostDown) => kept(),
            // What was left of an earlier attempt is gone; whether it is to run again is another
            // question.
            (_, Event::FoundDead) if self.row.state != State::Running => kept(),
            // One that could not be looked after yet is found again.
            (State::Error, Event::FoundRebooted) => kept(),
            (_, Event::FoundRebooted) if self.row.restart == RestartPolicy::Always => kept(),
            // The host goes down before it was up; for a start that somebody has ordered, for the
            // first time.
            (_, Event::StartCancelled) if self.ctx.turns.goes_down() => {
                let ordered = self.row.restart == RestartPolicy::Always && !self.row.making;
                kept().or_else(|| ordered.then(|| self.ctx.boot_id.clone()))
            }
            _ => None,
        }
    }

    pub(super) async fn set_state(
        &mut self,
        state: State,
        reason: &str,
        boot_id: Option<String>,
    ) -> Result<(), VmError> {
        let reason: String = reason.chars().take(REASON).collect();
        let mirror = if state == State::Stopped { Handles::default() } else { self.row.mirror.clone() };
        let set = self.db().set_vm_state(self.row.id, state, reason.clone(), boot_id.clone(), mirror.clone()).await;
        set?;
        // Only what is recorded is so: otherwise the next look would have nothing to mend.
        (self.row.state, self.row.boot_id, self.row.mirror) = (state, boot_id, mirror);
        self.row.making &= state != State::Running;
        let (colon, told) = (if reason.is_empty() { "" } else { ": " }, first_line(&reason));
        tracing::info!(name = %self.row.name, "now {state}{colon}{told}");
        self.row.last_error = reason;
        self.ctx.fellows.changed();
        Ok(())
    }

    fn illegal(&self, illegal: Illegal) -> VmError {
        match illegal {
            Illegal::AlreadyRunning => VmError::AlreadyRunning(self.row.name.clone()),
            unexpected @ Illegal::Unexpected { .. } => VmError::Illegal(unexpected),
        }
    }
}

pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What a watcher of the job sees of an effect.
fn stage_of(effect: Effect) -> Option<&'static str> {
    match effect {
        Effect::ShutDownGuest => Some("guest shutdown"),
        Effect::KillProcesses => Some("end processes"),
        Effect::TearDown => Some("teardown"),
        Effect::RemoveFiles => Some("remove disks"),
        Effect::RecordHandles | Effect::SeedCache | Effect::ClearHandles | Effect::DropHandles | Effect::RemoveRow => {
            None
        }
    }
}
