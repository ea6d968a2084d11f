//! The state table of `holding`, whole: every row state against every operation, then every field
//! of every claim changed in turn.
use super::*;
use crate::reach::{Mode, Range, Target};

const OWNER: u32 = 1000;
const GENERATION: u64 = 7;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const PROCESS: Process = Process { pid: 42, pidfd_inode: 9, start_ticks: 100 };
const ATTACHED: AttachedDisk = AttachedDisk { minor: 3, base_loop: 1, cow_loop: 2 };

fn vm(first: u8) -> VmId {
    VmId::from_bytes([first; 32]).unwrap()
}

fn cow() -> Cow {
    Cow {
        vm: vm(1),
        owner: OWNER,
        image: Digest::from_bytes([5; 32]).unwrap(),
        base_bytes: 4 << 30,
        root_bytes: 1 << 30,
        file_bytes: (1 << 30) + (1 << 20),
        growing_to: None,
        generation: 3,
        ready: true,
    }
}

/// A row from three characters: tap, disk, process.
fn row(state: &str) -> (Row, bool) {
    let mut chars = state.chars();
    let tap = match chars.next().unwrap() {
        '-' => Tap::None,
        'i' => Tap::Intent { address: ADDRESS },
        _ => Tap::Held { address: ADDRESS, ifindex: 11 },
    };
    let disk = match chars.next().unwrap() {
        '-' => Disk::None,
        'i' => Disk::Intent,
        _ => Disk::Held(ATTACHED),
    };
    let process = chars.next().unwrap();
    let row = Row { tap, disk, process: (process != '-').then_some(PROCESS), ..Row::opened(vm(1), OWNER, GENERATION) };
    (row, process == 'r')
}

fn rows(row: Option<&Row>) -> Rows {
    row.map(|row| (row.vm, row.clone())).into_iter().collect()
}

fn tap_claim(name: &str) -> TapIdentity {
    TapIdentity { tap_device: name.into(), generation: GENERATION }
}

fn disk_claim(name: &str) -> DiskIdentity {
    DiskIdentity {
        dm_name: name.into(),
        dm_dev: "/dev/dm-3".into(),
        base_loop: "/dev/loop1".into(),
        cow_loop: "/dev/loop2".into(),
        generation: GENERATION,
    }
}

/// One word per operation, in the order of the table's columns.
fn answers(row: Option<&Row>, running: bool) -> String {
    let rows = rows(row);
    let word = |verdict: Verdict| match verdict {
        Decision::Allow(Step::Stored) => "stored".to_owned(),
        Decision::Allow(Step::Do(grant)) if Some(grant.intent.generation) == row.map(|row| row.generation) => {
            "do".to_owned()
        }
        Decision::Allow(Step::Do(_)) => "new".to_owned(),
        Decision::Deny(refusal) => refusal.to_string(),
    };
    let (tap, dm) = (vm(1).tap_name(), vm(1).dm_name());
    let discard = match discard_disk(row) {
        Decision::Allow(DiscardGrant(())) => "do".to_owned(),
        Decision::Deny(refusal) => refusal.to_string(),
    };
    let check = match process_running(row, PROCESS.pid) {
        Decision::Allow(process) => {
            assert_eq!(process, PROCESS);
            "check".to_owned()
        }
        Decision::Deny(refusal) => refusal.to_string(),
    };
    [
        word(acquire_tap(&rows, vm(1), OWNER, ADDRESS, 99)),
        word(release_tap(row, &tap_claim(&tap), running)),
        word(attach_disk(&rows, vm(1), Some(&cow()), OWNER, 99)),
        word(detach_disk(row, &disk_claim(&dm), running)),
        discard,
        word(set_network(row, Reach::of(Mode::Nat))),
        word(set_network(row, Reach::default())),
        word(bind_process(row, PROCESS)),
        check,
        word(release(row, running)),
    ]
    .join(" ")
}

