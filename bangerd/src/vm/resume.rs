//! VMs that ran when the host went down and are to run again: started by the daemon after a boot, a
//! few at a time, so that neither the host nor the users who ask for something meanwhile are
//! overrun.

use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::order::{Ask, Order};
use crate::error::chain;
use crate::jobs::Job;
use crate::turns;
use banger_policy::Peer;
use banger_policy::lifecycle::{Event, State};
use banger_policy::quota::UserLimits;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

/// Starts at a time, and of one user.
const STARTS: (usize, usize) = (4, 2);
/// KVM may come a while after the daemon when the host boots. What is still missing then, the start
/// says.
const HOST_WAIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A daemon that still lives so long after the last VM was ended for the host's shutdown knows that
/// the host stays up: `banger-guests.service` has ten minutes for all VMs, and the daemon is ended
/// right after it.
const GOES_DOWN: Duration = Duration::from_secs(15 * 60);
/// VMs of an earlier run of the daemon that are looked at, and torn down, at a time. Database and
/// helper each do one thing after the other: what a user asks waits behind no more than these,
/// however many VMs there are.
const LOOKS: usize = 16;

/// Whose turn it is, when the daemon has much to do by itself.
#[derive(Debug)]
pub(crate) struct Turns {
    starts: Arc<turns::Turns>,
    pub(super) looks: Semaphore,
    /// When it was said last that the host goes down.
    down: watch::Sender<Option<Instant>>,
}

impl Default for Turns {
    fn default() -> Self {
        let starts = turns::Turns::new(STARTS.0, STARTS.1);
        Self { starts, looks: Semaphore::new(LOOKS), down: watch::Sender::default() }
    }
}

impl Turns {
    /// From now on nothing is started that waits for its turn: it would be ended in its boot.
    pub(super) fn host_goes_down(&self) {
        self.down.send_replace(Some(Instant::now()));
    }

    pub(super) fn goes_down(&self) -> bool {
        is_recent(*self.down.borrow())
    }

    /// Returns when the host goes down.
    async fn until_down(&self) {
        // The sender is this value's own, so the wait ends with an answer.
        drop(self.down.subscribe().wait_for(|at| is_recent(*at)).await);
    }

    /// Returns when the host does not go down, after all.
    async fn until_up(&self) {
        let mut down = self.down.subscribe();
        loop {
            let at = *down.borrow_and_update();
            let Some(at) = at.filter(|_| is_recent(at)) else { return };
            drop(timeout(GOES_DOWN.saturating_sub(at.elapsed()), down.changed()).await);
        }
    }
}

fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < GOES_DOWN)
}

#[cfg(test)]
impl Turns {
    /// No start waits for its turn or is under way.
    pub(super) fn starts_are_over(&self) -> bool {
        self.starts.are_over()
    }

    /// As if the time had passed in which the host would have gone down.
    pub(super) fn host_stays_up(&self) {
        self.down.send_replace(None);
    }
}

impl Actor {
    /// Its turn has come. Whoever has started or stopped it meanwhile, or has taken the wish back,
    /// has had the last word.
    pub(super) async fn resume(&mut self, job: Job) {
        if !self.row.waits_to_run() {
            // Whoever took the wish back and has it again wants it for the next reboot.
            if self.row.state == State::Stopped {
                self.forget_the_wish(State::Stopped, &self.row.last_error.clone()).await;
            }
            job.finish(self.record().await);
            return;
        }
        let (ctx, cancel) = (Arc::clone(&self.ctx), job.cancelled().clone());
        let cut_short = tokio::spawn(async move {
            ctx.turns.until_down().await;
            cancel.cancel();
        });
        let started = self.carry_out(Event::Start, &job, "").await;
        cut_short.abort();
        match &started {
            // Its turn is still to come: in the host's next boot, or when this one goes on.
            Err(VmError::Cancelled(_)) if self.ctx.turns.goes_down() => self.resume_in_turn(),
            // It has had its turn, and no longer counts as one that will run. What failed before
            // the first step is said here; a start that went further has said so.
            Err(error) if !matches!(error, VmError::Cancelled(_)) => {
                self.forget_the_wish(State::Error, &error.message()).await;
            }
            _ => self.forget_the_wish(self.row.state, &self.row.last_error.clone()).await,
        }
        let result = match started {
            Ok(_) => self.record().await,
            Err(error) => Err(error),
        };
        job.finish(result);
        // Or it would be idle since before the reboot.
        if let Err(error) = self.db().touch_vm(self.row.id).await {
            tracing::warn!("cannot note the use: {}", chain(&error));
        }
    }

    /// That it ran when the host went down no longer counts.
    async fn forget_the_wish(&mut self, state: State, reason: &str) {
        if self.row.state != State::Running
            && self.row.boot_id.is_some()
            && let Err(error) = self.set_state(state, reason, None).await
        {
            tracing::error!("{}", error.message());
        }
    }

    /// Leaves an order with itself when its turn comes. It is the owner's job, seen and cancelled
    /// like any other.
    pub(super) fn resume_in_turn(&self) {
        let seat = match Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network) {
            Ok(seat) => seat,
            Err(error) => return tracing::error!("{}", error.message()),
        };
        let (ctx, orders, turns) = (Arc::clone(&self.ctx), self.own_orders.clone(), Arc::clone(&self.ctx.turns.starts));
        let (owner, name) = (self.row.who(), self.row.name.clone());
        tokio::spawn(async move {
            let Some(turn) = turns.take(owner.uid).await else { return };
            let deadline = Instant::now() + HOST_WAIT;
            while ctx.machine.preflight(&seat).await.is_err() && Instant::now() < deadline {
                sleep(LOOK_AGAIN).await;
            }
            ctx.turns.until_up().await;
            // Deleted meanwhile: then there is nobody to start.
            let Some(orders) = orders.upgrade() else { return };
            // What ran before runs again: it has counted as running all the time.
            let owner = Peer { uid: owner.uid, name: owner.name, admin: false, limits: UserLimits::NONE };
            let ask = Ask::Resume(turn);
            match ctx.jobs.begin(&owner, ask.title(&name)) {
                Ok(job) => drop(orders.send(Order::Asked(Box::new(job), Box::new(ask)))),
                Err(error) => tracing::error!("not started again: {}", chain(&error)),
            }
        });
    }
}
