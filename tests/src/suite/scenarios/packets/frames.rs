//! Ethernet frames by hand: a guest of ours says what no network stack would.
//!
//! Every frame carries a text by which whoever receives it knows it again.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// The port to which everything is sent.
pub(super) const PORT: u16 = 7777;

const BROADCAST: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

pub(super) fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair.first().copied().unwrap_or(0)) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *to = from;
    }
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(payload.len() + 20).unwrap_or(u16::MAX).to_be_bytes();
    let mut header =
        [&[0x45, 0][..], &total, &[0, 0, 0x40, 0, 64, protocol, 0, 0], &from.octets(), &to.octets()].concat();
    let sum = checksum(&header);
    put(&mut header, 10, sum);
    [header, payload.to_vec()].concat()
}

/// With the checksum at `at` over the payload and, for all but ICMP, the pseudo-header.
fn summed(mut payload: Vec<u8>, at: usize, pseudo: &[u8]) -> Vec<u8> {
    let sum = checksum(&[pseudo, &payload].concat());
    put(&mut payload, at, sum);
    payload
}

fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    [&from.octets()[..], &to.octets(), &[0, protocol], &length(payload)].concat()
}

fn datagram(from_port: u16, to_port: u16, text: &str) -> Vec<u8> {
    let total = u16::try_from(text.len() + 8).unwrap_or(u16::MAX);
    [&from_port.to_be_bytes()[..], &to_port.to_be_bytes(), &total.to_be_bytes(), &[0, 0], text.as_bytes()].concat()
}

/// A packet without its Ethernet header, and the header's type.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) ether_type: u16,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn udp(from: Ipv4Addr, to: Ipv4Addr, text: &str) -> Packet {
    udp_to(from, to, PORT, text)
}

pub(super) fn udp_to(from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Packet {
    let payload = datagram(PORT, port, text);
    let pseudo = pseudo(from, to, UDP, &payload);
    Packet { ether_type: IPV4, bytes: ipv4(from, to, UDP, &summed(payload, 6, &pseudo)) }
}

/// An echo request.
pub(super) fn ping(from: Ipv4Addr, to: Ipv4Addr, text: &str) -> Packet {
    let payload = [&[8, 0, 0, 0, 0xb6, 0xb7, 0, 1][..], text.as_bytes()].concat();
    Packet { ether_type: IPV4, bytes: ipv4(from, to, ICMP, &summed(payload, 2, &[])) }
}

/// The first segment of a connection.
pub(super) fn syn(from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &str) -> Packet {
    let payload = [
        &PORT.to_be_bytes()[..],
        &port.to_be_bytes(),
        &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0],
        text.as_bytes(),
    ]
    .concat();
    let pseudo = pseudo(from, to, TCP, &payload);
    Packet { ether_type: IPV4, bytes: ipv4(from, to, TCP, &summed(payload, 16, &pseudo)) }
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: Vec<u8>, at: usize) -> Packet {
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0], &length(&payload), &[0, 0, 0, next]].concat();
    let header = [&[0x60, 0, 0, 0][..], &length(&payload), &[next, 255], &from.octets(), &to.octets()].concat();
    Packet { ether_type: IPV6, bytes: [header, summed(payload, at, &pseudo)].concat() }
}

pub(super) fn udp6(from: Ipv6Addr, to: Ipv6Addr, text: &str) -> Packet {
    ipv6(from, to, UDP, datagram(PORT, PORT, text), 6)
}

/// Who has this address? RFC 4861, with the option that says where to answer.
pub(super) fn neighbour_solicitation(mac: Mac, from: Ipv6Addr, target: Ipv6Addr) -> Packet {
    let payload = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &mac].concat();
    ipv6(from, target, ICMPV6, payload, 2)
}

/// An ARP packet: 1 asks for `target`, 2 says that `sender` is at `mac`.
pub(super) fn arp(operation: u8, mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Packet {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    Packet { ether_type: ARP, bytes: [&head[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat() }
}

/// The answer of the guest at `address` to a frame that asks for it.
pub(super) fn arp_answer(frame: &[u8], mac: Mac, address: Ipv4Addr) -> Option<Vec<u8>> {
    let asked = frame.get(12..14)? == ARP.to_be_bytes() && frame.get(20..22)? == [0, 1];
    if !asked || frame.get(38..42)? != address.octets() {
        return None;
    }
    let asker: Mac = frame.get(22..28)?.try_into().ok()?;
    let asker_address = <[u8; 4]>::try_from(frame.get(28..32)?).ok()?;
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let payload = [&head[..], &mac, &address.octets(), &asker, &asker_address].concat();
    Some(ethernet(asker, mac, ARP, &payload))
}

pub(super) fn is_arp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ARP.to_be_bytes())
}

/// Does it carry this text?
pub(super) fn carries(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len().max(1)).any(|window| window == text.as_bytes())
}

pub(super) fn to_all(from: Mac, packet: &Packet) -> Vec<u8> {
    ethernet(BROADCAST, from, packet.ether_type, &packet.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_right() {
        // Oracle: the example of RFC 1071, section 3; a packet whose sum is in place sums to zero.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let packet = udp(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2), "odd");
        assert_eq!(packet.bytes.get(..20).map(checksum), Some(0));
    }

    #[test]
    fn a_question_for_our_address_is_answered_and_no_other() {
        let (ours, theirs) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
        let asked = to_all([2; 6], &arp(1, [2; 6], theirs, ours));
        let answer = arp_answer(&asked, [6; 6], ours).unwrap_or_default();
        assert_eq!(answer.get(..12), Some(&[2, 2, 2, 2, 2, 2, 6, 6, 6, 6, 6, 6][..]));
        assert_eq!(arp_answer(&asked, [6; 6], theirs), None);
        assert_eq!(arp_answer(&answer, [6; 6], ours), None);
    }
}
