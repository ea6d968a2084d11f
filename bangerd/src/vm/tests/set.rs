//! Changes to a VM that exists.

use super::*;
use banger_policy::network::VmNetwork;
use banger_policy::quota::HostLimits;
use banger_policy::vm::RestartPolicy;
use banger_proto::helper::HelperError;
use banger_proto::model::ErrorCode;

pub(super) fn set(world: &World, request: SetRequest) -> Result<VmRecord, ApiError> {
    match world.order(Ask::Set(request), "demo") {
        JobState::Done(JobResult::Vm(vm)) => Ok(*vm),
        JobState::Failed(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

pub(super) fn to(mode: Mode) -> NetworkRequest {
    NetworkRequest { mode: Some(mode), ..NetworkRequest::default() }
}

fn has_nat(world: &World) -> bool {
    world.helper.held().iter().any(|held| held.starts_with("nat "))
}

#[test]
fn sizes_change_while_it_is_stopped_and_hold_at_the_next_start() {
    let mut world = World::new();
    let vm = world.running("demo");
    let larger = SetRequest {
        vcpu_count: Some(3),
        memory_mib: Some(512),
        root_size_bytes: Some(512 << 20),
        work_disk_size_bytes: Some(384 << 20),
        ..SetRequest::default()
    };
    let refused = set(&world, larger.clone()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::AlreadyRunning);
    assert!(refused.hint.contains("banger vm stop demo"), "{refused:?}");
    assert_eq!(world.show(ALICE, "demo").unwrap().spec, vm.spec);

    world.order(STOP, "demo");
    set(&world, larger).unwrap();
    world.restart();
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    let spec = world.show(ALICE, "demo").unwrap().spec;
    assert_eq!((spec.vcpu_count, spec.memory_mib, spec.work_disk_size_bytes), (3, 512, 384 << 20));
    assert_eq!(world.paths().vm(&vm.id).work_disk().metadata().unwrap().len(), 384 << 20, "grown by the start");
    assert_eq!((spec.system_overlay_size_bytes, world.helper.root_bytes(vm.id)), (512 << 20, Some(512 << 20)));
}

#[test]
fn the_root_disk_grows_for_whom_the_vm_was_given_to() {
    let world = World::new();
    let vm = world.running("demo");
    world.order(STOP, "demo");
    world.give(&ROOT, "alice/demo", "bob").unwrap();
    let larger = SetRequest { root_size_bytes: Some(512 << 20), ..SetRequest::default() };
    let vms = &world.life().vms;
    let job = world.life().runtime.block_on(vms.order(&BOB, "demo", Ask::Set(larger))).unwrap();
    let done = world.wait(job);
    assert!(matches!(done, JobState::Done(_)), "{done:?}");
    assert_eq!(world.helper.root_bytes(vm.id), Some(512 << 20));
}

#[test]
fn what_is_not_possible_is_refused_and_changes_nothing() {
    let world = World::new();
    world.create(CreateRequest { no_start: true, ..named("demo") }, false);
    let before = world.show(ALICE, "demo").unwrap();
    let none = SetRequest::default;
    for (request, word) in [
        (SetRequest { work_disk_size_bytes: Some(128 << 20), ..none() }, "a work disk only grows"),
        (SetRequest { root_size_bytes: Some(128 << 20), ..none() }, "a root disk only grows"),
        (SetRequest { root_size_bytes: Some(127 << 20), ..none() }, "128M to 128G"),
        (SetRequest { work_disk_size_bytes: Some(u64::MAX), ..none() }, "128G"),
        (SetRequest { vcpu_count: Some(0), network: to(Mode::None), ..none() }, "vCPUs"),
        (SetRequest { memory_mib: Some(1), restart: Some(RestartPolicy::Always), ..none() }, "memory"),
    ] {
        let error = set(&world, request).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(word), "{error:?}");
        let now = world.show(ALICE, "demo").unwrap();
        assert_eq!((now.spec, now.restart), (before.spec, before.restart));
    }
}

#[test]
fn a_root_disk_for_which_there_is_no_room_stays_as_it_was() {
    let world = World::new();
    let vm = world.running("demo");
    world.order(STOP, "demo");
    let larger = SetRequest { root_size_bytes: Some(512 << 20), ..SetRequest::default() };
    // The helper has looked later than the daemon.
    world.helper.refuse("make the root disk larger", HelperError::NoSpace, 1);
    let error = set(&world, larger.clone()).unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert!(error.message.contains("it needs 257 MiB") && error.message.contains("512 MiB"), "{error:?}");
    assert_eq!(world.show(ALICE, "demo").unwrap().spec, vm.spec);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)), "it starts nevertheless");
    // No host has that much: nobody is asked.
    world.order(STOP, "demo");
    world.helper.take_log();
    let huge = SetRequest { work_disk_size_bytes: Some(1 << 37), ..larger };
    if set(&world, huge).is_err_and(|error| error.code == ErrorCode::NoSpace) {
        assert!(!world.helper.take_log().contains(&"make the root disk larger"));
    }
}

