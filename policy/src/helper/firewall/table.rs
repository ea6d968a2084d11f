//! The VMs' firewall as one value: the table `inet banger`, made whole at start-up in one
//! transaction, then changed by set elements alone, one transaction per VM. As bytes; the helper's
//! socket sends them.
//!
//! The table has an owner (the helper's netlink socket) and persists: nobody else, not even root's
//! `nft flush ruleset`, can open it while the helper lives, and it stays as it is when the helper
//! dies. It only restricts. Accepting belongs to the host's own chains, where a drop of another
//! table is final; see `packaging/host-firewall`. What is written here, in nft's words:
//!
//! ```text
//! set live   { type ifname . ipv4_addr }   # tap and the one source address that may come out of it
//! set owners { type ifname . uid }         # tap and the user who may connect to the guest
//! set nat    { type ipv4_addr }            # guests that may leave through the uplink: to what follows
//! set public { type ipv4_addr }            # guests that reach the public internet
//! set anywhere { type ipv4_addr }          # guests that reach whatever the host routes to
//! set ranges { type ipv4_addr . ipv4_addr; flags interval }   # a guest and what it reaches
//! set ports  { type ipv4_addr . ipv4_addr . inet_proto . inet_service; flags interval }
//! set peers  { type ipv4_addr . ipv4_addr }                   # two guests of one private network
//! set reserved { type ipv4_addr; flags interval }             # what is not of the public internet
//! set asked { type ipv4_addr; size 65535; flags dynamic,timeout; timeout 10s }   # guests that were refused
//! chain refuse {                           # tells who listens for traces, and drops
//!     ct state new,untracked update @asked { ip saddr limit rate 5/second burst 20 packets } meta nftrace set 1
//!     drop }
//! set flows { type devgroup; size 65535; flags dynamic }      # users whose guests have flows
//! set towards { type devgroup . ipv4_addr; size 65535; flags dynamic }           # and to where
//! set begun { type devgroup; size 65535; flags dynamic,timeout; timeout 1m }     # or begin them
//! ct timeout closed { protocol tcp; l3proto ip; policy = { time_wait: 10, close: 10 } }
//! set fragments { type devgroup; size 65535; flags dynamic,timeout; timeout 1m }   # or send fragments
//! chain guard {                            # before anything is put together or remembered
//!     type filter hook prerouting priority -450
//!     iifname "bgr-*" meta nfproto != ipv4 drop
//!     iifname "bgr-*" iifname . ip saddr != @live drop
//!     iifname "bgr-*" ip frag-off & 0x3fff != 0 \
//!         update @fragments { iifgroup limit rate over 8/second burst 32 packets } drop }
//! chain aim {                              # where a guest wanted to go, before the host's DNAT rewrites it
//!     type filter hook prerouting priority mangle
//!     iifname "bgr-*" <answers> accept
//!     iifname "bgr-*" fib daddr type local goto refuse
//!     iifname "bgr-*" fib daddr type != unicast drop
//!     iifname "bgr-*" ip daddr <metadata services> goto refuse
//!     iifname "bgr-*" ip saddr . ip daddr @peers accept
//!     iifname "bgr-*" ip saddr @anywhere accept
//!     iifname "bgr-*" ip saddr @public ip daddr != @reserved accept
//!     iifname "bgr-*" ip saddr . ip daddr @ranges accept
//!     iifname "bgr-*" ip saddr . ip daddr . meta l4proto . th dport @ports accept
//!     iifname "bgr-*" goto refuse }
//! chain input {                            # guest to host: answers only
//!     type filter hook input priority filter
//!     iifname "bgr-*" <answers> accept
//!     iifname "bgr-*" drop }
//! chain forward {
//!     type filter hook forward priority filter
//!     iifname "bgr-*" ct status dnat drop
//!     iifname "bgr-*" ct state new ct status ! confirmed \
//!         update @begun { iifgroup limit rate over 400/second burst 2048 packets } drop
//!     iifname "bgr-*" ct state new add @flows { iifgroup ct count over 8192 } drop
//!     iifname "bgr-*" ct timeout set "closed"
//!     iifname "bgr-*" oifname "bgr-*" ip saddr . ip daddr @peers accept
//!     iifname "bgr-*" oifname "bgr-*" goto refuse
//!     iifname "bgr-*" ip saddr != @nat goto refuse
//!     iifname "bgr-*" meta l4proto != { tcp, udp, icmp } goto refuse
//!     iifname "bgr-*" ct state new add @towards { iifgroup . ip daddr ct count over 2048 } drop
//!     oifname "bgr-*" <answers> accept
//!     oifname "bgr-*" drop }
//! chain output {                           # host to guest: its owner, the daemon and root
//!     type filter hook output priority filter
//!     oifname "bgr-*" meta skuid { root, bangerd } accept
//!     oifname "bgr-*" oifname . meta skuid @owners accept
//!     oifname "bgr-*" meta skuid >= 0 drop
//!     oifname "bgr-*" ct state established,related accept
//!     oifname "bgr-*" drop }
//! chain masquerade {                       # before whatever the host has for others
//!     type nat hook postrouting priority srcnat - 1
//!     oifname != "bgr-*" ip saddr @nat masquerade to :52000-65535 fully-random }
//! table arp banger {
//!     set live { type ifname . ipv4_addr }     # the same elements
//!     chain input {
//!         type filter hook input priority filter
//!         iifname "bgr-*" iifname . arp saddr ip != @live drop } }
//! ```
//!
//! `<answers>` is `ct direction reply ct state established,related`: packets of a flow that the
//! other side began, and ICMP errors about them. A new connection that a helper module of the
//! kernel expects goes in the original direction, so it is none.
//!
//! A flow of a guest ends with its registration (`flows`), so every established one was begun by
//! somebody who still may. Even so each packet of a socket is asked whose it is. Only what the
//! kernel itself sends has no socket with a user: the rest of a connection whose program has closed
//! it, resets, ICMP errors. That passes within a flow.
//!
//! What leaves for a guest leaves from a port of the host on which nothing of the host listens, and
//! which nobody can foretell. The host takes what comes to that port for the guest's: if the guest
//! chose the port (CVE-2021-3773), it would get what is sent to a service there. Of a protocol
//! without ports the host cannot tell what is its own from what is a guest's: only TCP, UDP and
//! ICMP leave, and ICMP has numbers of its own for that.
//!
//! What the host remembers for guests has its bounds (`bounds`): neighbours, flows, fragments.
//!
//! What a network mode refuses goes through `refuse`: the kernel then says to the members of its
//! group for traces what it dropped (linux/netfilter/nf_tables.h, `NFT_MSG_TRACE`). The daemon is
//! one. The limit is of each source by itself, so that a guest that floods hides no other's
//! refusals; `guard` has seen that the source is the guest's own, so there are no more of them than
//! guests. Not told is what is spoofed, what goes to many at once (systems send that by
//! themselves), and what the host's DNAT sent elsewhere: its destination is no longer the one that
//! the guest asked for.

