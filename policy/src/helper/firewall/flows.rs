//! The order to the kernel's connection tracking to forget every flow of a guest
//! (linux/netfilter/nfnetlink_conntrack.h).
//!
//! A flow remembers the addresses of its first packet and those of the answers, which differ when
//! the host rewrites them. The guest's can be any of the four, so there are four messages, each a
//! deletion with a filter (Linux 6.11). They name no zone, so flows of every zone go.

use super::message::{Attrs, NLM_F_ACK, message};
use std::net::Ipv4Addr;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = (1 << 8) | 2;
const AF_INET: u8 = 2;
/// `CTA_FILTER`.
const FILTER: u16 = 25;
/// `CTA_TUPLE_IP`.
const TUPLE_IP: u16 = 1;
/// `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`; in a filter their flags have the same numbers.
const TUPLES: [u16; 2] = [1, 2];
/// `CTA_IP_V4_SRC` and `CTA_IP_V4_DST`; in a filter's flags they are the bits of the same value.
const ENDS: [u16; 2] = [1, 2];

/// The bytes to send, how many messages will be acknowledged, and the next free sequence number.
#[must_use]
pub fn end_flows(address: Ipv4Addr, first: u32) -> (Vec<u8>, u32, u32) {
    let (mut bytes, mut count) = (Vec::new(), 0_u32);
    for tuple in TUPLES {
        for end in ENDS {
            let wanted = Attrs::new().nest(TUPLE_IP, &Attrs::new().bytes(end, &address.octets()));
            // The kernel reads the flags in its own byte order.
            let compared = Attrs::new().bytes(tuple, &u32::from(end).to_ne_bytes());
            let attrs = Attrs::new().nest(tuple, &wanted).nest(FILTER, &compared);
            bytes.extend(message(DELETE, NLM_F_ACK, first.wrapping_add(count), AF_INET, 0, &attrs));
            count = count.saturating_add(1);
        }
    }
    (bytes, count, first.wrapping_add(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of the four places once. A message that compared nothing would end all flows of the
    /// host.
    #[test]
    fn each_place_is_compared_in_the_kernels_layout() {
        let (bytes, count, next) = end_flows(Ipv4Addr::new(172, 16, 0, 2), 9);
        assert_eq!((bytes.len(), count, next), (4 * 48, 4, 13));
        for (at, (tuple, end)) in [(1, 1), (1, 2), (2, 1), (2, 2)].into_iter().enumerate() {
            let sequence = u8::try_from(9 + at).unwrap_or(0);
            let expected = [
                &[48, 0, 0, 0, 2, 1, 5, 0, sequence, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0][..],
                &[16, 0, tuple, 0x80, 12, 0, 1, 0x80, 8, 0, end, 0, 172, 16, 0, 2],
                &[12, 0, 25, 0x80, 8, 0, tuple, 0, end, 0, 0, 0],
            ]
            .concat();
            assert_eq!(bytes[at * 48..(at + 1) * 48], expected, "{tuple} {end}");
        }
    }
}
