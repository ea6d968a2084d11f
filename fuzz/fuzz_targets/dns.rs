//! Messages of DNS as any process of the host sends them: no answer to what is no query, none that
//! is much larger than the question, and each answer is a message.
#![no_main]

use banger_policy::dns::Named;
use message::{About, Heard, LONGEST, Verdict};
use simple_dns::{Packet, PacketFlag};
use std::net::Ipv4Addr;

/// The daemon's own source: the daemon as a whole would have to be built for fuzzing.
#[path = "../../bangerd/src/dns/message.rs"]
#[allow(unreachable_pub, reason = "a part of another crate")]
mod message;

fn answer(bytes: &[u8], datagram: bool) -> Option<Vec<u8>> {
    match message::read(bytes, datagram) {
        Heard::Nothing => None,
        Heard::Reply(reply) => Some(reply),
        Heard::Query(query) => {
            let verdict = match query.about() {
                Ok(About::Name(Named::Outside)) => panic!("not ours"),
                Ok(About::Name(_)) => Verdict::Address(Ipv4Addr::LOCALHOST),
                Ok(About::Address(_)) => Verdict::Name("web.alice.vm".into()),
                Err(verdict) => verdict,
            };
            query.reply(&verdict)
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for datagram in [true, false] {
        let Some(reply) = answer(bytes, datagram) else { continue };
        assert!(bytes.len() >= 12 && bytes[2] & 0x80 == 0, "an answer to an answer");
        assert!(reply.len() <= LONGEST && reply.len() <= bytes.len() + 49);
        let reply = Packet::parse(&reply).expect("an answer is a message");
        assert_eq!(reply.id().to_be_bytes(), bytes[..2]);
        assert!(reply.has_flags(PacketFlag::RESPONSE) && reply.answers.len() <= 1);
    }
});
