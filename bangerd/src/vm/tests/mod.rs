//! The life of VMs against a simulated helper and machine: no root, no KVM, no guest.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod another_database;
mod crash;
mod fair;
mod handles_lost;
mod life;
mod many;
mod network;
mod ports;
mod readers;
mod reboot;
mod refused;
mod set;
mod shares;
mod subnet;
mod undo;
mod whose;

use super::error::{AdminsOnly, VmError};
use super::order::Order;
use super::resume::Turns;
use super::sim::SimMachine;
use super::{Ask, Context, Vms};
use crate::config::{Config, Live, VmDefaults};
use crate::convert::Converter;
use crate::db::Db;
use crate::handles;
use crate::jobs::Jobs;
use crate::net::names::{Names, Resolver};
use crate::paths::Paths;
use crate::privileged::Privileged;
use crate::privileged::sim::SimHelper;
use crate::refused::Refusals;
use crate::store::Store;
use crate::users::{Account, Named, UserDatabase};
use banger_policy::lifecycle::State;
use banger_policy::network::NetworkRequest;
use banger_policy::quota::UserLimits;
use banger_policy::reach::Mode;
use banger_policy::{Digest, ImageConfig, Peer, VmId};
use banger_proto::model::{
    ApiError, CreateRequest, ImageRecord, JobId, JobResult, JobState, KernelRecord, SetRequest, VmRecord,
};
use banger_proto::time::Timestamp;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub(crate) const ALICE: Peer = Peer::new(1001, "alice", false);
pub(crate) const BOB: Peer = Peer::new(1002, "bob", false);
pub(crate) const ROOT: Peer = Peer::new(0, "root", true);

/// A stop as nearly everybody asks for it.
pub(crate) const STOP: Ask = Ask::Stop { within: None };

/// The user database of the host: alice, bob and root, until somebody changes it.
#[derive(Clone, Debug)]
pub(crate) struct SimUsers(Arc<Mutex<BTreeMap<u32, String>>>);

impl Default for SimUsers {
    fn default() -> Self {
        let users = [ALICE, BOB, ROOT].map(|peer| (peer.uid, peer.name.into_owned()));
        Self(Arc::new(Mutex::new(users.into())))
    }
}

impl SimUsers {
    /// `None`: the user is removed. An empty name: the database does not answer about this number.
    pub(crate) fn set(&self, uid: u32, name: Option<&str>) {
        let mut users = self.0.lock().unwrap();
        users.remove(&uid);
        users.extend(name.map(|name| (uid, name.to_owned())));
    }
}

impl UserDatabase for SimUsers {
    fn name_of(&self, uid: u32) -> Named {
        match self.0.lock().unwrap().get(&uid) {
            Some(name) if name.is_empty() => Named::Unknown,
            Some(name) => Named::As(name.clone()),
            None => Named::Gone,
        }
    }

    fn account(&self, name: &str) -> Option<Account> {
        let users = self.0.lock().unwrap();
        let uid = users.iter().find(|(_, known)| *known == name).map(|(uid, _)| *uid)?;
        Some(Account { uid, name: name.to_owned(), groups: Vec::new() })
    }
}

/// The host's resolver: names and addresses, until somebody changes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimNames(Arc<Mutex<BTreeMap<String, Vec<Ipv4Addr>>>>);

impl SimNames {
    pub(crate) fn set(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().copied().map(Ipv4Addr::from).collect();
        self.0.lock().unwrap().insert(name.to_owned(), addresses);
    }
}

impl Resolver for SimNames {
    fn resolve(&self, name: &str) -> std::io::Result<Vec<Ipv4Addr>> {
        self.0.lock().unwrap().get(name).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

/// A host: its disk, its helper and its processes outlive the daemon.
pub(crate) struct World {
    dir: tempfile::TempDir,
    helper: SimHelper,
    machine: SimMachine,
    config: Config,
    pub(crate) users: SimUsers,
    pub(crate) names: SimNames,
    /// How often the host has rebooted.
    boots: u32,
    daemon: Option<Life>,
}

/// One run of the daemon.
pub(crate) struct Life {
    pub(crate) runtime: Runtime,
    pub(crate) vms: Arc<Vms>,
    pub(crate) store: Arc<Store>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Config::built_in())
    }

