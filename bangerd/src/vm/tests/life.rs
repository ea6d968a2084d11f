//! What users ask for, and what guests do by themselves.

use super::*;
use banger_proto::daemon::KillSignal;
use banger_proto::helper::HelperError;
use banger_proto::model::{ErrorCode, SetRequest};

#[test]
fn a_start_records_file_cache_and_mirror_and_a_stop_clears_all_three() {
    let world = World::new();
    let vm = world.running("demo");
    assert_eq!(vm.state, State::Running);
    assert_eq!(vm.runtime.guest_ip.to_string(), "172.16.0.2");
    assert_eq!(vm.runtime.tap_device, Some(vm.id.tap_name()));
    let paths = world.paths().vm(&vm.id);
    let file = handles::saved(&paths);
    assert_eq!(Some(&file), world.cached(&vm.id).as_ref());
    assert_eq!((file.tap_device, file.dm_dev), (vm.runtime.tap_device, vm.runtime.dm_dev));
    assert!(file.pid.is_some());

    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    let vm = world.show(ALICE, "demo").unwrap();
    assert_eq!((vm.state, vm.runtime.tap_device.as_deref()), (State::Stopped, None));
    assert_eq!(world.cached(&vm.id), None);
    world.assert_nothing_held();
    assert_eq!(world.helper.cows(), 1, "a stopped VM keeps its disk");

    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert!(matches!(world.order(Ask::Restart, "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(JobResult::Text(_))));
    world.assert_nothing_at_all();
}

#[test]
fn kill_needs_no_guest_and_stop_of_what_does_not_run_is_fine() {
    let world = World::new();
    world.running("demo");
    world.machine.set_deaf(true);
    assert!(matches!(world.order(Ask::Kill(KillSignal::Kill), "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Stopped);
    world.assert_nothing_held();
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
}

#[test]
fn a_kill_ends_the_wait_for_a_guest_that_does_not_shut_down() {
    let world = World::new();
    world.running("demo");
    world.machine.set_deaf(true);
    let stop = world.begin(STOP, "demo");
    world.until_stage(stop, "guest shutdown");
    assert!(matches!(world.order(Ask::Kill(KillSignal::Kill), "demo"), JobState::Done(_)));
    assert!(matches!(world.wait(stop), JobState::Done(_)));
    world.assert_nothing_held();
}

#[test]
fn a_guest_that_does_not_shut_down_has_the_time_that_its_user_gives() {
    let world = World::new();
    world.running("demo");
    world.machine.set_deaf(true);
    let began = Instant::now();
    let stop = world.begin(Ask::Stop { within: Some(Duration::from_millis(300)) }, "demo");
    assert!(matches!(world.wait(stop), JobState::Done(_)));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(60), "{took:?}");
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Stopped);
    world.assert_nothing_held();
}

#[test]
fn a_guest_that_ends_by_itself_is_stopped_with_the_reason() {
    let world = World::new();
    let vm = world.running("demo");
    world.machine.end(&vm.id, "guest kernel panicked: sysrq");
    let vm = world.until("demo", State::Stopped);
    assert_eq!(vm.runtime.last_error, "guest kernel panicked: sysrq");
    world.assert_nothing_held();
    let refused = world.life().runtime.block_on(world.life().vms.link(&ALICE, "demo")).unwrap_err();
    assert_eq!(refused.to_string(), "demo is not running: guest kernel panicked: sysrq");
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().runtime.last_error, "");
}

#[test]
fn a_report_of_an_earlier_boot_changes_nothing() {
    let world = World::new();
    let vm = world.running("demo");
    world.order(Ask::Restart, "demo");
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    entry.orders.send(Order::Ended { boot: 1, reason: "late".into() }).unwrap();
    // Orders are done in turn: when this one is, so is the report.
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Failed(e) if e.code == ErrorCode::AlreadyRunning));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
}

#[test]
fn busy_devices_are_asked_again() {
    let world = World::new();
    world.running("demo");
    world.helper.refuse("detach the disk", HelperError::Busy, 3);
    world.helper.take_log();
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    let asked = world.helper.take_log();
    assert_eq!(asked.iter().filter(|operation| **operation == "detach the disk").count(), 4);
    world.assert_nothing_held();
}

#[test]
fn users_see_their_own_and_names_are_theirs() {
    let world = World::new();
    let vm = world.running("demo");
    let error = world.show(BOB, "demo").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(world.show(BOB, &vm.id.to_string()).unwrap_err().code, ErrorCode::NotFound);
    let job = world.begin_create(BOB, named("demo"), false).unwrap();
    assert!(matches!(world.wait(job), JobState::Done(_)), "a name is unique per owner");
    assert!(matches!(world.create(named("demo"), false), JobState::Failed(e) if e.code == ErrorCode::AlreadyExists));
    assert_eq!(world.show(ALICE, "demo").unwrap().id, vm.id);
    assert_eq!(world.show(ALICE, &vm.id.to_string()[..12]).unwrap().id, vm.id);
    assert_eq!(world.show(ROOT, "demo").unwrap_err().code, ErrorCode::NotFound);
    let own = world.life().runtime.block_on(world.life().vms.list(&ALICE, false, None)).unwrap();
    assert_eq!(own.vms.len(), 1);
    let all = world.life().runtime.block_on(world.life().vms.list(&ALICE, true, None)).unwrap_err();
    assert!(matches!(all, VmError::AdminsOnly(AdminsOnly::SeeAllVms)), "{all:?}");
}

#[test]
fn what_is_wrong_with_a_request_is_said_before_anything_is_made() {
    let world = World::new();
    let none = CreateRequest::default;
    for (request, code) in [
        (named("Bad_Name"), ErrorCode::BadRequest),
        (CreateRequest { vcpu_count: Some(0), ..none() }, ErrorCode::BadRequest),
        (CreateRequest { memory_mib: Some(1), ..none() }, ErrorCode::BadRequest),
        (CreateRequest { work_disk_size_bytes: Some(u64::MAX), ..none() }, ErrorCode::BadRequest),
        (CreateRequest { image_name: Some("nope".into()), ..none() }, ErrorCode::NotFound),
        (CreateRequest { kernel_name: Some("nope".into()), ..none() }, ErrorCode::NotFound),
    ] {
        assert_eq!(world.begin_create(ALICE, request, false).unwrap_err().code, code);
    }
    world.assert_nothing_at_all();
}

#[test]
fn many_creations_at_once_get_different_names_and_addresses() {
    let world = World::new();
    let jobs: Vec<_> = (0..12).map(|_| world.begin_create(ALICE, CreateRequest::default(), false).unwrap()).collect();
    let mut seen = std::collections::HashSet::new();
    for job in jobs {
        let JobState::Done(JobResult::Vm(vm)) = world.wait(job) else { panic!("not made") };
        assert!(seen.insert(vm.name.to_string()) && seen.insert(vm.runtime.guest_ip.to_string()));
    }
    let first = world.life().runtime.block_on(world.life().vms.list(&ALICE, false, None)).unwrap();
    assert_eq!((first.vms.len(), first.next), (12, None));
}

#[test]
fn orders_behind_a_deletion_make_nothing_and_say_so() {
    let world = World::new();
    world.running("demo");
    let row = world.life().runtime.block_on(world.life().vms.find(&ALICE, "demo")).unwrap();
    let delete = world.begin(Ask::Delete, "demo");
    let behind = [STOP, Ask::Start, Ask::Delete].map(|ask| world.begin_or_gone(ask, "demo"));
    assert!(matches!(world.wait(delete), JobState::Done(_)));
    for job in behind.into_iter().flatten() {
        let end = world.wait(job);
        assert!(matches!(&end, JobState::Failed(e) if e.code == ErrorCode::NotFound), "{end:?}");
    }
    // An actor for a row that was read before the deletion finds that out itself.
    let late = world.life().runtime.block_on(async { world.life().vms.actor(row) });
    let job = world.life().vms.ctx.jobs.begin(&ALICE, "late".into()).unwrap();
    let id = job.id();
    if late.orders.send(Order::Asked(Box::new(job), Box::new(Ask::Start))).is_ok() {
        assert!(matches!(world.wait(id), JobState::Failed(_)));
    }
    world.assert_nothing_at_all();
}

#[test]
fn an_order_that_meets_a_creation_waits_for_it() {
    let world = World::new();
    world.helper.set_busy(true);
    let create = world.begin_create(ALICE, named("demo"), false).unwrap();
    let entry = || world.life().vms.ctx.actors.lock().values().next().cloned();
    world.until_true("a place for its orders", || entry().is_some());
    let delete = world.life().vms.ctx.jobs.begin(&ALICE, "delete demo".into()).unwrap();
    let id = delete.id();
    entry().unwrap().orders.send(Order::Asked(Box::new(delete), Box::new(Ask::Delete))).unwrap();
    world.helper.set_busy(false);
    assert!(matches!(world.wait(create), JobState::Done(_)));
    assert!(matches!(world.wait(id), JobState::Done(_)));
    world.assert_nothing_at_all();
    assert!(entry().is_none());
}

#[test]
fn a_creation_without_a_row_leaves_no_place() {
    let world = World::new();
    world.running("demo");
    assert!(matches!(world.create(named("demo"), false), JobState::Failed(_)));
    assert_eq!(world.life().vms.ctx.actors.lock().len(), 1);
}

#[test]
fn orders_one_after_the_other_are_one_use() {
    let world = World::new();
    world.running("demo");
    let used = || world.show(ALICE, "demo").unwrap().last_touched_at.unix();
    sql(&world, "UPDATE vms SET last_touched_at = 7");
    world.order(Ask::Set(SetRequest::default()), "demo");
    assert!(used() > 7);
    sql(&world, "UPDATE vms SET last_touched_at = 7");
    for _ in 0..3 {
        world.order(Ask::Set(SetRequest::default()), "demo");
    }
    assert_eq!(used(), 7, "it is written once in a while");
}

#[test]
fn a_vm_that_somebody_is_in_is_not_stopped_for_want_of_use() {
    let world = World::new();
    let vm = world.running("demo");
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    let visit = entry.shared.enter();
    entry.orders.send(Order::Stale(0)).unwrap();
    // Behind it in the queue.
    world.order(Ask::Set(SetRequest::default()), "demo");
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running);
    drop(visit);
    // Somebody whom an earlier daemon let in, and an agent that has not spoken to this one.
    for commands in [Some(1), None] {
        world.machine.set_commands(commands);
        entry.orders.send(Order::Stale(0)).unwrap();
        world.order(Ask::Set(SetRequest::default()), "demo");
        assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Running, "{commands:?}");
    }
    world.machine.set_commands(Some(0));
    entry.orders.send(Order::Stale(0)).unwrap();
    world.until("demo", State::Stopped);
}

