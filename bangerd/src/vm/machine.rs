//! What the life of a VM needs of the host beside the helper: VMM, cgroup, control channel. A small
//! trait, so that the actor's tests run against a simulator without root, KVM or a guest.

use super::error::VmError;
use crate::convert::ConvertError;
use crate::db::VmRow;
use crate::error::step;
use crate::handles::Handles;
use crate::jobs::Cancelled;
use crate::paths::{Paths, VmPaths};
use crate::room::NoRoom;
use crate::util::{NoRandom, WorkerEnded};
use banger_image::boot::initramfs::InitramfsError;
use banger_link::control::NotReady;
use banger_link::keys::KeyError;
use banger_link::link::{Link, LinkError};
use banger_policy::net::{AddressIndex, Network};
use banger_policy::shares::Share;
use banger_policy::{Digest, ImageConfig, VmId};
use banger_proto::daemon::KillSignal;
use banger_proto::model::VmSpec;
use banger_vmm::VmmError;
use banger_vmm::cgroup::{OutOfMemory, Usage};
use futures::future::BoxFuture;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use tokio_util::sync::CancellationToken;

/// Everything of a VM that follows from its row and never changes while it boots.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) id: VmId,
    pub(crate) owner: u32,
    pub(crate) hostname: String,
    pub(crate) image: Digest,
    pub(crate) image_config: ImageConfig,
    pub(crate) kernel: Digest,
    pub(crate) spec: VmSpec,
    pub(crate) index: AddressIndex,
    pub(crate) address: Ipv4Addr,
    pub(crate) paths: VmPaths,
}

impl Seat {
    /// # Errors
    /// When the row's number is none of an address in any network.
    pub(crate) fn new(row: &VmRow, paths: &Paths, network: Network) -> Result<Self, VmError> {
        let gone = |source| VmError::AddressGone { vm: row.name.clone(), source };
        // Also one that this network does not have: the VM may run with it, and gets another at its
        // next start.
        let index = AddressIndex::leased(row.address_index).map_err(gone)?;
        Ok(Self {
            id: row.id,
            owner: row.owner,
            hostname: row.name.to_string(),
            image: row.image_id,
            image_config: row.image_config.clone(),
            kernel: row.kernel_id,
            spec: row.spec,
            index,
            address: row.mirror.guest_ip.unwrap_or_else(|| network.guest(index)),
            paths: paths.vm(&row.id),
        })
    }
}

/// What a VMM is told at one boot, beside its seat.
#[derive(Clone, Debug)]
pub(crate) struct BootDevices {
    /// `/dev/dm-N`.
    pub(crate) root: String,
    pub(crate) tap: String,
}

