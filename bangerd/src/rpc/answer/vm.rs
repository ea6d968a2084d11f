//! Errors about VMs.

use super::{DEFECT, FULL, LOOK, answer, failed, job, no_room, over_limit, records, unhelped};
use crate::ports::bound::NotBound;
use crate::vm::error::{AdminsOnly, VmError, size};
use crate::vm::machine::MachineError;
use banger_policy::lifecycle::Illegal;
use banger_policy::network::NetworkError;
use banger_proto::model::{ApiError, ErrorCode};
use std::io;

const PREPARED_BY_AN_ADMINISTRATOR: &str =
    "An administrator may bring the file back from a backup; else delete the VM and make another.";

impl From<VmError> for ApiError {
    fn from(error: VmError) -> Self {
        let (code, hint) = told(&error);
        // Its parts are cut already, and lines of a console stay lines.
        Self { code, message: error.message(), hint }
    }
}

impl From<MachineError> for ApiError {
    fn from(error: MachineError) -> Self {
        answer(error.message(), machine(&error))
    }
}

fn told(error: &VmError) -> (ErrorCode, String) {
    let (code, hint) = match error {
        VmError::NotFound { admin: true, .. } => (
            ErrorCode::NotFound,
            "`banger vm list` shows your VMs. One of another user is named USER/VM or by its id: `banger vm list --all`.",
        ),
        VmError::NotFound { .. } => (ErrorCode::NotFound, "`banger vm list` shows the VMs that there are."),
        VmError::Ambiguous(_) => (ErrorCode::Ambiguous, "Name it by its whole id: `banger vm list --json` shows them."),
        VmError::JustDeleted(_) | VmError::Deleted(_) => {
            (ErrorCode::NotFound, "`banger vm list` shows the VMs that there are.")
        }
        VmError::ImageGone => {
            (ErrorCode::NotFound, "`banger image list` and `banger kernel list` show what there is; then try again.")
        }
        VmError::AdminsOnly(AdminsOnly::SeeAllVms) => {
            (ErrorCode::Denied, "Leave --all out to see your own, or run it as root.")
        }
        VmError::AdminsOnly(AdminsOnly::SeeLeaks | AdminsOnly::Give) => {
            (ErrorCode::Denied, "Ask an administrator of this host, or run it as root.")
        }
        VmError::NotTheOwner => (ErrorCode::Denied, ""),

        VmError::Name(_) | VmError::Id(_) | VmError::Spec(_) | VmError::Key(_) | VmError::Workspace(_) => {
            (ErrorCode::BadRequest, "")
        }
        VmError::Network(NetworkError::NoList | NetworkError::ListElsewhere(_)) => {
            (ErrorCode::BadRequest, "Say where to: --allow 192.0.2.0/24, --allow example.org:443.")
        }
        VmError::Network(_) => (ErrorCode::BadRequest, ""),
        VmError::RootTooSmall { least, .. } => {
            return (ErrorCode::BadRequest, format!("Ask for more: --root-size {}.", size(*least)));
        }
        VmError::Shrinks { .. } => {
            (ErrorCode::BadRequest, "Make another VM with a smaller one, and copy what is needed.")
        }
        VmError::Port(_) | VmError::PortRefused(_) => (ErrorCode::BadRequest, ""),
        VmError::PortTaken { .. } => {
            (ErrorCode::AlreadyExists, "Choose another port, or leave the host's out and a free one is chosen.")
        }
        VmError::NotBound { source: NotBound::InUse, .. } => {
            (ErrorCode::AlreadyExists, "`ss -lntu` shows what listens. Choose another port, or leave the host's out.")
        }
        VmError::NotBound { .. } => (ErrorCode::BadRequest, "`ip address` shows the addresses that this host has."),
        VmError::NoFreePort(_) | VmError::TooManyPorts => {
            (ErrorCode::Limit, "Take back what is not needed: `banger vm unpublish VM PORT`.")
        }
        VmError::NotPublished { .. } => (ErrorCode::NotFound, "`banger vm show` lists the ports of a VM."),
        VmError::NoSuchUser(_) => (ErrorCode::BadRequest, "A VM is given to a login name; `getent passwd` lists them."),

        VmError::NotRunning { vm, .. } | VmError::NothingToRead(vm) => {
            return (ErrorCode::NotRunning, format!("Start it with `banger vm start {vm}`."));
        }
        VmError::Starts(_) => {
            return (ErrorCode::NotRunning, "Try again when `banger vm list` says that it is running.".to_owned());
        }
        VmError::OthersRead(vm) => {
            let hint = format!("Try again when that has ended, or start it with `banger vm start {vm}`.");
            return (ErrorCode::Limit, hint);
        }
        VmError::ChangedMeanwhile(_) => (ErrorCode::Cancelled, "Try again."),
        VmError::RunsWithItsSize(vm) => {
            return (ErrorCode::AlreadyRunning, format!("Stop it first with `banger vm stop {vm}`."));
        }
        VmError::WaitsWithItsMemory(vm) => {
            return (
                ErrorCode::AlreadyRunning,
                format!("Stop it first with `banger vm stop {vm}`, or wait until it runs."),
            );
        }
        VmError::RunsForItsOwner(_) => {
            (ErrorCode::AlreadyRunning, "Stop it first: what is open to it belongs to its owner.")
        }
        VmError::AlreadyRunning(_) | VmError::NotIdle(_) | VmError::Illegal(Illegal::AlreadyRunning) => {
            (ErrorCode::AlreadyRunning, "")
        }
        VmError::Illegal(Illegal::Unexpected { .. }) => (ErrorCode::Internal, DEFECT),
        VmError::NoName => (ErrorCode::Internal, "Name it yourself with --name."),
        VmError::Taken(_) => (ErrorCode::AlreadyExists, "Choose another name, or delete that VM."),
        VmError::TakenBy { .. } => {
            (ErrorCode::AlreadyExists, "VMs are not renamed: delete one of the two, or give it to somebody else.")
        }
        VmError::OwnerGone { .. } => {
            (ErrorCode::Denied, "An administrator gives the VM to somebody: `banger vm chown USER VM`.")
        }
        VmError::OwnerUnknown(uid) => {
            let hint = format!("Try again; if it stays, an administrator checks `getent passwd {uid}` on this host.");
            return (ErrorCode::HostNotReady, hint);
        }

        VmError::Limit(why) => return over_limit(why),
        VmError::NoAddress(_) => (
            ErrorCode::Limit,
            "Delete VMs that are not needed. An administrator gives VMs a larger network by a smaller `cidr` in \
             /etc/banger/banger.toml (18 is 4 times 20), and `systemctl restart banger-priv bangerd`.",
        ),
        VmError::AddressGone { .. } => {
            (ErrorCode::Limit, "Set bridge_ip and cidr in /etc/banger/banger.toml back to what they were.")
        }
        VmError::NoRoom(why) => return no_room(why),

        VmError::MakeFolder { .. }
        | VmError::RemoveFolder { .. }
        | VmError::GrowWorkDisk(_)
        | VmError::GuestKeys(_)
        | VmError::NoRandom(_) => return failed(error),
        VmError::RootDiskGone(_) => (
            ErrorCode::OperationFailed,
            "An administrator may bring its file and record back from a backup; else delete the VM and make another.",
        ),
        VmError::WorkDiskGone(_) => (ErrorCode::OperationFailed, PREPARED_BY_AN_ADMINISTRATOR),
        VmError::Helper(error) => return unhelped(error),
        VmError::HelperToo(_) => (ErrorCode::OperationFailed, ""),
        VmError::Machine(error) => return machine(error),
        VmError::Guest { source, .. } => {
            let (code, hint) = machine(source);
            if !hint.is_empty() && hint != LOOK {
                return (code, hint);
            }
            (code, "With --keep-on-error the VM stays, and `banger vm logs` shows the whole console.")
        }

        VmError::Cancelled(_) => (ErrorCode::Cancelled, ""),
        VmError::Job(error) => return job(error),
        VmError::Store(error) => return super::store::told(error),
        VmError::Records(error) => return records(error),
        VmError::WorkerEnded(_) => (ErrorCode::Internal, DEFECT),
        VmError::Several(all) => return several(all),
    };
    (code, hint.to_owned())
}

