//! The host reboots: what ran says so, keeps what is its, and runs again when that was wanted.

use super::*;
use banger_policy::vm::RestartPolicy;
use banger_proto::daemon::KillSignal;
use banger_proto::model::SetRequest;

const REBOOTED: &str = "the host rebooted";

fn always(name: &str) -> CreateRequest {
    CreateRequest { restart: RestartPolicy::Always, ..named(name) }
}

fn reason(world: &World, vm: &str) -> (State, String) {
    let record = world.show(ALICE, vm).unwrap();
    (record.state, record.runtime.last_error)
}

/// A host that goes down cleanly, or whose power is cut.
fn go_down(world: &mut World, cleanly: bool, vms: &[&str]) {
    if cleanly {
        for vm in vms {
            assert!(matches!(world.order(Ask::HostDown, vm), JobState::Done(_)));
            assert_eq!(reason(world, vm), (State::Stopped, "the host went down".to_owned()));
        }
    }
    world.reboot();
}

#[test]
fn what_ran_says_that_the_host_rebooted_and_starts_again_with_the_same_disk_and_address() {
    for cleanly in [true, false] {
        let mut world = World::new();
        let before = world.running("demo");
        go_down(&mut world, cleanly, &["demo"]);
        assert_eq!(world.until("demo", State::Stopped).runtime.last_error, REBOOTED);
        world.assert_nothing_held();
        assert_eq!(world.helper.cows(), 1);
        assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
        let after = world.show(ALICE, "demo").unwrap();
        assert_eq!((after.id, after.runtime.guest_ip), (before.id, before.runtime.guest_ip));
        // The reason is of one reboot only.
        world.order(STOP, "demo");
        world.restart();
        world.until_true("settled", || reason(&world, "demo") == (State::Stopped, String::new()));
        world.order(Ask::Delete, "demo");
        world.assert_nothing_at_all();
    }
}

#[test]
fn always_is_started_with_the_host_and_no_is_not() {
    for cleanly in [true, false] {
        let mut world = World::new();
        world.running("stays");
        assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
        go_down(&mut world, cleanly, &["stays", "again"]);
        let again = world.until("again", State::Running);
        assert_eq!((again.runtime.last_error.as_str(), again.restart), ("", RestartPolicy::Always));
        assert_eq!(world.until("stays", State::Stopped).runtime.last_error, REBOOTED);
        // Two reboots in a row are no different from one.
        world.reboot();
        world.until("again", State::Running);
        world.order(Ask::Delete, "again");
        world.order(Ask::Delete, "stays");
        world.assert_nothing_at_all();
    }
}

#[test]
fn what_did_not_run_when_the_host_went_down_is_not_started() {
    let mut world = World::new();
    for name in ["stopped", "ended", "never"] {
        let request = CreateRequest { no_start: name == "never", ..always(name) };
        assert!(matches!(world.create(request, false), JobState::Done(_)));
    }
    world.order(STOP, "stopped");
    let ended = world.show(ALICE, "ended").unwrap();
    world.machine.end(&ended.id, "guest powered off");
    world.until("ended", State::Stopped);
    world.reboot();
    world.restart();
    world.looked();
    world.starts_are_over();
    assert_eq!(reason(&world, "stopped"), (State::Stopped, String::new()));
    assert_eq!(reason(&world, "ended"), (State::Stopped, "guest powered off".to_owned()));
    assert_eq!(reason(&world, "never"), (State::Created, String::new()));
}

#[test]
fn a_daemon_that_dies_before_it_has_started_them_again_starts_them_the_next_time() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.machine.set_deaf(true);
    world.reboot();
    world.until_true("it is at it", || world.machine.processes() == 1);
    world.restart();
    world.until_true("and again", || world.machine.processes() == 1);
    world.machine.set_deaf(false);
    world.restart();
    world.until("again", State::Running);
}

#[test]
fn one_that_cannot_be_started_again_says_why_and_is_not_tried_for_ever() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.machine.fail(Some("launch"));
    world.reboot();
    let vm = world.until("again", State::Error);
    assert!(vm.runtime.last_error.contains("launch failed"), "{}", vm.runtime.last_error);
    world.machine.fail(None);
    world.restart();
    world.looked();
    world.starts_are_over();
    assert_eq!(world.show(ALICE, "again").unwrap().state, State::Error);
    assert!(matches!(world.order(Ask::Start, "again"), JobState::Done(_)));
}

#[test]
fn who_stops_it_before_its_turn_or_takes_the_wish_back_has_the_last_word() {
    for change in ["stop", "kill", "set"] {
        let mut world = World::new();
        assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
        // Its turn is long in coming.
        world.machine.fail(Some("preflight"));
        world.reboot();
        world.until("again", State::Stopped);
        let done = match change {
            "stop" => world.order(STOP, "again"),
            "kill" => world.order(Ask::Kill(KillSignal::Kill), "again"),
            _ => {
                let request = SetRequest { restart: Some(RestartPolicy::No), ..SetRequest::default() };
                world.order(Ask::Set(request), "again")
            }
        };
        assert!(matches!(done, JobState::Done(_)), "{change}: {done:?}");
        world.machine.fail(None);
        world.starts_are_over();
        assert_eq!(world.show(ALICE, "again").unwrap().state, State::Stopped, "{change}");
        world.restart();
        world.looked();
        world.starts_are_over();
        assert_eq!(world.show(ALICE, "again").unwrap().state, State::Stopped, "{change}, and the daemon restarted");
        assert_eq!(world.machine.processes(), 0);
    }
}

