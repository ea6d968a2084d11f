//! What an actor is told.

use super::publish::Wanted;
use super::shared::Wait;
use crate::jobs::Job;
use crate::net::names::Found;
use banger_policy::Peer;
use banger_policy::publish::PortName;
use banger_proto::daemon::KillSignal;
use banger_proto::model::SetRequest;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// What a user asks of a VM that exists.
#[derive(Clone, Debug)]
pub(crate) enum Verb {
    Start,
    Stop,
    /// A stop for which the guest has so long.
    StopWithin(Duration),
    /// A stop because the host goes down.
    HostDown,
    Restart,
    Kill(KillSignal),
    Set(SetRequest),
    Delete,
}

impl Verb {
    /// For the job's title.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop | Verb::StopWithin(_) | Verb::HostDown => "stop",
            Verb::Restart => "restart",
            Verb::Kill(_) => "kill",
            Verb::Set(_) => "set",
            Verb::Delete => "delete",
        }
    }

    /// Waits of the actor that become pointless. A stop does not cut a clean shutdown short.
    pub(super) fn interrupts(&self) -> &'static [Wait] {
        match self {
            Verb::Kill(_) => &[Wait::Start, Wait::Shutdown],
            Verb::Stop | Verb::StopWithin(_) | Verb::HostDown | Verb::Delete => &[Wait::Start],
            Verb::Start | Verb::Restart | Verb::Set(_) => &[],
        }
    }
}

/// One thing to do about the VM; they are done one after the other.
#[derive(Debug)]
pub(super) enum Order {
    /// The row is new: make what belongs to it and, when wanted, start it. Failed: away with it,
    /// unless `keep`.
    Create { job: Job, start: bool, keep: bool },
    /// What a user asked for, with the job that he watches.
    Asked(Job, Verb),
    /// The host is back: start what ran, unless somebody has done it meanwhile. The turn ends with
    /// the order.
    Resume { job: Job, turn: OwnedSemaphorePermit },
    /// The monitor of boot number `boot` saw its end.
    Ended { boot: u64, reason: String },
    /// Nobody used it for so many seconds.
    Stale(u64),
    /// To be given to somebody else.
    Give(Job, Peer),
    /// To be published on the host.
    Publish(Job, Vec<Wanted>),
    /// To be taken back; all, when none is named.
    Unpublish(Job, Vec<PortName>),
    /// Its owner's number is another user's now; the reason.
    Disowned(String),
    /// The host shows something else than the row says.
    Look,
    /// Time to ask for the names in its list again.
    AskNames,
    /// What came of it.
    Names(Found),
}

impl Order {
    /// The job that somebody waits for.
    pub(super) fn into_job(self) -> Option<Job> {
        match self {
            Order::Create { job, .. }
            | Order::Asked(job, _)
            | Order::Resume { job, .. }
            | Order::Give(job, _)
            | Order::Publish(job, _)
            | Order::Unpublish(job, _) => Some(job),
            Order::Ended { .. } | Order::Stale(_) | Order::Disowned(_) | Order::Look => None,
            Order::AskNames | Order::Names(_) => None,
        }
    }
}
