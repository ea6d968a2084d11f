//! What the daemon knows and shows. Field names are the JSON names and a contract with users' scripts:
//! add, never rename. No serde attribute that depends on the format: these types cross the wire too.

use crate::time::Timestamp;
use banger_policy::lifecycle::State;
use banger_policy::vm::RestartPolicy;
use banger_policy::{Digest, ImageName, KernelName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What a VM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// vCPUs.
    pub vcpu_count: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// The root disk, bytes.
    pub system_overlay_size_bytes: u64,
    /// The disk on `/root`, bytes.
    pub work_disk_size_bytes: u64,
    /// May the VM reach out through the uplink?
    pub nat_enabled: bool,
}

/// What the daemon remembers of a VM across restarts: durable facts, and the mirror of the handles from
/// which a teardown works when cache and `handles.json` are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRuntime {
    /// As [`VmRecord::state`].
    pub state: State,
    /// The guest's address, its as long as the VM exists.
    pub guest_ip: Ipv4Addr,
    /// Firecracker's API socket.
    pub api_sock_path: String,
    /// The vsock device's socket.
    pub vsock_path: String,
    /// The guest's vsock CID.
    pub vsock_cid: u32,
    /// The guest's console.
    pub log_path: String,
    /// Firecracker's metrics.
    pub metrics_path: String,
    /// `<vm>.<user>.vm`.
    pub dns_name: String,
    /// The VM's folder.
    pub vm_dir: String,
    /// The COW file; the helper's.
    pub system_overlay_path: String,
    /// The work disk.
    pub work_disk_path: String,
    /// Why the VM is in the state it is in, one sentence; empty when there is nothing to say.
    pub last_error: String,
    /// Mirror of the handle: name of the tap.
    pub tap_device: Option<String>,
    /// Mirror of the handle: loop device of the base image.
    pub base_loop: Option<String>,
    /// Mirror of the handle: loop device of the COW file.
    pub cow_loop: Option<String>,
    /// Mirror of the handle: name of the dm device.
    pub dm_name: Option<String>,
    /// Mirror of the handle: node of the dm device.
    pub dm_dev: Option<String>,
    /// Mirror of the handle: the helper's generation of all of them.
    pub generation: Option<u64>,
}

/// What was last measured of a running VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmStats {
    /// When.
    pub collected_at: Timestamp,
    /// Of one CPU, over the last interval.
    pub cpu_percent: f64,
    /// Resident memory of the VMM, bytes.
    pub rss_bytes: u64,
    /// Virtual memory of the VMM, bytes.
    pub vsz_bytes: u64,
    /// What the root disk takes on the host, bytes: all of it, from the VM's making on.
    pub system_overlay_bytes: u64,
    /// What the work disk takes on the host, bytes.
    pub work_disk_bytes: u64,
    /// Firecracker's own metrics, one JSON object, as it wrote them.
    pub metrics_raw: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// Its name, unique per owner.
    pub name: VmName,
    /// The image's id.
    pub image_id: Digest,
    /// The image's name when the VM was made.
    pub image_name: ImageName,
    /// The kernel's id.
    pub kernel_id: Digest,
    /// The owner's uid.
    pub owner: u32,
    /// The login name that the owner's uid had when the VM was made or given.
    pub owner_name: String,
    /// What it is.
    pub state: State,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
    /// When somebody last used it.
    pub last_touched_at: Timestamp,
    /// Is it started again after a reboot of the host?
    pub restart: RestartPolicy,
    /// What it is made of.
    pub spec: VmSpec,
    /// What it holds.
    pub runtime: VmRuntime,
    /// What was measured.
    pub stats: Option<VmStats>,
}

/// A root file system in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its id: the digest of its content.
    pub id: Digest,
    /// Its name, unique per owner.
    pub name: ImageName,
    /// Whose the name is.
    pub owner: u32,
    /// The owner's login name when it was imported.
    pub owner_name: String,
    /// An administrator lets everybody use it.
    pub shared: bool,
    /// Owned by the store, as all imported images are.
    pub managed: bool,
    /// Its folder.
    pub artifact_dir: String,
    /// The ext4 in it.
    pub rootfs_path: String,
    /// What seeds `/root` of new work disks.
    pub work_seed_path: Option<String>,
    /// Size of the ext4, bytes; no root disk of a VM of this image is smaller.
    pub build_size: u64,
    /// What it takes on the host, bytes.
    pub allocated_bytes: u64,
    /// The image carries a container engine; informational.
    pub docker: bool,
    /// Where it came from, as the user named it; of a pulled one the reference.
    pub source: String,
    /// Digest of the image's manifest, when it was an OCI image: what registries call it.
    pub manifest_digest: Option<Digest>,
    /// When it was imported.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
}

