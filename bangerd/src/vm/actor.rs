//! One task per VM, which alone changes that VM. Orders come through a queue and are done one after
//! the other; what each means is the policy's table, and this file runs its effects. No call of a
//! client is ever the owner of work: it leaves an order here and watches the job.

use super::Context;
use super::error::{VmError, joined};
use super::machine::Seat;
use super::order::{Order, Verb};
use super::shared::{Shared, Wait};
use crate::db::{DbError, VmRow};
use crate::error::OverLimit;
use crate::handles::Handles;
use crate::jobs::Job;
use crate::net::names::Known;
use banger_policy::VmId;
use banger_policy::lifecycle::{self, Effect, Event, Illegal, Look, State, Then};
use banger_policy::limits::DEFAULT_STOP_SECONDS;
use banger_policy::reach::Reach;
use banger_policy::vm::RestartPolicy;
use banger_proto::daemon::KillSignal;
use banger_proto::model::JobResult;
use banger_proto::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

/// How long a guest may take to shut down when nobody says otherwise.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(DEFAULT_STOP_SECONDS as u64);
/// How long a VMM may take to end on a signal other than KILL.
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// A reason is in every answer about the VM, characters.
const REASON: usize = 8 << 10;

/// The state of the task.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) ctx: Arc<Context>,
    pub(super) row: VmRow,
    pub(super) shared: Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// For the monitor, which reports here; weak, so that the queue ends with its last outside
    /// holder.
    pub(super) own_orders: mpsc::WeakUnboundedSender<Order>,
    /// Counts boots within this run of the daemon, so that a late report of an earlier boot is
    /// known as such.
    pub(super) boot: u64,
    /// How long the guest may take to shut down.
    pub(super) patience: Duration,
    pub(super) monitor: Option<AbortHandle>,
    /// Addresses of the names in its list.
    pub(super) names_known: Known,
    /// They are being asked for.
    pub(super) names_asked: bool,
    /// What the helper was last told that the guest reaches.
    pub(super) reach_told: Option<Reach>,
}

/// The place of an actor: orders can be left already, and are done when it works.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<Order>,
}

impl Place {
    pub(super) fn new() -> Self {
        let (orders, queue) = mpsc::unbounded_channel();
        Self { orders, shared: Arc::default(), queue }
    }

    /// Starts the task of one VM. Without a `first` order the row is of an earlier run, and what
    /// became of it is found out first.
    pub(super) fn work(self, ctx: Arc<Context>, row: VmRow, first: Option<Order>) {
        let span = tracing::info_span!("vm", banger_vm = %row.id, banger_uid = row.owner);
        let own_orders = self.orders.downgrade();
        let actor = Actor {
            ctx,
            row,
            shared: self.shared,
            orders: self.queue,
            own_orders,
            boot: 0,
            patience: SHUTDOWN_LIMIT,
            monitor: None,
            names_known: Known::default(),
            names_asked: false,
            reach_told: None,
        };
        tokio::spawn(actor.run(first).instrument(span));
    }
}

