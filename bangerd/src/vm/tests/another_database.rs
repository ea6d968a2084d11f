//! The daemon meets another database than the one that it worked with: an older copy, an empty one,
//! one without a row. Nobody loses a disk, an image or a VM that runs.

use super::*;
use banger_proto::model::LeakKind;

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
    let leaks = |fix| world.life().runtime.block_on(world.life().vms.leaks(&ROOT, fix)).unwrap().leaks;
    assert_eq!(leaks(false).len(), 2, "{:?}", leaks(false));
    assert!(world.helper.cows() == 1 && world.paths().vm(&stray).dir.exists());
    assert!(leaks(true).iter().all(|leak| leak.fixed == Some(true)));
    assert!(world.helper.cows() == 0 && !world.paths().vm(&stray).dir.exists());
}

#[test]
fn an_older_database_costs_nobody_a_disk_or_an_image() {
    let mut world = World::new();
    world.running("demo");
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    let vm = world.show(ALICE, "demo").unwrap();
    let image = world.paths().image_dir(&Digest::from_bytes([7; 32]).unwrap());
    std::fs::create_dir_all(&image).unwrap();
    world.kill_daemon();
    let (database, kept) = (world.paths().database(), world.dir.path().join("kept.db"));
    // A killed process has closed its files; of this simulated one the database's threads may take
    // a moment.
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
    let leaks = |world: &World| world.life().runtime.block_on(world.life().vms.leaks(&ROOT, false)).unwrap().leaks;
    world.until_true("looked", || leaks(&world).len() == 3);
    world.kill_daemon();
    world.until_true("closed", || closed(&world));
    forget(&database);
    std::fs::rename(&kept, &database).unwrap();
    world.boot();
    assert!(world.paths().vm(&vm.id).work_disk().exists() && image.exists() && world.helper.cows() == 1);
    let started = world.order(Ask::Start, "demo");
    assert!(matches!(started, JobState::Done(_)), "{started:?}");
    assert_eq!(leaks(&world), []);
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
    let leaks = |world: &World, peer, fix| world.life().runtime.block_on(world.life().vms.leaks(&peer, fix));
    assert!(matches!(leaks(&world, ALICE, true), Err(VmError::AdminsOnly(AdminsOnly::SeeLeaks))));
    // It runs: whoever brought back the wrong database has a minute.
    world.looked();
    assert_eq!(world.machine.processes(), 1);
    let found = leaks(&world, ROOT, false).unwrap().leaks;
    let kinds: Vec<_> = found.iter().map(|leak| leak.kind).collect();
    assert_eq!(kinds, [LeakKind::Cgroup, LeakKind::Holding, LeakKind::Folder, LeakKind::Folder], "{found:?}");
    assert!(world.paths().vm(&vm.id).work_disk().exists(), "the disk of a VM that runs");
    assert!(found[1].detail.contains("tap ") && found[1].detail.contains("COW file"), "{found:?}");
    let fixed = leaks(&world, ROOT, true).unwrap().leaks;
    assert!(fixed.iter().all(|leak| leak.fixed == Some(true)), "{fixed:?}");
    assert_eq!(leaks(&world, ROOT, false).unwrap().leaks, []);
    world.assert_nothing_at_all();
}

#[test]
fn a_vm_that_runs_is_not_killed_by_an_older_copy_of_the_database() {
    for older_row in [
        "state = 'stopped', boot_id = NULL, tap_device = NULL, base_loop = NULL, cow_loop = NULL, dm_name = NULL, dm_dev = NULL, generation = NULL, guest_ip = NULL",
        "boot_id = 'an earlier one'",
    ] {
        let mut world = World::new();
        let vm = world.running("demo");
        world.kill_daemon();
        sql(&world, &format!("UPDATE vms SET {older_row}"));
        world.boot();
        world.until("demo", State::Running);
        assert_eq!(world.machine.processes(), 1, "{older_row}");
        assert!(world.cached(&vm.id).is_some_and(|held| held.pid.is_some()));
        // It is a VM like any other again.
        world.restart();
        world.until("demo", State::Running);
        assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
        world.assert_nothing_held();
    }
}

#[test]
fn one_that_runs_unrecorded_is_taken_back_by_the_sweep_when_it_can_be_written_down() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.kill_daemon();
    sql(
        &world,
        "UPDATE vms SET state = 'stopped', boot_id = NULL, tap_device = NULL, base_loop = NULL, cow_loop = NULL, dm_name = NULL, \
         dm_dev = NULL, generation = NULL, guest_ip = NULL",
    );
    refuse_states(&world, true);
    // As often as the daemon starts, and however often the sweep looks meanwhile.
    for _ in 0..2 {
        world.boot();
        world.settled();
        world.life().runtime.block_on(crate::vm::sweep::once(&world.life().vms.ctx));
        world.settled();
        assert_eq!(world.machine.processes(), 1);
        world.kill_daemon();
    }
    world.boot();
    world.settled();
    refuse_states(&world, false);
    // A list of what is left over is a read, and changes nothing.
    world.life().runtime.block_on(world.life().vms.leaks(&ROOT, false)).unwrap();
    // Whatever it had ordered would be done by then. An order behind it would read the row anew.
    std::thread::sleep(Duration::from_millis(200));
    let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
    assert_eq!(row.state, State::Stopped);
    world.until_true("recorded", || {
        world.life().runtime.block_on(crate::vm::sweep::once(&world.life().vms.ctx));
        let row = world.life().runtime.block_on(world.life().vms.ctx.db.vm(vm.id)).unwrap().unwrap();
        row.state == State::Running
    });
    assert_eq!(world.machine.processes(), 1);
}

#[test]
fn the_sweep_slows_down_only_where_nothing_can_change_by_itself() {
    let world = World::new();
    let at_rest = |world: &World| world.life().runtime.block_on(crate::vm::sweep::is_at_rest(&world.life().vms.ctx));
    world.settled();
    assert!(at_rest(&world), "without a VM");
    let vm = world.running("demo");
    assert!(!at_rest(&world), "with one that runs");
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    assert!(at_rest(&world), "with one that does not");
    sql(&world, "UPDATE vms SET state = 'error'");
    assert!(!at_rest(&world), "with one whose teardown is tried again");
    sql(&world, "UPDATE vms SET state = 'stopped'");
    let stray = world.paths().vm(&VmId::from_bytes([9; 32]).unwrap()).dir;
    std::fs::create_dir(&stray).unwrap();
    assert!(!at_rest(&world), "with a folder that is nobody's");
    std::fs::remove_dir(&stray).unwrap();
    world.life().runtime.block_on(async {
        let helper = Privileged::over(Arc::new(world.helper.clone()));
        helper.acquire_tap(vm.id, 1, 9).await.unwrap();
    });
    assert!(!at_rest(&world), "with a tap that is held");
}
