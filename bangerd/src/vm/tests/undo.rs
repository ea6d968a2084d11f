//! A start that fails at each step, or is cancelled: everything is undone, and the next start
//! works.

use super::*;
use crate::vm::steps::Step;
use banger_proto::helper::HelperError;
use banger_proto::model::ErrorCode;

/// Makes a step fail in the helper or in the machine, whichever does it.
fn break_step(world: &World, step: Step) {
    let helper = |operation| world.helper.refuse(operation, HelperError::Kernel(5), 1);
    match step {
        Step::Preflight | Step::WorkDisk | Step::Launch | Step::Api | Step::GuestReady => {
            world.machine.fail(Some(step.name()));
        }
        Step::RootDisk => helper("attach the disk"),
        Step::Tap => helper("make the tap"),
        Step::Network => helper("set the network"),
        Step::Bind => helper("bind the process"),
        Step::Handles => {
            // The folder is in the way of the file: writing it is logged and no more: the row has
            // the same handles.
        }
    }
}

#[test]
fn a_creation_that_fails_at_any_step_leaves_nothing() {
    let world = World::new();
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Handles) {
        break_step(&world, step);
        let JobState::Failed(error) = world.create(named("demo"), false) else { panic!("{step:?} did not fail") };
        assert!(!error.message.is_empty(), "{step:?}");
        world.machine.fail(None);
        world.assert_nothing_at_all();
    }
    world.running("demo");
}

#[test]
fn a_start_that_fails_at_any_step_leaves_an_error_with_a_reason_and_the_next_works() {
    let world = World::new();
    let request = CreateRequest { no_start: true, ..named("demo") };
    let JobState::Done(JobResult::Vm(vm)) = world.create(request, false) else { panic!("not made") };
    let disk = world.paths().vm(&vm.id).work_disk();
    let away = disk.with_extension("away");
    world.assert_nothing_held();
    for step in Step::ALL.into_iter().filter(|step| *step != Step::Handles) {
        break_step(&world, step);
        // A start makes no work disk: what can fail is that it is gone.
        if step == Step::WorkDisk {
            std::fs::rename(&disk, &away).unwrap();
        }
        let JobState::Failed(error) = world.order(Ask::Start, "demo") else { panic!("{step:?} did not fail") };
        world.machine.fail(None);
        if step == Step::WorkDisk {
            assert!(!disk.exists(), "an empty disk in place of the user's");
            std::fs::rename(&away, &disk).unwrap();
        }
        let vm = world.show(ALICE, "demo").unwrap();
        assert_eq!((vm.state, vm.runtime.last_error.as_str()), (State::Error, error.message.as_str()), "{step:?}");
        world.assert_nothing_held();
        assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)), "after {step:?}");
        assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    }
}

#[test]
fn handles_that_cannot_be_written_do_not_stop_a_start_and_leak_nothing() {
    let world = World::new();
    let request = CreateRequest { no_start: true, ..named("demo") };
    let JobState::Done(JobResult::Vm(vm)) = world.create(request, false) else { panic!("not made") };
    let file = world.paths().vm(&vm.id).handles();
    std::fs::create_dir(&file).unwrap();
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    std::fs::remove_dir(&file).unwrap();
    world.assert_nothing_held();
}

