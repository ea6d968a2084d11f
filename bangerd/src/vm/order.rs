//! What an actor is told.

use crate::jobs::Job;
use banger_policy::Peer;
use banger_proto::daemon::KillSignal;
use banger_proto::model::SetRequest;
use tokio::sync::OwnedSemaphorePermit;

/// One thing to do about the VM; they are done one after the other.
#[derive(Debug)]
pub(super) enum Order {
    /// The row is new: make what belongs to it and, when wanted, start it. Failed: away with it, unless `keep`.
    Create {
        job: Job,
        start: bool,
        keep: bool,
    },
    Start(Job),
    Stop(Job),
    /// A stop because the host goes down.
    HostDown(Job),
    /// The host is back: start what ran, unless somebody has done it meanwhile. The turn ends with the order.
    Resume {
        job: Job,
        turn: OwnedSemaphorePermit,
    },
    Restart(Job),
    Kill(Job, KillSignal),
    Set(Job, SetRequest),
    Delete(Job),
    /// The monitor of boot number `boot` saw its end.
    Ended {
        boot: u64,
        reason: String,
    },
    /// Nobody used it for so many seconds.
    Stale(u64),
    /// To be given to somebody else.
    Give(Job, Peer),
    /// Its owner's number is another user's now; the reason.
    Disowned(String),
    /// The host shows something else than the row says.
    Look,
}

impl Order {
    /// The job that somebody waits for.
    pub(super) fn into_job(self) -> Option<Job> {
        match self {
            Order::Create { job, .. }
            | Order::Start(job)
            | Order::Stop(job)
            | Order::HostDown(job)
            | Order::Resume { job, .. }
            | Order::Restart(job)
            | Order::Kill(job, _)
            | Order::Set(job, _)
            | Order::Give(job, _)
            | Order::Delete(job) => Some(job),
            Order::Ended { .. } | Order::Stale(_) | Order::Disowned(_) | Order::Look => None,
        }
    }
}