/// tap, disk, process | acquire-tap release-tap attach detach discard reach-out reach-nothing bind
/// running release
const TABLE: &str = "
    absent | new not-yours new not-yours do not-yours not-yours not-yours not-yours stored
    --- | new stored new stored do bad-state stored bad-state not-yours do
    --g | new stored new stored do bad-state stored bad-state check do
    i-- | do do do stored do bad-state stored bad-state not-yours do
    h-- | stored do do stored do do stored do not-yours do
    -i- | do stored do do bad-state bad-state stored bad-state not-yours do
    -h- | do stored stored do bad-state bad-state stored bad-state not-yours do
    ii- | do do do do bad-state bad-state stored bad-state not-yours do
    ih- | do do stored do bad-state bad-state stored bad-state not-yours do
    hi- | stored do do do bad-state do stored do not-yours do
    hh- | stored do stored do bad-state do stored do not-yours do
    h-g | stored do bad-state stored do do stored stored check do
    -hg | bad-state stored stored do bad-state bad-state stored bad-state check do
    -ig | bad-state stored bad-state do bad-state bad-state stored bad-state check do
    i-g | bad-state do bad-state stored do bad-state stored bad-state check do
    iig | bad-state do bad-state do bad-state bad-state stored bad-state check do
    ihg | bad-state do stored do bad-state bad-state stored bad-state check do
    hig | stored do bad-state do bad-state do stored stored check do
    hhg | stored do stored do bad-state do stored stored check do
    h-r | stored still-running bad-state still-running do do stored stored check still-running
    hhr | stored still-running stored still-running bad-state do stored stored check still-running
    hir | stored still-running bad-state still-running bad-state do stored stored check still-running
    --r | new still-running new still-running do bad-state stored bad-state check still-running
    -hr | bad-state still-running stored still-running bad-state bad-state stored bad-state check still-running
    -ir | bad-state still-running bad-state still-running bad-state bad-state stored bad-state check still-running
    i-r | bad-state still-running bad-state still-running do bad-state stored bad-state check still-running
    iir | bad-state still-running bad-state still-running bad-state bad-state stored bad-state check still-running
    ihr | bad-state still-running stored still-running bad-state bad-state stored bad-state check still-running";

#[test]
fn every_operation_in_every_state() {
    let mut seen = std::collections::BTreeSet::new();
    for line in TABLE.trim().lines() {
        let (state, expected) = line.trim().split_once(" | ").unwrap();
        seen.insert(state);
        let answers = if state == "absent" {
            answers(None, false)
        } else {
            let (row, running) = row(state);
            answers(Some(&row), running)
        };
        assert_eq!(answers, expected, "{state}");
    }
    assert_eq!(seen.len(), 1 + 3 * 3 * 3, "the table is whole");
}

#[test]
fn a_quarantined_row_allows_release_and_looking_only() {
    for line in TABLE.trim().lines().skip(1) {
        let (row, running) = row(line.trim().split_once(" | ").unwrap().0);
        let row = row.with_quarantine(true);
        for (column, word) in answers(Some(&row), running).split(' ').enumerate() {
            let expected = match column {
                8 => ["check", "not-yours"],
                9 => ["do", "still-running"],
                _ => ["quarantined", "quarantined"],
            };
            assert!(expected.contains(&word), "{line}, column {column}: {word}");
        }
    }
}

fn refused(verdict: Verdict, expected: Refusal) {
    assert_eq!(verdict, Decision::Deny(expected));
}

#[test]
fn each_field_of_a_claim_must_match_in_every_state() {
    let (tap, dm, other) = (vm(1).tap_name(), vm(1).dm_name(), vm(2));
    for line in TABLE.trim().lines().skip(1) {
        let (row, running) = row(line.trim().split_once(" | ").unwrap().0);
        let row = Some(&row);
        refused(release_tap(row, &tap_claim(&other.tap_name()), running), Refusal::NotYours);
        refused(release_tap(row, &TapIdentity { generation: 8, ..tap_claim(&tap) }, running), Refusal::NotYours);
        refused(detach_disk(row, &disk_claim(&other.dm_name()), running), Refusal::NotYours);
        refused(detach_disk(row, &DiskIdentity { generation: 8, ..disk_claim(&dm) }, running), Refusal::NotYours);
        refused(acquire_tap(&rows(row), vm(1), OWNER + 1, ADDRESS, 99), Refusal::NotYours);
        let foreign = Cow { owner: OWNER + 1, ..cow() };
        refused(attach_disk(&rows(row), vm(1), Some(&foreign), OWNER + 1, 99), Refusal::NotYours);
        assert_eq!(process_running(row, PROCESS.pid + 1), Decision::Deny(Refusal::NotYours));
    }
    let (held, _) = row("hhg");
    for wrong in [
        DiskIdentity { dm_dev: "/dev/dm-4".into(), ..disk_claim(&dm) },
        DiskIdentity { base_loop: "/dev/loop2".into(), ..disk_claim(&dm) },
        DiskIdentity { cow_loop: "/dev/loop1".into(), ..disk_claim(&dm) },
    ] {
        refused(detach_disk(Some(&held), &wrong, false), Refusal::NotYours);
    }
    let another = Process { pidfd_inode: 10, ..PROCESS };
    refused(bind_process(Some(&held), another), Refusal::BadState);
    refused(acquire_tap(&rows(Some(&held)), vm(1), OWNER, Ipv4Addr::new(172, 16, 0, 3), 99), Refusal::BadState);
}

