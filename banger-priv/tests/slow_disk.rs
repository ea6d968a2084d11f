//! A disk that is slow, or does not answer at all, holds up the VM whose disk it is, and nobody's
//! firewall.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking, and says what it has measured"
)]
mod common;
#[path = "common/served.rs"]
mod served;
#[path = "common/sim.rs"]
mod sim;

use banger_policy::limits::MIN_ROOT_BYTES;
use banger_policy::reach::{Mode, Reach};
use banger_policy::snapshot::cow_file_bytes;
use banger_priv::cow::PIECE;
use banger_priv::disk_thread::DiskThread;
use banger_priv::ops::Machine;
use banger_proto::helper::{HelperClient, HelperError};
use common::{Folders, OWNER, Vmm, exists, image, in_namespace, is_root, run, skipped, vm};
use served::Served;
use sim::{Host, Sim};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tarpc::context;
use tokio::task::{JoinHandle, spawn_local, yield_now};

/// After that a disk answers again, so that a helper that waits for it fails its test and does not
/// hang it.
const PATIENCE: Duration = Duration::from_secs(20);

fn simulated<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Keeps the disk's thread in one job until the sender is dropped: a disk that does not answer.
fn hang(disk: &DiskThread) -> mpsc::Sender<()> {
    let (hangs, until) = mpsc::channel::<()>();
    let disk = disk.clone();
    spawn_local(async move { disk.run(move || Ok(until.recv_timeout(PATIENCE).is_ok())).await });
    hangs
}

/// Gives everything that can go on the time to do so.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn running_vm(host: &Host, machine: &Rc<Machine<Sim>>, n: u8) -> u32 {
    machine.acquire_tap(vm(n), OWNER, n.into()).await.unwrap();
    machine.set_network(vm(n), Reach::of(Mode::Nat)).await.unwrap();
    let pid = host.world.borrow_mut().add_process(host.daemon);
    machine.bind_process(vm(n), pid).await.unwrap();
    pid
}

