//! Any trace of operations, crashes and foreign actions on a simulated kernel: properties P1 to P6
//! and P9.
#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/sim.rs"]
mod sim;

use banger_policy::VmId;
use banger_policy::helper::firewall::elements;
use banger_policy::helper::holding::{Row, Rows};
use banger_policy::limits::MIN_ROOT_BYTES;
use banger_policy::reach::{Mode, Reach};
use banger_priv::ops::Machine;
use banger_proto::helper::{HelperError, Holding};
use common::{OWNER, image, vm};
use futures::FutureExt;
use proptest::prelude::*;
use sim::{Host, Killed, Sim};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// What happens to one of three VMs.
#[derive(Clone, Debug)]
enum Event {
    Acquire(u8, u16),
    ReleaseTap(u8),
    Create(u8),
    Grow(u8, u64),
    Attach(u8),
    Detach(u8),
    Discard(u8),
    /// One of [`reaches`].
    Reach(u8, usize),
    Bind(u8),
    Release(u8),
    /// The VMM dies.
    Die(u8),
    /// A packet of the guest, or to it.
    Packet(u8),
    /// The next so many orders to end flows, or to change the firewall, are refused.
    RefuseEnds(u32),
    RefuseChanges(u32),
    /// The helper is killed at the n-th of its next steps.
    Fuse(u32),
    /// The helper is killed at rest.
    Restart,
    /// Somebody renames, re-marks or removes what they should not.
    RenameLink(u8),
    MarkLink(u8),
    DeleteLink(u8),
    RenameDm(u8),
    DeleteDm(u8),
    /// Somebody has a link of a name that a VM will want.
    Squat(u8),
}

const NOTHING: usize = 0;
const NAT: usize = 1;

/// What a guest may be let reach.
fn reaches() -> Vec<Reach> {
    let targets = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned().try_into().unwrap()).collect();
    let allow = |texts: &[&str]| Reach { mode: Mode::Allow, targets: targets(texts), group: None };
    let private = |reach: Reach, byte| Reach { group: banger_policy::Digest::from_bytes([byte; 32]).ok(), ..reach };
    vec![
        Reach::default(),
        Reach::of(Mode::Nat),
        Reach::of(Mode::Public),
        allow(&["10.0.0.0/8", "11.0.0.0/8:80/tcp"]),
        allow(&["10.1.0.0/16", "11.0.0.0/8:80/tcp", "11.0.0.0/8"]),
        private(Reach::default(), 1),
        private(allow(&["10.1.0.0/16", "12.0.0.0/8"]), 1),
        private(Reach::of(Mode::Nat), 2),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let vm = 1..4_u8;
    prop_oneof![
        4 => (vm.clone(), 1..4_u16).prop_map(|(vm, index)| Event::Acquire(vm, index)),
        2 => vm.clone().prop_map(Event::ReleaseTap),
        3 => vm.clone().prop_map(Event::Create),
        2 => (vm.clone(), 1..4_u64).prop_map(|(vm, steps)| Event::Grow(vm, steps)),
        4 => vm.clone().prop_map(Event::Attach),
        2 => vm.clone().prop_map(Event::Detach),
        1 => vm.clone().prop_map(Event::Discard),
        3 => (vm.clone(), 0..reaches().len()).prop_map(|(vm, which)| Event::Reach(vm, which)),
        3 => vm.clone().prop_map(Event::Bind),
        3 => vm.clone().prop_map(Event::Release),
        2 => vm.clone().prop_map(Event::Die),
        4 => vm.clone().prop_map(Event::Packet),
        1 => (1..3_u32).prop_map(Event::RefuseEnds),
        1 => (1..3_u32).prop_map(Event::RefuseChanges),
        3 => (1..12_u32).prop_map(Event::Fuse),
        1 => Just(Event::Restart),
        1 => vm.clone().prop_map(Event::RenameLink),
        1 => vm.clone().prop_map(Event::MarkLink),
        1 => vm.clone().prop_map(Event::DeleteLink),
        1 => vm.clone().prop_map(Event::RenameDm),
        1 => vm.clone().prop_map(Event::DeleteDm),
        1 => vm.prop_map(Event::Squat),
    ]
}