#[test]
fn attach_needs_a_finished_record_of_this_vm_and_owner() {
    let rows = Rows::new();
    refused(attach_disk(&rows, vm(1), None, OWNER, 9), Refusal::NotYours);
    for wrong in [Cow { owner: 1, ..cow() }, Cow { vm: vm(2), ..cow() }, Cow { ready: false, ..cow() }] {
        refused(attach_disk(&rows, vm(1), Some(&wrong), OWNER, 9), Refusal::NotYours);
    }
}

#[test]
fn create_is_bounded_and_repeatable() {
    let image = cow().image;
    let ask = |cow: Option<&Cow>, count, owner, bytes| create_disk(cow, count, owner, image, bytes);
    assert_eq!(ask(Some(&cow()), MAX_COWS, OWNER, 1 << 30), Decision::Allow(Create::Stored));
    assert_eq!(ask(None, MAX_COWS, OWNER, 1 << 30), Decision::Deny(Refusal::Quota));
    assert!(matches!(ask(None, 0, OWNER, 1 << 30), Decision::Allow(Create::Make(_))));
    assert_eq!(ask(Some(&cow()), 0, OWNER + 1, 1 << 30), Decision::Deny(Refusal::NotYours));
    assert_eq!(ask(Some(&cow()), 0, OWNER, 1 << 31), Decision::Deny(Refusal::BadState));
    for bytes in [0, MIN_ROOT_BYTES - 1, MIN_ROOT_BYTES + 4096, MAX_DISK_BYTES + 1, u64::MAX] {
        assert_eq!(ask(None, 0, OWNER, bytes), Decision::Deny(Refusal::BadArgument));
    }
    let another = Digest::from_bytes([6; 32]).unwrap();
    assert_eq!(create_disk(Some(&cow()), 0, OWNER, another, 1 << 30), Decision::Deny(Refusal::BadState));
}

#[test]
fn a_disk_grows_only_while_it_is_detached() {
    let ask = |state: &str, cow: Cow, bytes| grow_disk(Some(&row(state).0), Some(&cow), OWNER, bytes);
    assert!(matches!(grow_disk(None, Some(&cow()), OWNER, 2 << 30), Decision::Allow(Grow::Make(_))));
    assert!(matches!(ask("h--", cow(), 2 << 30), Decision::Allow(Grow::Make(_))));
    assert_eq!(ask("h--", cow(), 1 << 30), Decision::Allow(Grow::Stored));
    for state in ["-i-", "-h-", "hhr", "hhg"] {
        assert_eq!(ask(state, cow(), 2 << 30), Decision::Deny(Refusal::BadState), "{state}");
    }
    // Smaller, of a size that no disk has, beyond the base.
    for bytes in [0, (1 << 30) - ROOT_STEP_BYTES, (2 << 30) + 4096, (4 << 30) + ROOT_STEP_BYTES, u64::MAX] {
        assert_eq!(ask("---", cow(), bytes), Decision::Deny(Refusal::BadArgument), "{bytes}");
    }
    let quarantined = row("---").0.with_quarantine(true);
    assert_eq!(grow_disk(Some(&quarantined), Some(&cow()), OWNER, 2 << 30), Decision::Deny(Refusal::Quarantined));
    for foreign in [None, Some(Cow { owner: 1, ..cow() }), Some(Cow { ready: false, ..cow() })] {
        assert_eq!(grow_disk(None, foreign.as_ref(), OWNER, 2 << 30), Decision::Deny(Refusal::NotYours));
    }
    // An attempt that was not undone yet: neither grown again nor attached.
    let growing = Cow { growing_to: Some(2 << 30), ..cow() };
    assert_eq!(grow_disk(None, Some(&growing), OWNER, 2 << 30), Decision::Deny(Refusal::BadState));
    refused(attach_disk(&Rows::new(), vm(1), Some(&growing), OWNER, 9), Refusal::BadState);
}