    fn with(config: Config) -> Self {
        // Small: room for both disks is asked of the machine that runs the tests.
        let sizes =
            VmDefaults { disk_size: Some(256 << 20), system_overlay_size: Some(256 << 20), ..config.vm_defaults };
        let config = Config { vm_defaults: sizes, ..config };
        let helper = SimHelper::default();
        let machine = SimMachine::new(helper.clone());
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            helper,
            machine,
            config,
            users: SimUsers::default(),
            names: SimNames::default(),
            boots: 0,
            daemon: None,
        };
        world.boot();
        let db = world.life().vms.ctx.db.clone();
        world.life().runtime.block_on(async {
            let (now, id) = (Timestamp::now(), Digest::from_bytes([7; 32]).unwrap());
            let image = ImageRecord {
                id,
                name: "debian".parse().unwrap(),
                owner: 0,
                owner_name: "root".into(),
                shared: true,
                managed: true,
                artifact_dir: String::new(),
                rootfs_path: String::new(),
                work_seed_path: None,
                build_size: 1 << 27,
                allocated_bytes: 0,
                docker: false,
                source: "test".into(),
                config: ImageConfig { user: Some("app".into()), ..ImageConfig::default() },
                manifest_digest: None,
                kernel: None,
                kernel_id: None,
                created_at: now,
                updated_at: now,
            };
            db.insert_image(image, UserLimits::NONE).await.unwrap();
            let kernel = KernelRecord {
                id,
                name: "6.12".parse().unwrap(),
                owner: 0,
                owner_name: "root".into(),
                shared: true,
                version: "6.12".into(),
                modules: Vec::new(),
                size_bytes: 1,
                created_at: now,
            };
            db.insert_kernel(kernel, UserLimits::NONE).await.unwrap();
        });
        world
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths { state: self.dir.path().join("state"), runtime: self.dir.path().join("run"), ..Paths::default() }
    }

    /// The daemon starts: everything that it knows it reads from the disk.
    fn boot(&mut self) {
        let paths = self.paths();
        crate::listen::make_folders(&paths).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (helper, machine, config) = (self.helper.clone(), self.machine.clone(), Live::new(self.config.clone()));
        let users = self.users.clone();
        let names = self.names.clone();
        let boot_id = format!("boot {}", self.boots);
        // Each tap of the simulation has the number 7.
        let refusals = Refusals::with(|_| Some(7));
        let (vms, store) = runtime.block_on(async move {
            let db = Db::open(&paths.database()).await.unwrap();
            let jobs = Jobs::load(db.clone()).await.unwrap();
            let store = Store::new(paths.clone(), db.clone(), Arc::clone(&jobs), config.clone(), Converter::Here);
            let (guests, networks) = (config.now().network, config.now().publish.clone());
            let rules = banger_policy::publish::rules::Rules { networks, guests };
            let callers = Arc::new(crate::net::caller::Kernel::default());
            let context = Context {
                ports: crate::ports::Ports::start(rules, callers).unwrap(),
                fellows: crate::vm::Fellows::default(),
                readers: crate::vm::Readers::default(),
                names: Names::of(Arc::new(names)),
                paths,
                config,
                handles: handles::Store::new(db.clone()),
                db,
                privileged: Privileged::over(Arc::new(helper)),
                machine: Arc::new(machine),
                jobs,
                boot_id,
                turns: Turns::default(),
                users: Arc::new(users),
                actors: Arc::default(),
                refusals: Arc::new(refusals),
                programs: Arc::default(),
                names_port: Arc::default(),
            };
            (Vms::new(context, Arc::clone(&store)), store)
        });
        runtime.block_on(async {
            store.collect_in_background();
            vms.reconcile_in_background();
            vms.tell_fellows_in_background();
        });
        self.daemon = Some(Life { runtime, vms, store });
    }

    /// What the helper was asked since the last look.
    pub(crate) fn take_log(&self) -> Vec<&'static str> {
        self.helper.take_log()
    }

    pub(crate) fn life(&self) -> &Life {
        self.daemon.as_ref().unwrap()
    }

    /// As `kill -9` does it: every task stops where it waits, nothing is cleaned up.
    fn kill_daemon(&mut self) {
        let life = self.daemon.take().unwrap();
        life.runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// The host goes down with all that it runs and is back.
    fn reboot(&mut self) {
        if self.daemon.is_some() {
            self.kill_daemon();
        }
        self.machine.reboot();
        self.helper.reboot();
        self.boots += 1;
        self.boot();
    }

    pub(crate) fn restart(&mut self) {
        self.kill_daemon();
        self.boot();
    }

    pub(crate) fn wait(&self, job: JobId) -> JobState {
        self.life().runtime.block_on(async {
            let mut seq = 0;
            loop {
                let limit = Duration::from_secs(20);
                let view = self.life().vms.ctx.jobs.watch(&ROOT, job, seq, limit).await.unwrap();
                match view.state {
                    JobState::Running if view.seq == seq => panic!("stuck: {view:?}"),
                    JobState::Running => seq = view.seq,
                    end => return end,
                }
            }
        })
    }

    fn begin_create(&self, peer: Peer, request: CreateRequest, keep: bool) -> Result<JobId, ApiError> {
        let create = self.life().vms.create(&peer, request, keep);
        Ok(self.life().runtime.block_on(create)?)
    }

    fn create(&self, request: CreateRequest, keep: bool) -> JobState {
        // Some tests make many.
        let alice = Peer { limits: UserLimits::NONE, ..ALICE };
        self.wait(self.begin_create(alice, request, keep).unwrap())
    }

    /// A running VM.
    pub(crate) fn running(&self, name: &str) -> VmRecord {
        match self.create(named(name), false) {
            JobState::Done(JobResult::Vm(vm)) => *vm,
            other => panic!("{other:?}"),
        }
    }

    fn begin(&self, ask: Ask, vm: &str) -> JobId {
        self.life().runtime.block_on(self.life().vms.order(&ALICE, vm, ask)).unwrap()
    }

    fn begin_or_gone(&self, ask: Ask, vm: &str) -> Option<JobId> {
        self.life().runtime.block_on(self.life().vms.order(&ALICE, vm, ask)).ok()
    }

    fn order(&self, ask: Ask, vm: &str) -> JobState {
        self.wait(self.begin(ask, vm))
    }

    fn show(&self, peer: Peer, vm: &str) -> Result<VmRecord, ApiError> {
        Ok(self.life().runtime.block_on(self.life().vms.show(&peer, vm))?)
    }

    /// Waits until the VM is in a state, which it gets into by itself, and all is done that belongs
    /// to it.
    fn until(&self, vm: &str, state: State) -> VmRecord {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let record = self.show(ALICE, vm).unwrap();
            let settled = self.life().vms.ctx.actors.lock().get(&record.id).is_some_and(|vm| vm.shared.is_settled());
            // A list says that a VM has ended before all is released that it held.
            let row = self.life().runtime.block_on(self.life().vms.ctx.db.vm(record.id)).unwrap();
            if record.state == state && settled && row.is_some_and(|row| row.state == state) {
                // The record was read before the row, which may have got its reason in between.
                return self.show(ALICE, vm).unwrap();
            }
            assert!(Instant::now() < deadline, "still {}: {}", record.state, record.runtime.last_error);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn until_true(&self, what: &str, check: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !check() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until each VM was looked at after a boot.
    fn settled(&self) {
        let life = self.life();
        let rows = || life.runtime.block_on(life.vms.ctx.db.vms(None, None, u32::MAX)).unwrap();
        self.until_true("all are looked at", || {
            let actors = life.vms.ctx.actors.lock();
            rows().iter().all(|row| actors.get(&row.id).is_some_and(|vm| vm.shared.is_settled()))
        });
    }

    /// The same, and a round of the sweep.
    fn looked(&self) {
        self.settled();
        self.life().runtime.block_on(crate::vm::sweep::once(&self.life().vms.ctx));
    }

    /// Waits until whatever was to be started after a reboot was started, or was found to be none
    /// of the daemon's business.
    fn starts_are_over(&self) {
        self.until_true("no start waits", || self.life().vms.ctx.turns.starts_are_over());
    }

    /// Waits until a job has come to a stage.
    fn until_stage(&self, job: JobId, stage: &str) {
        self.until_true(stage, || {
            let view = async { self.life().vms.ctx.jobs.watch(&ROOT, job, 0, Duration::ZERO).await.unwrap() };
            self.life().runtime.block_on(view).stages.iter().any(|seen| seen.name == stage)
        });
    }

    fn cached(&self, vm: &VmId) -> Option<handles::Handles> {
        self.life().vms.ctx.handles.cached(vm)
    }

    /// Nothing of any VM beside what a stopped one keeps.
    fn assert_nothing_held(&self) {
        assert_eq!(self.helper.held(), Vec::<String>::new());
        assert_eq!(self.machine.processes(), 0);
        let left: Vec<_> = std::fs::read_dir(self.paths().runtime.join("vm")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        for vm in std::fs::read_dir(self.paths().vms()).unwrap() {
            let vm = vm.unwrap().path();
            assert!(!["handles.json", "initramfs"].iter().any(|file| vm.join(file).exists()), "{vm:?}");
            let id = vm.file_name().unwrap().to_str().unwrap().parse();
            assert!(!id.is_ok_and(|id| super::Readers::is_id(&id)), "of a reader: {vm:?}");
        }
    }

    /// As if there had never been a VM.
    pub(crate) fn assert_nothing_at_all(&self) {
        self.assert_nothing_held();
        assert_eq!(self.helper.cows(), 0);
        let page = self.life().runtime.block_on(self.life().vms.list(&ROOT, true, None)).unwrap();
        assert!(page.vms.is_empty(), "{page:?}");
        assert_eq!(std::fs::read_dir(self.paths().vms()).unwrap().count(), 0);
    }
}

pub(crate) fn named(name: &str) -> CreateRequest {
    let network = NetworkRequest { mode: Some(Mode::Nat), ..NetworkRequest::default() };
    CreateRequest { name: Some(name.into()), network, ..CreateRequest::default() }
}

/// A change that no daemon has made.
fn sql(world: &World, change: &str) {
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    sql.busy_timeout(Duration::from_secs(5)).unwrap();
    sql.execute_batch(change).unwrap();
}

/// As if the disk were full: the state of a VM cannot be written.
fn refuse_states(world: &World, refused: bool) {
    let make = "CREATE TRIGGER full BEFORE UPDATE OF state ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END";
    sql(world, if refused { make } else { "DROP TRIGGER full" });
}
