//! What the operations ask of the kernel: the seam between deciding and doing.
//! [`crate::host::Host`] is the real one; the tests bring a simulator with crashes and foreign
//! actions.

use crate::sys::dm::Device;
use banger_policy::VmId;
use banger_policy::helper::firewall::Change;
use banger_policy::helper::holding::{Process, Registration};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

/// A step that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct KernelError {
    /// Which step, a fixed word for the journal.
    pub step: &'static str,
    /// The kernel's number.
    pub errno: i32,
}

/// The result of a step.
pub type Outcome<T> = Result<T, KernelError>;

/// Names the step of an error.
pub trait At<T> {
    /// # Errors
    /// The same error, with the step's name.
    fn at(self, step: &'static str) -> Outcome<T>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Outcome<T> {
        self.map_err(|error| KernelError { step, errno: error.into().raw_os_error().unwrap_or(libc::EIO) })
    }
}

/// What a link is, as far as the helper makes any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A tun or tap device.
    Tun,
    /// A dummy.
    Dummy,
    /// Anything else.
    Other,
}

/// A link of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number, never given out twice.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its alias, empty when it has none.
    pub alias: String,
    /// What it is.
    pub kind: LinkKind,
    /// Somebody has it open.
    pub carrier: bool,
}

/// What the kernel says about a process that was looked up by number, while a pidfd of it was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who it is.
    pub process: Process,
    /// Its real, effective, saved and file system uid.
    pub uids: [u32; 4],
    /// It has not ended.
    pub alive: bool,
}

/// The kernel, as far as the helper needs it. Every call names its object completely; none of them
/// checks whether it may.
#[expect(async_fn_in_trait, reason = "the helper has one thread; no future leaves it")]
pub trait Kernel: 'static {
    /// A configured loop device; freed when dropped unless something else has it open.
    type Loop;

    /// A random number, never zero.
    ///
    /// # Errors
    /// The kernel's.
    fn fresh(&self) -> Outcome<u64>;

    /// Makes a tap of a group, create-exclusive, and answers its ifindex. After an error there is
    /// none.
    async fn make_tap(&self, name: &str, alias: &str, group: u32, guest: Ipv4Addr) -> Outcome<u32>;
    /// Looks a link up by number.
    async fn link_by_index(&self, ifindex: u32) -> Outcome<Option<Link>>;
    /// Looks a link up by name.
    async fn link_by_name(&self, name: &str) -> Outcome<Option<Link>>;
    /// All links, for the sweep at start.
    async fn links(&self) -> Outcome<Vec<Link>>;
    /// Removes a link by number; gone already is success.
    async fn delete_link(&self, ifindex: u32) -> Outcome<()>;

    /// Attaches a file to a loop device.
    ///
    /// # Errors
    /// The kernel's.
    fn attach_loop(&self, file: BorrowedFd<'_>, read_only: bool, vm: &VmId) -> Outcome<Self::Loop>;
    /// N of `/dev/loopN`.
    fn loop_number(device: &Self::Loop) -> u32;
    /// Is it still on that file?
    ///
    /// # Errors
    /// The kernel's.
    fn loop_still_on(&self, device: &Self::Loop, file: BorrowedFd<'_>) -> Outcome<bool>;

    /// Makes an empty dm device, create-exclusive, and answers its minor.
    ///
    /// # Errors
    /// The kernel's.
    fn dm_create(&self, name: &str, uuid: &str) -> Outcome<u32>;
    /// Loads the snapshot's table: base and COW are loop numbers. The kernel reads the exception
    /// tables of the COW file meanwhile, up to a 257th of it, so this waits on the disk's thread.
    ///
    /// # Errors
    /// The kernel's.
    async fn dm_load(&self, uuid: &str, sectors: u64, base: u32, cow: u32) -> Outcome<()>;
    /// Makes it live.
    ///
    /// # Errors
    /// The kernel's.
    fn dm_resume(&self, uuid: &str) -> Outcome<()>;
    /// Looks a device up.
    ///
    /// # Errors
    /// The kernel's.
    fn dm_find(&self, uuid: &str) -> Outcome<Option<Device>>;
    /// All devices with a UUID of ours, for the sweep at start.
    ///
    /// # Errors
    /// The kernel's.
    fn dm_list(&self) -> Outcome<Vec<Device>>;
    /// Removes a device; gone already is success.
    ///
    /// # Errors
    /// EBUSY while somebody has it open.
    fn dm_remove(&self, uuid: &str) -> Outcome<()>;
    /// Gives the node to the daemon's group; answers whether that is seen to be so.
    ///
    /// # Errors
    /// The kernel's.
    fn dm_give(&self, minor: u32) -> Outcome<bool>;

    /// Makes the firewall anew with these registrations.
    ///
    /// # Errors
    /// The kernel's.
    fn firewall_rebuild(&self, registrations: &[Registration]) -> Outcome<()>;
    /// Changes one VM's registration.
    ///
    /// # Errors
    /// The kernel's; nothing has changed then.
    fn firewall_change(&self, change: &Change) -> Outcome<()>;
    /// Ends every flow that has this address on either side.
    ///
    /// # Errors
    /// The kernel's; some may still be there then.
    fn end_flows(&self, address: Ipv4Addr) -> Outcome<()>;

    /// Looks at a process; `None` when there is none of that number.
    ///
    /// # Errors
    /// The kernel's, which must never be taken for "gone".
    fn process(&self, pid: u32) -> Outcome<Option<Seen>>;
    /// The same, of a process in the cgroup of this owner's VM; `None` for any other.
    ///
    /// # Errors
    /// The kernel's.
    fn vm_process(&self, owner: u32, vm: &VmId, pid: u32) -> Outcome<Option<Seen>>;
    /// Waits for the end of this very process; one that is not there has ended.
    ///
    /// # Errors
    /// The kernel's, which must never be taken for "ended".
    async fn ended(&self, process: Process) -> Outcome<()>;
}