#[test]
fn a_root_disk_that_grew_without_its_row_is_seen_by_the_next_start() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.order(STOP, "demo");
    // The daemon was killed between the helper's answer and the row.
    let helper = Privileged::over(Arc::new(world.helper.clone()));
    Runtime::new().unwrap().block_on(helper.grow_disk(vm.id, ALICE.uid, 1 << 30)).unwrap();
    world.restart();
    assert_eq!(world.show(ALICE, "demo").unwrap().spec, vm.spec);
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert_eq!(world.show(ALICE, "demo").unwrap().spec.system_overlay_size_bytes, 1 << 30);
}

#[test]
fn a_root_disk_is_never_smaller_than_the_image() {
    let world = World::new();
    sql(&world, "UPDATE images SET build_size = 1073741824");
    let create = |bytes| CreateRequest { system_overlay_size_bytes: bytes, no_start: true, ..named("demo") };
    let error = world.begin_create(ALICE, create(Some(512 << 20)), false).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("needs 1G") && error.hint.contains("--root-size 1G"), "{error:?}");
    world.create(create(None), false);
    assert_eq!(world.show(ALICE, "demo").unwrap().spec.system_overlay_size_bytes, 1 << 30, "not the default");
}

#[test]
fn nat_and_restart_policy_change_while_it_runs() {
    let world = World::new();
    world.running("demo");
    for on in [false, false, true] {
        let mode = if on { Mode::Nat } else { Mode::None };
        let vm = set(&world, SetRequest { network: to(mode), ..SetRequest::default() }).unwrap();
        assert_eq!((vm.spec.nat_enabled, has_nat(&world)), (on, on));
    }
    let vm = set(&world, SetRequest { restart: Some(RestartPolicy::Always), ..SetRequest::default() }).unwrap();
    assert_eq!((vm.restart, vm.spec.nat_enabled), (RestartPolicy::Always, true));
}

#[test]
fn nat_that_the_helper_refuses_stays_as_it_was() {
    let world = World::new();
    world.running("demo");
    world.helper.refuse("set the network", HelperError::Kernel(16), 1);
    set(&world, SetRequest { network: to(Mode::None), ..SetRequest::default() }).unwrap_err();
    assert!(world.show(ALICE, "demo").unwrap().spec.nat_enabled && has_nat(&world));
}

#[test]
fn a_crash_between_row_and_kernel_is_made_good_when_it_is_found_running() {
    let mut world = World::new();
    let vm = world.running("demo");
    world.kill_daemon();
    Runtime::new().unwrap().block_on(async {
        let db = Db::open(&world.paths().database()).await.unwrap();
        let network = VmNetwork::default();
        let (limits, host) = (UserLimits::NONE, HostLimits::NONE);
        db.set_vm_spec(vm.id, vm.spec, network, RestartPolicy::No, limits, host).await.unwrap();
    });
    assert!(has_nat(&world));
    world.boot();
    world.until_true("as the row says", || !has_nat(&world));
}
