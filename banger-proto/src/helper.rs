//! The helper's service: a closed list of operations. The wire carries ids and numbers; every name,
//! path and rule is derived by the helper.

pub use banger_policy::helper::holding::{DiskIdentity, TapIdentity};
use banger_policy::reach::{Mode, Reach};
use banger_policy::{Digest, VmId};
use serde::{Deserialize, Serialize};

/// A COW file and its durable record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CowRecord {
    /// The base image.
    pub image: Digest,
    /// The size of the root disk, bytes.
    pub root_bytes: u64,
    /// What the file really takes on the host, bytes.
    pub allocated_bytes: u64,
}

/// One VM in the helper's ledger: the fact, beside the daemon's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Whose.
    pub vm: VmId,
    /// Recorded as told by the daemon, trusted for nothing.
    pub owner: u32,
    /// The tap that is held.
    pub tap: Option<TapIdentity>,
    /// The disk that is attached.
    pub disk: Option<DiskIdentity>,
    /// The COW file, attached or not.
    pub cow: Option<CowRecord>,
    /// How far its guest reaches.
    pub reach: Mode,
    /// The pid that was bound.
    pub pid: Option<u32>,
    /// Something of this VM no longer is what the ledger says; it was left alone and an operator is
    /// needed.
    pub quarantined: bool,
}

/// Answer of [`Helper::process_running`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    /// The bound process lives.
    Running,
    /// It has ended.
    Gone,
    /// That pid was never bound to this VM, or is another process now.
    NotYours,
}

/// A page of [`Helper::list`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingPage {
    /// At most [`PAGE`] rows, ordered by id.
    pub holdings: Vec<Holding>,
    /// Pass it on to get the rest.
    pub next: Option<VmId>,
}

/// Rows per page; a page fits a frame.
pub const PAGE: usize = 16;

/// Why the helper did not. A code and nothing of the host's state: "not yours" and "never existed"
/// are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum HelperError {
    /// No such holding, or the claim differs from the ledger in some field.
    #[error("not held under this identity")]
    NotYours,
    /// The operation has no meaning in the VM's present state.
    #[error("not possible in this state")]
    BadState,
    /// A number or id outside its bounds.
    #[error("invalid argument")]
    BadArgument,
    /// The base image is missing or is not a plain, read-only file of the image folder.
    #[error("the base image was refused")]
    BadImage,
    /// The object is still in use; ask again later.
    #[error("still in use")]
    Busy,
    /// The VM's process still runs, so nothing is torn down under it.
    #[error("the VM's process still runs")]
    StillRunning,
    /// A limit on VMs, loops or calls.
    #[error("limit reached")]
    Quota,
    /// Too many requests in a short time; ask again later.
    #[error("too many requests")]
    Rate,
    /// The host's disk has no room for the COW file beside its reserve.
    #[error("no space left on the host's disk")]
    NoSpace,
    /// A kernel object is no longer what the ledger says. It was left alone; an administrator must
    /// look.
    #[error("quarantined: an object of this VM was changed by somebody else")]
    Quarantined,
    /// The kernel refused; the number is the errno.
    #[error("the kernel refused (errno {0})")]
    Kernel(i32),
    /// The ledger could not be written; nothing was done.
    #[error("the ledger could not be written")]
    Ledger,
}

/// What `bangerd` may ask of `banger-priv`.
#[tarpc::service]
pub trait Helper {
    /// Makes the VM's tap, owned by the daemon's user, with a route to the guest's address.
    async fn acquire_tap(vm: VmId, owner: u32, address_index: u16) -> Result<TapIdentity, HelperError>;
    /// Removes it. Gone already is success.
    async fn release_tap(vm: VmId, tap: TapIdentity) -> Result<(), HelperError>;
    /// Makes the COW file, fully reserved, and its durable record. The same request again is
    /// success.
    async fn create_disk(vm: VmId, owner: u32, image: Digest, root_bytes: u64) -> Result<CowRecord, HelperError>;
    /// Attaches both loops and the dm snapshot.
    async fn attach_disk(vm: VmId, owner: u32) -> Result<DiskIdentity, HelperError>;
    /// Lets the COW file be another owner's from now on; refused while anything of the VM is held.
    /// Repeatable.
    async fn give_disk(vm: VmId, owner: u32) -> Result<(), HelperError>;
    /// Detaches them. Gone already is success.
    async fn detach_disk(vm: VmId, disk: DiskIdentity) -> Result<(), HelperError>;
    /// Removes the COW file and its record; refused while attached.
    async fn discard_disk(vm: VmId) -> Result<(), HelperError>;
    /// Records the VM's process, once per boot of the VM, and registers its address with the
    /// firewall.
    async fn bind_process(vm: VmId, pid: u32) -> Result<(), HelperError>;
    /// Does the process that was bound still run? Advisory.
    async fn process_running(vm: VmId, pid: u32) -> Result<ProcessState, HelperError>;
    /// The ledger's row.
    async fn identity(vm: VmId) -> Result<Holding, HelperError>;
    /// All rows, ordered by id, after the one given.
    async fn list(after: Option<VmId>) -> Result<HoldingPage, HelperError>;
    /// Releases everything but the COW file. Repeatable; nothing held is success.
    async fn release(vm: VmId) -> Result<(), HelperError>;
    /// Makes the root disk larger, fully reserved; refused while attached. The same request again
    /// is success.
    async fn grow_disk(vm: VmId, owner: u32, root_bytes: u64) -> Result<CowRecord, HelperError>;
    /// Lets the VM's guest reach that far, and no farther. Repeatable.
    async fn set_network(vm: VmId, reach: Reach) -> Result<(), HelperError>;
}