/// The first one's; but what was cancelled and not undone is no longer a plain "cancelled".
fn several(all: &[VmError]) -> (ErrorCode, String) {
    let told: Vec<(ErrorCode, String)> = all.iter().map(told).collect();
    let code = told.iter().map(|(code, _)| *code).find(|code| *code != ErrorCode::Cancelled);
    let hint = told.into_iter().next().map(|(_, hint)| hint).unwrap_or_default();
    (code.unwrap_or(ErrorCode::Cancelled), hint)
}

fn machine(error: &MachineError) -> (ErrorCode, String) {
    let (code, hint) = match error {
        MachineError::NoKvm(why) if why.kind() == io::ErrorKind::NotFound => (
            ErrorCode::HostNotReady,
            "Switch virtualisation on in the firmware (nested virtualisation in a cloud instance), or load kvm_intel or kvm_amd.",
        ),
        MachineError::NoKvm(_) => (ErrorCode::HostNotReady, "`banger doctor` prints the command for an administrator."),
        MachineError::NotAProgram(_) | MachineError::NoVmm(_) => (
            ErrorCode::HostNotReady,
            "Install Firecracker 1.16 or newer, or set firecracker_bin in /etc/banger/banger.toml.",
        ),
        MachineError::NoGuestBinary(_) => (ErrorCode::HostNotReady, "Install the package banger again."),
        MachineError::NoKernel(_) => (ErrorCode::HostNotReady, "Import it again with `banger kernel import`."),
        MachineError::NoImage(_) => (ErrorCode::HostNotReady, "Import it again with `banger image import`."),
        MachineError::NoRoom(why) => return no_room(why),
        MachineError::NotReady(_) => (ErrorCode::GuestNotReady, ""),
        MachineError::Cancelled(_) => (ErrorCode::Cancelled, ""),
        MachineError::WorkerEnded(_) => (ErrorCode::Internal, DEFECT),
        error if crate::error::is_full(error) => (ErrorCode::NoSpace, FULL),
        _ => (ErrorCode::OperationFailed, LOOK),
    };
    (code, hint.to_owned())
}