#[test]
fn an_order_that_is_cancelled_before_its_turn_is_not_begun() {
    for ask in [|| Ask::Delete, || Ask::Start, || Ask::Restart] {
        let world = World::new();
        world.running("demo");
        world.machine.set_deaf(true);
        let stop = world.begin(STOP, "demo");
        world.until_stage(stop, "guest shutdown");
        let order = world.begin(ask(), "demo");
        world.life().vms.ctx.jobs.cancel(&ALICE, order).unwrap();
        assert!(matches!(world.order(Ask::Kill(KillSignal::Kill), "demo"), JobState::Done(_)));
        assert_eq!(world.wait(order), JobState::Cancelled);
        let stages = world.life().vms.ctx.jobs.list(&ALICE, None, 10).jobs;
        assert!(stages.iter().find(|job| job.id == order).unwrap().stages.is_empty(), "{stages:?}");
        assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Stopped);
        assert_eq!(world.helper.cows(), 1);
    }
}

#[test]
fn a_delete_that_is_cancelled_while_the_guest_shuts_down_leaves_a_stopped_vm() {
    let world = World::new();
    world.running("demo");
    world.machine.set_deaf(true);
    let delete = world.begin(Ask::Delete, "demo");
    world.until_stage(delete, "guest shutdown");
    world.life().vms.ctx.jobs.cancel(&ALICE, delete).unwrap();
    // Ends the wait for the guest.
    world.begin(Ask::Kill(KillSignal::Kill), "demo");
    assert_eq!(world.wait(delete), JobState::Cancelled);
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Stopped);
    world.assert_nothing_held();
    assert_eq!(world.helper.cows(), 1);
    world.machine.set_deaf(false);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
}

