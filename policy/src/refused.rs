//! What the VMs' firewall refused a guest, as the kernel tells those who listen for traces of
//! nf_tables (linux/netfilter/nf_tables.h, `NFT_MSG_TRACE` and `enum nft_trace_attributes`).
//!
//! The kernel makes the messages, but the packet in them is a guest's: each length and each field
//! of its headers may be anything. Other programs trace other packets, which are none of ours.

use crate::helper::firewall::{REFUSE, TABLE};
use std::net::Ipv4Addr;

/// The kernel's group of traces (`NFNLGRP_NFTRACE`, 9), as a bit of a netlink address.
pub const GROUP: u32 = 1 << 8;

/// `struct nlmsghdr`, and with `struct nfgenmsg` after it.
const HEADER: usize = 16;
const BODY: usize = 4;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_TRACE`.
const TRACE: u16 = (10 << 8) | 17;
/// `NFPROTO_INET`, the family of the table.
const INET: u8 = 1;
/// `NFT_TRACETYPE_RULE`: a rule matched, as opposed to a policy or the end of a chain.
const RULE: u32 = 3;
/// The attributes that are read.
const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 2;
const TYPE: u16 = 4;
const NETWORK: u16 = 8;
const TRANSPORT: u16 = 9;
const LINK: u16 = 10;
/// An attribute's type without the bits for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;
/// Protocols that have the destination port in the third and fourth byte: TCP, UDP, DCCP, SCTP, UDP
/// lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// A packet that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number of the tap that it came from.
    pub link: u32,
    /// The guest.
    pub source: Ipv4Addr,
    /// Where it was to go.
    pub destination: Ipv4Addr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The port there, of protocols that have one.
    pub port: Option<u16>,
}

/// What is said of refusals in what was received at once. Of each packet there is one message with
/// its headers, that of the first rule that matched where it is dropped; what else is said counts
/// as nothing.
#[must_use]
pub fn read(mut datagram: &[u8]) -> Vec<Refusal> {
    let mut found = Vec::new();
    while let Some(size) = u32_at(datagram, 0).and_then(|size| usize::try_from(size).ok()) {
        let Some(message) = datagram.get(HEADER..size) else { break };
        if u16_at(datagram, 4) == Some(TRACE) {
            found.extend(refusal(message));
        }
        datagram = size.checked_next_multiple_of(4).and_then(|next| datagram.get(next..)).unwrap_or_default();
    }
    found
}

/// How a protocol is written: by its name, or else by its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        2 => "igmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn refusal(message: &[u8]) -> Option<Refusal> {
    let ours = message.first() == Some(&INET)
        && text_of(message, TABLE_NAME) == Some(TABLE.as_bytes())
        && text_of(message, CHAIN_NAME) == Some(REFUSE.as_bytes())
        && number_of(message, TYPE) == Some(RULE);
    let (header, link) = (attribute(message, NETWORK).filter(|_| ours)?, number_of(message, LINK)?);
    if *header.first()? & 0xf0 != 0x40 {
        return None;
    }
    let address = |at: usize| u32_be(header, at).map(Ipv4Addr::from_bits);
    let protocol = *header.get(9)?;
    // A fragment that is not the first begins in the midst of what the transport carries.
    let begins = u16_be(header, 6)? & 0x1fff == 0;
    let transport = attribute(message, TRANSPORT).filter(|_| begins && WITH_PORTS.contains(&protocol));
    let port = transport.and_then(|transport| u16_be(transport, 2));
    Some(Refusal { link, source: address(12)?, destination: address(16)?, protocol, port })
}

/// The value of the first attribute of this type.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(BODY..)?;
    loop {
        let size = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..size)?;
        if u16_at(rest, 2)? & TYPE_MASK == wanted {
            return Some(value);
        }
        rest = rest.get(size.checked_next_multiple_of(4)?..)?;
    }
}

/// A text without the zero at its end.
fn text_of(message: &[u8], wanted: u16) -> Option<&[u8]> {
    attribute(message, wanted)?.strip_suffix(&[0])
}

fn number_of(message: &[u8], wanted: u16) -> Option<u32> {
    u32_be(attribute(message, wanted)?, 0)
}

fn four(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn two(bytes: &[u8], at: usize) -> Option<[u8; 2]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    four(bytes, at).map(u32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    two(bytes, at).map(u16::from_ne_bytes)
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    four(bytes, at).map(u32::from_be_bytes)
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    two(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: [u8; 4] = [172, 16, 0, 2];
    const FAR: [u8; 4] = [192, 0, 2, 7];

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn whole(kind: u16, family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let body = [&[family, 0, 0, 0][..], &attributes.concat()].concat();
        let length = u32::try_from(HEADER + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body].concat()
    }

    /// The header of IPv4, 20 bytes and as many of options as fill it.
    fn network(protocol: u8, words: u8, fragment: u16) -> Vec<u8> {
        let mut header = vec![0; usize::from(words) * 4];
        header[0] = 0x40 | words;
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header[9] = protocol;
        header[12..16].copy_from_slice(&GUEST);
        header[16..20].copy_from_slice(&FAR);
        header
    }

    /// As the kernel writes it, in its order.
    fn parts(network: &[u8], transport: &[u8]) -> Vec<Vec<u8>> {
        vec![
            attr(15, &2_u32.to_be_bytes()),
            attr(TYPE, &RULE.to_be_bytes()),
            attr(6, &[1, 2, 3, 4]),
            attr(CHAIN_NAME, b"refuse\0"),
            attr(TABLE_NAME, b"banger\0"),
            attr(3, &[0, 0, 0, 0, 0, 0, 0, 9]),
            attr(5 | 0x8000, &attr(1, &u32::MAX.to_be_bytes())),
            attr(LINK, &7_u32.to_be_bytes()),
            attr(11, &[0, 1]),
            attr(NETWORK, network),
            attr(TRANSPORT, transport),
            attr(7, &[0; 14]),
        ]
    }

    fn message(network: &[u8], transport: &[u8]) -> Vec<u8> {
        whole(TRACE, INET, &parts(network, transport))
    }

    fn port(of: &[u8]) -> Vec<Option<u16>> {
        read(of).iter().map(|refusal| refusal.port).collect()
    }

    #[test]
    fn a_message_says_who_wanted_to_go_where() {
        let tcp = [0x9c, 0x40, 1, 187, 0, 0, 0, 0];
        let expected = Refusal { link: 7, source: GUEST.into(), destination: FAR.into(), protocol: 6, port: Some(443) };
        let one = message(&network(6, 5, 0), &tcp);
        assert_eq!(read(&one), [expected]);
        assert_eq!(read(&[one.clone(), one].concat()), [expected, expected]);
        assert_eq!(port(&message(&network(17, 5, 0), &[0, 9, 0, 53])), [Some(53)]);
        assert_eq!(port(&message(&network(17, 10, 0), &[0, 9, 0, 53])), [Some(53)], "with options");
        assert_eq!(port(&message(&network(1, 5, 0), &[8, 0, 1, 187])), [None], "ICMP has none");
        assert_eq!(port(&message(&network(17, 5, 0x2001), &[0, 9, 0, 53])), [None], "a later fragment");
        assert_eq!(port(&message(&network(17, 5, 0x2000), &[0, 9, 0, 53])), [Some(53)], "the first fragment");
        assert_eq!(port(&message(&network(17, 5, 0), &[0, 9, 0])), [None], "half a port");
        assert_eq!(port(&message(&network(253, 5, 0), &[])), [None]);
        assert_eq!([1, 2, 6, 17, 132, 253].map(protocol_name), ["icmp", "igmp", "tcp", "udp", "sctp", "253"]);
    }

    /// A datagram to 10.9.9.9, port 53: the message of the rule that marks, then that of the drop.
    #[test]
    fn what_linux_6_18_wrote_is_one_refusal() {
        let hex = "c0000000110a000000000000000000000100000008000f0000000002080004000000000308000600205f131d\
                   0b00020072656675736500000b00010062616e67657200000c00030000000000000000040c00050008000100\
                   ffffffff08000a000000000306000b00000100001800080045000020000100004011bba8ac1000020a090909\
                   100009000fa00035000c00006162636412000700a24a4b9de4ce060000000001080000000800150000000008\
                   0500130000000000080012007bc38298\
                   5c000000110a000000000000000000000100000008000f0000000002080004000000000308000600205f131d\
                   0b00020072656675736500000b00010062616e67657200000c00030000000000000000050c00050008000100\
                   00000000";
        let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|two| u8::try_from(two[0] << 4 | two[1]).unwrap()).collect();
        let destination = Ipv4Addr::new(10, 9, 9, 9);
        let expected = Refusal { link: 3, source: GUEST.into(), destination, protocol: 17, port: Some(53) };
        assert_eq!(read(&bytes), [expected]);
    }

    #[test]
    fn what_somebody_else_traces_is_none_of_ours() {
        let all = parts(&network(6, 5, 0), &[0; 8]);
        let with = |at: usize, part: Vec<u8>| {
            let mut all = all.clone();
            all[at] = part;
            read(&whole(TRACE, INET, &all)).len()
        };
        assert_eq!(with(4, attr(TABLE_NAME, b"banger\0")), 1, "control");
        assert_eq!(with(4, attr(TABLE_NAME, b"filter\0")), 0);
        assert_eq!(with(4, attr(TABLE_NAME, b"banger")), 0);
        assert_eq!(with(3, attr(CHAIN_NAME, b"guard\0")), 0, "another chain of ours, where it is spoofed");
        assert_eq!(with(1, attr(TYPE, &1_u32.to_be_bytes())), 0, "the policy of a chain");
        assert_eq!(with(9, attr(NETWORK, &[0x60; 40])), 0, "IPv6");
        assert_eq!(with(9, attr(NETWORK, &network(6, 5, 0)[..19])), 0, "a header that was cut");
        assert_eq!(with(9, attr(7, &[])), 0, "the second message of a packet has no headers");
        assert_eq!(with(7, attr(11, &[])), 0, "from nowhere");
        assert_eq!(read(&whole(TRACE, 2, &all)).len(), 0, "a table of the same name in another family");
        assert_eq!(read(&whole((10 << 8) | 15, INET, &all)).len(), 0, "another message of nf_tables");
    }

    #[test]
    fn half_a_message_says_nothing() {
        let one = message(&network(6, 5, 0), &[0; 8]);
        for cut in 0..one.len() {
            assert_eq!(read(&one[..cut]), [], "cut at {cut}");
        }
        // Lengths that lead nowhere must come to an end.
        for length in [0_u32, 1, 15, 16, u32::MAX - 2, u32::MAX] {
            let bytes = [&length.to_ne_bytes()[..], &one[4..]].concat();
            assert_eq!(read(&bytes), [], "{length}");
        }
        for length in [0_u16, 1, 3, u16::MAX] {
            let mut bytes = one.clone();
            bytes[HEADER + BODY..HEADER + BODY + 2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(read(&bytes), [], "{length}");
        }
    }

    proptest! {
        /// Whatever is changed, nothing panics, and what is read was never more than was said.
        #[test]
        fn any_message_is_read_without_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
            words in 5_u8..=10,
            transport in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            let one = message(&network(6, words, 0), &transport);
            let mut bytes = [one.clone(), one].concat();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            prop_assert!(read(&bytes).len() <= 2);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(read(&bytes));
        }
    }
}
