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

/// When a step of the host failed and nothing better is known. The VM or image may be gone by then.
const LOOK: &str = "`banger doctor` checks the host. An administrator finds more in `journalctl -u bangerd`.";
/// When the daemon has contradicted itself.
const DEFECT: &str = "This is a defect of banger: report it, with the file that `banger bug` writes.";

/// The code of a failed step: a full disk has one of its own.
fn failed(error: &(dyn Error + 'static)) -> (ErrorCode, String) {
    let (code, hint) = if is_full(error) { (ErrorCode::NoSpace, FULL) } else { (ErrorCode::OperationFailed, LOOK) };
    (code, hint.to_owned())
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
    (ErrorCode::Internal, "Ask an administrator to look at `journalctl -u bangerd`.".to_owned())
}

fn unhelped(error: &Unhelped) -> (ErrorCode, String) {
    let (code, hint) = match &error.source {
        PrivilegedError::Refused { refusal, .. } => match refusal {
            HelperError::NoSpace => (ErrorCode::NoSpace, FULL),
            HelperError::Kernel(nix::libc::EROFS) => (
                ErrorCode::OperationFailed,
                "Ask an administrator: `dmesg` says why. When it is writable again, start the VM again.",
            ),
            HelperError::Quota => {
                (ErrorCode::Limit, "Stop or delete VMs that are not needed: this host holds no more of them.")
            }
            HelperError::Quarantined => {
                (ErrorCode::OperationFailed, "Ask an administrator to look at `journalctl -u banger-priv`.")
            }
            _ => (ErrorCode::OperationFailed, "An administrator finds more in `journalctl -u banger-priv`."),
        },
        PrivilegedError::OtherRelease { .. } => (
            ErrorCode::HostNotReady,
            "VMs that run go on. An administrator repairs this: `systemctl restart banger-priv bangerd`, and if \
             that does not help, install the package again.",
        ),
        PrivilegedError::Unreachable { .. } | PrivilegedError::TimedOut { .. } | PrivilegedError::Confused => (
            ErrorCode::HostNotReady,
            "`banger doctor` checks the helper. An administrator looks at `systemctl status banger-priv`.",
        ),
    };
    (code, hint.to_owned())
}

fn job(error: &JobError) -> (ErrorCode, String) {
    match error {
        JobError::Nameless { uid } => (
            ErrorCode::Denied,
            format!(
                "An administrator adds uid {uid} to this host's user database: `getent passwd {uid}` must find it."
            ),
        ),
        JobError::Limit(why) => over_limit(why),
        JobError::NotFound(_) => {
            (ErrorCode::NotFound, "`banger job list` shows yours; the last 64 that ended are kept.".to_owned())
        }
        JobError::Earlier(_) => (ErrorCode::OperationFailed, String::new()),
        JobError::CutShort => (ErrorCode::OperationFailed, "Try again.".to_owned()),
        JobError::NoResult => (ErrorCode::Internal, DEFECT.to_owned()),
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
        answer(chain(&error), (ErrorCode::Internal, DEFECT.to_owned()))
    }
}

impl From<UnknownProgram> for ApiError {
    fn from(error: UnknownProgram) -> Self {
        answer(step(&error), failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::error::StoreError;
    use crate::vm::error::VmError;
    use crate::vm::machine::MachineError;
    use std::io;

    #[test]
    fn a_failed_step_says_what_could_not_be_done_and_where_to_look() {
        let why = || io::Error::other("Input/output error");
        let all = [
            ApiError::from(VmError::Machine(MachineError::Token(why()))),
            ApiError::from(MachineError::Control(why())),
            ApiError::from(MachineError::Share(why())),
            ApiError::from(MachineError::Cgroup(why())),
            ApiError::from(VmError::GrowWorkDisk(why())),
            ApiError::from(VmError::MakeFolder { path: "/x".into(), source: why() }),
            ApiError::from(StoreError::Spool(why())),
            ApiError::from(StoreError::Files(why())),
        ];
        for told in all {
            assert!(told.message.starts_with("cannot ") && told.message.ends_with("Input/output error"), "{told:?}");
            assert_eq!((told.code, told.hint.as_str()), (ErrorCode::OperationFailed, LOOK), "{told:?}");
        }
        let defect = ApiError::from(StoreError::OtherKind);
        assert_eq!((defect.code, defect.hint.as_str()), (ErrorCode::Internal, DEFECT));
    }
}
