//! One task per VM, which alone changes that VM. Orders come through a queue and are done one after
//! the other; what an event of the VM's life does is in `effects`. No call of a client is ever the
//! owner of work: it leaves an order here and watches the job.

use super::Context;
use super::error::VmError;
use super::order::{Ask, Order};
use super::shared::{SAME_USE, Shared};
use crate::db::{Db, DbError, VmRow};
use crate::error::OverLimit;
use crate::jobs::Job;
use crate::net::names::Known;
use banger_policy::VmId;
use banger_policy::lifecycle::{Event, Look, State, Then};
use banger_policy::limits::DEFAULT_STOP_SECONDS;
use banger_policy::reach::Reach;
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
            if let Order::Asked(job, _) = order {
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
            Order::Asked(job, ask) => {
                let span = tracing::info_span!("job", banger_job = %job.id());
                return self.asked(*job, *ask).instrument(span).await;
            }
            Order::Disowned(reason) => {
                if self.row.state == State::Running {
                    tracing::warn!("{reason}");
                    self.quietly(Event::Stop, &reason).await;
                }
            }
            Order::Ended { boot, reason } => {
                if boot == self.boot && self.row.state == State::Running {
                    tracing::info!(reason, "the guest ended by itself");
                    self.quietly(Event::Ended, &reason).await;
                }
            }
            Order::Stale(limit) => {
                let used = self.shared.in_use() || self.ctx.ports.used(&self.row.id);
                if self.row.state == State::Running && !used && self.idle().await >= limit {
                    tracing::info!("stopped: nobody used it for long");
                    self.quietly(Event::Stop, "stopped because nobody used it for long").await;
                }
            }
            Order::Look => return self.reconcile(Look::Later).await,
            Order::AskNames => self.look_at_network().await,
            Order::Names(found) => self.names_came(found).await,
        }
        false
    }

    /// Does what somebody asked for, and ends the job. True when the VM is gone.
    async fn asked(&mut self, job: Job, ask: Ask) -> bool {
        // Left before the VM was given away, and its turn comes behind that.
        if !job.may_change(&self.row.who()) {
            job.finish(Err(VmError::NotFound { shown: self.row.name.to_string(), admin: false }));
            return false;
        }
        // Cancelled before its turn: nothing is begun. What a create or the host's reboot has left
        // in the row is for them to undo.
        if !matches!(ask, Ask::Create { .. } | Ask::Resume(_))
            && let Err(cancelled) = job.go_on()
        {
            job.finish(Err(VmError::from(cancelled)));
            return false;
        }
        let unchanged = Then::Is(self.row.state);
        let (host_down, is_start) = (matches!(ask, Ask::HostDown), matches!(ask, Ask::Start | Ask::Restart));
        let done = match ask {
            Ask::Create { start, keep } => return self.create(job, start, keep).await,
            Ask::Resume(turn) => {
                self.resume(job).await;
                drop(turn);
                return false;
            }
            Ask::Start => self.carry_out(Event::Start, &job, "").await,
            Ask::Stop { within } => {
                self.patience = within.unwrap_or(SHUTDOWN_LIMIT);
                let done = self.carry_out(Event::Stop, &job, "").await;
                self.patience = SHUTDOWN_LIMIT;
                done
            }
            Ask::HostDown => self.carry_out(Event::HostDown, &job, "the host went down").await,
            Ask::Delete => self.carry_out(Event::Delete, &job, "").await,
            Ask::Prune => match self.is_idle() {
                Ok(()) => self.carry_out(Event::Delete, &job, "").await,
                Err(used) => Err(used),
            },
            Ask::Kill(signal) => {
                if signal != KillSignal::Kill
                    && let Some(running) = self.shared.running()
                {
                    job.stage("signal");
                    running.signal(signal, SIGNAL_LIMIT).await;
                }
                self.carry_out(Event::Kill, &job, "").await
            }
            Ask::Restart => match self.stop_to_restart(&job).await {
                Ok(()) => self.carry_out(Event::Start, &job, "").await,
                Err(error) => Err(error),
            },
            Ask::Set(request) => self.change(&job, request).await.map(|()| unchanged),
            Ask::Give(to) => self.give_to(&to).await.map(|()| unchanged),
            Ask::Publish(wanted) => self.publish(&job, &wanted).await.map(|()| unchanged),
            Ask::Unpublish(names) => self.unpublish(&names).await.map(|()| unchanged),
        };
        // In the next boot; in this one if the host stays up.
        if (host_down || is_start && self.ctx.turns.goes_down()) && self.row.waits_to_run() {
            self.resume_in_turn();
        }
        let gone = matches!(done, Ok(Then::Gone));
        let result = match done {
            Ok(Then::Gone) => Ok(JobResult::Text(format!("deleted {}", self.row.name))),
            Ok(Then::Is(_) | Then::BringUp) => self.record().await,
            Err(error) => Err(error),
        };
        job.finish(result);
        gone
    }

    /// Whether nobody uses it, or is about to.
    fn is_idle(&self) -> Result<(), VmError> {
        if self.row.state == State::Running || self.row.waits_to_run() {
            return Err(VmError::NotIdle(self.row.name.clone()));
        }
        Ok(())
    }

    async fn stop_to_restart(&mut self, job: &Job) -> Result<(), VmError> {
        if self.row.state == State::Running {
            self.apply(Event::Stop, Some(job), "").await?;
        }
        Ok(())
    }

    /// For how many seconds nobody has used it, as far as uses are written. Asked for in its turn:
    /// somebody may have come while the order waited.
    async fn idle(&self) -> u64 {
        match self.ctx.db.vm(self.row.id).await {
            Ok(Some(row)) => {
                let written = row.last_touched_at.unix().saturating_add(SAME_USE.as_secs());
                Timestamp::now().unix().saturating_sub(written)
            }
            _ => 0,
        }
    }

    /// The VM as it is now.
    pub(super) async fn record(&mut self) -> Result<JobResult, VmError> {
        let row = self.ctx.db.vm(self.row.id).await?;
        if let Some(row) = row {
            self.row = row;
        }
        Ok(JobResult::Vm(Box::new(super::record::of(&self.row, &self.ctx, None))))
    }

    /// What the database refused, for the owner of this VM.
    pub(super) fn refused(&self, error: DbError) -> VmError {
        match error {
            DbError::Limit(why) => OverLimit::of(&self.row.who(), why).into(),
            error => error.into(),
        }
    }

    /// The database, on behalf of its owner's VMs.
    pub(super) fn db(&self) -> Db {
        self.ctx.db.of_vms(self.row.owner)
    }

    pub(super) fn id(&self) -> VmId {
        self.row.id
    }
}
