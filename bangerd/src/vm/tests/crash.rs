//! The daemon dies at any time: what runs goes on, what was half done is cleaned up, whatever copy
//! of the handles is lost.

use super::*;
use crate::handles::Handles;
use banger_proto::helper::HelperError;

#[test]
fn a_running_vm_is_taken_back_and_can_be_deleted() {
    let mut world = World::new();
    let vm = world.running("demo");
    let before = world.cached(&vm.id);
    world.restart();
    world.until_true("the cache is seeded", || world.cached(&vm.id) == before);
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
    assert_eq!(world.machine.processes(), 1);
    // Its own end is noticed by the new daemon.
    world.machine.end(&vm.id, "guest powered off");
    world.until("demo", State::Stopped);
    world.assert_nothing_held();
    world.order(Ask::Delete, "demo");
    world.assert_nothing_at_all();
}

#[test]
fn ten_crashes_in_a_row_change_nothing() {
    let mut world = World::new();
    let vm = world.running("demo");
    let (held, before) = (world.helper.held(), world.cached(&vm.id));
    for _ in 0..10 {
        world.restart();
    }
    world.looked();
    let after = world.show(ALICE, "demo").unwrap();
    assert_eq!((after.id, after.state, &after.runtime), (vm.id, State::Running, &vm.runtime));
    assert_eq!((world.helper.held(), world.cached(&vm.id), world.machine.processes()), (held, before, 1));
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_vm_that_died_meanwhile_is_stopped_and_torn_down_by_its_saved_handles() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.kill_daemon();
    world.machine.end(&vm.id, "");
    world.boot();
    let vm = world.until("demo", State::Stopped);
    assert!(vm.runtime.last_error.contains("while the daemon was not running"));
    world.assert_nothing_held();
}

/// What may be lost of the handles, by name.
const LOSSES: [&str; 5] = ["nothing", "file gone", "file corrupt", "mirror", "file and mirror"];

fn lose(world: &World, vm: &VmId, what: &str) {
    let file = world.paths().vm(vm).handles();
    if what.contains("file") {
        if what.contains("corrupt") {
            std::fs::write(&file, "{\"pid\":").unwrap()
        } else {
            std::fs::remove_file(&file).unwrap()
        }
    }
    if what.contains("mirror") {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let db = Db::open(&world.paths().database()).await.unwrap();
            db.set_vm_mirror(*vm, Handles::default()).await.unwrap();
        });
    }
}

#[test]
fn no_lost_copy_of_the_handles_leaks_anything() {
    for what in LOSSES {
        for alive in [true, false] {
            let mut world = World::new();
            let vm = world.running("demo");
            world.kill_daemon();
            lose(&world, &vm.id, what);
            if !alive {
                world.machine.end(&vm.id, "");
            }
            world.boot();
            if alive {
                assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)), "{what}");
            }
            world.until("demo", State::Stopped);
            world.assert_nothing_held();
        }
    }
}

#[test]
fn a_creation_that_the_crash_cut_short_is_gone() {
    let mut world = World::new();
    world.machine.set_deaf(true);
    let job = world.begin_create(ALICE, named("demo"), false).unwrap();
    world.until_true("a process", || world.machine.processes() == 1);
    world.restart();
    world.until_true("the row is gone", || world.show(ALICE, "demo").is_err());
    world.assert_nothing_at_all();
    let end = world.wait(job);
    assert!(matches!(end, JobState::Failed(_)), "a client that comes back learns the end: {end:?}");
}

#[test]
fn a_removal_that_was_cut_short_is_brought_to_its_end() {
    let mut world = World::new();
    world.running("demo");
    world.helper.refuse("discard the disk", HelperError::Kernel(5), 1);
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Failed(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Error);
    world.restart();
    world.until_true("the row is gone", || world.show(ALICE, "demo").is_err());
    world.assert_nothing_at_all();
}

