//! Why something of a VM was not done. Causes are values here, with their sources; what a user
//! reads of them is made in `rpc/answer`.

use super::machine::MachineError;
use crate::db::{DbError, VmRow};
use crate::error::{OverLimit, chain, step};
use crate::jobs::{Cancelled, JobError};
use crate::ports::bound::NotBound;
use crate::privileged::Unhelped;
use crate::room::NoRoom;
use crate::store::error::StoreError;
use crate::util::{NoRandom, WorkerEnded};
use banger_link::keys::KeyError;
use banger_link::link::LinkError;
use banger_policy::id::IdError;
use banger_policy::lifecycle::Illegal;
use banger_policy::name::NameError;
use banger_policy::net::IndexError;
use banger_policy::network::NetworkError;
use banger_policy::publish::rules::Refused;
use banger_policy::publish::{MAX_PER_VM, PortError, PortRange};
use banger_policy::vm::SpecError;
use banger_policy::{ByteSize, VmId, VmName};
use banger_proto::model::{MAX_ERROR, cut};
use std::io;
use std::path::PathBuf;

/// What the daemon does for administrators only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdminsOnly {
    SeeAllVms,
    SeeLeaks,
    Give,
}

/// Why a request, or an order, was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error("no such VM: {shown}")]
    NotFound { shown: String, admin: bool },
    #[error("{0} fits more than one VM")]
    Ambiguous(String),
    #[error("{0} was deleted just now")]
    JustDeleted(String),
    #[error("{0} was deleted meanwhile")]
    Deleted(VmName),
    #[error("only root and the group banger-admin {}", .0.what())]
    AdminsOnly(AdminsOnly),
    #[error("only its owner prepares a workspace in a VM")]
    NotTheOwner,

    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The public key that somebody wants to get in with.
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{0}")]
    Workspace(&'static str),
    #[error("a root disk of {} is too small for {image}: the image needs {}", size(*.root), size(*.least))]
    RootTooSmall { image: String, root: u64, least: u64 },
    #[error("a {disk} disk only grows: it has {}, not less", size(*.has))]
    Shrinks { disk: &'static str, has: u64 },
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    PortRefused(#[from] Refused),
    #[error("{port} is published already by {by}")]
    PortTaken { port: String, by: String },
    #[error("cannot publish {port}")]
    NotBound { port: String, source: NotBound },
    #[error("no port of {0} is free")]
    NoFreePort(PortRange),
    #[error("a VM has at most {MAX_PER_VM} published ports")]
    TooManyPorts,
    #[error("{vm} does not publish port {port}")]
    NotPublished { port: u16, vm: VmName },
    #[error("this host has no user {0}")]
    NoSuchUser(String),

    #[error("{vm} is not running{}{why}", if .why.is_empty() { "" } else { ": " })]
    NotRunning {
        vm: VmName,
        /// Why it ended, if it did so by itself or could not be started. May be empty.
        why: String,
    },
    #[error("{0} is being started and its guest is not ready yet")]
    Starts(VmName),
    #[error("{0} does not run, and has no work disk yet")]
    NothingToRead(VmName),
    #[error("{0} cannot be read: another VM of yours is being read, or many of this host are")]
    OthersRead(VmName),
    #[error("{0} was started or changed meanwhile")]
    ChangedMeanwhile(VmName),
    #[error("{0} is already running")]
    AlreadyRunning(VmName),
    #[error("{0} runs, or is about to: it is being made or started, or waits for its start")]
    NotIdle(VmName),
    #[error("{0} is running: its vCPUs, memory and disks cannot be changed")]
    RunsWithItsSize(VmName),
    #[error("{0} is to run again after the reboot of the host: its memory cannot be changed until then")]
    WaitsWithItsMemory(VmName),
    #[error("{0} is running: it cannot be given away")]
    RunsForItsOwner(VmName),
    #[error(transparent)]
    Illegal(Illegal),
    #[error("a VM named {0} exists already")]
    Taken(VmName),
    #[error("{user} has a VM named {vm}")]
    TakenBy { user: String, vm: VmName },
    #[error("no name is free")]
    NoName,
    #[error("{owner}, who made {vm}, is no longer uid {uid}")]
    OwnerGone { owner: String, vm: VmName, uid: u32 },
    #[error("the host's user database does not answer who uid {0} is")]
    OwnerUnknown(u32),

    #[error(transparent)]
    Limit(#[from] OverLimit),
    #[error("all {0} addresses of the VMs' network are in use")]
    NoAddress(u16),
    #[error("the address of {vm} no longer exists: {source}")]
    AddressGone { vm: VmName, source: IndexError },
    #[error("its image or kernel was deleted meanwhile")]
    ImageGone,
    #[error(transparent)]
    NoRoom(#[from] NoRoom),

    #[error("cannot make {}", .path.display())]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error("cannot remove {}", .path.display())]
    RemoveFolder { path: PathBuf, source: io::Error },
    #[error("the root disk is gone: banger-priv has none of {0}")]
    RootDiskGone(VmId),
    #[error("the work disk is gone: {}", .0.display())]
    WorkDiskGone(PathBuf),
    #[error("cannot grow the work disk")]
    GrowWorkDisk(#[source] io::Error),
    #[error("cannot give the guest its users' keys")]
    GuestKeys(#[source] LinkError),
    #[error(transparent)]
    Helper(#[from] Unhelped),
    /// One of several things that a teardown asked of the helper.
    #[error(transparent)]
    HelperToo(crate::privileged::PrivilegedError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A guest that did not come up, with what it said last.
    #[error("{source}")]
    Guest { source: MachineError, console: Vec<String> },

    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error(transparent)]
    Job(#[from] JobError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the daemon could not keep its records")]
    Records(#[from] DbError),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error(transparent)]
    WorkerEnded(#[from] WorkerEnded),

    /// The first, and what went wrong while that was dealt with.
    #[error("{}", .0.first().map_or_else(String::new, ToString::to_string))]
    Several(Vec<VmError>),
}

impl AdminsOnly {
    fn what(self) -> &'static str {
        match self {
            Self::SeeAllVms => "see everyone's VMs",
            Self::SeeLeaks => "see what belongs to no VM",
            Self::Give => "give VMs away",
        }
    }
}

impl VmError {
    /// Whoever finds a VM ended that ran a moment ago is told why, as `vm list` says it.
    pub(super) fn not_running(row: &VmRow) -> Self {
        let why = row.last_error.lines().next().unwrap_or_default().to_owned();
        Self::NotRunning { vm: row.name.clone(), why }
    }

    /// What failed and why, as the VM's row, the log and its owner are told.
    pub(crate) fn message(&self) -> String {
        let text = match self {
            Self::Several(all) => return all.iter().map(Self::message).collect::<Vec<_>>().join("; "),
            Self::Guest { source, console } => {
                let message = cut(source.message(), MAX_ERROR);
                if console.is_empty() {
                    return message;
                }
                return format!("{message}\nthe console's last lines:\n  {}", console.join("\n  "));
            }
            Self::MakeFolder { .. }
            | Self::RemoveFolder { .. }
            | Self::GrowWorkDisk(_)
            | Self::GuestKeys(_)
            | Self::NotBound { .. }
            | Self::NoRandom(_) => step(self),
            Self::Helper(error) => error.message(),
            Self::Machine(error) => error.message(),
            Self::Store(error) => error.message(),
            Self::HelperToo(_) | Self::Records(_) | Self::NoRoom(_) | Self::WorkerEnded(_) => chain(self),
            // Their text is the whole of it.
            _ => self.to_string(),
        };
        cut(text, MAX_ERROR)
    }

    /// This, and what went wrong while it was dealt with.
    pub(super) fn also(self, more: Self) -> Self {
        let mut all = self.into_all();
        all.extend(more.into_all());
        Self::Several(all)
    }

    fn into_all(self) -> Vec<Self> {
        match self {
            Self::Several(all) => all,
            one => vec![one],
        }
    }
}

/// All errors in one.
pub(super) fn joined(results: impl IntoIterator<Item = Result<(), VmError>>) -> Result<(), VmError> {
    let all = results.into_iter().filter_map(Result::err).reduce(VmError::also);
    all.map_or(Ok(()), Err)
}

/// A size as users write it.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).map_or_else(|_| format!("{bytes}B"), |size| size.to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::{ApiError, ErrorCode};

    #[test]
    fn all_that_went_wrong_stays_and_what_was_cancelled_but_not_undone_is_no_longer_cancelled() {
        let full = || VmError::RemoveFolder { path: "/x".into(), source: io::ErrorKind::StorageFull.into() };
        let gone = || VmError::WorkDiskGone("/y".into());
        let all = joined([Err(VmError::from(Cancelled)), Ok(()), Err(full()), Err(gone())]).unwrap_err();
        let kept = |all: &VmError| {
            let VmError::Several(all) = all else { return false };
            matches!(all[..], [VmError::Cancelled(_), VmError::RemoveFolder { .. }, VmError::WorkDiskGone(_)])
        };
        assert!(kept(&all), "{all:?}");
        assert_eq!(all.message(), "cancelled; cannot remove /x: the host's disk is full; the work disk is gone: /y");
        let told = ApiError::from(all);
        assert_eq!((told.code, told.hint.as_str()), (ErrorCode::NoSpace, ""));
        let told = ApiError::from(gone().also(full()));
        assert_eq!(told.code, ErrorCode::OperationFailed);
        assert!(told.hint.contains("backup"), "{}", told.hint);
        assert!(joined([Ok(()), Ok(())]).is_ok());
        assert_eq!(ApiError::from(joined([Err(VmError::from(Cancelled))]).unwrap_err()).code, ErrorCode::Cancelled);
    }
}