#[test]
fn withdrawals_are_answered_while_the_disk_does_not() {
    simulated(async {
        let (host, disk) = (Host::new(), DiskThread::default());
        disk.start().unwrap();
        host.world.borrow_mut().watched = true;
        let machine = host.start_with(disk.clone());
        machine.recover().await.unwrap();
        machine.create_disk(vm(4), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        let ends = |pid: u32| host.world.borrow_mut().processes.get_mut(&pid).unwrap().alive = false;
        let pids = [running_vm(&host, &machine, 2).await, running_vm(&host, &machine, 3).await];
        machine.watch(vm(3));
        let elements = || host.world.borrow().table.len();
        let open = elements();

        // Each of these needs the disk.
        let hangs = hang(&disk);
        let waiting: Vec<JoinHandle<Result<(), HelperError>>> = {
            let (a, b, c, d) = (Rc::clone(&machine), Rc::clone(&machine), Rc::clone(&machine), Rc::clone(&machine));
            vec![
                spawn_local(async move {
                    a.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.map(drop).map_err(|denied| denied.code)
                }),
                spawn_local(async move {
                    b.grow_disk(vm(4), OWNER, 2 * MIN_ROOT_BYTES).await.map(drop).map_err(|denied| denied.code)
                }),
                // The second calls of these VMs, which wait for the first, though they need no
                // disk.
                spawn_local(async move { c.release(vm(1)).await.map_err(|denied| denied.code) }),
                spawn_local(
                    async move { d.acquire_tap(vm(4), OWNER, 4).await.map(drop).map_err(|denied| denied.code) },
                ),
            ]
        };
        settle().await;

        // And these do not wait: NAT off, the end of a process, a release, what is asked.
        machine.set_network(vm(2), Reach::default()).await.unwrap();
        assert!(elements() < open, "NAT is off");
        ends(pids[1]);
        settle().await;
        let after_end = elements();
        ends(pids[0]);
        machine.release(vm(2)).await.unwrap();
        assert!(after_end < open && elements() == 0, "{:?}", host.world.borrow().table);
        machine.release(vm(3)).await.unwrap();
        assert!(host.world.borrow().links.is_empty());
        assert_eq!(machine.list(None).holdings.len(), 1);
        assert_eq!(machine.identity(vm(4)).unwrap().cow.unwrap().root_bytes, MIN_ROOT_BYTES);
        assert!(waiting.iter().all(|call| !call.is_finished()), "they wait for the disk, or for their turn");

        drop(hangs);
        for call in waiting {
            assert_eq!(call.await.unwrap(), Ok(()));
        }
        assert_eq!(machine.identity(vm(4)).unwrap().cow.unwrap().root_bytes, 2 * MIN_ROOT_BYTES);
    });
}

/// One call has the disk's thread for a piece at a time: a small disk is made before a large one
/// is.
#[test]
fn a_large_disk_is_made_between_others() {
    simulated(async {
        let host = Host::new();
        let machine = host.start();
        let large = {
            let machine = Rc::clone(&machine);
            spawn_local(async move { machine.create_disk(vm(1), OWNER, image(), 8 * MIN_ROOT_BYTES).await })
        };
        yield_now().await;
        machine.create_disk(vm(2), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        assert!(!large.is_finished(), "the large one is not done in one go");
        let made = large.await.unwrap().unwrap();
        assert!(made.allocated_bytes >= cow_file_bytes(8 * MIN_ROOT_BYTES));
    });
}

/// Runs a create until the first piece of its file is reserved, and no further.
async fn half_made(host: &Host, machine: &Machine<Sim>, disk: &DiskThread) {
    let path = host.folder.path().join("cow").join(vm(1).to_string());
    let mut create = Box::pin(machine.create_disk(vm(1), OWNER, image(), 8 * MIN_ROOT_BYTES));
    loop {
        // One job at a time: what the create asks for next stands behind one that waits.
        let (go, wait) = mpsc::channel::<()>();
        let mut gate = Box::pin(disk.run(move || Ok(wait.recv_timeout(PATIENCE).is_ok())));
        assert!(futures::poll!(gate.as_mut()).is_pending());
        assert!(futures::poll!(create.as_mut()).is_pending());
        drop(go);
        disk.run(|| Ok(())).await.unwrap();
        if path.metadata().is_ok_and(|file| file.len() > 0) {
            break;
        }
    }
    assert_eq!(path.metadata().unwrap().len(), PIECE);
}

#[test]
fn a_create_that_was_cut_short_between_two_pieces_leaves_nothing() {
    simulated(async {
        let host = Host::new();
        let files = || std::fs::read_dir(host.folder.path().join("cow")).unwrap().count();
        // The helper is killed there.
        let disk = DiskThread::default();
        disk.start().unwrap();
        let machine = host.start_with(disk.clone());
        half_made(&host, &machine, &disk).await;
        drop(machine);
        assert_eq!(files(), 2, "control: record and file");
        let machine = host.start_with(disk.clone());
        assert_eq!(files(), 0);
        // Nobody waits any more, and the helper lives: the VM's next call begins with what is left.
        half_made(&host, &machine, &disk).await;
        assert_eq!(files(), 2, "control: record and file");
        machine.discard_disk(vm(1)).await.unwrap();
        assert_eq!(files(), 0);
        half_made(&host, &machine, &disk).await;
        machine.create_disk(vm(1), OWNER, image(), MIN_ROOT_BYTES).await.unwrap();
        machine.discard_disk(vm(1)).await.unwrap();
        assert_eq!(files(), 0);
    });
}

/// A file system that is frozen until this is dropped: whoever would change a file there waits. Not
/// for longer than [`PATIENCE`], or a helper that waits as a whole, in this very process, would
/// never end.
struct Frozen {
    thaw: Option<mpsc::Sender<()>>,
    thawed: Option<std::thread::JoinHandle<()>>,
}

impl Frozen {
    fn new(path: &Path) -> Self {
        let unfreeze = format!("fsfreeze --unfreeze {}", path.display());
        run(&format!("fsfreeze --freeze {}", path.display()));
        let (thaw, wait) = mpsc::channel();
        let thawed = std::thread::spawn(move || {
            let _: Result<(), _> = wait.recv_timeout(PATIENCE);
            run(&unfreeze);
        });
        Self { thaw: Some(thaw), thawed: Some(thawed) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw.take();
        self.thawed.take().unwrap().join().unwrap();
    }
}

/// The block device of a file system, which does few writes a second until this is dropped.
struct Throttled(String);

impl Throttled {
    /// The knob, of the first version of cgroups; the second has none for what the journal's thread
    /// writes.
    const KNOB: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";

    fn new(path: &Path) -> Option<Self> {
        if !exists(Path::new(Self::KNOB)) {
            println!("nothing can be said of a slow disk: no {}", Self::KNOB);
            return None;
        }
        let number = run(&format!("findmnt --noheadings --output MAJ:MIN {}", path.display()));
        let throttled = Self(number.trim().to_owned());
        throttled.set(20);
        Some(throttled)
    }

    fn set(&self, writes: u32) {
        std::fs::write(Self::KNOB, format!("{} {writes}", self.0)).unwrap();
    }
}

impl Drop for Throttled {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How long NAT takes to be switched while a large disk is made and removed, and how long these
/// take.
async fn measure(client: &HelperClient, disk: &str) {
    let (began, mut times) = (Instant::now(), Vec::new());
    let work = {
        let client = client.clone();
        spawn_local(async move {
            let mut patient = context::current();
            patient.deadline = Instant::now() + Duration::from_secs(120);
            client.create_disk(patient, vm(8), OWNER, image(), 16 * MIN_ROOT_BYTES).await.unwrap().unwrap();
            let made = began.elapsed();
            client.discard_disk(patient, vm(8)).await.unwrap().unwrap();
            (made, began.elapsed() - made)
        })
    };
    while !work.is_finished() {
        for on in [false, true] {
            let began = Instant::now();
            let switched = if on {
                client.set_network(context::current(), vm(2), Reach::of(Mode::Nat)).await
            } else {
                client.set_network(context::current(), vm(2), Reach::default()).await
            };
            switched.unwrap().unwrap();
            times.push(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (made, removed) = work.await.unwrap();
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{disk}: 2 GiB are made in {made:?} and removed in {removed:?}; meanwhile NAT was switched {} times, \
         in {median:?} (median) and {longest:?} (longest)",
        times.len()
    );
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}

/// The helper on a real file system that stands still in the middle of a create.
#[test]
fn withdrawals_go_on_while_the_file_system_stands_still() {
    if !is_root() {
        return;
    }
    if !exists(Path::new("/dev/loop-control")) || !common::works("command -v fsfreeze && command -v mkfs.ext4") {
        return skipped("no loop devices, fsfreeze or mkfs.ext4");
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    run("mount --make-rprivate /");
    in_namespace(async {
        let folders = Folders::new();
        folders.add_image(16 * MIN_ROOT_BYTES);
        // In it is the folder of the COW files.
        let state = folders.path("state");
        let disk = folders.path("disk");
        std::fs::File::create(&disk).unwrap().set_len(8 << 30).unwrap();
        run(&format!(
            "mkfs.ext4 -q {0} && mount -o loop {0} {1} && mkdir {1}/cow && chmod 0700 {1} {1}/cow",
            disk.display(),
            state.display()
        ));
        let helper = Served::start(&folders).await;
        let client = helper.client().await;
        let now = context::current;

        let mut vmms = Vec::new();
        for n in 1..=3 {
            client.acquire_tap(now(), vm(n), OWNER, n.into()).await.unwrap().unwrap();
            client.set_network(now(), vm(n), Reach::of(Mode::Nat)).await.unwrap().unwrap();
            vmms.push(Vmm::start());
            client.bind_process(now(), vm(n), vmms.last().unwrap().pid()).await.unwrap().unwrap();
        }
        let elements = || run("nft list table inet banger").matches("172.16.0.").count();
        let open = elements();
        assert!(open > 0, "control: the addresses are in the table");

        let frozen = Frozen::new(&state);
        let create = {
            let client = client.clone();
            spawn_local(async move {
                let mut patient = context::current();
                patient.deadline = Instant::now() + Duration::from_secs(60);
                client.create_disk(patient, vm(9), OWNER, image(), 16 * MIN_ROOT_BYTES).await
            })
        };
        settle().await;
        let began = Instant::now();
        for n in [1, 2] {
            client.set_network(now(), vm(n), Reach::default()).await.unwrap().unwrap();
        }
        let switched = began.elapsed();
        let before = elements();
        vmms[2].end();
        let ended = Instant::now();
        while elements() == before {
            assert!(ended.elapsed() < Duration::from_secs(2), "an address outlives its process");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let withdrawn = ended.elapsed();
        vmms[0].end();
        let began = Instant::now();
        client.release(now(), vm(1)).await.unwrap().unwrap();
        let released = began.elapsed();
        println!(
            "while the file system stood still: NAT off twice in {switched:?}, \
             an address withdrawn {withdrawn:?} after its process, a release in {released:?}"
        );
        assert!(switched + released < Duration::from_secs(2), "{switched:?} {released:?}");
        assert!(!create.is_finished(), "control: the create waits for the disk");

        drop(frozen);
        let made = create.await.unwrap().unwrap().unwrap();
        assert!(made.allocated_bytes >= cow_file_bytes(16 * MIN_ROOT_BYTES));
        // Both threads at work at once, with memory taken and given back by each.
        for round in 0..20 {
            let ids = [vm(10), vm(11)];
            let creates = ids.map(|id| client.create_disk(now(), id, OWNER, image(), MIN_ROOT_BYTES));
            let lists = (0..8).map(|_| client.list(now(), None));
            let (made, listed) = futures::join!(futures::future::join_all(creates), futures::future::join_all(lists));
            assert!(made.iter().all(|made| matches!(made, Ok(Ok(_)))), "round {round}: {made:?}");
            assert!(listed.iter().all(|listed| matches!(listed, Ok(Ok(_)))), "round {round}");
            for id in ids {
                client.discard_disk(now(), id).await.unwrap().unwrap();
            }
        }
        measure(&client, "on this disk").await;
        if let Some(throttled) = Throttled::new(&state) {
            measure(&client, "on a disk of 20 writes a second").await;
            drop(throttled);
        }
        drop(vmms);
        for n in 1..=3 {
            client.release(now(), vm(n)).await.unwrap().unwrap();
        }
        client.discard_disk(now(), vm(9)).await.unwrap().unwrap();
        assert_eq!(std::fs::read_dir(folders.path("state/cow")).unwrap().count(), 0);
        drop(helper);
        run(&format!("umount --lazy {}", state.display()));
    });
}
