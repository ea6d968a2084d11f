//! What the tests of the firewall share: the host's addresses, its uplink, and what is read of
//! packets.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "shared by test programs that each use a part"
)]

use super::common::{Folders, Wire, in_namespace, is_root, run, skipped, works};
use banger_policy::limits::MASQUERADED;
use banger_priv::host::Host;
use banger_priv::ops::Machine;
use std::net::Ipv4Addr;
use std::rc::Rc;

/// The bridge address.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The guest at index 1.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// The guest at index 2.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 3);
/// The host's own address on its uplink.
pub(crate) const UPLINK: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);
/// Its neighbour there.
pub(crate) const LAN: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// Protocols in the header of IPv4.
pub(crate) const UDP: u8 = 17;
pub(crate) const TCP: u8 = 6;

/// These tests read or change tables with `nft`: without it they would show less than they say.
pub(crate) fn can_run() -> bool {
    let nft = works("command -v nft");
    if !nft {
        skipped("no nft");
    }
    nft && is_root()
}

/// An uplink with a neighbour; the host forwards.
pub(crate) fn uplink() -> Wire {
    let wire = Wire::open("uplink").unwrap();
    run("echo 1 > /proc/sys/net/ipv4/ip_forward; ip addr add 10.9.9.1/24 dev uplink; ip link set uplink up");
    run("ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:09 dev uplink; ip route add default via 10.9.9.9");
    wire
}

/// A test with an uplink and a helper's machine, where there is root and nft.
pub(crate) fn with_uplink(test: impl AsyncFnOnce(Wire, Folders, Rc<Machine<Host>>)) {
    if can_run() {
        in_namespace(async {
            let uplink = uplink();
            let folders = Folders::new();
            let machine = folders.start().await;
            test(uplink, folders, machine).await;
        });
    }
}

/// The neighbour's datagram from `from` to the host's port `to`: how an answer comes back through
/// NAT.
pub(crate) fn from_lan(gateway: [u8; 6], from: u16, to: u16) -> Vec<u8> {
    let mut frame = super::common::udp(gateway, LAN, UPLINK, to);
    frame[34..36].copy_from_slice(&from.to_be_bytes());
    frame
}

/// From which of the host's ports the first of these packets to the neighbour has left: its choice.
pub(crate) fn left_from(packets: &[Vec<u8>]) -> u16 {
    let port = packets.iter().find(|packet| addresses(packet) == (UPLINK, LAN)).map(|packet| ports(packet).0);
    assert!(port.is_some_and(|port| port >= MASQUERADED.0), "{port:?} of {packets:?}");
    port.unwrap()
}

pub(crate) fn protocol(packet: &[u8]) -> u8 {
    packet[9]
}

/// Source and destination.
pub(crate) fn addresses(packet: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    let at = |n: usize| Ipv4Addr::new(packet[n], packet[n + 1], packet[n + 2], packet[n + 3]);
    (at(12), at(16))
}

/// Source and destination port, of UDP and TCP alike.
pub(crate) fn ports(packet: &[u8]) -> (u16, u16) {
    let at = |n: usize| u16::from_be_bytes([packet[n], packet[n + 1]]);
    (at(20), at(22))
}

/// The same packet with another protocol; the sum of its header stays right.
pub(crate) fn with_protocol(mut frame: Vec<u8>, number: u8) -> Vec<u8> {
    let change = i32::from(number) - i32::from(frame[23]);
    frame[23] = number;
    let sum = i32::from(u16::from_be_bytes([frame[24], frame[25]])) - change;
    frame[24..26].copy_from_slice(&u16::try_from(sum.rem_euclid(0xffff)).unwrap().to_be_bytes());
    frame
}

/// The same packet as a question of ICMP.
pub(crate) fn ping(frame: Vec<u8>) -> Vec<u8> {
    let mut frame = with_protocol(frame, 1);
    // Type, code, checksum, identifier, number, and four bytes of data.
    frame[34..46].copy_from_slice(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1, 0, 0, 0, 0]);
    frame
}
