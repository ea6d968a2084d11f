//! What the life of a VM needs of the host beside the helper: VMM, cgroup, control channel. A small trait, so
//! that the actor's tests run against a simulator without root, KVM or a guest.

use crate::db::VmRow;
use crate::handles::Handles;
use crate::paths::{Paths, VmPaths};
use banger_link::link::Link;
use banger_policy::net::{AddressIndex, Network};
use banger_policy::{Digest, ImageConfig, VmId};
use banger_proto::daemon::KillSignal;
use banger_proto::model::{ApiError, ErrorCode, VmSpec};
use futures::future::BoxFuture;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
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
    /// `Limit` when the network was made smaller than the VM's address needs.
    pub(crate) fn new(row: &VmRow, paths: &Paths, network: Network) -> Result<Self, ApiError> {
        let index = network.index(row.address_index).map_err(|error| {
            ApiError::new(ErrorCode::Limit, format!("the address of {} no longer exists: {error}", row.name))
                .hint("Set bridge_ip and cidr in /etc/banger/banger.toml back to what they were.")
        })?;
        Ok(Self {
            id: row.id,
            owner: row.owner,
            hostname: row.name.to_string(),
            image: row.image_id,
            image_config: row.image_config.clone(),
            kernel: row.kernel_id,
            spec: row.spec,
            index,
            address: network.guest(index),
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

/// Processes and files of VMs. Every failure is already what a user reads.
pub(crate) trait Machine: Send + Sync + fmt::Debug {
    /// Is there what a start needs: KVM, Firecracker, kernel and guest binary?
    fn preflight(&self, seat: &Seat) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Makes the work disk of a new VM, unless it is there. `cancelled` ends the wait for this user's turn, and not the work.
    fn work_disk<'a>(&'a self, seat: &Seat, cancelled: &'a CancellationToken) -> BoxFuture<'a, Result<(), ApiError>>;
    /// Opens the control channel, writes the initramfs, and starts the VMM in its cgroup; it waits for its orders.
    fn launch(
        &self,
        seat: &Seat,
        devices: &BootDevices,
        user_keys: Vec<String>,
    ) -> BoxFuture<'_, Result<Arc<dyn Running>, ApiError>>;
    /// Starts a guest that only reads the work disk of a VM which does not run. `seat` is this guest's own.
    fn read(&self, seat: &Seat, work_disk: PathBuf) -> BoxFuture<'_, Result<Arc<dyn Running>, ApiError>>;
    /// Finds the VM's process again, by cgroup and API socket first and by the saved pid second.
    fn adopt(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<Option<Arc<dyn Running>>, ApiError>>;
    /// Ends every process of the VM and takes its cgroup away. Nothing there is success.
    fn kill(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Is any process left in the VM's cgroup?
    fn populated(&self, owner: u32, vm: &VmId) -> bool;
    /// Owner and VM of every cgroup that there is, known VMs and others.
    fn groups(&self) -> Vec<(u32, VmId)>;
    /// Ends what runs in a cgroup and removes it; for VMs of which nothing else is known.
    fn end_group(&self, owner: u32, vm: &VmId) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Have VMs cgroups of their own?
    fn delegated(&self) -> bool;
    /// Memory in bytes and CPU time in microseconds that the VM has taken.
    fn usage(&self, owner: u32, vm: &VmId) -> Option<(u64, u64)>;
    /// The console's last lines.
    fn console_tail(&self, seat: &Seat, lines: usize) -> Vec<String>;
    /// The VM's pinned host key, OpenSSH public key format; made when there is none yet.
    fn host_key(&self, seat: &Seat) -> Result<String, ApiError>;
}

/// A VMM that lives, and the guest in it.
pub(crate) trait Running: Send + Sync + fmt::Debug {
    fn pid(&self) -> u32;
    /// The API calls, up to the start of the guest.
    fn boot(&self, seat: &Seat, devices: &BootDevices) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Waits until the guest says that it is ready.
    fn ready(&self, limit: Duration) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Asks the guest to shut down and waits until it has; false when it did not within the limit.
    fn shut_down(&self, limit: Duration) -> BoxFuture<'_, bool>;
    /// Resolves when the guest has ended by itself, with a sentence for `last_error`.
    fn ended(&self) -> BoxFuture<'static, String>;
    /// Sends the VMM a signal and waits until it is gone; false when it was not within the limit.
    fn signal(&self, signal: KillSignal, limit: Duration) -> BoxFuture<'_, bool>;
    /// The way into the guest.
    fn link(&self) -> Option<Arc<Link>>;
}
