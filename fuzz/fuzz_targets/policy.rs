//! Any sequence of requests by a hostile daemon, with a kernel that does what was granted: no
//! panic, no two VMs with the same address, interface or disk, no quota exceeded, and no grant
//! without the row that allows it.
#![no_main]

use banger_policy::access::Decision;
use banger_policy::helper::holding::{
    self, AttachedDisk, Cow, Disk, DiskIdentity, Process, Row, Rows, Step, Tap, TapIdentity,
};
use banger_policy::limits::MAX_VMS;
use banger_policy::reach::{Mode, Range, Reach, Target};
use banger_policy::{Digest, VmId};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Eight ids that are met again and again, and every other one now and then.
fn vm(byte: u8) -> VmId {
    VmId::from_bytes([if byte < 0xf0 { byte % 8 + 1 } else { byte }; 32]).expect("not all zeros")
}

/// A mode, perhaps with a list, and perhaps a private network.
fn reach(mode: u8, rest: u8) -> Reach {
    let range = Range::new(Ipv4Addr::new(10, rest, 0, 0), rest % 33).expect("a prefix");
    let mode = Mode::ALL[usize::from(mode) % Mode::ALL.len()];
    let targets = if rest & 1 == 1 { vec![Target { range, service: None }; usize::from(rest)] } else { Vec::new() };
    Reach { mode, targets, group: Digest::from_bytes([rest >> 5; 32]).ok() }
}

fn text(pool: &[String], byte: u8) -> String {
    pool.get(usize::from(byte) % (pool.len() + 1)).cloned().unwrap_or_default()
}

fn do_it(rows: &mut Rows, vm: VmId, verdict: Decision<Step, holding::Refusal>, commit: impl FnOnce(Row) -> Row) {
    let Decision::Allow(Step::Do(grant)) = verdict else { return };
    assert_eq!(grant.intent().vm, vm, "a grant speaks of the VM that was asked for");
    rows.insert(vm, commit(grant.into_row()));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rows = Rows::new();
    let image = Digest::from_bytes([3; 32]).expect("not all zeros");
    for (at, request) in bytes.chunks_exact(6).enumerate() {
        let &[operation, who, a, b, c, d] = request else { return };
        let vm = vm(who);
        let row = rows.get(&vm).cloned();
        let number = u32::try_from(at).expect("short input") + 1;
        let generation = row.as_ref().map_or(u64::from(d), |row| row.generation.wrapping_add(u64::from(d & 1)));
        let address = Ipv4Addr::new(172, 16, 0, a);
        let running = b & 1 == 1 && row.as_ref().is_some_and(|row| row.process.is_some());
        match operation % 9 {
            0 => {
                let verdict = holding::acquire_tap(&rows, vm, u32::from(c & 1), address, u64::from(number));
                do_it(&mut rows, vm, verdict, |row| {
                    // Cut short now and then: an intent stays.
                    if d & 1 == 1 { row } else { row.with_tap(Tap::Held { address, ifindex: number }) }
                });
            }
            1 => {
                let names: Vec<String> = rows.keys().map(VmId::tap_name).collect();
                let name = text(&names, c);
                let verdict =
                    holding::release_tap(row.as_ref(), &TapIdentity { tap_device: name, generation }, running);
                do_it(&mut rows, vm, verdict, Row::without_tap);
            }
            2 => {
                let cow = Cow {
                    vm,
                    owner: u32::from(c & 1),
                    image,
                    base_bytes: 4 << 30,
                    root_bytes: 1 << 30,
                    file_bytes: 1 << 30,
                    growing_to: (d & 4 != 0).then_some(2 << 30),
                    generation: 9,
                    ready: d & 2 == 0,
                };
                let verdict = holding::attach_disk(&rows, vm, Some(&cow), u32::from(b & 1), u64::from(number));
                do_it(&mut rows, vm, verdict, |row| {
                    let held = AttachedDisk { minor: number, base_loop: number * 2, cow_loop: number * 2 + 1 };
                    if d & 1 == 1 { row } else { row.with_disk(Disk::Held(held)) }
                });
            }
            3 => {
                let held = row.as_ref().and_then(|row| if let Disk::Held(held) = row.disk { Some(held) } else { None });
                let node = |number: Option<u32>| format!("/dev/loop{}", number.unwrap_or(u32::from(c)));
                let claim = DiskIdentity {
                    dm_name: vm.dm_name(),
                    dm_dev: format!("/dev/dm-{}", held.map_or(u32::from(a), |held| held.minor)),
                    base_loop: node(held.map(|held| held.base_loop)),
                    cow_loop: node(held.map(|held| held.cow_loop)),
                    generation,
                };
                let verdict = holding::detach_disk(row.as_ref(), &claim, running);
                do_it(&mut rows, vm, verdict, |row| row.with_disk(Disk::None));
            }
            4 => {
                let verdict = holding::set_network(row.as_ref(), reach(b, c));
                do_it(&mut rows, vm, verdict, |row| row);
            }
            5 => {
                let process = Process { pid: u32::from(a), pidfd_inode: u64::from(c), start_ticks: u64::from(d) };
                let verdict = holding::bind_process(row.as_ref(), process);
                do_it(&mut rows, vm, verdict, |row| row);
            }
            6 => {
                let allowed = matches!(holding::discard_disk(row.as_ref()), Decision::Allow(_));
                assert!(!allowed || row.is_none_or(|row| row.disk == Disk::None && !row.quarantined));
            }
            7 => {
                let verdict = holding::release(row.as_ref(), running);
                if let Decision::Allow(Step::Do(_)) = verdict {
                    rows.remove(&vm);
                }
            }
            _ => {
                if let Some(row) = row {
                    rows.insert(vm, row.with_quarantine(c & 1 == 1));
                }
                let size = u64::from_le_bytes([a, b, c, d, a, b, c, d]);
                let _ = holding::create_disk(None, usize::from(a), 0, image, size);
                let file = banger_policy::snapshot::cow_file_bytes(size);
                assert!(size > banger_policy::limits::MAX_DISK_BYTES || file > size);
            }
        }
        sound(&rows);
    }
});

fn sound(rows: &Rows) {
    let holding = || rows.values().filter(|row| !row.is_empty());
    assert!(holding().count() <= usize::try_from(MAX_VMS).expect("a small number"));
    let addresses: BTreeSet<_> = rows.values().filter_map(Row::address).collect();
    assert_eq!(addresses.len(), rows.values().filter_map(Row::address).count(), "an address is held twice");
    for row in rows.values() {
        assert!(row.process.is_none() || row.generation != 0);
        assert!(row.reach == Reach::default() || row.tap != Tap::None, "what it reaches outlives its tap");
        for peer in row.registration(rows).into_iter().flat_map(|passes| passes.peers) {
            let other = rows.values().find(|other| other.address() == Some(peer)).expect("a peer is a VM");
            assert!(
                other.owner == row.owner && other.reach.group == row.reach.group,
                "a stranger in a private network"
            );
        }
        if row.registration(rows).is_some() {
            assert!(matches!(row.tap, Tap::Held { .. }) && row.process.is_some() && !row.quarantined);
        }
    }
}