/// Single events, and now and then the life of a VM with a flow, which they alone would seldom come
/// to.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let life = (1..4_u8, 1..4_u16, event()).prop_map(|(vm, index, between)| {
        let begins = [Event::Acquire(vm, index), Event::Reach(vm, NAT), Event::Bind(vm), Event::Packet(vm)];
        [&begins[..], &[between, Event::Die(vm), Event::Release(vm)]].concat()
    });
    let segment = prop_oneof![8 => event().prop_map(|event| vec![event]), 1 => life];
    proptest::collection::vec(segment, 1..32).prop_map(|segments| segments.concat())
}

/// One operation; `None` when the helper was killed in it.
async fn operate(machine: &Machine<Sim>, event: &Event, uid: u32) -> Option<Result<(), HelperError>> {
    let held = |n: &u8| machine.identity(vm(*n)).ok();
    let work = async {
        match event {
            Event::Acquire(n, index) => machine.acquire_tap(vm(*n), OWNER, *index).await.map(drop),
            Event::ReleaseTap(n) => match held(n).and_then(|held| held.tap) {
                Some(tap) => machine.release_tap(vm(*n), &tap).await,
                None => Ok(()),
            },
            Event::Create(n) => machine.create_disk(vm(*n), OWNER, image(), MIN_ROOT_BYTES).await.map(drop),
            Event::Grow(n, steps) => machine.grow_disk(vm(*n), OWNER, steps * MIN_ROOT_BYTES).await.map(drop),
            Event::Attach(n) => machine.attach_disk(vm(*n), OWNER).await.map(drop),
            Event::Detach(n) => match held(n).and_then(|held| held.disk) {
                Some(disk) => machine.detach_disk(vm(*n), &disk).await,
                None => Ok(()),
            },
            Event::Discard(n) => machine.discard_disk(vm(*n)).await,
            Event::Reach(n, which) => machine.set_network(vm(*n), reaches().swap_remove(*which)).await,
            Event::Bind(n) => {
                let pid = machine.kernel().world.borrow_mut().add_process(uid);
                machine.bind_process(vm(*n), pid).await.map(drop)
            }
            Event::Release(n) => machine.release(vm(*n)).await,
            _ => Ok(()),
        }
    };
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => Some(result.map_err(|denied| denied.code)),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// What others do to the host.
fn interfere(host: &Host, event: &Event) {
    let mut world = host.world.borrow_mut();
    let link = |world: &sim::World, n: u8| {
        world.links.values().find(|link| link.name == vm(n).tap_name()).map(|link| link.ifindex)
    };
    match event {
        Event::Die(n) => {
            let bound =
                std::fs::read_to_string(host.folder.path().join("run").join(vm(*n).to_string())).unwrap_or_default();
            for seen in
                world.processes.values_mut().filter(|seen| bound.contains(&format!("\"pid\":{},", seen.process.pid)))
            {
                seen.alive = false;
            }
        }
        Event::Packet(n) => {
            for index in 1..4 {
                world.packet(&vm(*n), Ipv4Addr::new(172, 16, 0, 1 + index));
            }
        }
        Event::RefuseEnds(times) => drop(world.refuse.insert("end_flows", *times)),
        Event::RefuseChanges(times) => drop(world.refuse.insert("firewall_change", *times)),
        Event::RenameLink(n) => {
            if let Some(ifindex) = link(&world, *n) {
                world.links.get_mut(&ifindex).unwrap().name = format!("moved{ifindex}");
            }
        }
        Event::MarkLink(n) => {
            if let Some(ifindex) = link(&world, *n) {
                world.links.get_mut(&ifindex).unwrap().alias = "somebody's".into();
            }
        }
        Event::DeleteLink(n) => {
            if let Some(ifindex) = link(&world, *n) {
                world.links.remove(&ifindex);
            }
        }
        Event::RenameDm(n) => {
            for dm in world.dms.values_mut().filter(|dm| dm.name == vm(*n).dm_name()) {
                dm.name = format!("moved{}", dm.minor);
            }
        }
        Event::DeleteDm(n) => world.dms.retain(|_, dm| dm.name != vm(*n).dm_name()),
        Event::Squat(n) if link(&world, *n).is_none() => drop(world.add_link(&vm(*n).tap_name(), "")),
        Event::Fuse(steps) => world.fuse = *steps,
        _ => {}
    }
}

/// Everything without our whole mark and name.
fn foreign(host: &Host) -> BTreeSet<String> {
    let world = host.world.borrow();
    let links = world
        .links
        .values()
        .filter(|link| VmId::from_tap_alias(&link.alias).is_none_or(|(vm, _)| vm.tap_name() != link.name));
    let dms =
        world.dms.values().filter(|dm| VmId::from_dm_uuid(&dm.uuid).is_none_or(|(vm, _)| vm.dm_name() != dm.name));
    links.map(|link| format!("{link:?}")).chain(dms.map(|dm| format!("{dm:?}"))).collect()
}

fn holdings(machine: &Machine<Sim>) -> Vec<Holding> {
    let page = machine.list(None);
    assert_eq!(page.next, None);
    page.holdings
}

/// Everything that recovery could change.
fn state(host: &Host, machine: &Machine<Sim>) -> String {
    let world = host.world.borrow();
    format!("{:?} {:?} {:?} {:?} {:?}", world.links, world.dms, world.table, world.flows, holdings(machine))
}

fn check(host: &Host, machine: &Machine<Sim>) {
    let held = holdings(machine);
    let world = host.world.borrow();
    let taps: BTreeSet<_> = held.iter().filter_map(|held| held.tap.as_ref()).map(|tap| &tap.tap_device).collect();
    assert_eq!(taps.len(), held.iter().filter(|held| held.tap.is_some()).count(), "P6: one name, two VMs");
    for (at, element) in world.table.iter().enumerate() {
        assert!(!world.table[at + 1..].contains(element), "P6: one address, two VMs");
    }
    let text = |held: &Holding| std::fs::read_to_string(host.folder.path().join("run").join(held.vm.to_string()));
    let row = |held: &Holding| {
        let file: serde_json::Value = serde_json::from_str(&text(held).ok()?).unwrap();
        Some(serde_json::from_value::<Row>(file["record"]["row"].clone()).unwrap())
    };
    let rows: Rows = held.iter().filter_map(row).map(|row| (row.vm, row)).collect();
    let allowed: Vec<_> = rows.values().flat_map(|row| elements(row.registrable(&rows).as_ref())).collect();
    for element in &world.table {
        assert!(allowed.contains(element), "P9: more passes than the rows say: {element:?}");
    }
    // Where no operation is under way, whoever has a flow is in the ledger: release, or the next
    // start, ends it.
    for address in &world.flows {
        let file = |held: &Holding| std::fs::read_to_string(host.folder.path().join("run").join(held.vm.to_string()));
        let known = held.iter().any(|held| file(held).is_ok_and(|text| text.contains(&format!("\"{address}\""))));
        assert!(known, "P9: a flow of {address}, which no row speaks of");
    }
}

async fn recovered(host: &Host) -> std::rc::Rc<Machine<Sim>> {
    {
        let mut world = host.world.borrow_mut();
        world.fuse = 0;
        world.refuse.clear();
    }
    let machine = host.start();
    machine.recover().await.unwrap();
    machine
}

async fn trace(events: &[Event]) {
    let host = Host::new();
    let mut machine = recovered(&host).await;
    for event in events {
        let before = foreign(&host);
        interfere(&host, event);
        let disturbed = foreign(&host);
        let answer = if matches!(event, Event::Restart) { None } else { operate(&machine, event, host.daemon).await };
        if answer.is_none() {
            drop(machine);
            machine = recovered(&host).await;
            let once = state(&host, &machine);
            drop(machine);
            machine = recovered(&host).await;
            assert_eq!(state(&host, &machine), once, "P4: the second recovery changed something");
        }
        assert!(foreign(&host).is_superset(&disturbed), "P3: {event:?} touched what is foreign, {before:?}");
        if let (Event::Acquire(n, _), Some(Ok(()))) = (event, &answer) {
            let file = std::fs::read_to_string(host.folder.path().join("run").join(vm(*n).to_string())).unwrap();
            assert!(file.contains("\"tap\":{\"held\""), "P2: {file}");
        }
        if let (Event::Release(n), Some(Ok(()))) = (event, &answer) {
            let world = host.world.borrow();
            let ours = |mark: Option<(VmId, u64)>| mark.is_some_and(|(id, _)| id == vm(*n));
            assert!(
                !world
                    .links
                    .values()
                    .any(|link| ours(VmId::from_tap_alias(&link.alias)) && link.name == vm(*n).tap_name()),
                "P9"
            );
            assert!(!world.dms.keys().any(|uuid| ours(VmId::from_dm_uuid(uuid))), "P9");
            let name = vm(*n).tap_name();
            assert!(!world.table.iter().any(|element| element.key.starts_with(name.as_bytes())), "P9");
        }
        check(&host, &machine);
    }
}

fn run(events: &[Event]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(trace(events));
}

/// The panic hook would print every simulated crash.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        if !info.payload().is::<Killed>() {
            eprintln!("{info}");
        }
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_trace_breaks_a_property(events in events()) {
        quiet();
        run(&events);
    }
}

