//! What the host keeps in tables that all of the machine share, and how much of it guests may fill:
//! its neighbours, its flows, the fragments that wait for their rest. What passes is judged packet
//! by packet elsewhere; here it is what stays.
//!
//! Flows and fragments are counted by user, however many guests that user has: the group of a tap
//! (`ip link`) is the owner's uid.

use super::LIVE;
use super::message::{ARP, Attrs, Batch, Kind};
use super::table::{
    CT_STATE, DROP, DYNAMIC, REG_1, REG_2, TABLE, chain_in, ct_has, expression, from_vm, has, lookup, meta, own_set,
    payload, rule_in, verdict,
};
use crate::limits::FLOWS_OF_USER;

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
/// `NFT_SET_EVAL`: rules make its elements, which go when they count nothing any more.
const COUNTING: u32 = 0x20;
const NEW: u32 = 8;
/// More fragments follow, or some came before (RFC 791, 3.1): not the bit that forbids them.
const FRAGMENT: [u8; 2] = [0x3f, 0xff];
/// `NFT_CONNLIMIT_F_INV` and `NFT_LIMIT_F_INV`: true of what is over the limit.
const OVER: u32 = 1;
/// `NFT_DYNSET_OP_ADD` and `NFT_DYNSET_OP_UPDATE`.
const ADD: u32 = 0;
const UPDATE: u32 = 1;

/// The sets in which users are counted.
pub(super) fn sets(batch: &mut Batch) {
    let set = |name, number, flags| {
        let size = Attrs::new().u32(1, MOST_USERS);
        let attrs = Attrs::new().text(1, TABLE).text(2, name).u32(3, flags).u32(4, DEVGROUP).u32(5, 4);
        attrs.nest(9, &size).u32(10, own_set(number))
    };
    batch.add(Kind::NewSet, &set(FLOWS_SET, 1, COUNTING));
    batch.add(Kind::NewSet, &set(FRAGMENTS_SET, 2, DYNAMIC).bytes(11, &REMEMBERED.to_be_bytes()));
}

/// Drops what would be a flow too many of the user's.
pub(super) fn too_many_flows() -> Vec<Attrs> {
    let count = expression("connlimit", &Attrs::new().u32(1, FLOWS_OF_USER).u32(2, OVER));
    [ct_has(CT_STATE, NEW), over(FLOWS_SET, ADD, &count)].concat()
}

/// Drops fragments beyond the user's limit.
pub(super) fn too_many_fragments() -> Vec<Attrs> {
    let (rate, burst) = FRAGMENTS;
    let limit = Attrs::new().bytes(1, &rate.to_be_bytes()).bytes(2, &1_u64.to_be_bytes()).u32(3, burst).u32(5, OVER);
    let fragment = [vec![payload(REG_2, 6, 2)], has(&FRAGMENT)].concat();
    [fragment, over(FRAGMENTS_SET, UPDATE, &expression("limit", &limit))].concat()
}

/// Counts it for the guest's owner; a drop of what is over.
fn over(set: &str, operation: u32, limit: &Attrs) -> Vec<Attrs> {
    let counted = Attrs::new().text(1, set).u32(3, operation).u32(4, REG_1).nest(7, limit);
    vec![meta(IIFGROUP, REG_1), expression("dynset", &counted), verdict(DROP)]
}

/// The table of ARP. The kernel makes a neighbour of whoever asks for the host's address, for a
/// thousand of them in all (`gc_thresh3`): a guest asks in its own name alone.
pub(super) fn neighbours(batch: &mut Batch) {
    chain_in(batch, ARP, "input", "filter", 0, 0);
    // The sender's address of ARP over Ethernet (RFC 826); the kernel has looked at the lengths.
    let sender = vec![payload(REG_2, 14, 4), lookup(LIVE, REG_1, true), verdict(DROP)];
    rule_in(batch, ARP, "input", &[from_vm(), sender]);
}