#[test]
fn who_could_not_be_looked_after_at_first_is_started_again_by_the_sweep() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.helper.set_unreachable(true);
    world.reboot();
    let vm = world.until("again", State::Error);
    assert!(vm.runtime.last_error.starts_with(REBOOTED), "{}", vm.runtime.last_error);
    world.helper.set_unreachable(false);
    world.until_true("started again", || {
        world.life().runtime.block_on(crate::vm::sweep::once(&world.life().vms.ctx));
        world.show(ALICE, "again").unwrap().state == State::Running
    });
}

#[test]
fn who_could_not_be_looked_after_at_first_and_is_not_started_again_is_stopped_by_the_sweep() {
    let mut world = World::new();
    world.running("stays");
    world.helper.set_unreachable(true);
    world.reboot();
    assert!(world.until("stays", State::Error).runtime.last_error.starts_with(REBOOTED));
    world.helper.set_unreachable(false);
    let ctx = || &world.life().vms.ctx;
    world.until_true("stopped", || {
        world.life().runtime.block_on(crate::vm::sweep::once(ctx()));
        reason(&world, "stays") == (State::Stopped, REBOOTED.to_owned())
    });
    let row = world.life().runtime.block_on(ctx().db.find_vms(&ALICE, "stays".into())).unwrap().remove(0);
    assert_eq!((row.mirror, row.boot_id), (handles::Handles::default(), None));
    assert!(world.life().runtime.block_on(crate::vm::sweep::is_at_rest(ctx())));
}

#[test]
fn what_waits_for_its_turn_keeps_its_room_and_its_size() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.machine.fail(Some("preflight"));
    world.reboot();
    world.until("again", State::Stopped);
    let one = || Peer { limits: UserLimits { running: 1, ..UserLimits::BUILT_IN }, ..ALICE };
    let other = |world: &World| world.wait(world.begin_create(one(), named("other"), false).unwrap());
    let JobState::Failed(error) = other(&world) else { panic!("there was room") };
    assert!(error.message.contains("limit running is 1"), "{}", error.message);
    let larger = SetRequest { memory_mib: Some(4096), ..SetRequest::default() };
    let JobState::Failed(error) = world.order(Ask::Set(larger.clone()), "again") else { panic!("it grew") };
    assert!(error.message.contains("is to run again") && error.hint.contains("banger vm stop again"), "{error:?}");
    // Whoever does not want it to run has the room, and may change it.
    assert!(matches!(world.order(STOP, "again"), JobState::Done(_)));
    world.machine.fail(None);
    assert!(matches!(world.order(Ask::Set(larger), "again"), JobState::Done(_)));
    assert!(matches!(other(&world), JobState::Done(_)));
}

/// Without an owner it is not even begun to be started.
#[test]
fn what_could_not_be_started_again_keeps_no_room() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.users.set(ALICE.uid, None);
    world.reboot();
    world.looked();
    world.starts_are_over();
    let db = &world.life().vms.ctx.db;
    let row = world.life().runtime.block_on(db.find_vms(&ALICE, "again".into())).unwrap().remove(0);
    assert_eq!((row.state, row.boot_id), (State::Error, None), "said, and not repeated");
    assert!(row.last_error.contains("alice"), "{}", row.last_error);
    assert_eq!(world.life().runtime.block_on(db.host_has()).unwrap().running, 0);
}

#[test]
fn what_waits_for_its_turn_is_not_pruned() {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.machine.fail(Some("preflight"));
    world.reboot();
    world.until("again", State::Stopped);
    let refused = world.life().runtime.block_on(world.life().vms.prune(&ALICE, "again")).unwrap_err();
    assert!(refused.to_string().contains("waits for its start"), "{refused}");
    world.machine.fail(None);
    world.until("again", State::Running);
}

fn counted(world: &World) -> u64 {
    world.life().runtime.block_on(world.life().vms.ctx.db.host_has()).unwrap().running
}

/// A VM whose turn after a reboot of the host is long in coming.
fn waiting() -> World {
    let mut world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    world.machine.fail(Some("preflight"));
    world.reboot();
    world.until("again", State::Stopped);
    assert_eq!(counted(&world), 1);
    world
}

/// Its turn passes; then the daemon is started again, as by an upgrade.
fn turn_passes(world: &mut World) {
    world.machine.fail(None);
    world.starts_are_over();
}

fn stays_stopped(world: &mut World, of: &Peer) {
    assert_eq!(counted(world), 0);
    world.restart();
    world.looked();
    world.starts_are_over();
    assert_eq!((world.show(of.clone(), "again").unwrap().state, counted(world)), (State::Stopped, 0));
}