#[test]
fn two_vms_never_share_an_address_and_the_count_is_bounded() {
    let (held, _) = row("h--");
    let mut rows = rows(Some(&held));
    refused(acquire_tap(&rows, vm(2), 1, ADDRESS, 9), Refusal::Busy);
    for n in 0..255_u8 {
        let (other, _) = row("-h-");
        let mut bytes = [0xee; 32];
        bytes[0] = n;
        let vm = VmId::from_bytes(bytes).unwrap();
        rows.insert(vm, Row { vm, ..other });
    }
    refused(acquire_tap(&rows, vm(2), 1, Ipv4Addr::new(172, 16, 0, 9), 9), Refusal::Quota);
    let more = Cow { vm: vm(2), ..cow() };
    refused(attach_disk(&rows, vm(2), Some(&more), OWNER, 9), Refusal::Quota);
    // Those who hold something already may go on.
    assert!(matches!(attach_disk(&rows, vm(1), Some(&cow()), OWNER, 9), Decision::Allow(Step::Do(_))));
}

#[test]
fn only_a_bound_tap_is_registered() {
    for line in TABLE.trim().lines().skip(1) {
        let state = line.trim().split_once(" | ").unwrap().0;
        let (row, _) = row(state);
        assert_eq!(
            row.registration(&Rows::new()).is_some(),
            state.starts_with('h') && !state.ends_with('-'),
            "{state}"
        );
        assert_eq!(row.with_quarantine(true).registration(&Rows::new()), None);
    }
}

#[test]
fn an_object_is_the_rows_only_in_every_field() {
    let (held, _) = row("hh-");
    let (tap, alias, dm) = (vm(1).tap_name(), vm(1).tap_alias(GENERATION), vm(1).dm_name());
    assert!(held.owns_link(&tap, &alias));
    assert!(
        !held.owns_link("renamed", &alias) && !held.owns_link(&tap, "") && !held.owns_link(&tap, &vm(1).tap_alias(8))
    );
    for uses in [[(7, 1), (7, 2)], [(7, 2), (7, 1)]] {
        assert!(held.owns_disk(&dm, 3, &uses));
        assert!(!held.owns_disk("renamed", 3, &uses) && !held.owns_disk(&dm, 4, &uses));
    }
    for uses in [&[][..], &[(7, 1)], &[(7, 1), (8, 2)], &[(7, 1), (7, 1)], &[(7, 1), (7, 2), (7, 3)]] {
        assert!(!held.owns_disk(&dm, 3, uses), "{uses:?}");
    }
    let (intent, _) = row("-i-");
    assert!(intent.owns_disk(&dm, 99, &[]) && !intent.owns_disk("renamed", 99, &[]));
}

#[test]
fn a_disk_is_given_away_only_while_nothing_of_the_vm_is_held() {
    let (mine, other) = (cow(), Cow { owner: OWNER + 1, ..cow() });
    assert_eq!(give_disk(None, Some(&mine), OWNER), Decision::Allow(None), "it is the owner's");
    assert_eq!(give_disk(None, Some(&mine), OWNER + 1), Decision::Allow(Some(other)));
    let row = Row::opened(vm(1), OWNER, GENERATION);
    assert_eq!(give_disk(Some(&row), Some(&mine), OWNER + 1), Decision::Deny(Refusal::BadState));
    let attempt = Cow { ready: false, ..cow() };
    for none in [None, Some(&attempt)] {
        assert_eq!(give_disk(None, none, OWNER), Decision::Deny(Refusal::NotYours));
    }
}

fn held(byte: u8, owner: u32, reach: Reach) -> Row {
    let tap = Tap::Held { address: Ipv4Addr::new(172, 16, 0, byte), ifindex: byte.into() };
    Row { tap, process: Some(PROCESS), ..Row::opened(vm(byte), owner, GENERATION) }.with_reach(reach)
}

fn in_group(byte: u8) -> Reach {
    Reach { group: Digest::from_bytes([byte; 32]).ok(), ..Reach::default() }
}

