//! What the table's sets hold for one VM.

use super::super::holding::Registration;
use crate::reach::{NOT_PUBLIC, Range};

/// A set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// nft's number for the type of its keys, for listings only.
    pub key_type: u32,
    /// The lengths of a key's fields, bytes. In the kernel each takes whole words of four.
    pub fields: &'static [u32],
    /// Its elements are ranges.
    pub ranges: bool,
}

impl Set {
    const fn plain(name: &'static str, key_type: u32, fields: &'static [u32]) -> Self {
        Self { name, key_type, fields, ranges: false }
    }

    /// The length of a key, bytes.
    #[must_use]
    pub fn key_length(&self) -> u32 {
        self.fields.iter().map(|field| field.next_multiple_of(4)).fold(0, u32::saturating_add)
    }
}

/// nft's numbers of types, and how one number says several.
const IPV4: u32 = 7;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const UID: u32 = 24;
const IFNAME: u32 = 41;
const NEXT: u32 = 6;

/// A tap and the one source address that may come out of it.
pub const LIVE: Set = Set::plain("live", (IFNAME << NEXT) | IPV4, &[16, 4]);
/// A tap and the user who may connect to its guest.
pub const OWNERS: Set = Set::plain("owners", (IFNAME << NEXT) | UID, &[16, 4]);
/// Guests that may leave through the uplink, to what the next sets say.
pub const NAT: Set = Set::plain("nat", IPV4, &[4]);
/// Guests that reach the public internet.
pub(super) const PUBLIC: Set = Set::plain("public", IPV4, &[4]);
/// Guests that reach whatever the host routes to.
pub(super) const ANYWHERE: Set = Set::plain("anywhere", IPV4, &[4]);
/// A guest and a range that it reaches.
pub(super) const RANGES: Set = Set { ranges: true, ..Set::plain("ranges", (IPV4 << NEXT) | IPV4, &[4, 4]) };
/// A guest and a range that it reaches at one port.
pub(super) const PORTS: Set = Set {
    ranges: true,
    ..Set::plain("ports", (((((IPV4 << NEXT) | IPV4) << NEXT) | PROTOCOL) << NEXT) | SERVICE, &[4, 4, 1, 2])
};
/// Two guests, of which the first reaches the second.
pub(super) const PEERS: Set = Set::plain("peers", (IPV4 << NEXT) | IPV4, &[4, 4]);
/// What is not of the public internet; the same for all.
pub(super) const RESERVED: Set = Set { ranges: true, ..Set::plain("reserved", IPV4, &[4]) };

/// All of them.
pub const SETS: [Set; 9] = [LIVE, OWNERS, NAT, PUBLIC, ANYWHERE, RANGES, PORTS, PEERS, RESERVED];

/// One element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// In which set.
    pub set: Set,
    /// Its bytes, as the kernel compares them; of a range, its beginning.
    pub key: Vec<u8>,
    /// The end of a range, which belongs to it; empty in a set without ranges.
    pub end: Vec<u8>,
}

impl Element {
    fn new(set: Set, key: Vec<u8>) -> Self {
        Self { set, key, end: Vec::new() }
    }
}

/// The elements of a registration.
#[must_use]
pub fn elements(registration: Option<&Registration>) -> Vec<Element> {
    let Some(registration) = registration else { return Vec::new() };
    // An interface's name is compared with its padding (IFNAMSIZ).
    let mut name = registration.tap_name.clone().into_bytes();
    name.resize(16, 0);
    let address = registration.address.octets();
    let mut elements = vec![
        Element::new(LIVE, [&name[..], &address].concat()),
        Element::new(OWNERS, [&name[..], &registration.owner.to_ne_bytes()].concat()),
    ];
    let far = [(registration.out, NAT), (registration.public, PUBLIC), (registration.anywhere, ANYWHERE)];
    for (_, set) in far.into_iter().filter(|(is, _)| *is) {
        elements.push(Element::new(set, address.to_vec()));
    }
    for target in &registration.targets {
        let (set, service) = match target.service {
            None => (RANGES, Vec::new()),
            Some((protocol, port)) => {
                let [high, low] = port.to_be_bytes();
                (PORTS, vec![protocol.number(), 0, 0, 0, high, low, 0, 0])
            }
        };
        let key = |to: std::net::Ipv4Addr| [&address[..], &to.octets(), &service].concat();
        let (key, end) = (key(target.range.first()), key(target.range.last()));
        elements.push(Element { end, ..Element::new(set, key) });
    }
    for peer in registration.peers.iter().map(std::net::Ipv4Addr::octets) {
        elements.extend([[address, peer], [peer, address]].map(|pair| Element::new(PEERS, pair.concat())));
    }
    elements
}

/// The elements that stand in the table whatever VMs there are.
#[must_use]
pub(super) fn reserved() -> Vec<Element> {
    let ranges = NOT_PUBLIC.into_iter().filter_map(|(network, prefix)| Range::new(network, prefix));
    let octets = |address: std::net::Ipv4Addr| address.octets().to_vec();
    ranges.map(|range| Element { end: octets(range.last()), ..Element::new(RESERVED, octets(range.first())) }).collect()
}
