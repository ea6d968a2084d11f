//! A kernel in memory, with crashes and foreign actions. What it is asked to change, it checks
//! against the ledger's files first (property P1).
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::panic,
    reason = "shared by test programs that each use a part"
)]

use banger_policy::VmId;
use banger_policy::helper::firewall::{Change, Element, LIVE, elements};
use banger_policy::helper::holding::{Process, Registration};
use banger_policy::net::Network;
use banger_priv::cow::Cows;
use banger_priv::disk_thread::DiskThread;
use banger_priv::images::Images;
use banger_priv::kernel::{Kernel, KernelError, Link, LinkKind, Outcome, Seen};
use banger_priv::ledger::Ledger;
use banger_priv::ops::Machine;
use banger_priv::record;
use banger_priv::sys::dm::Device;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::rc::Rc;

/// What a simulated SIGKILL unwinds with.
pub(crate) struct Killed;

/// The kernel's objects; they outlive the helper.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) links: BTreeMap<u32, Link>,
    pub(crate) dms: BTreeMap<String, Device>,
    pub(crate) table: Vec<Element>,
    pub(crate) processes: BTreeMap<u32, Seen>,
    /// Guests' addresses of which connection tracking remembers a flow.
    pub(crate) flows: BTreeSet<Ipv4Addr>,
    /// How often more a step is refused, by its name.
    pub(crate) refuse: BTreeMap<&'static str, u32>,
    /// The ends of processes are seen. Off where the recovery after a crash is what a test looks
    /// at.
    pub(crate) watched: bool,
    next: u32,
    /// Steps until the helper is killed; 0 is never.
    pub(crate) fuse: u32,
    /// Steps that were taken.
    pub(crate) steps: u32,
}

impl World {
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(crate) fn add_link(&mut self, name: &str, alias: &str) -> u32 {
        let ifindex = self.number();
        let link = Link { ifindex, name: name.into(), alias: alias.into(), kind: LinkKind::Tun, carrier: false };
        self.links.insert(ifindex, link);
        ifindex
    }

    /// A packet of a guest, or to it: where it passes, it begins a flow.
    pub(crate) fn packet(&mut self, vm: &VmId, address: Ipv4Addr) -> bool {
        let key = [&padded(vm)[..], &address.octets()].concat();
        let live = self.table.iter().any(|element| element.set == LIVE && element.key == key);
        live && self.flows.insert(address)
    }

    /// A pair of a private network is of both its guests.
    fn pairs_once(&mut self) {
        let all = std::mem::take(&mut self.table);
        for element in all {
            if element.set.name != "peers" || !self.table.contains(&element) {
                self.table.push(element);
            }
        }
    }

