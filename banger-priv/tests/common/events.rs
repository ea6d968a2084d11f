//! What can happen to three VMs of a simulated host: operations, crashes, and what others do.

use crate::common::{OWNER, image, vm};
use crate::sim::{self, Host, Killed, Sim};
use banger_policy::limits::MIN_ROOT_BYTES;
use banger_policy::reach::{Mode, Reach};
use banger_priv::ops::Machine;
use banger_proto::helper::HelperError;
use futures::FutureExt;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;

/// What happens to one of three VMs.
#[derive(Clone, Debug)]
pub(crate) enum Event {
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

pub(crate) const NOTHING: usize = 0;
pub(crate) const NAT: usize = 1;

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
pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let life = (1..4_u8, 1..4_u16, event()).prop_map(|(vm, index, between)| {
        let begins = [Event::Acquire(vm, index), Event::Reach(vm, NAT), Event::Bind(vm), Event::Packet(vm)];
        [&begins[..], &[between, Event::Die(vm), Event::Release(vm)]].concat()
    });
    let segment = prop_oneof![8 => event().prop_map(|event| vec![event]), 1 => life];
    proptest::collection::vec(segment, 1..32).prop_map(|segments| segments.concat())
}

/// One operation; `None` when the helper was killed in it.
pub(crate) async fn operate(machine: &Machine<Sim>, event: &Event, uid: u32) -> Option<Result<(), HelperError>> {
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
pub(crate) fn interfere(host: &Host, event: &Event) {
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