#[test]
fn a_private_network_is_one_owners_whatever_id_is_told() {
    let mut rows: Rows = [
        held(1, OWNER, in_group(7)),
        held(2, OWNER, in_group(7)),
        held(3, OWNER + 1, in_group(7)),
        held(4, OWNER, in_group(8)),
        held(5, OWNER, Reach::default()),
        held(6, OWNER, Reach::default()),
    ]
    .map(|row| (row.vm, row))
    .into();
    let peers = |rows: &Rows, byte| {
        let registration = rows[&vm(byte)].registration(rows).unwrap();
        registration.peers.into_iter().map(|address| address.octets()[3]).collect::<Vec<_>>()
    };
    assert_eq!(peers(&rows, 1), [2], "neither another owner's nor one of another network or of none");
    assert!(peers(&rows, 3).is_empty(), "another owner, the same id");
    assert!(peers(&rows, 4).is_empty());
    assert!(peers(&rows, 5).is_empty(), "no network is none");
    // Whose process is not bound, or has ended, has no address yet that could be reached.
    let unbound = rows[&vm(2)].clone().without_process();
    rows.insert(vm(2), unbound);
    assert!(peers(&rows, 1).is_empty());
    let most = rows[&vm(1)].registrable(&rows).unwrap();
    assert_eq!(most.peers.len(), 1, "yet a withdrawal takes out what may stand there");
}

#[test]
fn a_list_without_bounds_or_mode_is_refused_and_one_that_is_told_again_is_stored() {
    let target = |n: u32| Target { range: Range::one(Ipv4Addr::from_bits(n)), service: None };
    let list = |count| Reach { mode: Mode::Allow, targets: (0..count).map(target).collect(), group: None };
    let row = held(1, OWNER, list(3));
    let backwards = Reach { targets: list(3).targets.into_iter().rev().collect(), ..list(3) };
    assert_eq!(set_network(Some(&row), backwards), Decision::Allow(Step::Stored));
    assert_eq!(set_network(Some(&row), list(257)), Decision::Deny(Refusal::BadArgument));
    let public = Reach { mode: Mode::Public, ..list(1) };
    assert_eq!(set_network(Some(&row), public), Decision::Deny(Refusal::BadArgument));
    assert!(matches!(set_network(Some(&row), list(256)), Decision::Allow(Step::Do(_))));
}

/// What is taken away goes before anything is added, and what a withdrawal takes out is all that
/// could stand there.
#[test]
fn on_the_way_from_one_reach_to_another_nothing_is_added_before_it_is_in_the_row() {
    use crate::helper::firewall::Change;
    let target = |n| Target { range: Range::one(Ipv4Addr::new(1, 1, 1, n)), service: None };
    let list = |ns: &[u8]| Reach { mode: Mode::Allow, targets: ns.iter().copied().map(target).collect(), group: None };
    let both = |reach: Reach| Reach { group: in_group(7).group, ..reach };
    let reaches = [
        Reach::default(),
        Reach::of(Mode::Public),
        Reach::of(Mode::Nat),
        list(&[1, 2]),
        list(&[2, 3]),
        in_group(7),
        both(list(&[2])),
        Reach { group: in_group(8).group, ..list(&[2]) },
    ];
    let rows: Rows = [held(2, OWNER, in_group(7)), held(3, OWNER, in_group(8))].map(|row| (row.vm, row)).into();
    for (old, new) in reaches.iter().flat_map(|old| reaches.iter().map(move |new| (old, new))) {
        let (old, new) = (held(1, OWNER, old.clone()), held(1, OWNER, new.clone()));
        let half = new.halfway_from(&old);
        let change =
            |from: &Row, to: &Row| Change::between(from.registration(&rows).as_ref(), to.registration(&rows).as_ref());
        assert!(change(&old, &half).add.is_empty(), "{old:?} {new:?}");
        assert!(change(&half, &new).remove.is_empty(), "{old:?} {new:?}");
        let left = Change::between(new.registrable(&rows).as_ref(), new.registration(&rows).as_ref());
        assert!(left.add.is_empty(), "a withdrawal leaves something of {new:?}");
    }
}

#[test]
fn a_row_of_before_says_nat_and_is_understood() {
    let row = serde_json::to_value(held(1, OWNER, Reach::of(Mode::Nat))).unwrap();
    for (nat, mode) in [(true, Mode::Nat), (false, Mode::None)] {
        let mut old = row.clone();
        let fields = old.as_object_mut().unwrap();
        fields.remove("reach").unwrap();
        fields.insert("nat".to_owned(), nat.into());
        let read: Row = serde_json::from_value(old).unwrap();
        assert_eq!(read.reach, Reach::of(mode));
    }
}
