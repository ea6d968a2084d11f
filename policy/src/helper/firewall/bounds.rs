//! What the host keeps in tables that all of the machine share, and how much of it guests may fill:
//! its neighbours, its flows, the fragments that wait for their rest. What passes is judged packet
//! by packet elsewhere; here it is what stays.
//!
//! Flows and fragments are counted by user, however many guests that user has: the group of a tap
//! (`ip link`) is the owner's uid. The kernel's count of flows leaves out those that are closed,
//! although they stay in its table for two minutes. So there is a rate of new ones beside the
//! count, and closed ones stay for seconds.

use super::expr::{
    CT_STATE, CT_STATUS, DROP, REG_1, REG_2, WORDS, aimed_at, ct_has, ct_lacks, expression, from_vm, has, lookup, meta,
    payload, verdict,
};
use super::message::{ARP, Attrs, Batch, Kind};
use super::table::{DYNAMIC, TABLE, chain_in, own_set, rule_in};
use super::{LIVE, NAT};
use crate::limits::{CLOSED_FLOW_SECONDS, FLOWS_OF_USER, FLOWS_TO_ONE, NEW_FLOWS_OF_USER};

/// Fragments that the guests of one user may send each second, and at once. The kernel keeps
/// fragments of 4 MiB (`ipfrag_high_thresh`), each for half a minute, and a page or less for one:
/// eight users would fill that.
const FRAGMENTS: (u64, u32) = (8, 32);
/// How long a user is remembered who sends fragments, milliseconds.
const REMEMBERED: u64 = 60_000;
/// Of users, in one of these sets.
const MOST_USERS: u32 = 65_535;
/// nft's number of a type, for listings, and what `meta` loads (`NFT_META_IIFGROUP`).
const DEVGROUP: u32 = 35;
const IIFGROUP: u32 = 21;
const FLOWS_SET: &str = "flows";
const FRAGMENTS_SET: &str = "fragments";
const BEGUN_SET: &str = "begun";
const TOWARDS_SET: &str = "towards";
/// nft's number of a user and an address, for listings.
const DEVGROUP_AND_IPV4: u32 = (DEVGROUP << 6) | NAT.key_type;
/// `NFT_SET_EVAL`: rules make its elements, which go when they count nothing any more.
const COUNTING: u32 = 0x20;
const NEW: u32 = 8;
/// `IPS_CONFIRMED`: an earlier packet of the flow has passed.
const CONFIRMED: u32 = 1 << 3;
/// The timeouts of a flow that is closed, which nf_conncount no longer counts (`already_closed` in
/// net/netfilter/nf_conncount.c): `CTA_TIMEOUT_TCP_TIME_WAIT` and `CTA_TIMEOUT_TCP_CLOSE`.
const CLOSED: [u16; 2] = [7, 8];
/// The object with these timeouts, and its type (`NFT_OBJECT_CT_TIMEOUT`).
const TIMEOUTS: &str = "closed";
const CT_TIMEOUT: u32 = 7;
const AF_INET: u16 = 2;
const TCP: u8 = 6;
/// More fragments follow, or some came before (RFC 791, 3.1): not the bit that forbids them.
const FRAGMENT: [u8; 2] = [0x3f, 0xff];
/// `NFT_CONNLIMIT_F_INV` and `NFT_LIMIT_F_INV`: true of what is over the limit.
const OVER: u32 = 1;
/// `NFT_DYNSET_OP_ADD` and `NFT_DYNSET_OP_UPDATE`.
const ADD: u32 = 0;
const UPDATE: u32 = 1;

/// The sets in which users are counted, and the timeouts of their closed flows.
pub(super) fn sets(batch: &mut Batch) {
    let set = |name, number, flags, key_type, length| {
        let size = Attrs::new().u32(1, MOST_USERS);
        let attrs = Attrs::new().text(1, TABLE).text(2, name).u32(3, flags).u32(4, key_type).u32(5, length);
        attrs.nest(9, &size).u32(10, own_set(number))
    };
    let remembered = REMEMBERED.to_be_bytes();
    batch.add(Kind::NewSet, &set(FLOWS_SET, 1, COUNTING, DEVGROUP, 4));
    batch.add(Kind::NewSet, &set(TOWARDS_SET, 2, COUNTING, DEVGROUP_AND_IPV4, 8));
    batch.add(Kind::NewSet, &set(BEGUN_SET, 3, DYNAMIC, DEVGROUP, 4).bytes(11, &remembered));
    batch.add(Kind::NewSet, &set(FRAGMENTS_SET, 4, DYNAMIC, DEVGROUP, 4).bytes(11, &remembered));
    let timeouts = CLOSED.into_iter().fold(Attrs::new(), |list, state| list.u32(state, CLOSED_FLOW_SECONDS));
    let timeouts = Attrs::new().bytes(1, &AF_INET.to_be_bytes()).bytes(2, &[TCP]).nest(3, &timeouts);
    batch.add(Kind::NewObject, &Attrs::new().text(1, TABLE).text(2, TIMEOUTS).u32(3, CT_TIMEOUT).nest(4, &timeouts));
}

