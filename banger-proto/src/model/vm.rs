//! VMs: what they are made of, what they hold, and what is asked of them.

use super::Workspace;
use crate::time::Timestamp;
use banger_policy::lifecycle::State;
use banger_policy::network::{NetworkRequest, VmNetwork};
use banger_policy::publish::Protocol;
use banger_policy::vm::RestartPolicy;
use banger_policy::{Digest, ImageName, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

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
    /// Is the network mode `nat`? The whole of it is in [`VmRecord::network`].
    pub nat_enabled: bool,
}

/// What the daemon remembers of a VM across restarts: durable facts, and the mirror of the handles
/// from which a teardown works when cache and `handles.json` are lost.
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
    /// Version line of the Firecracker that the VM runs in, whatever is installed now.
    pub vmm_version: Option<String>,
    /// SHA-256 of that program, in hexadecimal.
    pub vmm_sha256: Option<String>,
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
    /// The repository that was prepared in it. `None` in a list.
    pub workspace: Option<Workspace>,
    /// How far its guest reaches. Without the destinations in a list of VMs.
    pub network: VmNetwork,
    /// Its ports on the host, in the order in which they were published. `None` in a list.
    pub published: Option<Vec<PublishedPort>>,
    /// To how many destinations its network mode has refused to let it since it runs. `None` in a
    /// list, and when that is not recorded.
    pub refused: Option<u32>,
}

/// A destination that a guest asked for in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Where it wanted to go.
    pub address: Ipv4Addr,
    /// The protocol's name (`tcp`, `udp`, `icmp`), or its number.
    pub protocol: String,
    /// The port there, of protocols that have one.
    pub port: Option<u16>,
    /// How often, as far as it was told.
    pub times: u64,
    /// The first time.
    pub first_at: Timestamp,
    /// The last time.
    pub last_at: Timestamp,
}

/// What a VM's network mode has refused since it runs, and since the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedList {
    /// The daemon is told of refusals. Else the list is empty, whatever is refused.
    pub recorded: bool,
    /// At most 128, the last one first.
    pub destinations: Vec<Refused>,
}

/// A port of the guest that the host listens on while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The host's address.
    pub address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
    /// May whoever reaches it use it? Else the VM's owner and root.
    pub public: bool,
    /// Is the guest's program told who connects, by a header (PROXY protocol, version 2)?
    pub proxy_protocol: bool,
    /// Why the host does not listen, although the VM runs.
    pub problem: Option<String>,
}

/// Ports to publish, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// Each `[ADDRESS:]PORT:PORT[/udp]`.
    pub ports: Vec<String>,
    /// For everybody who reaches them.
    pub public: bool,
    /// With a header that says who connects.
    pub proxy_protocol: bool,
}

/// What is wanted of a new VM. What is `None` is resolved: configuration, else the host's size,
/// else built in.
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
    /// Start it again after a reboot of the host?
    pub restart: RestartPolicy,
    /// Only make it.
    pub no_start: bool,
    /// How far its guest reaches; a mode that is not said is the configured one, else `none`.
    pub network: NetworkRequest,
    /// Ports to publish.
    pub publish: PublishRequest,
}

/// What is to be another about a VM. What is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRequest {
    /// vCPUs; of a VM that does not run.
    pub vcpu_count: Option<u32>,
    /// Memory, MiB; of a VM that does not run.
    pub memory_mib: Option<u32>,
    /// Bytes, not less than it has; of a VM that does not run. The guest grows the file system when
    /// it starts.
    pub root_size_bytes: Option<u64>,
    /// Bytes, not less than it has; of a VM that does not run. The guest grows the file system when
    /// it starts.
    pub work_disk_size_bytes: Option<u64>,
    /// Start it again after a reboot of the host?
    pub restart: Option<RestartPolicy>,
    /// How far its guest reaches; takes effect at once.
    pub network: NetworkRequest,
}

/// Some of the VMs, ordered by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmPage {
    /// At most 16, so that a page fits a frame.
    pub vms: Vec<VmRecord>,
    /// Pass it on to get the rest.
    pub next: Option<VmId>,
}
