//! Guests that read the disks of VMs that do not run: whose they are, what ends them, and what is
//! left of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::vm::Way;
use banger_proto::model::ErrorCode;

impl World {
    fn read(&self, peer: &Peer, vm: &str) -> Result<Way, ApiError> {
        self.life().runtime.block_on(self.life().vms.way_to_read(peer, vm)).map_err(ApiError::from)
    }

    fn leave(&self, way: Way) {
        self.life().runtime.block_on(way.leave());
    }

    fn stopped(&self, name: &str) -> VmRecord {
        let vm = self.running(name);
        assert!(matches!(self.order(STOP, name), JobState::Done(_)));
        vm
    }
}

#[test]
fn who_reads_a_running_vm_goes_into_it() {
    let world = World::new();
    world.running("web");
    let way = world.read(&ALICE, "web").unwrap();
    assert!(matches!(way, Way::Running(..)));
    assert_eq!(world.machine.processes(), 1);
    world.leave(way);
}

#[test]
fn a_reader_lives_as_long_as_its_client_and_leaves_nothing() {
    let world = World::new();
    let vm = world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    assert!(matches!(way, Way::Reader(_)));
    assert_eq!(world.machine.processes(), 1);
    // The VM itself does not run, and nothing of the reader is anybody's to clear away.
    assert_eq!(world.show(ALICE, "web").unwrap().state, State::Stopped);
    let folder = world.paths().vm(&world.life().vms.ctx.readers.ids()[0]);
    assert!(folder.initramfs().exists() && !folder.initramfs().starts_with(&world.paths().runtime), "{folder:?}");
    let leaks = || world.life().runtime.block_on(world.life().vms.leaks(&ROOT, false)).unwrap();
    assert!(leaks().leaks.is_empty(), "{:?}", leaks());
    world.leave(way);
    world.assert_nothing_held();
    // Dropped, as when the client's task is ended.
    let way = world.read(&ALICE, &vm.id.to_string()).unwrap();
    world.life().runtime.block_on(async { drop(way) });
    world.until_true("the reader is gone", || world.machine.processes() == 0);
    world.until_true("its turn is over", || world.read(&ALICE, "web").map(|way| world.leave(way)).is_ok());
}

#[test]
fn another_user_reads_nothing() {
    let world = World::new();
    world.stopped("web");
    assert_eq!(world.read(&BOB, "web").unwrap_err().code, ErrorCode::NotFound);
    let way = world.read(&ROOT, "alice/web").unwrap();
    world.leave(way);
    world.assert_nothing_held();
}

#[test]
fn whatever_changes_the_vm_ends_its_reader() {
    let world = World::new();
    world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    assert!(matches!(world.order(Ask::Start, "web"), JobState::Done(_)));
    world.life().runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), way.cut()).await.unwrap();
        way.leave().await;
    });
    assert_eq!(world.machine.processes(), 1, "the VM");
}

#[test]
fn a_reader_that_ends_by_itself_is_noticed() {
    let world = World::new();
    world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    let id = world.life().vms.ctx.readers.ids();
    world.machine.end(id.first().unwrap(), "out of memory");
    world.life().runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), way.cut()).await.unwrap();
        way.leave().await;
    });
    world.assert_nothing_held();
}

#[test]
fn whoever_is_given_a_vm_is_not_read_by_the_one_who_had_it() {
    let world = World::new();
    let vm = world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    world.give(&ROOT, "alice/web", "bob").unwrap();
    world.life().runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), way.cut()).await.unwrap();
    });
    // One that waited for the turn meanwhile finds another owner.
    let vms = Arc::clone(&world.life().vms);
    let other = world.stopped("other");
    let waiting =
        world.life().runtime.spawn(async move { vms.way_to_read(&ALICE, "other").await.map_err(ApiError::from) });
    world.until_true("it waits", || world.life().vms.ctx.readers.wanted_by(ALICE.uid) == 2);
    world.give(&ROOT, "alice/other", "bob").unwrap();
    world.leave(way);
    let refused = world.life().runtime.block_on(waiting).unwrap();
    assert_eq!(refused.unwrap_err().code, ErrorCode::Cancelled);
    for id in [vm.id, other.id] {
        assert_eq!(world.read(&ALICE, &id.to_string()).unwrap_err().code, ErrorCode::NotFound);
    }
    world.assert_nothing_held();
}

#[test]
fn a_reader_that_does_not_come_up_leaves_nothing() {
    let world = World::new();
    world.stopped("web");
    for (step, said) in [("launch", "launch"), ("guest ready", "as it is told")] {
        world.machine.fail(Some(step));
        assert!(world.read(&ALICE, "web").unwrap_err().message.contains(said));
        world.assert_nothing_held();
    }
    world.machine.fail(None);
    let created = CreateRequest { no_start: true, ..named("new") };
    assert!(matches!(world.create(created, false), JobState::Done(_)));
    std::fs::remove_file(world.paths().vm(&world.show(ALICE, "new").unwrap().id).work_disk()).unwrap();
    assert_eq!(world.read(&ALICE, "new").unwrap_err().code, ErrorCode::NotRunning);
}

#[test]
fn what_a_crash_leaves_of_a_reader_is_released_at_once() {
    let mut world = World::new();
    world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    std::fs::create_dir_all(world.paths().runtime.join("vm/0123456789abcdef")).unwrap();
    // As `kill -9` does it: nothing of the way is left either, but nobody has cleared it away.
    std::mem::forget(way);
    world.restart();
    world.until_true("nothing of the reader is left", || {
        let count = |folder: std::path::PathBuf| std::fs::read_dir(folder).unwrap().count();
        world.machine.processes() == 0
            && count(world.paths().runtime.join("vm")) == 0
            && count(world.paths().vms()) == 1
    });
}

#[test]
fn what_is_being_started_is_read_by_nobody() {
    let world = World::new();
    let vm = world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    world.machine.set_deaf(true);
    // As the daemon itself does it after a reboot of the host: past the door.
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    let job = world.life().vms.ctx.jobs.begin(&ALICE, "start web".to_owned()).unwrap();
    let start = job.id();
    entry.orders.send(Order::Asked(Box::new(job), Box::new(Ask::Start))).unwrap();
    world.life().runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), way.cut()).await.unwrap();
        way.leave().await;
    });
    world.until_stage(start, "guest ready");
    let refused = world.read(&ALICE, "web").unwrap_err();
    assert!(refused.message.contains("is being started"), "{refused:?}");
    assert_eq!(world.machine.processes(), 1, "the VM");
    assert!(matches!(world.order(STOP, "web"), JobState::Done(_)));
    assert_eq!(world.wait(start), JobState::Cancelled);
}

#[test]
fn a_reading_that_began_behind_the_order_of_a_delete_ends_with_the_disk() {
    let world = World::new();
    let vm = world.stopped("web");
    let way = world.read(&ALICE, "web").unwrap();
    // As if it had begun while the order waited for its turn: past the door.
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    let job = world.life().vms.ctx.jobs.begin(&ALICE, "delete web".to_owned()).unwrap();
    let delete = job.id();
    entry.orders.send(Order::Asked(Box::new(job), Box::new(Ask::Delete))).unwrap();
    assert!(matches!(world.wait(delete), JobState::Done(_)));
    world.life().runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), way.cut()).await.unwrap();
        way.leave().await;
    });
    world.assert_nothing_at_all();
}
