//! The real kernel. Sockets and device files are opened at start; while serving, only files below
//! the handles kept here are opened.

use crate::disk_thread::DiskThread;
use crate::firewall::Firewall;
use crate::kernel::{At, Kernel, KernelError, Link, LinkKind, Outcome, Seen};
use crate::links::{Links, Setup};
use crate::log::{self, Level};
use crate::proc::Processes;
use crate::sys::dm::{self, Device};
use crate::sys::loopdev::{LOOP_MAJOR, Loop};
use crate::sys::tun::Tap;
use crate::{fail, record};
use banger_policy::VmId;
use banger_policy::helper::firewall::Change;
use banger_policy::helper::holding::{Process, Registration};
use banger_policy::net::Network;
use banger_policy::process;
use banger_policy::snapshot::CHUNK_SECTORS;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, chmodat, chownat, minor, openat2, statat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// Every handle through which the kernel is asked.
#[derive(Debug)]
pub struct Host {
    dev: OwnedFd,
    loop_control: Option<OwnedFd>,
    dm_control: Option<Arc<OwnedFd>>,
    disk: DiskThread,
    firewall: Firewall,
    links: Links,
    processes: Rc<Processes>,
    network: Network,
    daemon: Daemon,
}

/// Whom the devices are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its uid.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The mode of a disk that is given: root and the daemon's group may read and write.
const GIVEN: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP).union(Mode::WGRP);
/// The mark on the link that carries the bridge address.
const BRIDGE_ALIAS: &str = "banger:1:bridge";

/// Does it carry a bridge address for the VMs?
fn is_ours(link: &Link) -> bool {
    link.kind == LinkKind::Dummy && link.alias == BRIDGE_ALIAS
}

impl Host {
    /// Opens devices and sockets. A host without device-mapper or loop devices can still make taps.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(processes: Rc<Processes>, network: Network, daemon: Daemon, disk: DiskThread) -> Outcome<Self> {
        let dev = record::folder(Path::new("/dev"), OFlags::PATH).at("open-dev")?;
        let device = |path: &'static str| {
            let opened = openat2(&dev, path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty(), record::beneath());
            opened.inspect_err(|_| log::record(Level::Warning, &format!("start missing=/dev/{path}: no disks"))).ok()
        };
        let (loop_control, dm_control) = (device("loop-control"), device("mapper/control").map(Arc::new));
        let firewall = Firewall::open(daemon.uid).at("firewall-open")?;
        let links = Links::open().at("links-open")?;
        Ok(Self { dev, loop_control, dm_control, disk, firewall, links, processes, network, daemon })
    }

    /// Makes the link that carries the bridge address: a dummy, because a bridge without ports has
    /// no carrier. A link of that name which is not ours is left alone. One of ours of another name
    /// is an earlier configuration's: it would keep that network and its names.
    ///
    /// # Errors
    /// EEXIST when the name is somebody else's.
    pub async fn make_bridge(&self, name: &str) -> Outcome<()> {
        for former in self.links.all().await?.iter().filter(|link| is_ours(link) && link.name != name) {
            self.links.delete(former.ifindex).await?;
        }
        match self.links.by_name(name).await? {
            Some(link) if is_ours(&link) => {}
            Some(_) => return Err(KernelError { step: "bridge-foreign", errno: libc::EEXIST }),
            None => match self.links.make_dummy(name).await {
                // Taps carry the address too; only names through the host's resolver need this
                // link.
                Err(error) if error.errno == libc::EOPNOTSUPP => {
                    log::record(Level::Warning, "start link=dummy errno=95 this kernel has none: no names for VMs");
                    return Ok(());
                }
                other => other?,
            },
        }
        let link = self.links.by_name(name).await?.ok_or(Errno::NODEV).at("bridge-find")?;
        let (address, prefix) = (self.network.gateway(), self.network.prefix());
        self.links.set_up(link.ifindex, &Setup { alias: BRIDGE_ALIAS, group: 0, address, prefix }).await?;
        self.links.keep_only(link.ifindex, address, prefix).await
    }

    fn dm(&self) -> Outcome<&Arc<OwnedFd>> {
        self.dm_control.as_ref().ok_or(Errno::NODEV).at("dm-control")
    }

    /// Is the node of this dm device root's and the daemon's group's? `None` while there is no
    /// node.
    fn dm_is_given(&self, number: u32) -> Outcome<Option<bool>> {
        let stat = match statat(&self.dev, format!("dm-{number}"), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.at("dm-node")?,
        };
        let block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        if !block || minor(stat.st_rdev) != number {
            return Err(KernelError { step: "dm-node", errno: libc::ENODEV });
        }
        let ours = stat.st_uid == 0 && stat.st_gid == self.daemon.gid;
        Ok(Some(ours && Mode::from_raw_mode(stat.st_mode) == GIVEN))
    }

    /// Can flows be ended on this host? Asked at the start, of an address that no guest can have.
    ///
    /// # Errors
    /// See [`Firewall::end_flows`].
    pub fn probe_flows(&self) -> Outcome<()> {
        self.end_flows(Ipv4Addr::UNSPECIFIED)
    }
}

impl Kernel for Host {
    type Loop = Loop;

    fn fresh(&self) -> Outcome<u64> {
        let mut bytes = [0; 8];
        let read = getrandom(&mut bytes[..], GetRandomFlags::empty()).at("random")?;
        // Up to 256 bytes come whole (getrandom(2)). The last bit keeps it from zero.
        if read == bytes.len() { Ok(u64::from_ne_bytes(bytes) | 1) } else { Err(Errno::IO).at("random") }
    }