/// A guest kernel in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// Its id: the digest of its content.
    pub id: Digest,
    /// Its name, unique per owner.
    pub name: KernelName,
    /// Whose the name is.
    pub owner: u32,
    /// The owner's login name when it was imported.
    pub owner_name: String,
    /// An administrator lets everybody use it.
    pub shared: bool,
    /// What the kernel says of itself, such as `6.12.41+deb13-cloud-amd64`.
    pub version: String,
    /// Modules that go into the initramfs, in load order.
    pub modules: Vec<String>,
    /// Size of the ELF image, bytes.
    pub size_bytes: u64,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// What is wanted of a new VM. What is `None` is resolved: configuration, else the host's size, else built in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// `None`: a name is generated.
    pub name: Option<String>,
    /// `None`: the configured default, or the caller's own only image.
    pub image_name: Option<String>,
    /// `None`: the newest shared kernel, or the caller's own newest.
    pub kernel_name: Option<String>,
    /// vCPUs.
    pub vcpu_count: Option<u32>,
    /// Memory, MiB.
    pub memory_mib: Option<u32>,
    /// The root disk, bytes.
    pub system_overlay_size_bytes: Option<u64>,
    /// Bytes.
    pub work_disk_size_bytes: Option<u64>,
    /// Reach out through the uplink.
    pub nat: bool,
    /// Start it again after a reboot of the host?
    pub restart: RestartPolicy,
    /// Only make it.
    pub no_start: bool,
}

/// An image of a registry that the daemon may have: by the digest of its manifest, for one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// Name of the image.
    pub name: String,
    /// The reference. A name that was pulled from the same one before changes its meaning; another
    /// one is taken.
    pub source: String,
    /// Of the manifest for one platform.
    pub manifest: Digest,
    /// The most that it may hold, bytes; the default when `None`.
    pub build_size: Option<u64>,
    /// Everybody may use it; for administrators.
    pub shared: bool,
}

/// What is to be another about a VM. What is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRequest {
    /// vCPUs; of a VM that does not run.
    pub vcpu_count: Option<u32>,
    /// Memory, MiB; of a VM that does not run.
    pub memory_mib: Option<u32>,
    /// Bytes, not less than it has; of a VM that does not run. The guest grows the file system when it starts.
    pub root_size_bytes: Option<u64>,
    /// Bytes, not less than it has; of a VM that does not run. The guest grows the file system when it starts.
    pub work_disk_size_bytes: Option<u64>,
    /// Reach out through the uplink; takes effect at once.
    pub nat: Option<bool>,
    /// Start it again after a reboot of the host?
    pub restart: Option<RestartPolicy>,
}

/// A unit of work that outlives the call that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobState {
    /// At work.
    Running,
    /// Done; what came of it.
    Done(JobResult),
    /// Failed; everything was undone.
    Failed(ApiError),
    /// Cancelled; everything was undone.
    Cancelled,
}

/// What a job made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobResult {
    /// A VM as it is now.
    Vm(Box<VmRecord>),
    /// An image.
    Image(Box<ImageRecord>),
    /// A kernel.
    Kernel(Box<KernelRecord>),
    /// Nothing is left to show, after a delete; a sentence.
    Text(String),
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// What it does, such as `disk` or `guest ready`.
    pub name: String,
    /// How long it took, milliseconds; `None` while it is at it.
    pub took_ms: Option<u64>,
    /// How far it is, such as `120 of 400 MiB`; may be empty.
    pub detail: String,
}

/// A job as seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id, which is in every log line that belongs to it.
    pub id: JobId,
    /// What it does, such as `start demo`.
    pub title: String,
    /// Whose.
    pub owner: u32,
    /// Grows with every change; what `watch_job` waits for.
    pub seq: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// The steps so far, oldest first; at most 32.
    pub stages: Vec<Stage>,
    /// What the user should know although nothing failed, such as a missing file to sync.
    pub warnings: Vec<String>,
    /// Where it stands.
    pub state: JobState,
}

/// Where a list of images or kernels goes on: behind this entry, by owner and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreKey {
    /// The owner's uid.
    pub owner: u32,
    /// The owner's login name.
    pub owner_name: String,
    /// The entry's name.
    pub name: String,
}