/// Why the host did not do its part, by the step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot use /dev/kvm")]
    NoKvm(#[source] io::Error),
    #[error("firecracker_bin is not a program: {}", .0.display())]
    NotAProgram(PathBuf),
    /// The folders that were looked through.
    #[error("there is no firecracker in {0}")]
    NoVmm(String),
    #[error("the guest's init is missing: {}", .0.display())]
    NoGuestBinary(PathBuf),
    #[error("the VM's kernel is missing: {}", .0.display())]
    NoKernel(PathBuf),
    #[error("the VM's image is missing: {}", .0.display())]
    NoImage(PathBuf),
    #[error("cannot make or read the VM's host key")]
    HostKey(#[from] KeyError),
    #[error("cannot write or read the boot's token")]
    Token(#[source] io::Error),
    /// For what belongs to a reader.
    #[error("cannot make the reader's folder")]
    Folder(#[source] io::Error),
    #[error("cannot make the initramfs")]
    Initramfs(#[from] InitramfsError),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("cannot make the metrics file")]
    Metrics(#[source] io::Error),
    #[error("cannot make or remove the VM's cgroup")]
    Cgroup(#[source] io::Error),
    #[error("cannot set the share of its owner")]
    Share(#[source] io::Error),
    #[error("cannot open the control channel")]
    Control(#[source] io::Error),
    #[error("cannot start the VMM")]
    Vmm(#[from] VmmError),
    #[error("cannot find the VM's processes")]
    Find(#[source] VmmError),
    #[error("cannot end the VM's processes")]
    End(#[source] io::Error),
    #[error("cannot make the work disk")]
    WorkDisk(#[source] ConvertError),
    #[error("cannot read the image's /root, from which work disks are made")]
    Seed(#[source] io::Error),
    /// The converter was taken over, or is of another version.
    #[error("what makes the work disk has made something else")]
    NoWorkDisk,
    #[error("cannot put the work disk in its place")]
    NameWorkDisk(#[source] io::Error),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
    #[error(transparent)]
    WorkerEnded(#[from] WorkerEnded),
    #[cfg(test)]
    #[error("{0} failed")]
    Simulated(&'static str),
}

impl MachineError {
    /// What failed and why.
    pub(crate) fn message(&self) -> String {
        step(self)
    }
}

/// Processes and files of VMs.
pub(crate) trait Machine: Send + Sync + fmt::Debug {
    /// Is there what a start needs: KVM, Firecracker, kernel and guest binary?
    fn preflight(&self, seat: &Seat) -> BoxFuture<'_, Result<(), MachineError>>;
    /// Makes the work disk of a new VM, unless it is there. `cancelled` ends the wait for this
    /// user's turn, and the work.
    fn work_disk<'a>(
        &'a self,
        seat: &Seat,
        cancelled: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<(), MachineError>>;
    /// Opens the control channel, writes the initramfs, and starts the VMM in its cgroup; it waits
    /// for its orders.
    fn launch(
        &self,
        seat: &Seat,
        devices: &BootDevices,
        user_keys: Vec<String>,
    ) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>>;
    /// Starts a guest that only reads the work disk of a VM which does not run. `seat` is this
    /// guest's own.
    fn read(&self, seat: &Seat, work_disk: PathBuf) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>>;
    /// Finds the VM's process again, by cgroup and API socket first and by the saved pid second.
    fn adopt(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<Option<Arc<dyn Running>>, MachineError>>;
    /// Ends every process of the VM and takes its cgroup away. Nothing there is success.
    fn kill(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<(), MachineError>>;
    /// Is any process left in the VM's cgroup?
    fn populated(&self, owner: u32, vm: &VmId) -> bool;
    /// Owner and VM of every cgroup that there is, known VMs and others.
    fn groups(&self) -> Vec<(u32, VmId)>;
    /// Ends what runs in a cgroup and removes it; for VMs of which nothing else is known.
    fn end_group(&self, owner: u32, vm: &VmId) -> BoxFuture<'_, Result<(), MachineError>>;
    /// Have VMs cgroups of their own?
    fn delegated(&self) -> bool;
    /// What the VM takes.
    fn usage(&self, owner: u32, vm: &VmId) -> Option<Usage>;
    /// From now on all VMs of a user together have this share of the host.
    fn share(&self, owner: u32, share: Share) -> Result<(), MachineError>;
    /// Users of whom something may run.
    fn owners(&self) -> Vec<u32>;
    /// Why the host's kernel has ended the VM, if it was for want of memory.
    fn out_of_memory(&self, owner: u32, vm: &VmId) -> Option<OutOfMemory>;
    /// The console's last lines.
    fn console_tail(&self, seat: &Seat, lines: usize) -> Vec<String>;
    /// The VM's pinned host key, OpenSSH public key format; made when there is none yet.
    fn host_key(&self, seat: &Seat) -> Result<String, MachineError>;
}

/// A VMM that lives, and the guest in it.
pub(crate) trait Running: Send + Sync + fmt::Debug {
    fn pid(&self) -> u32;
    /// The API calls, up to the start of the guest.
    fn boot(&self, seat: &Seat, devices: &BootDevices) -> BoxFuture<'_, Result<(), MachineError>>;
    /// Waits until the guest says that it is ready.
    fn ready(&self, limit: Duration) -> BoxFuture<'_, Result<(), MachineError>>;
    /// Asks the guest to shut down and waits until it has; false when it did not within the limit.
    fn shut_down(&self, limit: Duration) -> BoxFuture<'_, bool>;
    /// Resolves when the guest has ended by itself, with a sentence for `last_error`.
    fn ended(&self) -> BoxFuture<'static, String>;
    /// Sends the VMM a signal and waits until it is gone; false when it was not within the limit.
    fn signal(&self, signal: KillSignal, limit: Duration) -> BoxFuture<'_, bool>;
    /// Commands that run in it, as the guest says; `None` until its agent has spoken. A guest says
    /// so of itself: nothing but whether it is in use may depend on it.
    fn commands(&self) -> Option<u32>;
    /// The file that it is, however it was named when it was started. None where there is no
    /// process.
    fn executable(&self) -> Option<PathBuf>;
    /// Tells the guest by which names it finds the other VMs of its private network: lines of
    /// `/etc/hosts`. Keeps nothing of the VM while it waits for the guest: when a boot is let go
    /// of, its sockets are removed, which later ones have under the same names.
    fn know(&self, network: Vec<String>) -> BoxFuture<'static, Result<(), LinkError>>;
    /// The way into the guest.
    fn link(&self) -> Option<Arc<Link>>;
}
