//! The daemon dies at any time: what runs goes on, what was half done is cleaned up, whatever copy of the
//! handles is lost.

use super::*;
use crate::db::Mirror;
use banger_proto::helper::HelperError;
use banger_proto::model::{ErrorCode, LeakKind};

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
    world.order(Verb::Delete, "demo");
    world.assert_nothing_at_all();
}

#[test]
fn ten_crashes_in_a_row_change_nothing() {
    let mut world = World::new();
    let vm = world.running("demo");
    for _ in 0..10 {
        world.restart();
    }
    assert_eq!(world.show(ALICE, "demo").unwrap().id, vm.id);
    assert!(matches!(world.order(Verb::Delete, "demo"), JobState::Done(_)));
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
            db.set_vm_mirror(*vm, Mirror::default()).await.unwrap();
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
                assert!(matches!(world.order(Verb::Stop, "demo"), JobState::Done(_)), "{what}");
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
    assert!(matches!(world.order(Verb::Delete, "demo"), JobState::Failed(_)));
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
    world.begin(Verb::Start, "demo");
    world.until_true("a process", || world.machine.processes() == 1);
    world.restart();
    world.until_true("nothing is held", || world.helper.held().is_empty() && world.machine.processes() == 0);
    world.machine.set_deaf(false);
    assert!(matches!(world.order(Verb::Start, "demo"), JobState::Done(_)));
    assert!(matches!(world.order(Verb::Delete, "demo"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_live_vm_is_not_torn_down_because_the_helper_is_away() {
    let mut world = World::new();
    world.running("demo");
    world.kill_daemon();
    world.helper.set_unreachable(true);
    world.boot();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
    assert_eq!(world.machine.processes(), 1);
    world.helper.set_unreachable(false);
    assert!(matches!(world.order(Verb::Delete, "demo"), JobState::Done(_)));
}

#[test]
fn what_belongs_to_no_row_is_released_but_disks_wait_for_an_administrator() {
    let mut world = World::new();
    world.kill_daemon();
    let (stray, image) = (VmId::from_bytes([9; 32]).unwrap(), Digest::from_bytes([7; 32]).unwrap());
    Runtime::new().unwrap().block_on(async {
        let helper = Privileged::over(Arc::new(world.helper.clone()));
        helper.create_disk(stray, 1, image, 1).await.unwrap();
        helper.attach_disk(stray, 1).await.unwrap();
        helper.acquire_tap(stray, 1, 9).await.unwrap();
    });
    std::fs::create_dir(world.paths().vm(&stray).dir).unwrap();
    assert_eq!(world.helper.held().len(), 2);
    world.boot();
    world.until_true("released", || world.helper.held().is_empty());
    let leaks = |fix| world.life().runtime.block_on(world.life().vms.leaks(ROOT, fix)).unwrap();
    assert_eq!(leaks(false).len(), 2, "{:?}", leaks(false));
    assert!(world.helper.cows() == 1 && world.paths().vm(&stray).dir.exists());
    assert!(leaks(true).iter().all(|leak| leak.fixed == Some(true)));
    assert!(world.helper.cows() == 0 && !world.paths().vm(&stray).dir.exists());
}

#[test]
fn an_older_database_costs_nobody_a_disk_or_an_image() {
    let mut world = World::new();
    world.running("demo");
    assert!(matches!(world.order(Verb::Stop, "demo"), JobState::Done(_)));
    let vm = world.show(ALICE, "demo").unwrap();
    let image = world.paths().image_dir(&Digest::from_bytes([7; 32]).unwrap());
    std::fs::create_dir_all(&image).unwrap();
    world.kill_daemon();
    let (database, kept) = (world.paths().database(), world.dir.path().join("kept.db"));
    // A killed process has closed its files; of this simulated one the database's threads may take a moment.
    let closed = |world: &World| {
        let mut open =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        !open.any(|path| path.starts_with(world.paths().state))
    };
    world.until_true("closed", || closed(&world));
    let sql = rusqlite::Connection::open(&database).unwrap();
    sql.execute("VACUUM INTO ?1", [kept.to_str().unwrap()]).unwrap();
    drop(sql);
    let forget = |database: &std::path::Path| {
        for name in ["banger.db", "banger.db-wal", "banger.db-shm"] {
            drop(std::fs::remove_file(database.with_file_name(name)));
        }
    };
    forget(&database);
    world.boot();
    world.life().runtime.block_on(world.life().store.remove_leftovers()).unwrap();
    let leaks = |world: &World| world.life().runtime.block_on(world.life().vms.leaks(ROOT, false)).unwrap();
    world.until_true("looked", || leaks(&world).len() == 3);
    world.kill_daemon();
    world.until_true("closed", || closed(&world));
    forget(&database);
    std::fs::rename(&kept, &database).unwrap();
    world.boot();
    assert!(world.paths().vm(&vm.id).work_disk().exists() && image.exists() && world.helper.cows() == 1);
    let started = world.order(Verb::Start, "demo");
    assert!(matches!(started, JobState::Done(_)), "{started:?}");
    assert_eq!(leaks(&world), []);
}

/// As if the disk were full: the state of a VM cannot be written.
fn refuse_states(world: &World, refused: bool) {
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    sql.busy_timeout(Duration::from_secs(5)).unwrap();
    let make = "CREATE TRIGGER full BEFORE UPDATE OF state ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END";
    sql.execute_batch(if refused { make } else { "DROP TRIGGER full" }).unwrap();
}

#[test]
fn a_start_that_cannot_be_recorded_is_undone() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    refuse_states(&world, true);
    assert!(matches!(world.order(Verb::Start, "demo"), JobState::Failed(_)));
    world.assert_nothing_held();
    refuse_states(&world, false);
    assert!(matches!(world.order(Verb::Start, "demo"), JobState::Done(_)));
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
        world.life().runtime.block_on(world.life().vms.leaks(ROOT, false)).unwrap();
        let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
        row.state == State::Stopped
    });
    world.assert_nothing_held();
}

#[test]
fn what_was_left_while_the_helper_was_away_is_released_when_it_is_back() {
    let mut world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    world.machine.set_deaf(true);
    world.begin(Verb::Start, "demo");
    world.until_true("a process", || world.machine.processes() == 1);
    world.kill_daemon();
    world.helper.set_unreachable(true);
    world.boot();
    world.until_true("no process", || world.machine.processes() == 0);
    world.until("demo", State::Error);
    assert!(!world.helper.held().is_empty());
    world.helper.set_unreachable(false);
    world.until_true("released", || {
        world.life().runtime.block_on(world.life().vms.leaks(ROOT, false)).unwrap();
        world.helper.held().is_empty()
    });
}

#[test]
fn a_row_that_somebody_removed_leaves_orphans_that_an_administrator_sees_and_releases() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.kill_daemon();
    Runtime::new().unwrap().block_on(async {
        let db = Db::open(&world.paths().database()).await.unwrap();
        db.delete_vm(vm.id).await.unwrap();
    });
    world.boot();
    let leaks = |world: &World, peer, fix| world.life().runtime.block_on(world.life().vms.leaks(peer, fix));
    assert_eq!(leaks(&world, ALICE, true).unwrap_err().code, ErrorCode::Denied);
    // It runs: whoever brought back the wrong database has a minute.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(world.machine.processes(), 1);
    let found = leaks(&world, ROOT, false).unwrap();
    let kinds: Vec<_> = found.iter().map(|leak| leak.kind).collect();
    assert_eq!(kinds, [LeakKind::Cgroup, LeakKind::Holding, LeakKind::Folder, LeakKind::Folder], "{found:?}");
    assert!(world.paths().vm(&vm.id).work_disk().exists(), "the disk of a VM that runs");
    assert!(found[1].detail.contains("tap ") && found[1].detail.contains("COW file"), "{found:?}");
    let fixed = leaks(&world, ROOT, true).unwrap();
    assert!(fixed.iter().all(|leak| leak.fixed == Some(true)), "{fixed:?}");
    assert_eq!(leaks(&world, ROOT, false).unwrap(), []);
    world.assert_nothing_at_all();
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

/// Brings the row back to what an older copy of the database has.
fn older(world: &World, change: &str) {
    rusqlite::Connection::open(world.paths().database()).unwrap().execute_batch(change).unwrap();
}

#[test]
fn a_vm_that_runs_is_not_killed_by_an_older_copy_of_the_database() {
    for older_row in [
        "state = 'stopped', boot_id = NULL, tap_device = NULL, base_loop = NULL, cow_loop = NULL, dm_name = NULL, dm_dev = NULL, generation = NULL",
        "boot_id = 'an earlier one'",
    ] {
        let mut world = World::new();
        let vm = world.running("demo");
        world.kill_daemon();
        older(&world, &format!("UPDATE vms SET {older_row}"));
        world.boot();
        world.until("demo", State::Running);
        assert_eq!(world.machine.processes(), 1, "{older_row}");
        assert!(world.cached(&vm.id).is_some_and(|held| held.pid.is_some()));
        // It is a VM like any other again.
        world.restart();
        world.until("demo", State::Running);
        assert!(matches!(world.order(Verb::Stop, "demo"), JobState::Done(_)));
        world.assert_nothing_held();
    }
}

#[test]
fn with_a_full_disk_a_vm_can_be_deleted() {
    let world = World::new();
    world.running("demo");
    let full = "CREATE TRIGGER full BEFORE UPDATE ON vms BEGIN SELECT RAISE(ABORT, 'no room'); END";
    older(&world, full);
    let deleted = world.order(Verb::Delete, "demo");
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
    entry.orders.send(super::super::Order::Look).unwrap();
    world.machine.tell_unseen("guest powered off");
    assert_eq!(world.until("demo", State::Stopped).runtime.last_error, "guest powered off");
}

#[test]
fn an_end_that_was_recorded_late_has_its_reason() {
    let world = World::new();
    let vm = world.running("demo");
    refuse_states(&world, true);
    world.machine.end(&vm.id, "guest powered off");
    world.until_true("told", || world.show(ALICE, "demo").unwrap().state == State::Stopped);
    refuse_states(&world, false);
    world.until_true("recorded", || {
        world.life().runtime.block_on(world.life().vms.leaks(ROOT, false)).unwrap();
        let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
        row.state == State::Stopped && row.last_error == "guest powered off"
    });
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
        entry.orders.send(super::super::Order::Look).unwrap();
    }
    // Behind them in the queue.
    world.order(Verb::Set(Default::default()), "demo");
    assert_eq!(world.show(ALICE, "demo").unwrap().runtime.last_error, first);
}

#[test]
fn one_that_runs_unrecorded_is_taken_back_by_the_sweep_when_it_can_be_written_down() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.kill_daemon();
    older(
        &world,
        "UPDATE vms SET state = 'stopped', boot_id = NULL, tap_device = NULL, base_loop = NULL, cow_loop = NULL, dm_name = NULL, \
         dm_dev = NULL, generation = NULL",
    );
    refuse_states(&world, true);
    world.boot();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(world.machine.processes(), 1);
    refuse_states(&world, false);
    world.until_true("recorded", || {
        world.life().runtime.block_on(world.life().vms.leaks(ROOT, false)).unwrap();
        let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
        row.state == State::Running
    });
    assert_eq!(world.machine.processes(), 1);
}
