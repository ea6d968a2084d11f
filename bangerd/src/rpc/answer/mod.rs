//! What a user reads of an error, and what a program does: the one place where errors of the
//! daemon's parts become an [`ApiError`]. The message is the error's own; the code and what to do
//! next are decided here.

mod store;
mod vm;

use crate::db::DbError;
use crate::error::{OverLimit, chain, is_full, step};
use crate::jobs::{Cancelled, JobError};
use crate::privileged::{PrivilegedError, Unhelped};
use crate::room::NoRoom;
use crate::util::{NoRandom, WorkerEnded};
use crate::vm::program::UnknownProgram;
use banger_proto::helper::HelperError;
use banger_proto::model::{ApiError, ErrorCode};
use std::error::Error;

/// What to do about a full disk.
const FULL: &str = "Ask for smaller disks with --root-size and --disk-size, delete what is not needed (`banger vm delete`, `banger image delete`), or free space on the file system of /var/lib.";

/// The code of a failed step: a full disk has one of its own.
fn failed(error: &(dyn Error + 'static)) -> (ErrorCode, String) {
    if is_full(error) { (ErrorCode::NoSpace, FULL.to_owned()) } else { (ErrorCode::OperationFailed, String::new()) }
}

fn over_limit(error: &OverLimit) -> (ErrorCode, String) {
    let OverLimit { user, why } = error;
    if why.what().is_of_the_host() {
        let hint = format!(
            "Stop or delete VMs that you do not need, try again when others have stopped theirs, or ask an administrator (root, or a \
             member of group banger-admin) to set `{}` under [limits.host] in /etc/banger/banger.toml.",
            why.what().key(),
        );
        return (ErrorCode::Limit, hint);
    }
    let hint = format!(
        "Remove what you no longer need, or ask an administrator (root, or a member of group banger-admin) to set `{}` under \
         [limits.users.{user}] in /etc/banger/banger.toml.",
        why.what().key(),
    );
    (ErrorCode::Limit, hint)
}

fn no_room(error: &NoRoom) -> (ErrorCode, String) {
    match error {
        NoRoom::Short { .. } => (ErrorCode::NoSpace, FULL.to_owned()),
        NoRoom::Unknown { .. } => failed(error),
    }
}

/// The daemon's own records failed: the journal has it, whoever asked.
fn records(error: &DbError) -> (ErrorCode, String) {
    tracing::error!(error = chain(error), "internal error");
    (ErrorCode::Internal, "See `journalctl -u bangerd`.".to_owned())
}

fn unhelped(error: &Unhelped) -> (ErrorCode, String) {
    let (code, hint) = match &error.source {
        PrivilegedError::Refused { refusal, .. } => match refusal {
            HelperError::NoSpace => (ErrorCode::NoSpace, FULL),
            HelperError::Kernel(nix::libc::EROFS) => {
                (ErrorCode::OperationFailed, "`dmesg` says why; when it is writable again, start the VM again.")
            }
            HelperError::Quota => {
                (ErrorCode::Limit, "Stop or delete VMs that are not needed: this host holds no more of them.")
            }
            HelperError::Quarantined => {
                (ErrorCode::OperationFailed, "Ask the administrator to look at `journalctl -u banger-priv`.")
            }
            _ => (ErrorCode::OperationFailed, "The helper's log says more: `journalctl -u banger-priv`."),
        },
        PrivilegedError::OtherRelease { .. } => (
            ErrorCode::HostNotReady,
            "VMs that run go on. An administrator repairs this: `systemctl restart banger-priv bangerd`, and if \
             that does not help, install the package again.",
        ),
        PrivilegedError::Unreachable { .. } | PrivilegedError::TimedOut { .. } | PrivilegedError::Confused => {
            (ErrorCode::HostNotReady, "The helper is not running as it should: look at `systemctl status banger-priv`.")
        }
    };
    (code, hint.to_owned())
}

fn job(error: &JobError) -> (ErrorCode, String) {
    match error {
        JobError::Nameless { .. } => {
            (ErrorCode::Denied, "What you make would be nobody's. Ask an administrator of this host.".to_owned())
        }
        JobError::Limit(why) => over_limit(why),
        JobError::NotFound(_) => (ErrorCode::NotFound, String::new()),
        JobError::Earlier(_) => (ErrorCode::OperationFailed, String::new()),
        JobError::CutShort => (ErrorCode::OperationFailed, "Try again.".to_owned()),
        JobError::NoResult => (ErrorCode::Internal, String::new()),
    }
}

fn answer(message: String, (code, hint): (ErrorCode, String)) -> ApiError {
    ApiError::new(code, message).hint(hint)
}

impl From<Cancelled> for ApiError {
    fn from(error: Cancelled) -> Self {
        Self::new(ErrorCode::Cancelled, error.to_string())
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        answer(error.to_string(), job(&error))
    }
}

impl From<NoRoom> for ApiError {
    fn from(error: NoRoom) -> Self {
        answer(chain(&error), no_room(&error))
    }
}

impl From<Unhelped> for ApiError {
    fn from(error: Unhelped) -> Self {
        answer(error.message(), unhelped(&error))
    }
}

impl From<NoRandom> for ApiError {
    fn from(error: NoRandom) -> Self {
        answer(chain(&error), failed(&error))
    }
}

impl From<WorkerEnded> for ApiError {
    fn from(error: WorkerEnded) -> Self {
        Self::new(ErrorCode::Internal, chain(&error))
    }
}

impl From<UnknownProgram> for ApiError {
    fn from(error: UnknownProgram) -> Self {
        answer(step(&error), failed(&error))
    }
}