/// Every step of a whole life is survived: killed there, recovered, and released without a rest.
#[test]
fn killed_at_each_step_of_a_life() {
    quiet();
    let life = [
        Event::Create(1),
        Event::Grow(1, 2),
        Event::Attach(1),
        Event::Acquire(1, 1),
        Event::Reach(1, NAT),
        Event::Bind(1),
        Event::Packet(1),
        Event::Reach(1, NOTHING),
        Event::Packet(1),
        Event::Die(1),
        Event::Packet(1),
        Event::Detach(1),
        Event::ReleaseTap(1),
        Event::Release(1),
        Event::Discard(1),
    ];
    let mut points = 0;
    for fuse in 1.. {
        let host = Host::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let reached = runtime.block_on(async {
            let mut machine = recovered(&host).await;
            host.world.borrow_mut().fuse = fuse;
            let mut reached = false;
            for event in &life {
                interfere(&host, event);
                if operate(&machine, event, host.daemon).await.is_none() {
                    reached = true;
                    drop(machine);
                    machine = recovered(&host).await;
                }
            }
            interfere(&host, &Event::Die(1));
            machine.release(vm(1)).await.unwrap();
            machine.discard_disk(vm(1)).await.unwrap();
            reached
        });
        let world = host.world.borrow();
        assert!(
            world.links.is_empty() && world.dms.is_empty() && world.table.is_empty() && world.flows.is_empty(),
            "step {fuse} leaks: {world:?}"
        );
        assert_eq!(std::fs::read_dir(host.folder.path().join("cow")).unwrap().count(), 0, "step {fuse}");
        assert_eq!(std::fs::read_dir(host.folder.path().join("run")).unwrap().count(), 1, "step {fuse}");
        if !reached {
            break;
        }
        points += 1;
    }
    assert!(points >= 20, "only {points} steps were reached");
}

