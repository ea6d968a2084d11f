//! The three places in which handles are remembered (cache, `handles.json`, mirror): each path on
//! which a VM ends clears all three, and none is believed against the helper's ledger
//! (docs/architecture.md, "A VM's life").

use super::*;
use crate::handles::Handles;
use banger_policy::net::Network;
use banger_proto::daemon::KillSignal;

/// Whether cache, file and mirror have something of a VM.
fn remembered(world: &World, vm: &VmId) -> [bool; 3] {
    let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(*vm)).unwrap();
    [
        world.cached(vm).is_some_and(|held| !held.is_zero()),
        world.paths().vm(vm).handles().exists(),
        row.is_some_and(|row| row.mirror != Handles::default()),
    ]
}

/// From a VM that runs to one that holds nothing.
type Path = fn(&mut World, &VmRecord);

fn ordered(world: &World, ask: Ask) {
    let asked = format!("{ask:?}");
    let end = world.order(ask, "demo");
    assert!(matches!(end, JobState::Done(_)), "{asked}: {end:?}");
}

/// Every path on which a VM ends holding something, by its name in the messages of these tests.
const PATHS: &[(&str, Path)] = &[
    ("stop", |world, _| ordered(world, STOP)),
    ("stop of a stale VM", |world, vm| {
        world.machine.vanish(&vm.id);
        ordered(world, STOP);
    }),
    ("kill", |world, _| ordered(world, Ask::Kill(KillSignal::Kill))),
    ("kill of a stale VM", |world, vm| {
        world.machine.vanish(&vm.id);
        ordered(world, Ask::Kill(KillSignal::Term));
    }),
    ("failed start", |world, vm| {
        ordered(world, STOP);
        world.machine.set_deaf(true);
        let start = world.begin(Ask::Start, "demo");
        // It has come as far as to the guest, so all three have it.
        world.until_true("handles of the start", || remembered(world, &vm.id) == [true; 3]);
        world.life().vms.ctx.jobs.cancel(&ALICE, start).unwrap();
        assert_eq!(world.wait(start), JobState::Cancelled);
    }),
    ("reconcile of a dead VM", |world, vm| {
        world.kill_daemon();
        world.machine.end(&vm.id, "");
        world.boot();
        world.until("demo", State::Stopped);
    }),
    ("auto-stop", |world, vm| {
        let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
        entry.orders.send(Order::Stale(0)).unwrap();
        world.until("demo", State::Stopped);
    }),
    ("delete", |world, _| ordered(world, Ask::Delete)),
    ("the guest's own end", |world, vm| {
        world.machine.end(&vm.id, "guest powered off");
        world.until("demo", State::Stopped);
    }),
    ("reboot of the host", |world, _| {
        world.reboot();
        world.until("demo", State::Stopped);
    }),
];

#[test]
fn every_path_that_ends_holding_clears_all_three_places() {
    for (name, path) in PATHS {
        let mut world = World::new();
        let vm = world.running("demo");
        assert_eq!(remembered(&world, &vm.id), [true; 3], "before {name}");
        path(&mut world, &vm);
        assert_eq!(remembered(&world, &vm.id), [false; 3], "after {name}");
        world.assert_nothing_held();
    }
}

/// What becomes of a VM's `handles.json`, given what stood in it and in the neighbour's.
type Damage = Box<dyn Fn(&Handles, &Handles) -> Option<Vec<u8>>>;

fn json(handles: &Handles) -> Option<Vec<u8>> {
    Some(serde_json::to_vec(handles).unwrap())
}