/// Some of the images or kernels, ordered by owner and name: as many as fit a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorePage<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Pass it on to get the rest.
    pub next: Option<StoreKey>,
}

/// Some of the VMs, ordered by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmPage {
    /// At most 16, so that a page fits a frame.
    pub vms: Vec<VmRecord>,
    /// Pass it on to get the rest.
    pub next: Option<VmId>,
}

/// Some of the jobs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPage {
    /// At most 32, so that a page fits a frame.
    pub jobs: Vec<JobView>,
    /// Pass it on to get the rest.
    pub next: Option<JobId>,
}

/// What belongs to no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaks {
    /// At most 200, so that they fit a frame. What can be released only after others comes after them.
    pub leaks: Vec<Leak>,
    /// How many there are beside these.
    pub more: u64,
}

/// How a check of `doctor` came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Fine.
    Pass,
    /// Works, but.
    Warn,
    /// Does not work.
    Fail,
}

/// A line of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found, and what to do about it.
    pub detail: String,
}

/// What a leak is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeakKind {
    /// A VM's cgroup, with what runs in it.
    Cgroup,
    /// What the helper holds: tap, disk, COW file, NAT.
    Holding,
    /// A VM's folder, or that of its sockets.
    Folder,
}

impl std::fmt::Display for LeakKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "cgroup",
            Self::Holding => "holding",
            Self::Folder => "folder",
        })
    }
}

/// Something of banger's that belongs to no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// What it is.
    pub kind: LeakKind,
    /// The id of the VM that it was made for, or its path.
    pub name: String,
    /// What is known of it.
    pub detail: String,
    /// Was it released? `None` when that was not asked for.
    pub fixed: Option<bool>,
}

/// What the daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Release.
    pub version: String,
    /// Protocol version.
    pub protocol: u16,
    /// When it started.
    pub started_at: Timestamp,
    /// Firecracker's own version line; empty when it could not be asked.
    pub vmm_version: String,
}

/// Stable words for what went wrong; `message` and `hint` are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A value in the request is not possible.
    BadRequest,
    /// No such VM, image, kernel or job for this user.
    NotFound,
    /// A unique prefix or default was asked for, and several fit.
    Ambiguous,
    /// The name is taken.
    AlreadyExists,
    /// The VM is not running.
    NotRunning,
    /// The VM is running.
    AlreadyRunning,
    /// A VM uses it.
    InUse,
    /// Not allowed.
    Denied,
    /// A quota or a host's limit.
    Limit,
    /// The host's disk is full.
    NoSpace,
    /// The helper, KVM or Firecracker is not there.
    HostNotReady,
    /// The guest did not get ready in time.
    GuestNotReady,
    /// Cancelled by the user.
    Cancelled,
    /// A step failed; the message says which.
    OperationFailed,
    /// The daemon could not keep its own records.
    Internal,
}

/// The longest message of an error, bytes. It is kept with its job, written to the journal and sent in one frame.
pub const MAX_ERROR: usize = 4096;

/// The text in at most `max` bytes (and three for an ellipsis), with control characters other than line breaks and tabs
/// replaced. For whatever somebody else had a hand in, before it is stored, logged or sent.
#[must_use]
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(obeyed) { text.replace(obeyed, "\u{fffd}") } else { text }
}

/// An error for a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// What failed and why: lower case, no full stop.
    pub message: String,
    /// What to do next, a sentence; may be empty.
    pub hint: String,
}

impl ApiError {
    /// An error without a hint. The message may quote what an image, a guest or another program has said: it is cut to
    /// [`MAX_ERROR`] bytes, and what a terminal would obey is replaced.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into(), MAX_ERROR), hint: String::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = cut(hint.into(), MAX_ERROR);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_is_as_long_as_somebody_else_wants() {
        for text in ["x".repeat(1 << 20), "\u{fc}".repeat(1 << 20), format!("x{}", "\u{1f600}".repeat(1 << 18))] {
            let error = ApiError::new(ErrorCode::Internal, text.clone()).hint(text);
            assert!(error.message.len() <= MAX_ERROR + 3 && error.message.ends_with("..."));
            assert!(error.hint.len() <= MAX_ERROR + 3);
        }
        assert_eq!(ApiError::new(ErrorCode::Internal, "a\n\tb\u{1b}[2J\u{9b}").message, "a\n\tb\u{fffd}[2J\u{fffd}");
        assert_eq!(cut("whole".to_owned(), 5), "whole");
    }
}
