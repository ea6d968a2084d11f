//! Messages without a server: hostile ones above all.

use super::super::message::{About, Heard, LONGEST, Verdict, read};
use super::{question, said};
use proptest::prelude::*;
use simple_dns::rdata::{OPT, TYPE};
use simple_dns::{Packet, PacketFlag, RCODE};
use std::net::Ipv4Addr;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

/// As the server does it, with a name for everything.
fn answer(bytes: &[u8], datagram: bool) -> Option<Vec<u8>> {
    match read(bytes, datagram) {
        Heard::Nothing => None,
        Heard::Reply(reply) => Some(reply),
        Heard::Query(query) => {
            let verdict = match query.about() {
                Ok(About::Name(_)) => Verdict::Address(ADDRESS),
                Ok(About::Address(_)) => Verdict::Name("web.alice.vm".into()),
                Err(verdict) => verdict,
            };
            query.reply(&verdict)
        }
    }
}

fn code(bytes: &[u8]) -> Option<RCODE> {
    Some(said(&answer(bytes, true)?).0)
}

#[test]
fn what_is_no_query_gets_no_answer_or_an_error() {
    let good = question("web.alice.vm", TYPE::A);
    assert_eq!(code(&good), Some(RCODE::NoError));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    // An answer: two servers would answer each other for ever.
    assert_eq!(answer(&with(2, 0x81), true), None);
    for length in 0..12 {
        assert_eq!(answer(&good[..length], true), None, "{length}");
    }
    for length in 12..good.len() {
        assert_eq!(code(&good[..length]), Some(RCODE::FormatError), "{length}");
    }
    // Notify; two questions; an answer and a name server in a query; two additional records.
    assert_eq!(code(&with(2, 0x20)), Some(RCODE::NotImplemented));
    for (at, count) in [(5, 0), (5, 2), (7, 1), (9, 1), (11, 2), (4, 255)] {
        assert_eq!(code(&with(at, count)), Some(RCODE::FormatError), "{at}");
    }
    // A type that nobody knows, and another class (the last byte).
    assert_eq!(code(&with(good.len() - 3, 222)), Some(RCODE::NotImplemented));
    assert_eq!(code(&with(good.len() - 1, 3)), Some(RCODE::Refused));
    assert_eq!(code(&[good.clone(), vec![0; LONGEST]].concat()), Some(RCODE::FormatError));
}

#[test]
fn a_name_of_pointers_is_no_way_to_a_long_answer() {
    let header = |rest: &[u8]| [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], rest, &[0, 1, 0, 1]].concat();
    for name in [
        // At itself, at the one before, forward.
        vec![0xc0, 12],
        vec![1, b'a', 0xc0, 12],
        vec![0xc0, 200],
        vec![63; 64],
        // The same label again and again.
        vec![30; 31].into_iter().chain([0xc0, 12]).collect(),
    ] {
        let query = header(&name);
        let reply = answer(&query, true).unwrap();
        assert!(reply.len() <= query.len() + 16, "{name:?}: {} for {}", reply.len(), query.len());
        assert_eq!(said(&reply), (RCODE::FormatError, vec![]), "{name:?}");
    }
}

#[test]
fn a_client_with_edns_is_answered_with_edns() {
    let query = |version| {
        let plain = question("web.alice.vm", TYPE::A);
        let mut packet = Packet::parse(&plain).unwrap();
        *packet.opt_mut() = Some(OPT { opt_codes: vec![], udp_packet_size: 4096, version });
        packet.build_bytes_vec().unwrap()
    };
    let reply = answer(&query(0), true).unwrap();
    let packet = Packet::parse(&reply).unwrap();
    assert_eq!(packet.opt().map(|opt| (usize::from(opt.udp_packet_size), opt.version)), Some((LONGEST, 0)));
    assert_eq!(said(&reply).1, [ADDRESS.to_string()]);
    assert_eq!(code(&query(1)), Some(RCODE::BADVERS));
}

#[test]
fn an_answer_says_what_it_is() {
    let query = question("Web.alice.VM", TYPE::A);
    let reply = answer(&query, true).unwrap();
    let packet = Packet::parse(&reply).unwrap();
    assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_DESIRED));
    assert!(!packet.has_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::TRUNCATION));
    assert_eq!((packet.id(), packet.answers.len(), packet.answers[0].ttl), (7, 1, 0));
    // As it was asked, letter for letter: some clients compare that.
    assert_eq!(packet.questions[0].qname.to_string(), "Web.alice.VM");
    assert_eq!(&reply[12..query.len()], &query[12..]);
    let pointer = question("2.0.16.172.in-addr.arpa", TYPE::PTR);
    assert_eq!(said(&answer(&pointer, true).unwrap()).1, ["web.alice.vm"]);
    for odd in
        ["02.0.16.172.in-addr.arpa", "2.0.16.in-addr.arpa", "256.0.16.172.in-addr.arpa", "1.2.0.16.172.in-addr.arpa"]
    {
        assert_eq!(code(&question(odd, TYPE::PTR)), Some(RCODE::Refused), "{odd}");
    }
}

proptest! {
    #[test]
    fn no_message_is_too_much(
        bytes in prop::collection::vec(any::<u8>(), 0..1400),
        head in prop::sample::select(vec![&[][..], &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]]),
        datagram in any::<bool>(),
    ) {
        let query = [head, &bytes].concat();
        if let Some(reply) = answer(&query, datagram) {
            // A header, EDNS, and one record beside the question.
            prop_assert!(reply.len() <= query.len() + 12 + 11 + 26);
            prop_assert!(reply.len() <= LONGEST);
            prop_assert!(Packet::parse(&reply).is_ok(), "{:?}", reply);
        }
    }
}