/// Each foreign action on an object that is held, then each way to lose it: refused, and left
/// alone.
#[test]
fn what_somebody_else_touched_is_left_whatever_is_asked() {
    quiet();
    let ways = [Event::ReleaseTap(1), Event::Detach(1), Event::Release(1), Event::Restart];
    for spoil in [Event::RenameLink(1), Event::MarkLink(1), Event::RenameDm(1)] {
        for way in &ways {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let host = Host::new();
                let mut machine = recovered(&host).await;
                for event in [Event::Create(1), Event::Attach(1), Event::Acquire(1, 1), Event::Bind(1)] {
                    assert_eq!(operate(&machine, &event, host.daemon).await, Some(Ok(())), "{event:?}");
                }
                interfere(&host, &Event::Die(1));
                interfere(&host, &spoil);
                let touched = foreign(&host);
                assert_eq!(touched.len(), 1, "{spoil:?}");
                if matches!(way, Event::Restart) {
                    drop(machine);
                    machine = recovered(&host).await;
                }
                let answer = operate(&machine, way, host.daemon).await.unwrap();
                let about_disk = matches!(spoil, Event::RenameDm(_));
                let concerned = match way {
                    Event::ReleaseTap(_) => !about_disk,
                    Event::Detach(_) => about_disk,
                    Event::Release(_) => true,
                    _ => false,
                };
                assert_eq!(answer == Err(HelperError::Quarantined), concerned, "{spoil:?} {way:?}: {answer:?}");
                assert_eq!(
                    operate(&machine, &Event::Release(1), host.daemon).await,
                    Some(Err(HelperError::Quarantined))
                );
                assert!(machine.identity(vm(1)).unwrap().quarantined);
                assert_eq!(foreign(&host), touched, "{spoil:?} {way:?}");
                assert!(host.world.borrow().table.is_empty(), "and nothing of it passes the firewall");
            });
        }
    }
}

