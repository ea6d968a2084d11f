//! Whose a VM is: by number and name, by words, and how many somebody may have.

use super::*;
use crate::vm::machine::{BootDevices, Machine as _, Seat};
use banger_proto::helper::HelperError;
use banger_proto::model::ErrorCode;

/// Got alice's number after she was gone.
const CAROL: Peer = Peer::new(1001, "carol", false);
const DORA: Peer = Peer::new(1009, "dora", true);

impl World {
    pub(crate) fn order_of(&self, peer: &Peer, ask: Ask, vm: &str) -> JobState {
        let job = self.life().runtime.block_on(self.life().vms.order(peer, vm, ask)).unwrap();
        self.wait(job)
    }

    fn create_of(&self, peer: Peer, name: &str, start: bool) -> Result<VmRecord, ApiError> {
        let request = CreateRequest { no_start: !start, ..named(name) };
        match self.wait(self.begin_create(peer, request, false)?) {
            JobState::Done(JobResult::Vm(vm)) => Ok(*vm),
            JobState::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn give(&self, peer: &Peer, vm: &str, user: &str) -> Result<(), ApiError> {
        let job = self.life().runtime.block_on(self.life().vms.give(peer, vm, user.into()))?;
        match self.wait(job) {
            JobState::Done(_) => Ok(()),
            JobState::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn names_of(&self, peer: &Peer) -> Vec<String> {
        let page = self.life().runtime.block_on(self.life().vms.list(peer, false, None)).unwrap();
        page.vms.into_iter().map(|vm| vm.name.into()).collect()
    }
}

#[test]
fn an_administrator_names_another_users_vm_with_the_user_or_by_id() {
    let world = World::new();
    let vm = world.running("web");
    for peer in [ROOT, DORA] {
        let id = vm.id.to_string();
        for word in ["web", "bob/web", "/web", "alice/", "alice/web/", &id[..1], &id[..7]] {
            assert_eq!(world.show(peer.clone(), word).unwrap_err().code, ErrorCode::NotFound, "{word}");
            let refused = world.life().runtime.block_on(world.life().vms.order(&peer, word, Ask::Delete));
            assert!(matches!(refused, Err(VmError::NotFound { .. })), "{word}");
        }
        for word in ["alice/web", &id, &id[..8]] {
            assert_eq!(world.show(peer.clone(), word).unwrap().id, vm.id, "{word}");
        }
    }
    assert_eq!(world.show(BOB, "alice/web").unwrap_err().code, ErrorCode::NotFound);
    for word in ["alice/web", &vm.id.to_string()[..1]] {
        assert_eq!(world.show(ALICE, word).unwrap().id, vm.id, "{word}");
    }
    // One's own comes first, and another's stays out of it.
    let own = world.create_of(DORA, "web", false).unwrap();
    assert_eq!(world.show(DORA, "web").unwrap().id, own.id);
    assert!(matches!(world.order_of(&DORA, Ask::Delete, "web"), JobState::Done(_)));
    assert_eq!(world.show(DORA, "web").unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.show(ALICE, "web").unwrap().state, State::Running);
}

#[test]
fn a_number_that_was_given_again_sees_nothing_and_has_all_names_free() {
    let world = World::new();
    let vm = world.running("web");
    let db = world.life().vms.ctx.db.clone();
    world.life().runtime.block_on(db.add_key(ALICE.owner(), "ssh-ed25519 AAAA alice".into())).unwrap();
    world.users.set(ALICE.uid, Some("carol"));
    assert!(world.names_of(&CAROL).is_empty());
    for word in ["web", "alice/web", "carol/web", &vm.id.to_string(), &vm.id.to_string()[..8]] {
        assert_eq!(world.show(CAROL, word).unwrap_err().code, ErrorCode::NotFound, "{word}");
        let refused = world.life().runtime.block_on(world.life().vms.order(&CAROL, word, Ask::Delete));
        assert!(matches!(refused, Err(VmError::NotFound { .. })), "{word}");
    }
    assert_eq!(world.life().runtime.block_on(db.keys(CAROL.owner())).unwrap(), Vec::<String>::new());
    let hers = world.create_of(CAROL, "web", true).unwrap();
    assert_ne!(hers.id, vm.id);
    assert_eq!((hers.owner, hers.owner_name.as_str()), (CAROL.uid, "carol"));
    // A peer whose name cannot be found out is nobody.
    let nobody = Peer::new(ALICE.uid, "", false);
    assert!(world.names_of(&nobody).is_empty());
    assert_eq!(world.begin_create(nobody, named("x"), false).unwrap_err().code, ErrorCode::Denied);
}

#[test]
fn what_ran_for_a_number_that_was_given_again_is_stopped_and_only_given_away_runs_again() {
    let world = World::new();
    let vm = world.running("web");
    let look = || world.life().runtime.block_on(world.life().vms.stop_what_is_nobodys());
    look();
    world.users.set(ALICE.uid, None);
    look();
    assert!(matches!(world.order_of(&ROOT, Ask::Restart, "alice/web"), JobState::Failed(_)));
    // Gone, it is not started for a number that anybody may get.
    assert_eq!(world.show(ROOT, "alice/web").unwrap().state, State::Stopped);
    world.users.set(ALICE.uid, Some("alice"));
    assert!(matches!(world.order_of(&ROOT, Ask::Start, "alice/web"), JobState::Done(_)));
    world.users.set(ALICE.uid, Some("carol"));
    look();
    world.until_true("stopped", || world.show(ROOT, "alice/web").unwrap().state == State::Stopped);
    let stopped = world.show(ROOT, "alice/web").unwrap();
    assert!(stopped.runtime.last_error.contains("no longer alice"), "{}", stopped.runtime.last_error);
    match world.order_of(&ROOT, Ask::Start, "alice/web") {
        JobState::Failed(error) => assert!(error.hint.contains("vm chown"), "{error:?}"),
        other => panic!("{other:?}"),
    }
    world.give(&ROOT, "alice/web", "bob").unwrap();
    assert!(world.names_of(&CAROL).is_empty());
    assert!(matches!(world.order_of(&BOB, Ask::Start, "web"), JobState::Done(_)));
    let record = world.show(BOB, "web").unwrap();
    assert_eq!((record.id, record.owner, record.state), (vm.id, BOB.uid, State::Running));
    let held = world.life().runtime.block_on(world.life().vms.ctx.privileged.identity(vm.id)).unwrap();
    assert_eq!(held.owner, BOB.uid, "the helper lets bob to the guest, and nobody else");
}

#[test]
fn only_an_administrator_gives_a_vm_away_and_only_one_that_does_not_run() {
    let mut world = World::new();
    world.running("web");
    assert_eq!(world.give(&BOB, "alice/web", "bob").unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.give(&ALICE, "web", "bob").unwrap_err().code, ErrorCode::Denied);
    assert_eq!(world.give(&ROOT, "alice/web", "bob").unwrap_err().code, ErrorCode::AlreadyRunning);
    world.order(STOP, "web");
    assert_eq!(world.give(&ROOT, "alice/web", "nobody").unwrap_err().code, ErrorCode::BadRequest);
    world.create_of(BOB, "web", false).unwrap();
    assert_eq!(world.give(&ROOT, "alice/web", "bob").unwrap_err().code, ErrorCode::AlreadyExists);
    world.order_of(&BOB, Ask::Delete, "web");
    world.give(&ROOT, "alice/web", "bob").unwrap();
    // The row decides, also when the daemon ends before the helper has heard of it.
    world.restart();
    assert!(world.names_of(&ALICE).is_empty());
    assert!(matches!(world.order_of(&BOB, Ask::Start, "web"), JobState::Done(_)));
    assert!(matches!(world.order_of(&BOB, Ask::Delete, "web"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn what_the_former_owner_ordered_before_is_not_done_to_the_new_owners_vm() {
    let world = World::new();
    let vm = world.create_of(ALICE, "web", false).unwrap();
    world.machine.set_deaf(true);
    let start = world.begin(Ask::Start, "web");
    world.until_true("a process", || world.machine.processes() == 1);
    let life = world.life();
    let give = life.runtime.block_on(life.vms.give(&ROOT, "alice/web", "bob".into())).unwrap();
    let roots = life.runtime.block_on(life.vms.order(&ROOT, "alice/web", Ask::Set(SetRequest::default()))).unwrap();
    let sized = SetRequest { memory_mib: Some(512), ..SetRequest::default() };
    let late = [Ask::Set(sized), Ask::Start, Ask::Delete].map(|ask| world.begin(ask, "web"));
    // The deletion has cut the start short.
    assert!(!matches!(world.wait(start), JobState::Done(_)));
    assert!(matches!(world.wait(give), JobState::Done(_)));
    world.machine.set_deaf(false);
    for job in late {
        let end = world.wait(job);
        assert!(matches!(&end, JobState::Failed(error) if error.code == ErrorCode::NotFound), "{end:?}");
    }
    assert!(matches!(world.wait(roots), JobState::Done(_)), "an administrator's order goes on");
    let his = world.show(BOB, "web").unwrap();
    assert_eq!((his.id, his.owner, his.spec), (vm.id, BOB.uid, vm.spec));
}

/// Its cgroup has the owner's number in its path.
#[test]
fn what_is_left_of_a_vm_ends_before_it_is_given_away() {
    let world = World::new();
    let vm = world.running("web");
    world.helper.refuse("release the VM", HelperError::Kernel(16), 1);
    assert!(matches!(world.order(STOP, "web"), JobState::Failed(_)));
    assert_eq!(world.show(ALICE, "web").unwrap().state, State::Error);
    // One that no signal has ended.
    let life = world.life();
    life.runtime.block_on(async {
        let row = life.vms.ctx.db.vm(vm.id).await.unwrap().unwrap();
        let seat = Seat::new(&row, &world.paths(), life.vms.ctx.config.now().network).unwrap();
        let devices = BootDevices { root: String::new(), tap: String::new() };
        world.machine.launch(&seat, &devices, Vec::new()).await.unwrap();
    });
    world.machine.fail(Some("kill"));
    world.give(&ROOT, "alice/web", "bob").unwrap_err();
    assert_eq!((world.show(ALICE, "web").unwrap().owner, world.machine.processes()), (ALICE.uid, 1));
    world.machine.fail(None);
    world.give(&ROOT, "alice/web", "bob").unwrap();
    assert_eq!(world.machine.processes(), 0);
    assert!(matches!(world.order_of(&BOB, Ask::Start, "web"), JobState::Done(_)));
}

#[test]
fn a_vm_is_not_given_to_whoever_has_no_room_for_it() {
    let limits = toml::from_str("[users.bob]\nvms = 1\n[users.carol]\ndisk = \"1G\"\n").unwrap();
    let limits = crate::config::limits::check(limits).unwrap();
    let world = World::with(Config { limits, ..Config::built_in() });
    world.users.set(1003, Some("carol"));
    let small = CreateRequest { no_start: true, ..named("first") };
    let large = CreateRequest { work_disk_size_bytes: Some(1 << 30), no_start: true, ..named("large") };
    for request in [small, large] {
        let made = world.wait(world.begin_create(ALICE, request, false).unwrap());
        assert!(matches!(made, JobState::Done(_)), "{made:?}");
    }
    world.create_of(BOB, "his", false).unwrap();
    let refused = world.give(&ROOT, "alice/first", "bob").unwrap_err();
    assert!(refused.code == ErrorCode::Limit && refused.message.contains("limit vms is 1"), "{refused:?}");
    let refused = world.give(&ROOT, "alice/large", "carol").unwrap_err();
    assert!(refused.code == ErrorCode::Limit && refused.message.contains("limit disk is 1G"), "{refused:?}");
    assert_eq!(world.names_of(&ALICE).len(), 2, "they are hers as before");
    world.give(&ROOT, "alice/first", "carol").unwrap();
    world.order_of(&BOB, Ask::Delete, "his");
    world.give(&ROOT, "alice/large", "bob").unwrap();
}

#[test]
fn a_user_has_as_many_vms_as_the_limit_says_also_when_asked_for_all_at_once() {
    let mut world = World::new();
    let alice = Peer { limits: UserLimits { vms: 3, ..UserLimits::BUILT_IN }, ..ALICE };
    let request = || CreateRequest { no_start: true, ..CreateRequest::default() };
    let jobs: Vec<_> = (0..9).map(|_| world.begin_create(alice.clone(), request(), false).unwrap()).collect();
    let ends: Vec<JobState> = jobs.into_iter().map(|job| world.wait(job)).collect();
    assert_eq!(ends.iter().filter(|end| matches!(end, JobState::Done(_))).count(), 3, "{ends:?}");
    let refused = ends.iter().find_map(|end| match end {
        JobState::Failed(error) => Some(error),
        _ => None,
    });
    let refused = refused.unwrap();
    assert_eq!(refused.code, ErrorCode::Limit);
    assert!(refused.message.contains("limit vms is 3") && refused.message.contains("3 are there"), "{refused:?}");
    assert!(refused.hint.contains("[limits.users.alice]"), "{refused:?}");
    // Counted are rows: a daemon that was killed meanwhile counts the same.
    world.restart();
    assert_eq!(world.create_of(alice.clone(), "more", false).unwrap_err().code, ErrorCode::Limit);
    world.create_of(BOB, "his", false).unwrap();
    let first = world.names_of(&ALICE).remove(0);
    world.order(Ask::Delete, &first);
    world.create_of(alice, "more", false).unwrap();
}

#[test]
fn as_many_run_as_the_limit_says_however_they_are_started() {
    let mut world = World::new();
    let alice = Peer { limits: UserLimits { running: 2, ..UserLimits::BUILT_IN }, ..ALICE };
    for name in ["a", "b", "c", "d"] {
        world.create_of(alice.clone(), name, false).unwrap();
    }
    let start =
        |peer: &Peer, name| world.life().runtime.block_on(world.life().vms.order(peer, name, Ask::Start)).unwrap();
    let jobs = ["a", "b", "c", "d"].map(|name| start(&alice, name));
    let ends = jobs.map(|job| world.wait(job));
    assert_eq!(ends.iter().filter(|end| matches!(end, JobState::Done(_))).count(), 2, "{ends:?}");
    let refused = world.create_of(alice.clone(), "e", true).unwrap_err();
    assert!(refused.code == ErrorCode::Limit && refused.message.contains("2 run"), "{refused:?}");
    assert!(!world.names_of(&ALICE).contains(&"e".to_owned()), "nothing of it stays");
    // One that failed to start does not count for ever.
    let names = world.names_of(&ALICE);
    let running = |world: &World, name: &String| world.show(ALICE, name).unwrap().state == State::Running;
    let (on, off): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| running(&world, name));
    world.restart();
    world.until(&on[0], State::Running);
    assert!(matches!(world.order_of(&alice, Ask::Start, &off[0]), JobState::Failed(_)));
    world.order(STOP, &on[0]);
    assert!(matches!(world.order_of(&alice, Ask::Start, &off[0]), JobState::Done(_)));
    assert!(matches!(world.order_of(&alice, Ask::Start, &on[0]), JobState::Failed(_)));
    // An administrator decides, whatever the administrator's own limits are.
    let dora = Peer { limits: UserLimits { running: 1, ..UserLimits::BUILT_IN }, ..DORA };
    assert!(matches!(world.order_of(&dora, Ask::Start, &format!("alice/{}", on[0])), JobState::Done(_)));
}

#[test]
fn disks_are_counted_as_large_as_they_may_become() {
    let world = World::new();
    let gib = 1 << 30;
    let alice = Peer { limits: UserLimits { disk: 6 * gib, ..UserLimits::BUILT_IN }, ..ALICE };
    let sized = |name: &str| CreateRequest {
        system_overlay_size_bytes: Some(2 * gib),
        work_disk_size_bytes: Some(gib),
        no_start: true,
        ..named(name)
    };
    let create = |name| world.wait(world.begin_create(alice.clone(), sized(name), false).unwrap());
    match create("one") {
        JobState::Done(_) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(create("two"), JobState::Done(_)));
    match create("three") {
        JobState::Failed(error) => assert!(error.message.contains("limit disk is 6G"), "{error:?}"),
        other => panic!("{other:?}"),
    }
    let grow = |by| SetRequest { work_disk_size_bytes: Some(gib + by), ..SetRequest::default() };
    assert!(
        matches!(world.order_of(&alice, Ask::Set(grow(4096)), "one"), JobState::Failed(error) if error.code == ErrorCode::Limit)
    );
    assert_eq!(world.show(ALICE, "one").unwrap().spec.work_disk_size_bytes, gib);
    world.order(Ask::Delete, "two");
    assert!(matches!(world.order_of(&alice, Ask::Set(grow(4096)), "one"), JobState::Done(_)));
}
