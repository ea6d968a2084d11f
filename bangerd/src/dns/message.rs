//! One message of DNS (RFC 1035): what it asks, and the bytes that answer it. Pure: no socket, no
//! database. The fuzz target `dns` reads this file.
//!
//! Nothing here is recursive, and no answer is much larger than its question: a question whose name
//! is written with pointers gets an error without it.

use banger_policy::dns::Named;
use simple_dns::rdata::{A, OPT, PTR, RData, TYPE};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, header_buffer};
use std::net::Ipv4Addr;

/// The longest message that is read, and the longest answer: what crosses every network in one
/// piece (DNS flag day 2020). Answers over UDP end at [`PLAIN`] without EDNS.
pub(crate) const LONGEST: usize = 1232;
/// The longest answer over UDP to a client that speaks no EDNS (RFC 1035, 4.2.1).
const PLAIN: usize = 512;
/// The shortest message: a header.
const HEADER: usize = 12;
/// Type and class of a question.
const QUESTION: usize = 4;
/// Nobody keeps an answer: a VM may be gone in the next second, and its address another VM's.
const TTL: u32 = 0;

/// What a message wants.
#[derive(Debug)]
pub(crate) enum Heard<'a> {
    /// It is no query. Whoever answers such a message talks to another server for ever.
    Nothing,
    /// The answer is known already.
    Reply(Vec<u8>),
    /// What must be looked up.
    Query(Query<'a>),
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// A name.
    Name(Named),
    /// The name of an address.
    Address(Ipv4Addr),
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The name is there, and this is its address.
    Address(Ipv4Addr),
    /// The address has this name.
    Name(String),
    /// The name is there, without anything of the kind that was asked for.
    Nothing,
    /// There is no such name.
    NoSuchName,
    /// Not ours to answer.
    Refused,
    /// It could not be found out.
    Failed,
}

/// A question that is worth an answer.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    asked: Packet<'a>,
    /// The longest answer that the client takes.
    limit: usize,
}

/// Reads a message; `datagram`: it came over UDP.
pub(crate) fn read(bytes: &[u8], datagram: bool) -> Heard<'_> {
    let is_reply = header_buffer::has_flags(bytes, PacketFlag::RESPONSE).unwrap_or(true);
    let (Ok(id), false) = (header_buffer::id(bytes), is_reply || bytes.len() < HEADER) else { return Heard::Nothing };
    // What a query has: a question, and perhaps EDNS.
    let counts = [header_buffer::questions, header_buffer::answers, header_buffer::name_servers];
    let plain = counts.map(|count| count(bytes).ok()) == [Some(1), Some(0), Some(0)]
        && header_buffer::additional_records(bytes).is_ok_and(|more| more <= 1);
    if !matches!(header_buffer::opcode(bytes), Ok(OPCODE::StandardQuery)) {
        return short(id, RCODE::NotImplemented);
    }
    if !plain || bytes.len() > LONGEST {
        return short(id, RCODE::FormatError);
    }
    let asked = match Packet::parse(bytes) {
        Ok(asked) => asked,
        Err(simple_dns::SimpleDnsError::InvalidQType(_)) => return short(id, RCODE::NotImplemented),
        Err(_) => return short(id, RCODE::FormatError),
    };
    let name = asked.questions.first().map_or(usize::MAX, |question| length(&question.qname));
    if name.saturating_add(HEADER + QUESTION) > bytes.len() || !asked.additional_records.is_empty() {
        return short(id, RCODE::FormatError);
    }
    let edns = asked.opt().map(|opt| usize::from(opt.udp_packet_size).clamp(PLAIN, LONGEST));
    let limit = if datagram { edns.unwrap_or(PLAIN) } else { LONGEST };
    let bad_version = asked.opt().is_some_and(|opt| opt.version != 0);
    let query = Query { asked, limit };
    if bad_version { query.error(RCODE::BADVERS) } else { Heard::Query(query) }
}

/// An answer without the question: a header.
fn short(id: u16, code: RCODE) -> Heard<'static> {
    let mut reply = Packet::new_reply(id);
    *reply.rcode_mut() = code;
    reply.build_bytes_vec().map_or(Heard::Nothing, Heard::Reply)
}