use super::super::holding::Registration;
use super::elements::{ANYWHERE, PEERS, PORTS, PUBLIC, RANGES, RESERVED, reserved};
use super::expr::{
    ACCEPT, AT_LEAST, CT_STATE, CT_STATUS, DROP, EQUAL, ESTABLISHED_RELATED, INVALID, NOT_EQUAL, REG_1, REG_2, WORDS,
    aimed_at, answers, compare, ct_has, destination, destination_type, expression, from_vm, goto_refuse, lookup, meta,
    nfproto_ipv4, source, to_vm, verdict,
};
use super::message::{ARP, Attrs, Batch, INET, Kind};
use super::{Change, Element, LIVE, NAT, OWNERS, SETS, Set, bounds, elements};
use crate::limits::MASQUERADED;
use std::net::Ipv4Addr;

/// The table's name.
pub const TABLE: &str = "banger";
/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`.
const OWNED: u32 = 2 | 4;
/// Of sets (`enum nft_set_flags`).
const INTERVAL: u32 = 4;
/// `NFT_SET_TIMEOUT | NFT_SET_EVAL`: elements that rules make, and that go by themselves.
pub(super) const DYNAMIC: u32 = 0x10 | 0x20;
/// What `refuse` remembers: as many sources as there may be, each this long, milliseconds.
const ASKED: &str = "asked";
const ASKED_SIZE: u32 = 65535;
const ASKED_TIMEOUT: u64 = 10_000;
/// How many refusals of one source are told: per second, and at once.
const TOLD: (u64, u32) = (5, 20);
const CONCAT: u32 = 0x80;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// The most elements in one message: its length has 16 bits.
const CHUNK: usize = 512;
/// What `meta` loads of the transport protocol, and sets to tell (`enum nft_meta_keys`).
const L4PROTO: u32 = 16;
/// The protocols that leave for guests: TCP, UDP, ICMP.
const LEAVING: [u8; 3] = [6, 17, 1];
/// `NF_NAT_RANGE_PROTO_SPECIFIED | NF_NAT_RANGE_PROTO_RANDOM_FULLY`: one of these ports, by chance.
const RANDOM_OF_RANGE: u32 = (1 << 1) | (1 << 4);
const NFTRACE: u32 = 12;
/// Bits of a state, and of a status (`IPS_DST_NAT`).
const NEW_UNTRACKED: u32 = 8 | 64;
const DST_NAT: u32 = 1 << 5;
/// The one type of address that may pass, and that of the host's own (linux/rtnetlink.h).
const RTN_UNICAST: u32 = 1;
const RTN_LOCAL: u32 = 2;
/// The chain of what is refused.
pub const REFUSE: &str = "refuse";
/// Addresses at which clouds hand out credentials of the host: link-local (all), Azure, Alibaba,
/// Oracle.
const METADATA: [(Ipv4Addr, usize); 4] = [
    (Ipv4Addr::new(169, 254, 0, 0), 2),
    (Ipv4Addr::new(168, 63, 129, 16), 4),
    (Ipv4Addr::new(100, 100, 100, 200), 4),
    (Ipv4Addr::new(192, 0, 0, 192), 4),
];

/// A change as messages. Adding first makes removing an element that is not there no error.
pub fn encode(change: &Change, batch: &mut Batch) {
    put_elements(batch, Kind::NewElement, &change.remove);
    put_elements(batch, Kind::DelElement, &change.remove);
    put_elements(batch, Kind::NewElement, &change.add);
}

fn put_elements(batch: &mut Batch, kind: Kind, elements: &[Element]) {
    for set in SETS {
        let of_set: Vec<&Element> = elements.iter().filter(|element| element.set == set).collect();
        for chunk in of_set.chunks(CHUNK) {
            let list =
                chunk.iter().flat_map(|element| items(element)).fold(Attrs::new(), |list, item| list.nest(1, &item));
            let attrs = Attrs::new().text(1, TABLE).text(2, set.name).nest(3, &list);
            batch.add(kind, &attrs);
            if set == LIVE {
                batch.add_to(ARP, kind, &attrs);
            }
        }
    }
}

/// What the kernel knows an element as. A range of one field is two: its first key, and the first
/// that does not belong to it any more. One of several fields is one with two keys.
fn items(element: &Element) -> Vec<Attrs> {
    let value = |bytes: &[u8]| Attrs::new().bytes(1, bytes);
    let item = Attrs::new().nest(1, &value(&element.key));
    match element.end.first_chunk().map(|end| u32::from_be_bytes(*end)) {
        None => vec![item],
        Some(_) if element.set.fields.len() > 1 => vec![item.nest(10, &value(&element.end))],
        Some(u32::MAX) => vec![item],
        Some(last) => {
            let behind = value(&last.saturating_add(1).to_be_bytes());
            vec![item, Attrs::new().nest(1, &behind).u32(3, INTERVAL_END)]
        }
    }
}

fn put_set(batch: &mut Batch, family: u8, id: u32, set: Set) {
    let flags = match (set.ranges, set.fields.len()) {
        (false, _) => 0,
        (true, 1) => INTERVAL,
        (true, _) => INTERVAL | CONCAT,
    };
    let mut attrs =
        Attrs::new().text(1, TABLE).text(2, set.name).u32(3, flags).u32(4, set.key_type).u32(5, set.key_length());
    if flags & CONCAT != 0 {
        let field = |list: Attrs, length: &u32| list.nest(1, &Attrs::new().u32(1, *length));
        attrs = attrs.nest(9, &Attrs::new().nest(2, &set.fields.iter().fold(Attrs::new(), field)));
    }
    batch.add_to(family, Kind::NewSet, &attrs.u32(10, id));
}

/// The whole table, in place of whatever stands under its name.
pub fn whole(batch: &mut Batch, daemon_uid: u32, registrations: &[Registration]) {
    let table = Attrs::new().text(1, TABLE).u32(2, OWNED);
    for family in [INET, ARP] {
        // Made or taken over, emptied, made again.
        batch.add_to(family, Kind::NewTable, &table);
        batch.add_to(family, Kind::DelTable, &Attrs::new().text(1, TABLE));
        batch.add_to(family, Kind::NewTable, &table);
    }
    for (id, set) in (1..).zip(SETS) {
        put_set(batch, INET, id, set);
    }
    put_set(batch, ARP, 1, LIVE);
    bounds::sets(batch);
    put_elements(batch, Kind::NewElement, &reserved());
    refuse(batch);
    // Hooks: prerouting 0, input 1, forward 2, output 3, postrouting 4 (linux/netfilter.h).
    // Fragments are put together at -400.
    chain(batch, "guard", "filter", 0, -450);
    rule(batch, "guard", &[from_vm(), nfproto_ipv4(false), vec![verdict(DROP)]]);
    rule(batch, "guard", &[from_vm(), vec![source(REG_2), lookup(LIVE, REG_1, true)], vec![verdict(DROP)]]);
    rule(batch, "guard", &[from_vm(), bounds::too_many_fragments()]);
    // Connection tracking is at -200, DNAT at -100.
    chain(batch, "aim", "filter", 0, -150);
    rule(batch, "aim", &[from_vm(), answers(), vec![verdict(ACCEPT)]]);
    rule(batch, "aim", &[from_vm(), destination_type(EQUAL, RTN_LOCAL), vec![goto_refuse()]]);
    rule(batch, "aim", &[from_vm(), destination_type(NOT_EQUAL, RTN_UNICAST), vec![verdict(DROP)]]);
    for (address, length) in METADATA {
        let prefix = address.octets().into_iter().take(length).collect::<Vec<_>>();
        rule(batch, "aim", &[from_vm(), nfproto_ipv4(true), destination(&prefix), vec![goto_refuse()]]);
    }
    reach(batch);
    chain(batch, "input", "filter", 1, 0);
    rule(batch, "input", &[from_vm(), answers(), vec![verdict(ACCEPT)]]);
    rule(batch, "input", &[from_vm(), vec![verdict(DROP)]]);
    chain(batch, "forward", "filter", 2, 0);
    rule(batch, "forward", &[from_vm(), ct_has(CT_STATUS, DST_NAT), vec![verdict(DROP)]]);
    rule(batch, "forward", &[from_vm(), bounds::too_many_at_once()]);
    rule(batch, "forward", &[from_vm(), bounds::too_many_flows()]);
    rule(batch, "forward", &[from_vm(), bounds::forgets_closed()]);
    rule(batch, "forward", &[from_vm(), to_vm(true), peers(), vec![verdict(ACCEPT)]]);
    rule(batch, "forward", &[from_vm(), to_vm(true), vec![goto_refuse()]]);
    // What is no flow is in no count, and leaves with the guest's own address.
    rule(batch, "forward", &[from_vm(), ct_has(CT_STATE, INVALID), vec![verdict(DROP)]]);
    rule(batch, "forward", &[from_vm(), vec![source(REG_1), lookup(NAT, REG_1, true)], vec![goto_refuse()]]);
    let others = LEAVING.map(|protocol| compare(REG_2, NOT_EQUAL, &[protocol]));
    rule(batch, "forward", &[from_vm(), vec![meta(L4PROTO, REG_2)], others.to_vec(), vec![goto_refuse()]]);
    rule(batch, "forward", &[from_vm(), bounds::too_many_to_one()]);
    rule(batch, "forward", &[to_vm(true), answers(), vec![verdict(ACCEPT)]]);
    rule(batch, "forward", &[to_vm(true), vec![verdict(DROP)]]);
    chain(batch, "output", "filter", 3, 0);
    for uid in [0, daemon_uid] {
        let peer = vec![meta(10, REG_2), compare(REG_2, EQUAL, &uid.to_ne_bytes()), verdict(ACCEPT)];
        rule(batch, "output", &[to_vm(true), peer]);
    }
    let owner = vec![meta(10, REG_2), lookup(OWNERS, REG_1, false), verdict(ACCEPT)];
    rule(batch, "output", &[to_vm(true), owner]);
    // True of every number; a packet that has none does not match.
    let anybody = vec![meta(10, REG_2), compare(REG_2, AT_LEAST, &[0; 4]), verdict(DROP)];
    rule(batch, "output", &[to_vm(true), anybody]);
    rule(batch, "output", &[to_vm(true), ct_has(CT_STATE, ESTABLISHED_RELATED), vec![verdict(ACCEPT)]]);
    rule(batch, "output", &[to_vm(true), vec![verdict(DROP)]]);
    masquerade(batch);
    bounds::neighbours(batch);
    let all: Vec<Element> = registrations.iter().flat_map(|registration| elements(Some(registration))).collect();
    put_elements(batch, Kind::NewElement, &all);
}

/// Source NAT is at 100. The first chain that speaks of a flow decides: a host that masquerades
/// everything would leave guests' ports as they are.
fn masquerade(batch: &mut Batch) {
    chain(batch, "masquerade", "nat", 4, 99);
    let (first, last) = MASQUERADED;
    let port = |register, port: u16| {
        let value = Attrs::new().bytes(1, &port.to_be_bytes());
        expression("immediate", &Attrs::new().u32(1, register).nest(2, &value))
    };
    let masq = expression("masq", &Attrs::new().u32(1, RANDOM_OF_RANGE).u32(2, REG_1).u32(3, REG_2));
    let leaving = vec![source(REG_1), lookup(NAT, REG_1, false), port(REG_1, first), port(REG_2, last), masq];
    rule(batch, "masquerade", &[to_vm(false), nfproto_ipv4(true), leaving]);
}

/// The end of `aim`: only what a guest may reach goes on.
fn reach(batch: &mut Batch) {
    rule(batch, "aim", &[from_vm(), peers(), vec![verdict(ACCEPT)]]);
    rule(batch, "aim", &[from_vm(), vec![source(REG_1), lookup(ANYWHERE, REG_1, false), verdict(ACCEPT)]]);
    let public = vec![source(REG_1), lookup(PUBLIC, REG_1, false), aimed_at(REG_1), lookup(RESERVED, REG_1, true)];
    rule(batch, "aim", &[from_vm(), public, vec![verdict(ACCEPT)]]);
    let [first, second, third, fourth] = WORDS;
    let to = [source(first), aimed_at(second)];
    rule(batch, "aim", &[from_vm(), [&to[..], &[lookup(RANGES, first, false), verdict(ACCEPT)]].concat()]);
    // The destination port of TCP and UDP alike, in the transport header (base 2).
    let port = expression("payload", &Attrs::new().u32(1, fourth).u32(2, 2).u32(3, 2).u32(4, 2));
    let at = [meta(L4PROTO, third), port, lookup(PORTS, first, false), verdict(ACCEPT)];
    rule(batch, "aim", &[from_vm(), [&to[..], &at].concat()]);
    rule(batch, "aim", &[from_vm(), vec![goto_refuse()]]);
}

/// The id, within a transaction, of a set whose elements rules make.
pub(super) fn own_set(number: u32) -> u32 {
    u32::try_from(SETS.len()).unwrap_or(0).saturating_add(1).saturating_add(number)
}

/// The chain that tells what it drops. It has no hook: rules of others go to it.
fn refuse(batch: &mut Batch) {
    let set = Attrs::new().text(1, TABLE).text(2, ASKED).u32(3, DYNAMIC).u32(4, NAT.key_type).u32(5, NAT.key_length());
    let size = Attrs::new().u32(1, ASKED_SIZE);
    batch.add(Kind::NewSet, &set.nest(9, &size).u32(10, own_set(0)).bytes(11, &ASKED_TIMEOUT.to_be_bytes()));
    batch.add(Kind::NewChain, &Attrs::new().text(1, TABLE).text(3, REFUSE));
    // Unit: a second.
    let (rate, burst) = TOLD;
    let limit = Attrs::new().bytes(1, &rate.to_be_bytes()).bytes(2, &1_u64.to_be_bytes()).u32(3, burst);
    // `NFT_DYNSET_OP_UPDATE`: an element stays as long as its guest goes on.
    let asked = Attrs::new().text(1, ASKED).u32(3, 1).u32(4, REG_1).nest(7, &expression("limit", &limit));
    let one = expression("immediate", &Attrs::new().u32(1, REG_1).nest(2, &Attrs::new().bytes(1, &[1])));
    let told = expression("meta", &Attrs::new().u32(2, NFTRACE).u32(3, REG_1));
    let tell = vec![source(REG_1), expression("dynset", &asked), one, told];
    rule(batch, REFUSE, &[ct_has(CT_STATE, NEW_UNTRACKED), tell]);
    rule(batch, REFUSE, &[vec![verdict(DROP)]]);
}

/// Source and destination are in one private network.
fn peers() -> Vec<Attrs> {
    let [first, second, ..] = WORDS;
    vec![source(first), aimed_at(second), lookup(PEERS, first, false)]
}

fn chain(batch: &mut Batch, name: &str, kind: &str, hook: u32, priority: i32) {
    chain_in(batch, INET, name, kind, hook, priority);
}

pub(super) fn chain_in(batch: &mut Batch, family: u8, name: &str, kind: &str, hook: u32, priority: i32) {
    let hook = Attrs::new().u32(1, hook).u32(2, priority.cast_unsigned());
    // Policy accept: packets that are not of a VM are none of our business.
    let attrs = Attrs::new().text(1, TABLE).text(3, name).nest(4, &hook).u32(5, 1).text(7, kind);
    batch.add_to(family, Kind::NewChain, &attrs);
}

fn rule(batch: &mut Batch, chain: &str, parts: &[Vec<Attrs>]) {
    rule_in(batch, INET, chain, parts);
}

pub(super) fn rule_in(batch: &mut Batch, family: u8, chain: &str, parts: &[Vec<Attrs>]) {
    let list = parts.iter().flatten().fold(Attrs::new(), |list, part| list.nest(1, part));
    batch.add_to(family, Kind::NewRule, &Attrs::new().text(1, TABLE).text(2, chain).nest(4, &list));
}
