//! A daemon that starts after a crash with many rows of VMs that ran: whoever asks is answered at
//! once, and the dead are reclaimed behind that.
//!
//! Only order and result are looked at here; how long it takes is printed, for `make bench`.

use super::*;
use banger_policy::net::Network;
use rusqlite::{Connection, params};

/// Rows of VMs that ran.
const ROWS: u16 = 1000;
/// Rows that are listed for an hour.
const POLLED: u16 = 500;
/// A poll a second for that long.
const POLLS: usize = 3600;
/// By how much the process may grow meanwhile, KiB: a leak of a KiB a poll would be as much.
const GROWTH: u64 = 3600;
/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(120);

/// Rows, and in the helper's ledger all that a running VM holds; no process is left of any of them.
fn plant(world: &World, rows: u16) {
    let mut sql = Connection::open(world.paths().database()).unwrap();
    let transaction = sql.transaction().unwrap();
    let helper = Privileged::over(Arc::new(world.helper.clone()));
    // The world's image, and its kernel.
    let image = Digest::from_bytes([7; 32]).unwrap();
    let runtime = Runtime::new().unwrap();
    for number in 1..=rows {
        let mut bytes = [0x5a; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        let vm = VmId::from_bytes(bytes).unwrap();
        let mut held = handles::Handles { pid: Some(u32::from(number) + 10_000), ..handles::Handles::default() };
        runtime.block_on(async {
            helper.create_disk(vm, ALICE.uid, image, 1).await.unwrap();
            held.hold_disk(&helper.attach_disk(vm, ALICE.uid).await.unwrap());
            let tap = helper.acquire_tap(vm, ALICE.uid, number).await.unwrap();
            held.hold_tap(&tap, Ipv4Addr::new(172, 16, 0, 1));
            helper.bind_process(vm, u32::from(number) + 10_000).await.unwrap();
        });
        let (mirror, paths) = (held.mirror(), world.paths().vm(&vm));
        std::fs::create_dir(&paths.dir).unwrap();
        std::fs::write(paths.handles(), serde_json::to_vec(&held).unwrap()).unwrap();
        transaction
            .execute(
                "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at,
                 last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled,
                 tap_device, base_loop, cow_loop, dm_name, dm_dev, generation)
                 VALUES (?1, ?2, 'alice', ?3, ?4, 'debian', ?4, 'running', 0, 1, 1, 1, 1, 256, 67108864, 67108864, 1, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    vm.to_string(), ALICE.uid, format!("vm-{number}"), image.to_string(), mirror.tap_device, mirror.base_loop,
                    mirror.cow_loop, mirror.dm_name, mirror.dm_dev, mirror.generation.map(u64::cast_signed)
                ],
            )
            .unwrap();
        let lease = "INSERT INTO leases (address_index, vm_id) VALUES (?1, ?2)";
        transaction.execute(lease, params![number, vm.to_string()]).unwrap();
    }
    transaction.commit().unwrap();
}

/// Every page of alice's list: how many in which state.
fn listed(world: &World) -> BTreeMap<&'static str, usize> {
    let (mut states, mut after) = (BTreeMap::new(), None);
    loop {
        let page = world.life().runtime.block_on(world.life().vms.list(&ALICE, false, after)).unwrap();
        for vm in &page.vms {
            *states.entry(vm.state.as_str()).or_default() += 1;
        }
        after = page.next;
        if after.is_none() {
            return states;
        }
    }
}

/// A host whose daemon is to find so many dead VMs.
fn planted(rows: u16) -> World {
    let network = Network::new("172.16.0.1".parse().unwrap(), 20).unwrap();
    let mut world = World::with(Config { network, ..Config::built_in() });
    world.kill_daemon();
    plant(&world, rows);
    world
}

#[test]
#[expect(clippy::print_stdout, reason = "what `make bench` shows")]
fn a_thousand_dead_vms_are_listed_before_any_is_reclaimed_and_all_are() {
    let mut world = planted(ROWS);
    let held = world.helper.held().len();
    assert_eq!(held, 3 * usize::from(ROWS));

    // The helper does not answer for now: whoever waits for it waits for ever.
    world.helper.set_busy(true);
    let started = Instant::now();
    world.boot();
    // The rows say "running", and none of them does.
    assert_eq!(listed(&world), [("stopped", usize::from(ROWS))].into());
    assert_eq!(world.helper.held().len(), held);
    let answered = started.elapsed();

    world.helper.set_busy(false);
    let deadline = Instant::now() + LIMIT;
    while !world.helper.held().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.helper.held().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    // For `make bench`; both from the daemon's start on, the second with a helper that was silent
    // until the first.
    println!(
        "{ROWS} rows: whole list answered after {} ms, all reclaimed after {} ms",
        answered.as_millis(),
        started.elapsed().as_millis()
    );
    assert_eq!(listed(&world), [("stopped", usize::from(ROWS))].into());
    world.until_true("all files are gone", || {
        world.paths().vms().read_dir().unwrap().all(|vm| !vm.unwrap().path().join("handles.json").exists())
    });
    world.assert_nothing_held();
    let first = world.show(ALICE, "vm-1").unwrap();
    assert!(first.runtime.last_error.contains("while the daemon was not running"), "{}", first.runtime.last_error);
}

/// Of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
#[ignore = "an hour of polls takes a while: run by `make bench ONLY=reconcile`"]
#[expect(clippy::print_stdout, reason = "what `make bench` shows")]
fn an_hour_of_polls_leaves_the_daemon_as_large_as_it_was() {
    let mut world = planted(POLLED);
    world.boot();
    let deadline = Instant::now() + LIMIT;
    while !world.helper.held().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", world.helper.held().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut times = Vec::with_capacity(POLLS);
    let mut before = 0;
    for number in 0..POLLS {
        // What is kept between two calls has its size by then.
        if number == POLLS / 10 {
            before = resident();
        }
        let started = Instant::now();
        assert_eq!(listed(&world), [("stopped", usize::from(POLLED))].into());
        times.push(started.elapsed());
    }
    let after = resident();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!(
        "{POLLED} rows: whole list, p50 / p99: {} / {} us; {before} KiB resident after {} polls, {after} after {POLLS}",
        at(50),
        at(99),
        POLLS / 10
    );
    assert!(after <= before + GROWTH, "{before} KiB, then {after}");
}
