//! Users' shares of the host, and how much all VMs may have together: also of several requests at
//! once, and of a host with many rows.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use crate::config::limits::Limits;
use banger_policy::quota::HostLimits;
use banger_policy::shares::Share;
use banger_proto::model::{ErrorCode, QuotaPage};
use banger_vmm::cgroup::OutOfMemory;

/// A host whose VMs may have so much memory together.
fn of_host(mib: u64) -> World {
    let host = HostLimits { memory: mib << 20, ..HostLimits::NONE };
    let sizes = VmDefaults { memory_mib: Some(256), ..VmDefaults::default() };
    World::with(Config { limits: Limits::of_host(host), vm_defaults: sizes, ..Config::built_in() })
}

fn quotas(world: &World, peer: &Peer, all: bool, after: Option<(u32, String)>) -> Result<QuotaPage, ApiError> {
    Ok(world.life().runtime.block_on(world.life().vms.quotas(peer, all, after))?)
}

#[test]
fn the_host_gives_no_more_memory_than_it_has_whoever_asks_and_after_a_crash() {
    let mut world = of_host(2 * 276);
    // Nobody's own limits are in the way; the host's hold for everybody.
    let begun: Vec<JobId> = ["a", "b", "c", "d", "e"]
        .map(|name| {
            let peer = Peer { limits: UserLimits::NONE, ..if name < "c" { ALICE } else { ROOT } };
            world.begin_create(peer, named(name), false).unwrap()
        })
        .into();
    let (done, refused): (Vec<_>, Vec<_>) =
        begun.into_iter().map(|job| world.wait(job)).partition(|end| matches!(end, JobState::Done(_)));
    assert_eq!((done.len(), refused.len()), (2, 3), "{refused:?}");
    for refused in refused {
        let JobState::Failed(error) = refused else { panic!("{refused:?}") };
        assert_eq!(error.code, ErrorCode::Limit);
        assert!(error.message.contains("this host's limit memory is 552M"), "{}", error.message);
        assert!(error.hint.contains("[limits.host]") && error.hint.contains("administrator"), "{}", error.hint);
    }
    world.restart();
    let create = |world: &World| world.create(CreateRequest { name: None, ..named("") }, false);
    assert!(matches!(create(&world), JobState::Failed(error) if error.message.contains("memory")));
    let page = quotas(&world, &ROOT, true, None).unwrap();
    let memory = page.host.iter().find(|limit| limit.name == "memory").unwrap();
    assert_eq!((memory.used, memory.limit), (552 << 20, Some(552 << 20)));
}

#[test]
fn a_user_who_has_no_room_is_told_limit_use_and_whom_to_ask() {
    let world = of_host(100 * 276);
    let alice = Peer { limits: UserLimits { memory: 300 << 20, ..UserLimits::BUILT_IN }, ..ALICE };
    assert!(matches!(world.wait(world.begin_create(alice.clone(), named("a"), false).unwrap()), JobState::Done(_)));
    let JobState::Failed(error) = world.wait(world.begin_create(alice, named("b"), false).unwrap()) else {
        panic!("it was made");
    };
    for words in ["limit memory is 300M", "276M are in use", "276M more"] {
        assert!(error.message.contains(words), "{}", error.message);
    }
    assert!(error.hint.contains("[limits.users.alice]"), "{}", error.hint);
    // Another user has the same room as before.
    assert!(matches!(world.wait(world.begin_create(BOB, named("b"), false).unwrap()), JobState::Done(_)));
}

#[test]
fn a_share_is_there_before_anything_runs_and_again_after_a_restart() {
    let mut world = World::new();
    assert_eq!(world.machine.share_of(ALICE.uid), None);
    world.running("web");
    assert_eq!(world.machine.share_of(ALICE.uid), Some(Share::BUILT_IN));
    // Another configuration counts from the daemon's start on.
    let limits = Limits::with_cpu_weight(7);
    world.config.limits = limits;
    world.restart();
    let ctx = Arc::clone(&world.life().vms.ctx);
    world.life().runtime.block_on(crate::vm::shares::give_all(&ctx));
    assert_eq!(world.machine.share_of(ALICE.uid), Some(Share { cpu_weight: 7, ..Share::BUILT_IN }));
}

/// What holds for everybody may be less than what VMs that run have in use.
#[test]
fn who_cannot_be_found_out_keeps_the_share() {
    let mut world = World::new();
    world.running("web");
    world.config.limits = Limits::with_cpu_weight(7);
    world.restart();
    for name in [Some(""), None] {
        world.users.set(ALICE.uid, name);
        let ctx = Arc::clone(&world.life().vms.ctx);
        world.life().runtime.block_on(crate::vm::shares::give_all(&ctx));
        assert_eq!(world.machine.share_of(ALICE.uid), Some(Share::BUILT_IN), "{name:?}");
        let taken = world.life().runtime.block_on(crate::vm::shares::take(&ctx, ALICE.uid));
        let refused = matches!(taken, Err(VmError::OwnerUnknown(1001)));
        assert_eq!(refused, name.is_some(), "{name:?}");
        assert_eq!(world.machine.share_of(ALICE.uid), Some(Share::BUILT_IN), "{name:?}");
    }
}

#[test]
fn a_vm_that_was_ended_for_want_of_memory_says_so() {
    let mut world = World::new();
    let vm = world.running("web");
    world.kill_daemon();
    world.machine.run_out_of_memory(&vm.id, OutOfMemory::User);
    world.boot();
    let record = world.until("web", State::Stopped);
    assert!(record.runtime.last_error.contains("limit memory_max"), "{}", record.runtime.last_error);
}

/// Rows, of so many users.
const ROWS: u32 = 500;
const USERS: u32 = 50;

#[test]
fn five_hundred_rows_are_listed_in_pages_and_the_daemon_answers() {
    let world = World::new();
    sql(
        &world,
        &format!(
            "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i FROM n;
             INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at,
                 last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled)
                 SELECT printf('%064x', i), 2000 + i % {USERS}, 'user' || (i % {USERS}), 'vm-' || i, (SELECT id FROM images),
                 'debian', (SELECT id FROM kernels), 'stopped', 0, 1, 1, 1, 1, 256, 128, 64, 0 FROM n;
             INSERT INTO leases (address_index, vm_id) SELECT i, printf('%064x', i) FROM n"
        ),
    );
    let (mut listed, mut after) = (0, None);
    loop {
        let page = world.life().runtime.block_on(world.life().vms.list(&ROOT, true, after)).unwrap();
        assert!(page.vms.len() <= 64);
        listed += page.vms.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, 500);
    // Everybody's limits, likewise, root's own among them for its image and kernel.
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        let page = quotas(&world, &ROOT, true, after).unwrap();
        assert!(page.quotas.len() <= 16);
        users.extend(page.quotas);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(users.len(), 51);
    let of = |name: &str, key: &str| {
        let user = users.iter().find(|user| user.owner_name == name).unwrap();
        user.limits.iter().find(|limit| limit.name == key).cloned().unwrap()
    };
    assert_eq!((of("user7", "vms").used, of("user7", "disk").used, of("user7", "memory").used), (10, 1920, 0));
    assert_eq!(of("user7", "vms").from, "built in");
    assert_eq!((of("root", "images").used, of("root", "vms").limit), (1, None));
    // Who is nobody's administrator sees the own only.
    let own = quotas(&world, &BOB, false, None).unwrap();
    assert_eq!(own.quotas.iter().map(|user| &*user.owner_name).collect::<Vec<_>>(), ["bob"]);
    assert_eq!(quotas(&world, &BOB, true, None).unwrap_err().code, ErrorCode::Denied);
}