/// An address whose process has ended is withdrawn whatever fails on the way, and its flows with
/// it.
#[test]
fn what_cannot_be_withdrawn_at_once_is_tried_until_it_is() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        for refused in ["ended", "firewall_change", "end_flows"] {
            let host = Host::new();
            host.world.borrow_mut().watched = true;
            let machine = recovered(&host).await;
            for event in [Event::Acquire(1, 1), Event::Reach(1, NAT), Event::Bind(1)] {
                assert_eq!(operate(&machine, &event, host.daemon).await, Some(Ok(())), "{event:?}");
            }
            machine.watch(vm(1));
            interfere(&host, &Event::Packet(1));
            assert_eq!(host.world.borrow().flows.len(), 1, "control: there is a flow");
            host.world.borrow_mut().refuse.insert(refused, 200);
            interfere(&host, &Event::Die(1));
            tokio::time::sleep(Duration::from_secs(100)).await;
            let open = |world: &sim::World| !world.table.is_empty() || !world.flows.is_empty();
            assert!(open(&host.world.borrow()), "control: {refused} keeps it open");
            tokio::time::sleep(Duration::from_secs(110)).await;
            assert!(!open(&host.world.borrow()), "{refused}: {:?}", host.world.borrow());
            assert_eq!(host.world.borrow().refuse[refused], 0, "no more often than once a second");
            assert_eq!(operate(&machine, &Event::Release(1), host.daemon).await, Some(Ok(())));
        }
    });
}

/// What fails leaves less open than the row says, and is done when it is asked again.
#[test]
fn a_switch_that_fails_is_never_said_to_be_done() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let host = Host::new();
        let machine = recovered(&host).await;
        let ask = async |event: Event| operate(&machine, &event, host.daemon).await.unwrap();
        ask(Event::Acquire(1, 1)).await.unwrap();
        ask(Event::Reach(1, NAT)).await.unwrap();
        interfere(&host, &Event::RefuseEnds(1));
        assert!(ask(Event::Bind(1)).await.is_err(), "flows of the last holder may be left");
        assert!(host.world.borrow().table.is_empty(), "so the address is not registered");
        ask(Event::Bind(1)).await.unwrap();
        for step in [Event::RefuseEnds(1), Event::RefuseChanges(1)] {
            interfere(&host, &Event::Packet(1));
            interfere(&host, &step);
            assert!(ask(Event::Reach(1, NOTHING)).await.is_err(), "{step:?}");
            assert!(machine.identity(vm(1)).unwrap().tap.is_some());
            ask(Event::Reach(1, NOTHING)).await.unwrap();
            assert!(host.world.borrow().flows.is_empty(), "{step:?}: a flow through NAT lives on");
            ask(Event::Reach(1, NAT)).await.unwrap();
        }
        interfere(&host, &Event::Packet(1));
        interfere(&host, &Event::Die(1));
        interfere(&host, &Event::RefuseEnds(1));
        assert!(ask(Event::Release(1)).await.is_err());
        ask(Event::Release(1)).await.unwrap();
        assert!(host.world.borrow().flows.is_empty());
    });
}