    async fn make_tap(&self, name: &str, alias: &str, group: u32, guest: Ipv4Addr) -> Outcome<u32> {
        let tun = openat2(&self.dev, "net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty(), record::beneath());
        let device = Tap::create(tun.at("tun-open")?, name).at("tap-create")?;
        fail::point("tap-created");
        // From here on every error drops `device`, and the link with it.
        device.set_owner(self.daemon.uid).at("tap-owner")?;
        let link = self.links.by_name(name).await?.ok_or(Errno::NODEV).at("tap-find")?;
        let gateway = self.network.gateway();
        self.links.set_up(link.ifindex, &Setup { alias, group, address: gateway, prefix: 32 }).await?;
        fail::point("tap-up");
        self.links.route(guest, link.ifindex, gateway).await?;
        fail::point("tap-routed");
        device.persist().at("tap-persist")?;
        fail::point("tap-persistent");
        Ok(link.ifindex)
    }

    async fn link_by_index(&self, ifindex: u32) -> Outcome<Option<Link>> {
        self.links.by_index(ifindex).await
    }

    async fn link_by_name(&self, name: &str) -> Outcome<Option<Link>> {
        self.links.by_name(name).await
    }

    async fn links(&self) -> Outcome<Vec<Link>> {
        self.links.all().await
    }

    async fn delete_link(&self, ifindex: u32) -> Outcome<()> {
        self.links.delete(ifindex).await
    }

    fn attach_loop(&self, file: BorrowedFd<'_>, read_only: bool, vm: &VmId) -> Outcome<Loop> {
        let control = self.loop_control.as_ref().ok_or(Errno::NODEV).at("loop-control")?;
        Loop::attach(control.as_fd(), self.dev.as_fd(), file, read_only, &format!("banger:{vm}")).at("loop-attach")
    }

    fn loop_number(device: &Loop) -> u32 {
        device.number()
    }

    fn loop_still_on(&self, device: &Loop, file: BorrowedFd<'_>) -> Outcome<bool> {
        device.still_on(file).at("loop-status")
    }

    fn dm_create(&self, name: &str, uuid: &str) -> Outcome<u32> {
        dm::create(self.dm()?.as_fd(), name, uuid).at("dm-create")
    }

    async fn dm_load(&self, uuid: &str, sectors: u64, base: u32, cow: u32) -> Outcome<()> {
        // P: persistent, the store outlives the device. O: an overflow fails the write and not the
        // disk.
        let table = format!("{LOOP_MAJOR}:{base} {LOOP_MAJOR}:{cow} PO {CHUNK_SECTORS}");
        let (control, uuid) = (Arc::clone(self.dm()?), uuid.to_owned());
        self.disk.run(move || dm::load(control.as_fd(), &uuid, sectors, "snapshot", &table).at("dm-load")).await
    }

    fn dm_resume(&self, uuid: &str) -> Outcome<()> {
        dm::resume(self.dm()?.as_fd(), uuid).at("dm-resume")
    }

    fn dm_find(&self, uuid: &str) -> Outcome<Option<Device>> {
        self.dm_control.as_ref().map_or(Ok(None), |control| dm::find(control.as_fd(), uuid).at("dm-find"))
    }

    fn dm_list(&self) -> Outcome<Vec<Device>> {
        let mut devices = Vec::new();
        for entry in std::fs::read_dir("/sys/block").at("dm-list")? {
            // A hint where to look; the device itself is asked for by UUID.
            let uuid = std::fs::read_to_string(entry.at("dm-list")?.path().join("dm/uuid")).unwrap_or_default();
            if VmId::from_dm_uuid(uuid.trim()).is_some() {
                devices.extend(self.dm_find(uuid.trim())?);
            }
        }
        Ok(devices)
    }

    fn dm_remove(&self, uuid: &str) -> Outcome<()> {
        match dm::remove(self.dm()?.as_fd(), uuid) {
            Err(nix::errno::Errno::ENXIO) => Ok(()),
            other => other.at("dm-remove"),
        }
    }

    fn dm_give(&self, number: u32) -> Outcome<bool> {
        match self.dm_is_given(number)? {
            // The kernel makes the node in its own time.
            None => return Ok(false),
            Some(true) => return Ok(true),
            Some(false) => {}
        }
        let name = format!("dm-{number}");
        // The packaged udev rule does this too, and keeps it so. Under the unit it is alone: the
        // filter there has no chown(2), which answers EPERM. Without the rule (a build folder) root
        // may give a file of its own to a group that it is in, without any capability.
        match chownat(&self.dev, &name, None, Some(Gid::from_raw(self.daemon.gid)), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::PERM) => return Ok(false),
            other => other.at("dm-chgrp")?,
        }
        chmodat(&self.dev, &name, GIVEN, AtFlags::empty()).at("dm-chmod")?;
        Ok(self.dm_is_given(number)? == Some(true))
    }

    fn firewall_rebuild(&self, registrations: &[Registration]) -> Outcome<()> {
        self.firewall.rebuild(registrations).at("firewall-rebuild")
    }

    fn firewall_change(&self, change: &Change) -> Outcome<()> {
        self.firewall.change(change).at("firewall-change")
    }

    fn end_flows(&self, address: Ipv4Addr) -> Outcome<()> {
        self.firewall.end_flows(address).at("flows-end")
    }

    fn process(&self, pid: u32) -> Outcome<Option<Seen>> {
        self.processes.look(pid)
    }

    fn vm_process(&self, owner: u32, vm: &VmId, pid: u32) -> Outcome<Option<Seen>> {
        self.processes.look_in(&process::vm_leaf(owner, vm), pid)
    }

    async fn ended(&self, process: Process) -> Outcome<()> {
        self.processes.ended(process).await
    }
}
