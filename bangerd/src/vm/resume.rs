//! VMs that ran when the host went down and are to run again: started by the daemon after a boot, a
//! few at a time, so that neither the host nor the users who ask for something meanwhile are
//! overrun.

use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::order::{Ask, Order};
use super::reconcile::rebooted;
use crate::error::chain;
use crate::jobs::Job;
use crate::turns;
use banger_policy::Peer;
use banger_policy::lifecycle::{Event, State};
use banger_policy::quota::UserLimits;
use banger_policy::vm::RestartPolicy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Starts at a time, and of one user.
const STARTS: (usize, usize) = (4, 2);
/// KVM may come a while after the daemon when the host boots. What is still missing then, the start
/// says.
const HOST_WAIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// VMs of an earlier run of the daemon that are looked at, and torn down, at a time. Database and
/// helper each do one thing after the other: what a user asks waits behind no more than these,
/// however many VMs there are.
const LOOKS: usize = 16;

/// Whose turn it is, when the daemon has much to do by itself.
#[derive(Debug)]
pub(crate) struct Turns {
    starts: Arc<turns::Turns>,
    pub(super) looks: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { starts: turns::Turns::new(STARTS.0, STARTS.1), looks: Semaphore::new(LOOKS) }
    }
}

#[cfg(test)]
impl Turns {
    /// No start waits for its turn or is under way.
    pub(super) fn starts_are_over(&self) -> bool {
        self.starts.are_over()
    }
}

impl Actor {
    /// Its turn has come. Whoever has started or stopped it meanwhile, or has taken the wish back,
    /// has had the last word.
    pub(super) async fn resume(&mut self, job: Job) {
        if !rebooted(&self.row, &self.ctx) || self.row.restart != RestartPolicy::Always {
            job.finish(self.record().await);
            return;
        }
        let started = self.carry_out(Event::Start, &job, "").await;
        // It has had its turn, and no longer counts as one that will run. What failed before the
        // first step is said here; a start that went further has said so.
        if rebooted(&self.row, &self.ctx) {
            let (state, reason) = match &started {
                Err(error) if !matches!(error, VmError::Cancelled(_)) => (State::Error, error.message()),
                _ => (self.row.state, self.row.last_error.clone()),
            };
            if let Err(error) = self.set_state(state, &reason, None).await {
                tracing::error!("{}", error.message());
            }
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

    /// Leaves an order with itself when its turn comes. It is the owner's job, seen and cancelled
    /// like any other.
    pub(super) fn resume_in_turn(&self, seat: &Seat) {
        let seat = seat.clone();
        let (ctx, orders, turns) = (Arc::clone(&self.ctx), self.own_orders.clone(), Arc::clone(&self.ctx.turns.starts));
        let (owner, name) = (self.row.who(), self.row.name.clone());
        tokio::spawn(async move {
            let Some(turn) = turns.take(owner.uid).await else { return };
            let deadline = Instant::now() + HOST_WAIT;
            while ctx.machine.preflight(&seat).await.is_err() && Instant::now() < deadline {
                sleep(LOOK_AGAIN).await;
            }
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
