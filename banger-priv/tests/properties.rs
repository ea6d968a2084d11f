//! Any trace of operations, crashes and foreign actions on a simulated kernel: properties P1 to P6
//! and P9.
#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "a test fails by panicking")]
mod common;
#[path = "common/events.rs"]
mod events;
#[path = "common/sim.rs"]
mod sim;

use banger_policy::VmId;
use banger_policy::helper::firewall::elements;
use banger_policy::helper::holding::{Row, Rows};
use banger_priv::ops::Machine;
use banger_proto::helper::{HelperError, Holding};
use common::vm;
use events::{Event, NAT, NOTHING, events, interfere, operate};
use proptest::prelude::*;
use sim::{Host, Killed, Sim};
use std::collections::BTreeSet;
use std::time::Duration;

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
