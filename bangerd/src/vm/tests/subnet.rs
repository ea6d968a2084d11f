//! The network of the VMs is another one than it was.

use super::*;
use banger_policy::net::Network;
use std::net::Ipv4Addr;

impl World {
    /// The administrator changes the configuration and restarts the daemon.
    fn renumber(&mut self, gateway: [u8; 4], prefix: u8) {
        self.config.network = Network::new(gateway.into(), prefix).unwrap();
        self.restart();
    }

    fn address(&self, vm: &str) -> Ipv4Addr {
        self.show(ALICE, vm).unwrap().runtime.guest_ip
    }
}

#[test]
fn a_vm_that_runs_keeps_its_address_and_gets_another_at_its_next_start() {
    let mut world = World::new();
    world.running("demo");
    let before = world.address("demo");
    assert_eq!(before, Ipv4Addr::new(172, 16, 0, 2));
    world.renumber([10, 9, 0, 1], 24);
    assert_eq!(world.until("demo", State::Running).runtime.guest_ip, before, "it runs with it");
    // Another one meanwhile.
    world.running("second");
    assert_eq!(world.address("second"), Ipv4Addr::new(10, 9, 0, 3));
    assert!(matches!(world.order(STOP, "demo"), JobState::Done(_)));
    assert_eq!(world.address("demo"), Ipv4Addr::new(10, 9, 0, 2), "what it will have");
    assert!(matches!(world.order(Ask::Start, "demo"), JobState::Done(_)));
    assert_eq!(world.address("demo"), Ipv4Addr::new(10, 9, 0, 2));
    world.restart();
    assert_eq!(world.until("demo", State::Running).runtime.guest_ip, Ipv4Addr::new(10, 9, 0, 2));
}

#[test]
fn a_network_that_became_too_small_loses_no_vm() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        world.running(name);
    }
    world.order(STOP, "f");
    // Five guests fit; f and g are beyond.
    world.renumber([10, 9, 0, 1], 29);
    let last = world.until("g", State::Running);
    assert_eq!(last.runtime.guest_ip, Ipv4Addr::new(172, 16, 0, 8));
    assert_eq!(world.address("f"), Ipv4Addr::UNSPECIFIED, "it has none until it starts");
    let JobState::Failed(full) = world.order(Ask::Start, "f") else { panic!("five are taken") };
    assert!(full.message.contains("all 5 addresses"), "{full:?}");
    assert!(matches!(world.order(Ask::Delete, "b"), JobState::Done(_)));
    assert!(matches!(world.order(Ask::Start, "f"), JobState::Done(_)));
    assert_eq!(world.address("f"), Ipv4Addr::new(10, 9, 0, 3));
    // Everything can be done with one whose number the network does not have.
    assert!(matches!(world.order(STOP, "g"), JobState::Done(_)));
    assert!(matches!(world.order(Ask::Delete, "g"), JobState::Done(_)));
    for name in ["a", "c", "d", "e", "f"] {
        assert!(matches!(world.order(Ask::Delete, name), JobState::Done(_)), "{name}");
    }
    world.assert_nothing_at_all();
}

#[test]
fn a_record_has_a_name_where_names_are_answered() {
    let mut world = World::new();
    assert_eq!(world.running("demo").runtime.dns_name, "demo.alice.vm");
    world.config.dns.listen = None;
    world.restart();
    assert_eq!(world.show(ALICE, "demo").unwrap().runtime.dns_name, "");
}
