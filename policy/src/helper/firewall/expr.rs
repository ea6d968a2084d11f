//! What rules are made of: expressions of nf_tables, each as its attributes
//! (linux/netfilter/nf_tables.h). `table` and `bounds` put them together.

use super::Set;
use super::message::Attrs;
use super::table::REFUSE;
use crate::id::DEVICE_PREFIX;

/// Registers: the first holds 16 bytes (an interface name), the next one directly follows it.
pub(super) const REG_1: u32 = 1;
pub(super) const REG_2: u32 = 2;
/// The same place as words of four bytes, for keys of several fields.
pub(super) const WORDS: [u32; 4] = [8, 9, 10, 11];
/// How `cmp` compares (`enum nft_cmp_ops`).
pub(super) const EQUAL: u32 = 0;
pub(super) const NOT_EQUAL: u32 = 1;
pub(super) const AT_LEAST: u32 = 5;
/// What `ct` loads (`enum nft_ct_keys`).
pub(super) const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
pub(super) const CT_STATUS: u32 = 2;
/// Bits of a state.
pub(super) const ESTABLISHED_RELATED: u32 = 2 | 4;
/// Connection tracking has nothing of it.
pub(super) const INVALID: u32 = 1;
/// What `fib` loads, and of which address.
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;
/// `NF_DROP` and `NF_ACCEPT`; a drop is final, an accept is not.
pub(super) const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;
/// `NFT_GOTO`, which is -4.
const GOTO: u32 = 0xffff_fffc;

pub(super) fn expression(name: &str, data: &Attrs) -> Attrs {
    Attrs::new().text(1, name).nest(2, data)
}

pub(super) fn meta(key: u32, register: u32) -> Attrs {
    expression("meta", &Attrs::new().u32(1, register).u32(2, key))
}

pub(super) fn compare(register: u32, how: u32, value: &[u8]) -> Attrs {
    let data = Attrs::new().bytes(1, value);
    expression("cmp", &Attrs::new().u32(1, register).u32(2, how).nest(3, &data))
}

/// `iifname "bgr-*"`: the name's first bytes; the register keeps the whole name for a lookup.
pub(super) fn from_vm() -> Vec<Attrs> {
    vec![meta(6, REG_1), compare(REG_1, EQUAL, DEVICE_PREFIX.as_bytes())]
}

pub(super) fn to_vm(is: bool) -> Vec<Attrs> {
    vec![meta(7, REG_1), compare(REG_1, equal(is), DEVICE_PREFIX.as_bytes())]
}

fn equal(is: bool) -> u32 {
    if is { EQUAL } else { NOT_EQUAL }
}

pub(super) fn nfproto_ipv4(is: bool) -> Vec<Attrs> {
    vec![meta(15, REG_2), compare(REG_2, equal(is), &[2])]
}

/// The IPv4 source address; only after the packet is known to be IPv4.
pub(super) fn source(register: u32) -> Attrs {
    payload(register, 12, 4)
}

pub(super) fn aimed_at(register: u32) -> Attrs {
    payload(register, 16, 4)
}

pub(super) fn destination(prefix: &[u8]) -> Vec<Attrs> {
    let length = u32::try_from(prefix.len()).unwrap_or(4);
    vec![payload(REG_2, 16, length), compare(REG_2, EQUAL, prefix)]
}

/// From the network header (base 1).
pub(super) fn payload(register: u32, offset: u32, length: u32) -> Attrs {
    expression("payload", &Attrs::new().u32(1, register).u32(2, 1).u32(3, offset).u32(4, length))
}

/// `fib daddr type`: the host's own addresses, or else broadcast and multicast.
pub(super) fn destination_type(how: u32, kind: u32) -> Vec<Attrs> {
    let loaded = expression("fib", &Attrs::new().u32(1, REG_2).u32(2, FIB_ADDRTYPE).u32(3, FIB_DADDR));
    vec![loaded, compare(REG_2, how, &kind.to_ne_bytes())]
}

/// `ct direction reply ct state established,related`.
pub(super) fn answers() -> Vec<Attrs> {
    let reply = vec![ct(CT_DIRECTION), compare(REG_2, EQUAL, &[1])];
    [reply, ct_has(CT_STATE, ESTABLISHED_RELATED)].concat()
}

fn ct(key: u32) -> Attrs {
    expression("ct", &Attrs::new().u32(1, REG_2).u32(2, key))
}

pub(super) fn ct_has(key: u32, bits: u32) -> Vec<Attrs> {
    [vec![ct(key)], has(&bits.to_ne_bytes())].concat()
}

/// None of these bits.
pub(super) fn ct_lacks(key: u32, bits: u32) -> Vec<Attrs> {
    vec![ct(key), only(&bits.to_ne_bytes()), compare(REG_2, EQUAL, &[0; 4])]
}

/// One of these bits of the second register is set.
pub(super) fn has(bits: &[u8]) -> Vec<Attrs> {
    vec![only(bits), compare(REG_2, NOT_EQUAL, &vec![0; bits.len()])]
}

/// Leaves only these bits of the second register.
fn only(bits: &[u8]) -> Attrs {
    let length = u32::try_from(bits.len()).unwrap_or(0);
    let (wanted, none) = (Attrs::new().bytes(1, bits), Attrs::new().bytes(1, &vec![0; bits.len()]));
    let masked = Attrs::new().u32(1, REG_2).u32(2, REG_2).u32(3, length).nest(4, &wanted).nest(5, &none);
    expression("bitwise", &masked)
}

pub(super) fn lookup(set: Set, register: u32, inverted: bool) -> Attrs {
    expression("lookup", &Attrs::new().text(1, set.name).u32(2, register).u32(5, u32::from(inverted)))
}

pub(super) fn verdict(code: u32) -> Attrs {
    verdict_of(&Attrs::new().u32(1, code))
}

pub(super) fn goto_refuse() -> Attrs {
    verdict_of(&Attrs::new().u32(1, GOTO).text(2, REFUSE))
}

fn verdict_of(verdict: &Attrs) -> Attrs {
    expression("immediate", &Attrs::new().u32(1, 0).nest(2, &Attrs::new().nest(2, verdict)))
}
