//! What an actor is told.

use super::publish::Wanted;
use super::shared::Wait;
use crate::jobs::Job;
use crate::net::names::Found;
use crate::turns::Turn;
use banger_policy::publish::PortName;
use banger_policy::{Peer, VmName};
use banger_proto::daemon::KillSignal;
use banger_proto::model::SetRequest;
use std::time::Duration;

/// What somebody asks of a VM, from the door to the actor that does it.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The row is new: make what belongs to it and, when wanted, start it. Failed: away with it,
    /// unless `keep`.
    Create {
        start: bool,
        keep: bool,
    },
    Start,
    /// The guest has so long, or as long as it usually has.
    Stop {
        within: Option<Duration>,
    },
    /// A stop because the host goes down.
    HostDown,
    Restart,
    Kill(KillSignal),
    Set(SetRequest),
    /// To be given to somebody else.
    Give(Peer),
    /// To be published on the host.
    Publish(Vec<Wanted>),
    /// To be taken back; all, when none is named.
    Unpublish(Vec<PortName>),
    /// The host is back: start what ran, unless somebody has done it meanwhile. The turn ends with
    /// the start.
    Resume(Turn),
    Delete,
    /// A delete, unless the VM runs or is about to when its turn comes.
    Prune,
}

impl Ask {
    /// The job's title.
    pub(super) fn title(&self, vm: &VmName) -> String {
        match self {
            Ask::Create { .. } => format!("create {vm}"),
            Ask::Start => format!("start {vm}"),
            Ask::Stop { .. } | Ask::HostDown => format!("stop {vm}"),
            Ask::Restart => format!("restart {vm}"),
            Ask::Kill(_) => format!("kill {vm}"),
            Ask::Set(_) => format!("set {vm}"),
            Ask::Give(to) => format!("give {vm} to {}", to.name),
            Ask::Publish(_) => format!("publish ports of {vm}"),
            Ask::Unpublish(_) => format!("unpublish ports of {vm}"),
            Ask::Resume(_) => format!("start {vm} after a reboot of the host"),
            Ask::Delete | Ask::Prune => format!("delete {vm}"),
        }
    }

    /// Waits of the actor that become pointless. A stop does not cut a clean shutdown short.
    pub(super) fn interrupts(&self) -> &'static [Wait] {
        match self {
            Ask::Kill(_) => &[Wait::Start, Wait::Shutdown],
            Ask::Stop { .. } | Ask::HostDown | Ask::Delete => &[Wait::Start],
            Ask::Create { .. } | Ask::Start | Ask::Restart | Ask::Resume(_) => &[],
            Ask::Set(_) | Ask::Give(_) | Ask::Publish(_) | Ask::Unpublish(_) | Ask::Prune => &[],
        }
    }

    /// A guest that reads the VM's disks must not read on while this is done.
    pub(super) fn cuts_readers(&self) -> bool {
        !matches!(self, Ask::Give(_) | Ask::Publish(_) | Ask::Unpublish(_))
    }
}

/// One thing to do about the VM; they are done one after the other.
#[derive(Debug)]
pub(super) enum Order {
    /// What somebody asks for, with the job that shows how far it is.
    Asked(Box<Job>, Box<Ask>),
    /// The monitor of boot number `boot` saw its end.
    Ended { boot: u64, reason: String },
    /// Nobody used it for so many seconds.
    Stale(u64),
    /// Its owner's number is another user's now; the reason.
    Disowned(String),
    /// The host shows something else than the row says.
    Look,
    /// Time to ask for the names in its list again.
    AskNames,
    /// What came of it.
    Names(Found),
}
