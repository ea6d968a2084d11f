//! What guests asked for in vain, over the life of a VM and of the daemon, and who may see it.

use super::*;
use crate::refused::tests::told;
use banger_proto::model::{ErrorCode, RefusedList};

impl World {
    fn refused(&self, peer: Peer, vm: &str) -> Result<RefusedList, ApiError> {
        Ok(self.life().runtime.block_on(self.life().vms.refused(&peer, vm))?)
    }

    /// The kernel tells it, of whoever has this address.
    fn tell(&self, from: Ipv4Addr, to: [u8; 4], port: u16) {
        let ctx = &self.life().vms.ctx;
        ctx.refusals.note(&told(7, from, to, port), &|address| ctx.handles.at(address), Timestamp::now());
    }
}

fn seen(list: &RefusedList) -> Vec<([u8; 4], Option<u16>, u64)> {
    list.destinations.iter().map(|one| (one.address.octets(), one.port, one.times)).collect()
}

#[test]
fn each_owner_sees_what_their_own_guest_was_refused() {
    let world = World::new();
    let (demo, more) = (world.running("demo"), world.running("more"));
    let bobs = match world.wait(world.begin_create(BOB, named("bobs"), false).unwrap()) {
        JobState::Done(JobResult::Vm(vm)) => *vm,
        other => panic!("{other:?}"),
    };
    world.tell(demo.runtime.guest_ip, [192, 0, 2, 1], 80);
    world.tell(demo.runtime.guest_ip, [192, 0, 2, 2], 53);
    world.tell(demo.runtime.guest_ip, [192, 0, 2, 1], 80);
    world.tell(bobs.runtime.guest_ip, [198, 51, 100, 1], 22);
    world.tell(Ipv4Addr::new(172, 16, 0, 200), [198, 51, 100, 1], 22);
    let demos = [([192, 0, 2, 1], Some(80), 2), ([192, 0, 2, 2], Some(53), 1)];
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()), demos);
    assert_eq!(seen(&world.refused(ROOT, &demo.id.to_string()).unwrap()), demos, "an administrator");
    assert_eq!(seen(&world.refused(ALICE, "more").unwrap()), []);
    assert_eq!(seen(&world.refused(BOB, "bobs").unwrap()), [([198, 51, 100, 1], Some(22), 1)]);
    for word in ["demo", &demo.id.to_string(), &more.id.to_string()] {
        let error = world.refused(BOB, word).unwrap_err();
        let unknown = world.refused(BOB, "nobodys").unwrap_err();
        assert_eq!((error.code, unknown.code), (ErrorCode::NotFound, ErrorCode::NotFound), "{word}");
        assert_eq!(error.message.replace(word, "X"), unknown.message.replace("nobodys", "X"));
    }
}

#[test]
fn what_is_known_goes_with_the_vms_end_and_the_daemons() {
    let mut world = World::new();
    let demo = world.running("demo");
    let tell = |world: &World| world.tell(demo.runtime.guest_ip, [192, 0, 2, 1], 80);
    tell(&world);
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()).len(), 1);
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    tell(&world);
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()), [], "it does not run");
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()), []);
    tell(&world);
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()).len(), 1);
    // It is told of the VM that the next daemon finds, as before.
    world.restart();
    world.settled();
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()), []);
    tell(&world);
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()).len(), 1);
    // One that ends by itself.
    world.machine.end(&demo.id, "guest powered off");
    world.until("demo", State::Stopped);
    assert_eq!(seen(&world.refused(ALICE, "demo").unwrap()), []);
}

#[test]
fn a_vm_shows_how_many_when_it_is_known() {
    let world = World::new();
    let demo = world.running("demo");
    world.tell(demo.runtime.guest_ip, [192, 0, 2, 1], 80);
    assert_eq!(world.show(ALICE, "demo").unwrap().refused, None, "nobody listens");
    assert!(!world.refused(ALICE, "demo").unwrap().recorded);
    world.life().vms.ctx.refusals.set_recorded();
    assert_eq!(world.show(ALICE, "demo").unwrap().refused, Some(1));
    assert!(world.refused(ALICE, "demo").unwrap().recorded);
    let page = world.life().runtime.block_on(world.life().vms.list(&ALICE, false, None)).unwrap();
    assert_eq!(page.vms[0].refused, None, "a list has none");
}