#[test]
fn a_start_that_the_crash_cut_short_is_undone_and_the_vm_stays() {
    let mut world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    world.machine.set_deaf(true);
    // Before its row names handles, the process could be one of a VM that ran.
    world.until_stage(world.begin(Ask::Start, "demo"), "guest ready");
    world.restart();
    world.until_true("nothing is held", || world.helper.held().is_empty() && world.machine.processes() == 0);
    world.machine.set_deaf(false);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_live_vm_is_not_torn_down_because_the_helper_is_away() {
    let mut world = World::new();
    world.running("demo");
    world.kill_daemon();
    world.helper.set_unreachable(true);
    world.boot();
    world.looked();
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
    assert_eq!(world.machine.processes(), 1);
    world.helper.set_unreachable(false);
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
}

#[test]
fn a_start_that_cannot_be_recorded_is_undone() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    refuse_states(&world, true);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Failed(_)));
    world.assert_nothing_held();
    refuse_states(&world, false);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
}

#[test]
fn an_end_that_cannot_be_recorded_is_told_and_recorded_later() {
    let world = World::new();
    let vm = world.running("demo");
    refuse_states(&world, true);
    world.machine.end(&vm.id, "the guest has powered off");
    world.until_true("told", || world.show(ALICE, "demo").unwrap().state == State::Stopped);
    assert!(world.show(ALICE, "demo").unwrap().runtime.last_error.contains("powered off"));
    refuse_states(&world, false);
    world.until_true("recorded", || {
        // What the sweep does each minute.
        world.life().runtime.block_on(crate::vm::sweep::once(&world.life().vms.ctx));
        let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
        row.state == State::Stopped && row.last_error.contains("powered off")
    });
    world.assert_nothing_held();
}

#[test]
fn what_was_left_while_the_helper_was_away_is_released_when_it_is_back() {
    let mut world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    world.machine.set_deaf(true);
    // Before its row names handles, the process could be one of a VM that ran.
    world.until_stage(world.begin(Ask::Start, "demo"), "guest ready");
    world.kill_daemon();
    world.helper.set_unreachable(true);
    world.boot();
    world.until_true("no process", || world.machine.processes() == 0);
    world.until("demo", State::Error);
    assert!(!world.helper.held().is_empty());
    world.helper.set_unreachable(false);
    world.until_true("released", || {
        world.life().runtime.block_on(crate::vm::sweep::once(&world.life().vms.ctx));
        world.helper.held().is_empty()
    });
}

#[test]
fn a_live_vm_is_not_torn_down_because_the_helper_cannot_look() {
    let mut world = World::new();
    world.running("demo");
    world.kill_daemon();
    world.helper.refuse("look at the process", HelperError::Kernel(nix::libc::ENFILE), 1);
    world.boot();
    world.until("demo", State::Running);
    assert_eq!(world.machine.processes(), 1);
}

#[test]
fn with_a_full_disk_a_vm_can_be_deleted() {
    let world = World::new();
    world.running("demo");
    let full = "CREATE TRIGGER full BEFORE UPDATE ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END";
    sql(&world, full);
    let deleted = world.order(Ask::Delete, "demo");
    assert!(matches!(deleted, JobState::Done(_)), "{deleted:?}");
    world.assert_nothing_at_all();
}

#[test]
fn the_sweep_does_not_take_the_reason_of_an_end() {
    let world = World::new();
    let vm = world.running("demo");
    // Its process is gone, and the monitor is about to say why.
    world.machine.vanish(&vm.id);
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    entry.orders.send(Order::Look).unwrap();
    world.machine.tell_unseen("guest powered off");
    assert_eq!(world.until("demo", State::Stopped).runtime.last_error, "guest powered off");
}

#[test]
fn a_teardown_that_fails_again_and_again_says_so_once() {
    let world = World::new();
    let vm = world.running("demo");
    world.helper.refuse("release the VM", HelperError::Quarantined, 20);
    world.machine.end(&vm.id, "guest powered off");
    let first = world.until("demo", State::Error).runtime.last_error;
    assert!(first.starts_with("guest powered off; "), "{first}");
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    for _ in 0..5 {
        entry.orders.send(Order::Look).unwrap();
    }
    // Behind them in the queue.
    world.order(Ask::Set(Default::default()), "demo");
    assert_eq!(world.show(ALICE, "demo").unwrap().runtime.last_error, first);
}