/// What a name takes when it is written out.
fn length(name: &Name<'_>) -> usize {
    name.get_labels().iter().map(|label| label.as_ref().len() + 1).sum::<usize>() + 1
}

impl Query<'_> {
    fn error(&self, code: RCODE) -> Heard<'static> {
        self.build(code, None).map_or(Heard::Nothing, Heard::Reply)
    }

    /// What it asks for; `Err`: the answer needs no look.
    pub(crate) fn about(&self) -> Result<About, Verdict> {
        let question = self.asked.questions.first().ok_or(Verdict::Refused)?;
        if !matches!(question.qclass, QCLASS::CLASS(CLASS::IN)) {
            return Err(Verdict::Refused);
        }
        let labels = question.qname.get_labels();
        match Named::of(labels.iter().map(AsRef::as_ref)) {
            Named::Outside => reverse(&question.qname).map(About::Address).ok_or(Verdict::Refused),
            named => Ok(About::Name(named)),
        }
    }

    /// Whether an address of a name is what it wants. Everything else of a name is nothing, IPv6
    /// included: guests have none.
    pub(crate) fn wants(&self, kind: TYPE) -> bool {
        self.asked
            .questions
            .first()
            .is_some_and(|question| question.qtype == QTYPE::TYPE(kind) || question.qtype == QTYPE::ANY)
    }

    /// The bytes of the answer; none when it cannot be written, which only a bug could bring about.
    pub(crate) fn reply(&self, verdict: &Verdict) -> Option<Vec<u8>> {
        let (code, data) = match verdict {
            Verdict::Address(address) if self.wants(TYPE::A) => (RCODE::NoError, Some(RData::A(A::from(*address)))),
            Verdict::Name(name) if self.wants(TYPE::PTR) => {
                (RCODE::NoError, Name::new(name).ok().map(|name| RData::PTR(PTR(name))))
            }
            Verdict::Address(_) | Verdict::Name(_) | Verdict::Nothing => (RCODE::NoError, None),
            Verdict::NoSuchName => (RCODE::NameError, None),
            Verdict::Refused => (RCODE::Refused, None),
            Verdict::Failed => (RCODE::ServerFailure, None),
        };
        let whole = self.build(code, data)?;
        if whole.len() <= self.limit { Some(whole) } else { self.truncated(code) }
    }

    fn build<'b>(&'b self, code: RCODE, data: Option<RData<'b>>) -> Option<Vec<u8>> {
        let question = self.asked.questions.first()?;
        let mut reply = self.header(code);
        reply.questions.push(question.clone());
        if let Some(data) = data {
            reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
        }
        reply.build_bytes_vec_compressed().ok()
    }

    /// "Ask again over TCP", whatever the answer is.
    pub(crate) fn over_tcp(&self) -> Option<Vec<u8>> {
        self.truncated(RCODE::NoError)
    }

    fn truncated(&self, code: RCODE) -> Option<Vec<u8>> {
        let mut reply = self.header(code);
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec().ok()
    }

    fn header(&self, code: RCODE) -> Packet<'static> {
        let mut reply = Packet::new_reply(self.asked.id());
        *reply.rcode_mut() = code;
        if matches!(code, RCODE::NoError | RCODE::NameError) {
            reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        }
        // Said back as it came; that nothing is asked for the client says the flag that is not set.
        if self.asked.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        if self.asked.opt().is_some() {
            let udp_packet_size = u16::try_from(LONGEST).unwrap_or(u16::MAX);
            *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
        }
        reply
    }
}

/// The address of `d.c.b.a.in-addr.arpa` (RFC 1035, 3.5).
fn reverse(name: &Name<'_>) -> Option<Ipv4Addr> {
    let labels: Vec<&[u8]> = name.get_labels().iter().map(AsRef::as_ref).collect();
    let [d, c, b, a, zone @ ..] = labels.as_slice() else { return None };
    let [arpa, top] = zone else { return None };
    let number = |label: &[u8]| {
        let text = std::str::from_utf8(label).ok()?;
        let number: u8 = text.parse().ok()?;
        (number.to_string() == text).then_some(number)
    };
    let ours = arpa.eq_ignore_ascii_case(b"in-addr") && top.eq_ignore_ascii_case(b"arpa");
    ours.then_some(Ipv4Addr::new(number(a)?, number(b)?, number(c)?, number(d)?))
}