impl Actor {
    async fn run(mut self, first: Option<Order>) {
        let mut gone = match first {
            None => {
                let gone = self.look().await;
                self.shared.settle();
                gone
            }
            Some(order) => {
                self.shared.settle();
                self.handle(order).await
            }
        };
        while !gone && let Some(order) = self.orders.recv().await {
            gone = self.handle(order).await;
        }
        // Either the VM is gone, or the daemon ends and the VM does not.
        self.stop_watching();
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Some(job) = order.into_job() {
                job.finish(Err(VmError::Deleted(self.row.name.clone())));
            }
        }
    }

    /// What became of the VM's earlier run. True when it is gone.
    async fn look(&mut self) -> bool {
        let ctx = Arc::clone(&self.ctx);
        // The semaphore is never closed.
        let _turn = ctx.turns.looks.acquire().await;
        self.was_deleted().await || self.reconcile(Look::First).await
    }

    /// The order came with a row that was read before the VM's deletion: nothing may be made for it
    /// any more.
    async fn was_deleted(&self) -> bool {
        let deleted = matches!(self.ctx.db.vm(self.row.id).await, Ok(None));
        if deleted {
            self.ctx.forget(&self.row.id);
        }
        deleted
    }

    /// True when the VM is gone.
    async fn handle(&mut self, order: Order) -> bool {
        match order {
            Order::Create { job, start, keep } => {
                let span = job_span(&job);
                self.create(job, start, keep).instrument(span).await
            }
            Order::Asked(job, verb) => self.asked(job, verb).await,
            Order::Resume { job, turn } => {
                let span = job_span(&job);
                self.resume(job).instrument(span).await;
                drop(turn);
                false
            }
            Order::Give(job, to) => {
                let span = job_span(&job);
                self.give(job, &to).instrument(span).await;
                false
            }
            Order::Publish(job, wanted) => self.publish(job, wanted).await,
            Order::Unpublish(job, names) => self.unpublish(job, names).await,
            Order::Disowned(reason) => {
                if self.row.state == State::Running {
                    tracing::warn!("{reason}");
                    self.quietly(Event::Stop, &reason).await;
                }
                false
            }
            Order::Ended { boot, reason } => {
                if boot == self.boot && self.row.state == State::Running {
                    tracing::info!(reason, "the guest ended by itself");
                    self.quietly(Event::Ended, &reason).await;
                }
                false
            }
            Order::Stale(limit) => {
                if self.row.state == State::Running && !self.shared.in_use() && self.idle().await >= limit {
                    tracing::info!("stopped: nobody used it for long");
                    self.quietly(Event::Stop, "stopped because nobody used it for long").await;
                }
                false
            }
            Order::Look => self.reconcile(Look::Later).await,
            Order::AskNames => {
                self.look_at_network().await;
                false
            }
            Order::Names(found) => {
                self.names_came(found).await;
                false
            }
        }
    }

    /// Does what a user asked for. True when the VM is gone.
    async fn asked(&mut self, job: Job, verb: Verb) -> bool {
        match verb {
            Verb::Start => self.answer(job, Event::Start).await,
            Verb::Stop => self.answer(job, Event::Stop).await,
            Verb::StopWithin(limit) => {
                self.patience = limit;
                let gone = self.answer(job, Event::Stop).await;
                self.patience = SHUTDOWN_LIMIT;
                gone
            }
            Verb::HostDown => self.answer(job, Event::HostDown).await,
            Verb::Delete => self.answer(job, Event::Delete).await,
            Verb::Kill(signal) => {
                if signal != KillSignal::Kill
                    && let Some(running) = self.shared.running()
                {
                    job.stage("signal");
                    running.signal(signal, SIGNAL_LIMIT).await;
                }
                self.answer(job, Event::Kill).await
            }
            Verb::Restart => {
                if self.row.state == State::Running
                    && let Err(error) = self.apply(Event::Stop, Some(&job), "").await
                {
                    job.finish(Err(error));
                    return false;
                }
                self.answer(job, Event::Start).await
            }
            Verb::Set(request) => {
                let span = job_span(&job);
                self.set(job, request).instrument(span).await;
                false
            }
        }
    }

    /// For how many seconds nobody has used it. Asked for in its turn: somebody may have come while
    /// the order waited.
    async fn idle(&self) -> u64 {
        match self.ctx.db.vm(self.row.id).await {
            Ok(Some(row)) => Timestamp::now().unix().saturating_sub(row.last_touched_at.unix()),
            _ => 0,
        }
    }

    /// Does what the event means and ends the job with what came of it.
    pub(super) async fn answer(&mut self, job: Job, event: Event) -> bool {
        let span = job_span(&job);
        async {
            let reason = if event == Event::HostDown { "the host went down" } else { "" };
            let result = self.carry_out(event, &job, reason).await;
            let gone = matches!(result, Ok(Then::Gone));
            let result = match result {
                Err(error) => Err(error),
                Ok(Then::Gone) => Ok(JobResult::Text(format!("deleted {}", self.row.name))),
                Ok(Then::Is(_) | Then::BringUp) => self.record().await,
            };
            job.finish(result);
            gone
        }
        .instrument(span)
        .await
    }

    /// The VM as it is now.
    pub(super) async fn record(&mut self) -> Result<JobResult, VmError> {
        let row = self.ctx.db.vm(self.row.id).await?;
        if let Some(row) = row {
            self.row = row;
        }
        Ok(JobResult::Vm(Box::new(super::record::of(&self.row, &self.ctx, None))))
    }

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

    async fn start(&mut self, job: &Job) -> Result<Then, VmError> {
        self.owner_is_there().await?;
        self.renumber(job).await?;
        let config = self.ctx.config.now();
        let seat = Seat::new(&self.row, &self.ctx.paths, config.network)?;
        let (limits, host) = (job.limits_of(&self.row.who()), config.limits.host());
        let counted = self.ctx.db.begin_start(seat.id, limits, host).await;
        counted.map_err(|error| self.refused(error))?;
        self.shared.set_waiting(Some((Wait::Start, job.cancelled().clone())));
        let result = self.bring_up(&seat, job).await;
        self.shared.set_waiting(None);
        let result = match result {
            Ok(running) => {
                self.watch(running);
                self.apply(Event::Started, None, "").await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(then) => {
                self.open_ports(Some(job)).await;
                Ok(then)
            }
            // One that runs and cannot be recorded is undone like any other.
            Err(error) => {
                job.stage("undo");
                let why = error.message();
                // What the guest said on its console is its owner's, and the journal is not.
                tracing::warn!("start failed: {}", first_line(&why));
                match self.apply(Event::StartFailed, None, &why).await {
                    Ok(_) => Err(error),
                    Err(more) => Err(error.also(more)),
                }
            }
        }
    }

    async fn effect(&mut self, effect: Effect, seat: &Seat, job: Option<&Job>) -> Result<(), VmError> {
        match effect {
            Effect::RecordHandles => {
                let held = self.ctx.handles.cached(&seat.id).unwrap_or_default();
                self.row.mirror = held.mirror();
                Ok(self.ctx.handles.record(seat.id, &seat.paths, &held).await?)
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
                if let Err(error) = self.ctx.db.set_vm_unmade(seat.id).await {
                    // A crash before the row is removed then leaves a VM that says which disk is
                    // gone.
                    tracing::warn!("cannot note that the VM is being removed: {}", crate::error::chain(&error));
                }
                self.remove_files(seat).await
            }
            Effect::RemoveRow => Ok(self.ctx.db.delete_vm(seat.id).await?),
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
            (_, Event::FoundRebooted) if self.row.restart == RestartPolicy::Always => kept(),
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
        let set = self.ctx.db.set_vm_state(self.row.id, state, reason.clone(), boot_id.clone(), mirror.clone()).await;
        set?;
        // Only what is recorded is so: otherwise the next look would have nothing to mend.
        (self.row.state, self.row.boot_id, self.row.mirror) = (state, boot_id, mirror);
        let (colon, told) = (if reason.is_empty() { "" } else { ": " }, first_line(&reason));
        tracing::info!(name = %self.row.name, "now {state}{colon}{told}");
        self.row.last_error = reason;
        Ok(())
    }

    /// What the database refused, for the owner of this VM.
    pub(super) fn refused(&self, error: DbError) -> VmError {
        match error {
            DbError::Limit(why) => OverLimit::of(&self.row.who(), why).into(),
            error => error.into(),
        }
    }

    fn illegal(&self, illegal: Illegal) -> VmError {
        match illegal {
            Illegal::AlreadyRunning => VmError::AlreadyRunning(self.row.name.clone()),
            unexpected @ Illegal::Unexpected { .. } => VmError::Illegal(unexpected),
        }
    }

    pub(super) fn id(&self) -> VmId {
        self.row.id
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn job_span(job: &Job) -> tracing::Span {
    tracing::info_span!("job", banger_job = %job.id())
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
