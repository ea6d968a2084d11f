//! The daemon's service. Who calls is known from the socket; no request carries a uid.
//!
//! What takes time is a job: the call answers with its id at once, `watch_job` waits for news,
//! `cancel_job` undoes it. A client that goes away changes nothing about a job.

use crate::model::{
    ApiError, Check, CreateRequest, DaemonInfo, ImageRecord, JobId, JobPage, JobView, KernelRecord, Leaks, LinkRequest,
    PublishRequest, QuotaPage, RefusedList, SetRequest, StoreKey, StorePage, VmPage, VmRecord, Workspace,
};
use crate::stream::{StreamRequest, Ticket};
use banger_policy::VmId;
use serde::{Deserialize, Serialize};

/// The longest that `watch_job` waits for news, milliseconds.
pub const MAX_WATCH_MS: u32 = 30_000;

/// Signals that `kill_vm` may send to the VMM, as users name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillSignal {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// SIGINT.
    Int,
}

/// A stream that may be opened now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStream {
    /// To be sent on the stream's connection.
    pub ticket: Ticket,
    /// The job that works on an upload.
    pub job: Option<JobId>,
}

/// What `ssh` needs to know of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// The VM's id.
    pub vm: VmId,
    /// The pinned host key, OpenSSH public key format.
    pub host_key: String,
}

/// What users ask of `bangerd`.
#[tarpc::service]
pub trait Daemon {
    /// What the daemon is.
    async fn info() -> Result<DaemonInfo, ApiError>;
    /// The checks that only the daemon can make.
    async fn doctor() -> Result<Vec<Check>, ApiError>;

    /// The caller's VMs after the one given; everyone's for an administrator with `all`.
    async fn list_vms(all: bool, after: Option<VmId>) -> Result<VmPage, ApiError>;
    /// One VM, by exact name, id, or unique prefix of an id. Another user's, for an administrator,
    /// by `user/name` or id.
    async fn show_vm(vm: String) -> Result<VmRecord, ApiError>;
    /// Makes a VM and, unless `no_start`, starts it. Cancelled or failed before it was ready: no VM
    /// is left when `keep_on_error` is false.
    async fn create_vm(request: CreateRequest, keep_on_error: bool) -> Result<JobId, ApiError>;
    /// Starts a VM.
    async fn start_vm(vm: String) -> Result<JobId, ApiError>;
    /// Shuts the guest down cleanly, then as `kill_vm`. The guest has `within` seconds, else
    /// [`banger_policy::limits::DEFAULT_STOP_SECONDS`]. `host_down`, for administrators: the host
    /// goes down, and a VM that is to be restarted then is remembered.
    async fn stop_vm(vm: String, within: Option<u32>, host_down: bool) -> Result<JobId, ApiError>;
    /// Stop and start in one.
    async fn restart_vm(vm: String) -> Result<JobId, ApiError>;
    /// Changes a VM.
    async fn set_vm(vm: String, request: SetRequest) -> Result<JobId, ApiError>;
    /// Sends the VMM a signal, ends it, and releases what the VM holds.
    async fn kill_vm(vm: String, signal: KillSignal) -> Result<JobId, ApiError>;
    /// Gives a VM that does not run to another user, by login name; for administrators.
    async fn give_vm(vm: String, user: String) -> Result<JobId, ApiError>;
    /// Stops a VM and removes it with its disks.
    async fn delete_vm(vm: String) -> Result<JobId, ApiError>;

    /// Lets the holder of a key (OpenSSH public key format, one line) into the caller's VM.
    async fn ssh_access(vm: String, public_key: String) -> Result<SshAccess, ApiError>;
    /// Prepares a stream.
    async fn open_stream(request: StreamRequest) -> Result<OpenStream, ApiError>;

    /// The caller's images and those that are shared; everyone's for an administrator with `all`.
    async fn list_images(all: bool, after: Option<StoreKey>) -> Result<StorePage<ImageRecord>, ApiError>;
    /// One image: the caller's own name, then a shared one, then the beginning of an id.
    async fn show_image(image: String) -> Result<ImageRecord, ApiError>;
    /// Gives a name to what the daemon has of the caller's own, or of what administrators pulled
    /// and share; `None`: it must be sent.
    async fn link_image(request: LinkRequest) -> Result<Option<ImageRecord>, ApiError>;
    /// Makes an image that was registered a managed one; for its owner and administrators.
    async fn promote_image(image: String) -> Result<(), ApiError>;
    /// Lets everybody use an image, which promotes it, or only its owner again; for administrators.
    async fn share_image(image: String, shared: bool) -> Result<(), ApiError>;
    /// Removes an image; refused while a VM uses it.
    async fn delete_image(image: String) -> Result<(), ApiError>;
    /// The caller's kernels and those that are shared; everyone's for an administrator with `all`.
    async fn list_kernels(all: bool, after: Option<StoreKey>) -> Result<StorePage<KernelRecord>, ApiError>;
    /// Lets everybody use a kernel, or only its owner again; for administrators.
    async fn share_kernel(kernel: String, shared: bool) -> Result<(), ApiError>;
    /// Removes a kernel; refused while a VM uses it, or an image names it.
    async fn delete_kernel(kernel: String) -> Result<(), ApiError>;

    /// The caller's jobs before the one given, newest first.
    async fn list_jobs(before: Option<JobId>) -> Result<JobPage, ApiError>;
    /// Answers when the job's `seq` is above `after_seq`, or after [`MAX_WATCH_MS`] with what there
    /// is.
    async fn watch_job(job: JobId, after_seq: u64) -> Result<JobView, ApiError>;
    /// Undoes a job, as far as it got. Answers at once; the job's end is seen by `watch_job`.
    async fn cancel_job(job: JobId) -> Result<(), ApiError>;
    /// What belongs to no VM, for administrators; with `fix` it is released.
    async fn leaks(fix: bool) -> Result<Leaks, ApiError>;
    /// The kernel that a word means to the caller: their own name, then a shared one, then the
    /// beginning of an id. Without a word, the one that a VM gets.
    async fn pick_kernel(kernel: Option<String>) -> Result<KernelRecord, ApiError>;
    /// Keeps what the caller has prepared in a VM of theirs, as long as the VM exists and is
    /// theirs.
    async fn set_workspace(vm: String, workspace: Option<Workspace>) -> Result<(), ApiError>;
    /// The caller's limits and their use; everyone's after the user given, for an administrator
    /// with `all`.
    async fn quotas(all: bool, after: Option<(u32, String)>) -> Result<QuotaPage, ApiError>;
    /// Publishes ports of a VM on the host, all or none; its result is the VM, with those that were
    /// published now at the end.
    async fn publish_ports(vm: String, request: PublishRequest) -> Result<JobId, ApiError>;
    /// Takes published ports back, each named `[ADDRESS:]PORT[/udp]`; all of the VM's when none is
    /// named.
    async fn unpublish_ports(vm: String, ports: Vec<String>) -> Result<JobId, ApiError>;
    /// What a VM's network mode has refused its guest.
    async fn refused(vm: String) -> Result<RefusedList, ApiError>;
    /// As `delete_vm`; refused when the VM runs or is about to: it interrupts nothing.
    async fn prune_vm(vm: String) -> Result<JobId, ApiError>;
}