fn damages() -> Vec<(&'static str, Damage)> {
    let foreign = |own: &Handles| Handles {
        tap_device: Some("eth0".into()),
        base_loop: Some("/dev/loop7".into()),
        cow_loop: Some("/dev/loop8".into()),
        dm_name: Some("vg-root".into()),
        dm_dev: Some("/dev/sda".into()),
        ..own.clone()
    };
    vec![
        ("missing", Box::new(|_, _| None)),
        ("empty", Box::new(|_, _| Some(Vec::new()))),
        ("null", Box::new(|_, _| Some(b"null".to_vec()))),
        ("a list", Box::new(|_, _| Some(b"[]".to_vec()))),
        ("an empty object", Box::new(|_, _| Some(b"{}".to_vec()))),
        ("noise", Box::new(|_, _| Some(vec![0xa5; 64 << 10]))),
        ("other types", Box::new(|_, _| Some(br#"{"pid":"1","tap_device":7,"generation":-1}"#.to_vec()))),
        ("another VM's", Box::new(|_, other| json(other))),
        ("another VM's, of this generation", {
            Box::new(|own, other| json(&Handles { generation: own.generation, ..other.clone() }))
        }),
        ("this VM's, of another generation", {
            Box::new(|own, other| json(&Handles { generation: other.generation, ..own.clone() }))
        }),
        ("without a generation", Box::new(|own, _| json(&Handles { generation: None, ..own.clone() }))),
        ("foreign names", Box::new(move |own, _| json(&foreign(own)))),
        ("foreign names, of no generation", {
            Box::new(move |own, _| json(&Handles { generation: None, ..foreign(own) }))
        }),
        ("the pid of init", Box::new(|own, _| json(&Handles { pid: Some(1), ..own.clone() }))),
        ("the neighbour's pid", Box::new(|own, other| json(&Handles { pid: other.pid, ..own.clone() }))),
    ]
}

/// A host with bob's VM, which must not be touched, and alice's.
struct Street {
    world: World,
    neighbour: VmRecord,
    /// Everything that the neighbour holds.
    his: Vec<String>,
    own: Handles,
    mine: Vec<VmRecord>,
}

impl Street {
    fn with(mine: usize) -> Self {
        // With room for a VM for each byte of a file.
        let network = Network::new("172.16.0.1".parse().unwrap(), 20).unwrap();
        let world = World::with(Config { network, ..Config::built_in() });
        let job = world.begin_create(BOB, named("neighbour"), false).unwrap();
        let JobState::Done(JobResult::Vm(neighbour)) = world.wait(job) else { panic!("no neighbour") };
        let (his, own) = (world.helper.held(), world.cached(&neighbour.id).unwrap());
        let mine = (0..mine).map(|number| world.running(&format!("vm-{number}"))).collect();
        Self { world, neighbour: *neighbour, his, own, mine }
    }

    fn file(&self, vm: &VmRecord) -> std::path::PathBuf {
        self.world.paths().vm(&vm.id).handles()
    }

    /// All of alice's are torn down, by the daemon's start when they are dead and by a stop when
    /// they live; bob's has all that it had.
    fn end(&self, alive: bool) {
        for vm in &self.mine {
            if alive {
                assert_eq!(self.world.show(ALICE, vm.name.as_str()).unwrap().state, State::Running);
                assert!(matches!(self.world.order(STOP, vm.name.as_str()), JobState::Done(_)), "{}", vm.name);
            }
            self.world.until(vm.name.as_str(), State::Stopped);
            assert_eq!(remembered(&self.world, &vm.id), [false; 3], "{}", vm.name);
        }
        assert_eq!(self.world.helper.held(), self.his);
        assert_eq!(self.world.machine.processes(), 1);
        let neighbour = self.world.show(BOB, "neighbour").unwrap();
        assert_eq!((neighbour.id, neighbour.state), (self.neighbour.id, State::Running));
        assert_eq!(self.world.cached(&neighbour.id).as_ref(), Some(&self.own));
    }
}

#[test]
fn whatever_handles_json_says_its_vm_is_torn_down_and_nothing_foreign_is_touched() {
    for (alive, mirror_lost) in [(false, false), (false, true), (true, false), (true, true)] {
        let damages = damages();
        let mut street = Street::with(damages.len());
        let mirrors: Vec<VmId> = street.mine.iter().map(|vm| vm.id).collect();
        street.world.kill_daemon();
        for ((name, damage), vm) in damages.iter().zip(&street.mine) {
            let file = street.file(vm);
            let own: Handles = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            assert!(!own.is_zero() && own != street.own, "{name}");
            match damage(&own, &street.own) {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            if !alive {
                street.world.machine.end(&vm.id, "");
            }
        }
        if mirror_lost {
            Runtime::new().unwrap().block_on(async {
                let db = Db::open(&street.world.paths().database()).await.unwrap();
                for vm in mirrors {
                    db.set_vm_mirror(vm, Handles::default()).await.unwrap();
                }
            });
        }
        street.world.boot();
        street.end(alive);
    }
}

#[test]
fn a_handles_json_cut_at_any_byte_leaks_nothing() {
    // As long as a file can be here: the process and the generation have numbers of up to three
    // digits.
    let mut street = Street::with(0);
    let length = std::fs::read(street.file(&street.neighbour)).unwrap().len() + 4;
    street = Street::with(length);
    street.world.kill_daemon();
    let mut cuts = std::collections::BTreeSet::new();
    for (cut, vm) in street.mine.iter().enumerate() {
        let file = street.file(vm);
        let whole = std::fs::read(&file).unwrap();
        let cut = cut.min(whole.len() - 1);
        assert!(serde_json::from_slice::<Handles>(&whole[..cut]).is_err(), "cut at {cut} it is whole");
        std::fs::write(&file, &whole[..cut]).unwrap();
        cuts.insert(cut);
        street.world.machine.end(&vm.id, "");
    }
    assert!(cuts.len() + 4 >= length, "only {} cuts of {length}", cuts.len());
    street.world.boot();
    street.end(false);
}