#[test]
fn whoever_is_given_a_vm_before_its_turn_decides_anew() {
    let mut world = waiting();
    world.give(&ROOT, "alice/again", "bob").unwrap();
    assert_eq!(counted(&world), 0);
    turn_passes(&mut world);
    stays_stopped(&mut world, &BOB);
}

#[test]
fn a_wish_that_was_taken_back_does_not_outlive_its_turn() {
    let mut world = waiting();
    let set = |restart| Ask::Set(SetRequest { restart: Some(restart), ..SetRequest::default() });
    assert!(matches!(world.order(set(RestartPolicy::No), "again"), JobState::Done(_)));
    turn_passes(&mut world);
    assert!(matches!(world.order(set(RestartPolicy::Always), "again"), JobState::Done(_)));
    stays_stopped(&mut world, &ALICE);
}

/// systemd-soft-reboot.service(8): the kernel and its boot id stay, and all services are started
/// anew.
#[test]
fn a_reboot_of_the_user_space_alone_is_one() {
    let mut world = World::new();
    world.running("stays");
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    for vm in ["stays", "again"] {
        assert!(matches!(world.order(Ask::HostDown, vm), JobState::Done(_)));
    }
    world.restart();
    world.until("again", State::Running);
    assert_eq!(world.until("stays", State::Stopped).runtime.last_error, REBOOTED);
}

#[test]
fn a_host_that_goes_down_again_starts_nothing_more() {
    for stays_up in [false, true] {
        let mut world = World::new();
        let names = ["a", "b", "c", "d"];
        world.running("on");
        for name in names {
            assert!(matches!(world.create(always(name), false), JobState::Done(_)));
        }
        world.machine.set_deaf(true);
        world.reboot();
        world.until_true("two have their turn", || {
            let jobs = world.life().vms.ctx.jobs.list(&ALICE, None, 64).jobs;
            jobs.iter().filter(|job| job.stages.last().is_some_and(|stage| stage.name == "guest ready")).count() == 2
        });
        world.machine.set_deaf(false);
        assert!(matches!(world.order(Ask::Start, "on"), JobState::Done(_)));
        assert!(matches!(world.order(Ask::HostDown, "on"), JobState::Done(_)));
        world.until_true("those at work are undone", || {
            world.machine.processes() == 0 && world.life().vms.ctx.jobs.at_work(&ALICE.owner()) == 0
        });
        for name in names {
            assert_eq!(world.until(name, State::Stopped).runtime.last_error, REBOOTED);
        }
        assert_eq!(counted(&world), 4, "all are still to run");
        world.assert_nothing_held();
        if stays_up {
            world.life().vms.ctx.turns.host_stays_up();
        } else {
            world.reboot();
        }
        for name in names {
            world.until(name, State::Running);
        }
        assert_eq!(world.show(ALICE, "on").unwrap().state, State::Stopped);
    }
}

/// `systemctl restart banger-guests.service`, say.
#[test]
fn what_was_ended_for_a_shutdown_that_does_not_come_runs_again() {
    let world = World::new();
    assert!(matches!(world.create(always("again"), false), JobState::Done(_)));
    assert!(matches!(world.order(Ask::HostDown, "again"), JobState::Done(_)));
    assert_eq!((world.until("again", State::Stopped).state, counted(&world)), (State::Stopped, 1));
    world.life().vms.ctx.turns.host_stays_up();
    world.until("again", State::Running);
}

/// The host goes down while somebody's start is under way.
#[test]
fn a_start_that_the_way_down_cancels_is_made_up_for() {
    let set = |restart| Ask::Set(SetRequest { restart: Some(restart), ..SetRequest::default() });
    for taken_back in [false, true] {
        let mut world = World::new();
        world.running("on");
        for request in [always("again"), named("once")] {
            let name = request.name.clone().unwrap();
            assert!(matches!(world.create(request, false), JobState::Done(_)));
            assert!(matches!(world.order(Ask::Stop { within: None }, &name), JobState::Done(_)));
        }
        world.machine.set_deaf(true);
        let starts = ["again", "once"].map(|vm| world.begin(Ask::Start, vm));
        starts.iter().for_each(|start| world.until_stage(*start, "guest ready"));
        world.machine.set_deaf(false);
        assert!(matches!(world.order(Ask::HostDown, "on"), JobState::Done(_)));
        for start in starts {
            assert!(!matches!(world.wait(start), JobState::Done(_)), "it is not waited for");
        }
        assert_eq!(counted(&world), 1, "the one that is always to run");
        if taken_back {
            for policy in [RestartPolicy::No, RestartPolicy::Always] {
                assert!(matches!(world.order(set(policy), "again"), JobState::Done(_)));
            }
        }
        world.reboot();
        if taken_back {
            stays_stopped(&mut world, &ALICE);
        } else {
            world.until("again", State::Running);
        }
        assert_eq!(world.show(ALICE, "once").unwrap().state, State::Stopped);
    }
}