    fn refused(&mut self, step: &'static str) -> Outcome<()> {
        match self.refuse.get_mut(step) {
            Some(left) if *left > 0 => {
                *left -= 1;
                refuse(libc::ENOBUFS)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn add_process(&mut self, uid: u32) -> u32 {
        let pid = self.number();
        let process = Process { pid, pidfd_inode: u64::from(pid) + 1_000, start_ticks: u64::from(pid) };
        self.processes.insert(pid, Seen { process, uids: [uid; 4], alive: true });
        pid
    }
}

/// The helper's view of a [`World`].
#[derive(Clone, Debug)]
pub(crate) struct Sim {
    pub(crate) world: Rc<RefCell<World>>,
    ledger: PathBuf,
}

fn padded(vm: &VmId) -> Vec<u8> {
    let mut name = vm.tap_name().into_bytes();
    name.resize(16, 0);
    name
}

fn refuse<T>(errno: i32) -> Outcome<T> {
    Err(KernelError { step: "simulated", errno })
}

impl Sim {
    /// Called before and after each change: a helper can die on both sides of it.
    fn step(&self) {
        let mut world = self.world.borrow_mut();
        world.steps += 1;
        if world.fuse > 0 {
            world.fuse -= 1;
            if world.fuse == 0 {
                drop(world);
                std::panic::panic_any(Killed);
            }
        }
    }

    /// The ledger must speak of the VM before the kernel is asked to change something of it.
    fn p1(&self, vm: &VmId, generation: u64) {
        let file = std::fs::read_to_string(self.ledger.join(vm.to_string()));
        let known = file.is_ok_and(|text| text.contains(&format!("\"generation\":{generation},")));
        assert!(known, "P1: {vm} of generation {generation} is changed without a row");
    }

    fn change<T>(&self, act: impl FnOnce(&mut World) -> Outcome<T>) -> Outcome<T> {
        self.step();
        let result = act(&mut self.world.borrow_mut());
        self.step();
        result
    }
}

impl Kernel for Sim {
    type Loop = u32;

    fn fresh(&self) -> Outcome<u64> {
        Ok(u64::from(self.world.borrow_mut().number()))
    }

    async fn make_tap(&self, name: &str, alias: &str, _: u32, _: Ipv4Addr) -> Outcome<u32> {
        let (vm, generation) = VmId::from_tap_alias(alias).unwrap();
        assert_eq!(name, vm.tap_name());
        self.p1(&vm, generation);
        self.change(|world| {
            if world.links.values().any(|link| link.name == name) {
                refuse(libc::EBUSY)
            } else {
                Ok(world.add_link(name, alias))
            }
        })
    }

    async fn link_by_index(&self, ifindex: u32) -> Outcome<Option<Link>> {
        Ok(self.world.borrow().links.get(&ifindex).cloned())
    }

    async fn link_by_name(&self, name: &str) -> Outcome<Option<Link>> {
        Ok(self.world.borrow().links.values().find(|link| link.name == name).cloned())
    }

    async fn links(&self) -> Outcome<Vec<Link>> {
        Ok(self.world.borrow().links.values().cloned().collect())
    }

    async fn delete_link(&self, ifindex: u32) -> Outcome<()> {
        self.change(|world| {
            let link = world.links.remove(&ifindex);
            assert!(link.is_none_or(|link| VmId::from_tap_alias(&link.alias).is_some()), "P3: a foreign link");
            Ok(())
        })
    }

    fn attach_loop(&self, _: BorrowedFd<'_>, _: bool, _: &VmId) -> Outcome<u32> {
        self.change(|world| Ok(world.number()))
    }

    fn loop_number(device: &u32) -> u32 {
        *device
    }

    fn loop_still_on(&self, _: &u32, _: BorrowedFd<'_>) -> Outcome<bool> {
        Ok(true)
    }

    fn dm_create(&self, name: &str, uuid: &str) -> Outcome<u32> {
        let (vm, generation) = VmId::from_dm_uuid(uuid).unwrap();
        assert_eq!(name, vm.dm_name());
        self.p1(&vm, generation);
        self.change(|world| {
            if world.dms.values().any(|dm| dm.name == name || dm.uuid == uuid) {
                return refuse(libc::EBUSY);
            }
            let minor = world.number();
            let dm = Device { minor, name: name.into(), uuid: uuid.into(), open_count: 0, uses: vec![] };
            world.dms.insert(uuid.into(), dm);
            Ok(minor)
        })
    }

    async fn dm_load(&self, uuid: &str, _: u64, base: u32, cow: u32) -> Outcome<()> {
        self.change(|world| {
            world.dms.get_mut(uuid).unwrap().uses = vec![(7, cow), (7, base)];
            Ok(())
        })
    }

    fn dm_resume(&self, _: &str) -> Outcome<()> {
        self.change(|_| Ok(()))
    }

    fn dm_find(&self, uuid: &str) -> Outcome<Option<Device>> {
        Ok(self.world.borrow().dms.get(uuid).cloned())
    }

    fn dm_list(&self) -> Outcome<Vec<Device>> {
        Ok(self.world.borrow().dms.values().cloned().collect())
    }

    fn dm_remove(&self, uuid: &str) -> Outcome<()> {
        self.change(|world| match world.dms.get(uuid) {
            Some(dm) if dm.open_count > 0 => refuse(libc::EBUSY),
            Some(dm) => {
                assert!(VmId::from_dm_uuid(&dm.uuid).is_some(), "P3: a foreign device");
                world.dms.remove(uuid);
                Ok(())
            }
            None => Ok(()),
        })
    }

    fn dm_give(&self, _: u32) -> Outcome<bool> {
        Ok(true)
    }

    fn firewall_rebuild(&self, registrations: &[Registration]) -> Outcome<()> {
        self.change(|world| {
            world.table = registrations.iter().flat_map(|registration| elements(Some(registration))).collect();
            world.pairs_once();
            Ok(())
        })
    }

    fn firewall_change(&self, change: &Change) -> Outcome<()> {
        self.change(|world| {
            world.refused("firewall_change")?;
            for live in change.add.iter().filter(|element| element.set == LIVE) {
                let address: [u8; 4] = live.key[16..].try_into().unwrap();
                assert!(!world.flows.contains(&address.into()), "P9: the next holder inherits a flow");
            }
            world.table.retain(|element| !change.remove.contains(element));
            for (added, stands) in change.add.iter().flat_map(|added| world.table.iter().map(move |old| (added, old))) {
                let same =
                    added.set == stands.set && added.key[..4] == stands.key[..4] && added.key[8..] == stands.key[8..];
                // The kernel takes no range that touches another of its set.
                let apart = |n: std::ops::Range<usize>| {
                    added.end[n.clone()] < stands.key[n.clone()] || stands.end[n.clone()] < added.key[n]
                };
                assert!(!added.set.ranges || !same || apart(4..8), "{added:?} overlaps {stands:?}");
            }
            world.table.extend(change.add.clone());
            Ok(())
        })
    }

    fn end_flows(&self, address: Ipv4Addr) -> Outcome<()> {
        self.change(|world| {
            world.refused("end_flows")?;
            world.flows.remove(&address);
            Ok(())
        })
    }

    fn process(&self, pid: u32) -> Outcome<Option<Seen>> {
        Ok(self.world.borrow().processes.get(&pid).copied())
    }

    async fn ended(&self, process: Process) -> Outcome<()> {
        loop {
            {
                let mut world = self.world.borrow_mut();
                world.refused("ended")?;
                let lives = world.processes.get(&process.pid).is_some_and(|seen| seen.alive);
                if world.watched && !lives {
                    return Ok(());
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn vm_process(&self, _: u32, _: &VmId, pid: u32) -> Outcome<Option<Seen>> {
        self.process(pid)
    }
}

/// A world, and the folders of the helper in it.
pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) daemon: u32,
}

impl Host {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["run", "cow", "images"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let images = folder.path().join("images").join(crate::common::image().to_string());
        std::fs::create_dir(&images).unwrap();
        let file = images.join("rootfs.ext4");
        std::fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        let read_only = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o440);
        std::fs::set_permissions(&file, read_only).unwrap();
        Self { folder, world: Rc::default(), daemon: nix::unistd::geteuid().as_raw() }
    }

    /// What a start of the helper does, up to recovery.
    pub(crate) fn start(&self) -> Rc<Machine<Sim>> {
        let disk = DiskThread::default();
        disk.start().unwrap();
        self.start_with(disk)
    }

    /// The same, on this disk.
    pub(crate) fn start_with(&self, disk: DiskThread) -> Rc<Machine<Sim>> {
        let folder = |name: &str| record::folder(&self.folder.path().join(name), rustix::fs::OFlags::RDONLY).unwrap();
        let sim = Sim { world: Rc::clone(&self.world), ledger: self.folder.path().join("run") };
        let ledger = Ledger::open(folder("run"), "this-boot".to_owned()).unwrap();
        let (cows, images) = (Cows::open(folder("cow")).unwrap(), Images::new(folder("images"), self.daemon));
        let network = Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap();
        Rc::new(Machine::new(sim, ledger, cows, images, disk, network, self.daemon))
    }
}