/// Drops the first packet of a flow when the user begins too many in a second. What follows before
/// the other side answers is new to connection tracking as well, and is not counted.
pub(super) fn too_many_at_once() -> Vec<Attrs> {
    [ct_has(CT_STATE, NEW), ct_lacks(CT_STATUS, CONFIRMED), over(BEGUN_SET, UPDATE, &limit(NEW_FLOWS_OF_USER))].concat()
}

/// Drops what would be a flow too many of the user's.
pub(super) fn too_many_flows() -> Vec<Attrs> {
    [ct_has(CT_STATE, NEW), ct_lacks(CT_STATUS, CONFIRMED), over(FLOWS_SET, ADD, &count(FLOWS_OF_USER))].concat()
}

/// Drops what would be a flow too many of the user's to one address: each takes one of the host's
/// ports for guests, of which there are as many as `MASQUERADED` has for each service.
pub(super) fn too_many_to_one() -> Vec<Attrs> {
    let [first, second, ..] = WORDS;
    let key = vec![meta(IIFGROUP, first), aimed_at(second)];
    let first_packet = [ct_has(CT_STATE, NEW), ct_lacks(CT_STATUS, CONFIRMED)].concat();
    [first_packet, key, counted(TOWARDS_SET, ADD, first, &count(FLOWS_TO_ONE))].concat()
}

/// A flow that closes is soon forgotten. It must not be known yet: it is given its timeouts by its
/// first packet.
pub(super) fn forgets_closed() -> Vec<Attrs> {
    vec![expression("objref", &Attrs::new().u32(1, CT_TIMEOUT).text(2, TIMEOUTS))]
}

/// Drops fragments beyond the user's limit.
pub(super) fn too_many_fragments() -> Vec<Attrs> {
    let fragment = [vec![payload(REG_2, 6, 2)], has(&FRAGMENT)].concat();
    [fragment, over(FRAGMENTS_SET, UPDATE, &limit(FRAGMENTS))].concat()
}

fn count(most: u32) -> Attrs {
    expression("connlimit", &Attrs::new().u32(1, most).u32(2, OVER))
}

/// So many each second, and at once.
fn limit((rate, burst): (u64, u32)) -> Attrs {
    let limit = Attrs::new().bytes(1, &rate.to_be_bytes()).bytes(2, &1_u64.to_be_bytes()).u32(3, burst).u32(5, OVER);
    expression("limit", &limit)
}

/// Counts it for the guest's owner; a drop of what is over.
fn over(set: &str, operation: u32, limit: &Attrs) -> Vec<Attrs> {
    [vec![meta(IIFGROUP, REG_1)], counted(set, operation, REG_1, limit)].concat()
}

fn counted(set: &str, operation: u32, key: u32, limit: &Attrs) -> Vec<Attrs> {
    let counted = Attrs::new().text(1, set).u32(3, operation).u32(4, key).nest(7, limit);
    vec![expression("dynset", &counted), verdict(DROP)]
}

/// The table of ARP. The kernel makes a neighbour of whoever asks for the host's address, for a
/// thousand of them in all (`gc_thresh3`): a guest asks in its own name alone.
pub(super) fn neighbours(batch: &mut Batch) {
    chain_in(batch, ARP, "input", "filter", 0, 0);
    // The sender's address of ARP over Ethernet (RFC 826); the kernel has looked at the lengths.
    let sender = vec![payload(REG_2, 14, 4), lookup(LIVE, REG_1, true), verdict(DROP)];
    rule_in(batch, ARP, "input", &[from_vm(), sender]);
}