#[test]
fn a_prune_takes_what_is_idle_and_interrupts_nothing() {
    let world = World::new();
    let prune = |vm: &str| world.life().runtime.block_on(world.life().vms.prune(&ALICE, vm)).map_err(ApiError::from);
    let refused = |vm: &str| match prune(vm).map(|job| world.wait(job)) {
        Err(error) | Ok(JobState::Failed(error)) => error.code == ErrorCode::AlreadyRunning,
        other => panic!("{other:?}"),
    };
    world.running("demo");
    assert!(refused("demo"));
    // Ordered to start before its turn comes.
    world.machine.set_deaf(true);
    let stop = world.begin(STOP, "demo");
    world.until_stage(stop, "guest shutdown");
    let start = world.begin(Ask::Start, "demo");
    let job = prune("demo").unwrap();
    world.machine.set_deaf(false);
    let kill = world.begin(Ask::Kill(KillSignal::Kill), "demo");
    assert!(matches!(world.wait(job), JobState::Failed(error) if error.code == ErrorCode::AlreadyRunning));
    assert!(matches!((world.wait(start), world.wait(kill)), (JobState::Done(_), JobState::Done(_))));
    // Being started, and being made.
    world.machine.set_deaf(true);
    let start = world.begin(Ask::Start, "demo");
    world.until_true("it starts", || world.machine.processes() == 1);
    assert!(refused("demo"));
    let made = world.begin_create(ALICE, named("new"), false).unwrap();
    world.until_true("it is made", || world.machine.processes() == 2);
    assert!(refused("new"));
    for (job, vm) in [(start, "demo"), (made, "new")] {
        world.until_stage(job, "guest ready");
        assert!(world.show(ALICE, vm).is_ok());
        world.life().vms.ctx.jobs.cancel(&ALICE, job).unwrap();
        assert_eq!(world.wait(job), JobState::Cancelled);
    }
    assert!(matches!(world.wait(prune("demo").unwrap()), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_look_at_how_the_guest_is_is_no_use() {
    let world = World::new();
    let vm = world.running("demo");
    let used = || world.show(ALICE, "demo").unwrap().last_touched_at.unix();
    let life = world.life();
    sql(&world, "UPDATE vms SET last_touched_at = 7");
    let link = life.runtime.block_on(life.vms.look_into(&ALICE, "demo")).unwrap();
    let entry = life.vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    assert_eq!((used(), entry.shared.sessions()), (7, 0));
    drop(link);
    let (_link, _visit) = life.runtime.block_on(life.vms.link(&ALICE, "demo")).unwrap();
    assert!(used() > 7 && entry.shared.sessions() == 1);
}