#[test]
fn a_root_disk_that_is_gone_is_not_replaced_by_an_empty_one() {
    let world = World::new();
    let vm = world.running("demo");
    world.order(STOP, "demo");
    world.helper.lose_cow(vm.id);
    let JobState::Failed(error) = world.order(Ask::Start, "demo") else { panic!("it went well") };
    assert!(error.message.contains("the root disk is gone") && error.hint.contains("backup"), "{error}");
    assert_eq!(world.helper.cows(), 0);
    world.assert_nothing_held();
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_guest_that_is_not_ready_is_shown_with_its_console() {
    let world = World::new();
    world.machine.fail(Some("guest ready"));
    let JobState::Failed(error) = world.create(named("demo"), true) else { panic!("it did not fail") };
    assert_eq!(error.code, ErrorCode::GuestNotReady);
    assert!(error.message.contains("Kernel panic"), "{error}");
    let vm = world.show(ALICE, "demo").unwrap();
    assert_eq!(vm.state, State::Error, "kept, as asked");
    world.assert_nothing_held();
    // Nor does a later look remove it.
    let entry = world.life().vms.ctx.actors.lock().get(&vm.id).cloned().unwrap();
    entry.orders.send(Order::Look).unwrap();
    assert!(matches!(world.order(Ask::Set(SetRequest::default()), "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Error);
    world.order(Ask::Delete, "demo");
    world.assert_nothing_at_all();
}

#[test]
fn a_machine_that_ends_while_it_boots_says_how_and_what_its_console_had() {
    for failing in [Some("boot"), None] {
        let world = World::new();
        world.machine.set_short_lived();
        world.machine.fail(failing);
        // Without an error of the boot, it is the helper that finds no process.
        world.helper.refuse("bind the process", HelperError::NotYours, 1);
        let JobState::Failed(error) = world.create(named("demo"), false) else { panic!("it did not fail") };
        assert!(error.message.contains("ended before it was ready: triple fault"), "{error}");
        assert!(error.message.contains("Kernel panic"), "{error}");
        world.assert_nothing_at_all();
    }
}

#[test]
fn cancelling_a_creation_leaves_nothing() {
    let world = World::new();
    world.machine.set_deaf(true);
    let job = world.begin_create(ALICE, named("demo"), false).unwrap();
    world.until_true("a process", || world.machine.processes() == 1);
    world.life().vms.ctx.jobs.cancel(&ALICE, job).unwrap();
    assert_eq!(world.wait(job), JobState::Cancelled);
    world.assert_nothing_at_all();
}

#[test]
fn whoever_wants_into_a_vm_that_is_being_started_is_told_so() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    let refused = || world.life().runtime.block_on(world.life().vms.link(&ALICE, "demo")).unwrap_err().to_string();
    assert_eq!(refused(), "demo is not running");
    world.machine.set_deaf(true);
    let start = world.begin(Ask::Start, "demo");
    world.until_true("a process", || world.machine.processes() == 1);
    assert_eq!(refused(), "demo is being started and its guest is not ready yet");
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    world.wait(start);
    assert_eq!(refused(), "demo is not running");
}

#[test]
fn stop_and_delete_end_a_start_that_waits() {
    for ask in [STOP, Ask::Delete] {
        let world = World::new();
        let request = CreateRequest { no_start: true, ..named("demo") };
        world.create(request, false);
        world.machine.set_deaf(true);
        let start = world.begin(Ask::Start, "demo");
        world.until_true("a process", || world.machine.processes() == 1);
        assert!(matches!(world.order(ask, "demo"), JobState::Done(_)));
        assert_eq!(world.wait(start), JobState::Cancelled);
        world.assert_nothing_held();
    }
}

#[test]
fn a_teardown_that_cannot_finish_is_an_error_that_keeps_its_handles() {
    let world = World::new();
    let vm = world.running("demo");
    world.helper.refuse("release the VM", HelperError::Kernel(16), 1);
    let JobState::Failed(error) = world.order(Ask::Delete, "demo") else { panic!("it went well") };
    assert!(error.message.contains("errno 16"), "{error}");
    assert_eq!(world.show(ALICE, "demo").unwrap().state, State::Error);
    assert!(world.cached(&vm.id).is_some());
    assert!(matches!(world.order(Ask::Delete, "demo"), JobState::Done(_)));
    world.assert_nothing_at_all();
}

#[test]
fn a_read_only_disk_is_called_so_and_nothing_is_lost() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    world.helper.refuse("attach the disk", HelperError::Kernel(nix::libc::EROFS), 1);
    let JobState::Failed(error) = world.order(Ask::Start, "demo") else { panic!("it went well") };
    assert!(error.message.contains("the host's disk is read-only"), "{error}");
    world.assert_nothing_held();
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
}

#[test]
fn without_the_helper_nothing_is_begun() {
    let world = World::new();
    world.helper.set_unreachable(true);
    let JobState::Failed(error) = world.create(named("demo"), false) else { panic!("it went well") };
    assert_eq!(error.code, ErrorCode::HostNotReady);
    assert!(error.hint.contains("systemctl status banger-priv"), "{error:?}");
    world.helper.set_unreachable(false);
    world.assert_nothing_at_all();
}

#[test]
fn a_start_that_is_cancelled_leaves_the_vm_as_it_was() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    let cancelled = |before: (State, &str)| {
        world.machine.set_deaf(true);
        let start = world.begin(Ask::Start, "demo");
        world.until_stage(start, "guest ready");
        world.life().vms.ctx.jobs.cancel(&ALICE, start).unwrap();
        assert_eq!(world.wait(start), JobState::Cancelled);
        world.machine.set_deaf(false);
        let vm = world.show(ALICE, "demo").unwrap();
        assert_eq!((vm.state, vm.runtime.last_error.as_str()), before);
        world.assert_nothing_held();
    };
    cancelled((State::Created, ""));
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    let vm = world.show(ALICE, "demo").unwrap();
    world.machine.end(&vm.id, "guest powered off");
    world.until("demo", State::Stopped);
    cancelled((State::Stopped, "guest powered off"));
    world.machine.fail(Some("launch"));
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Failed(_)));
    let failed = world.show(ALICE, "demo").unwrap().runtime.last_error;
    world.machine.fail(None);
    cancelled((State::Error, &failed));
}
