//! Netfilter's messages as bytes (linux/netfilter/nfnetlink.h, nf_tables.h): attributes, one batch,
//! and what the kernel answers. The helper sends and receives them.

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
/// The error for an answer that cannot be read.
const EPROTO: i32 = 71;

/// The messages used (`enum nf_tables_msg_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElement = 12,
    DelElement = 14,
    NewObject = 18,
}

/// The families used (linux/netfilter.h): what routes IPv4 and IPv6, and what answers ARP.
pub(super) const INET: u8 = 1;
pub(super) const ARP: u8 = 3;

/// Netlink attributes, each padded to four bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Attrs(Vec<u8>);

impl Attrs {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // A longer value would be cut by the 16-bit length; none of ours comes near (a whole batch
        // of elements for every VM is under 20 KiB).
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nest(self, kind: u16, inner: &Attrs) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// One message: netlink's header, netfilter's, the attributes.
pub(super) fn message(number: u16, flags: u16, sequence: u32, family: u8, resource: u16, attrs: &Attrs) -> Vec<u8> {
    let length = HEADER.saturating_add(4).saturating_add(attrs.0.len());
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&attrs.0);
    bytes
}

/// A transaction: all of it happens, or nothing.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Batch {
    /// `sequence` numbers its first message.
    #[must_use]
    pub fn new(sequence: u32) -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence };
        batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &Attrs::new());
        batch
    }

    pub(super) fn add(&mut self, kind: Kind, attrs: &Attrs) {
        self.add_to(INET, kind, attrs);
    }

    pub(super) fn add_to(&mut self, family: u8, kind: Kind, attrs: &Attrs) {
        let create = match kind {
            Kind::DelTable | Kind::DelElement => 0,
            _ => NLM_F_CREATE,
        };
        // APPEND for rules: their order is their meaning.
        let append = if kind == Kind::NewRule { 0x800 } else { 0 };
        let number = (SUBSYSTEM << 8) | kind as u16;
        self.message(number, create | append | NLM_F_ACK, family, 0, attrs);
    }

    fn message(&mut self, number: u16, flags: u16, family: u8, resource: u16, attrs: &Attrs) {
        self.bytes.extend(message(number, flags, self.sequence, family, resource, attrs));
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// The bytes to send, how many messages will be acknowledged, and the next free sequence
    /// number.
    #[must_use]
    pub fn finish(mut self, first: u32) -> (Vec<u8>, u32, u32) {
        // BEGIN and END are not acknowledged.
        let acknowledged = self.sequence.wrapping_sub(first).wrapping_sub(1);
        self.message(BATCH_END, 0, 0, SUBSYSTEM, &Attrs::new());
        (self.bytes, acknowledged, self.sequence)
    }
}

/// What the kernel answered to what was sent at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Messages acknowledged without an error.
    pub acknowledged: u32,
    /// The first error.
    pub error: Option<i32>,
}

impl Answers {
    /// Reads the acknowledgements (`NLMSG_ERROR`) in one datagram. Anything else counts as nothing.
    pub fn read(&mut self, mut datagram: &[u8]) {
        const NLMSG_ERROR: u16 = 2;
        while let Some((header, rest)) = datagram.split_first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, t0, t1, ..] = *header;
            let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
            let body = length.saturating_sub(HEADER);
            if length < HEADER || body > rest.len() {
                self.error = self.error.or(Some(EPROTO));
                return;
            }
            if u16::from_ne_bytes([t0, t1]) == NLMSG_ERROR {
                match rest.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => self.acknowledged = self.acknowledged.saturating_add(1),
                    Some(code) => self.error = self.error.or(Some(code.saturating_neg())),
                    None => self.error = self.error.or(Some(EPROTO)),
                }
            }
            datagram = rest.get(body.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_kernels_layout() {
        let mut batch = Batch::new(7);
        batch.add(Kind::NewTable, &Attrs::new().text(1, "abc").u32(2, 6));
        let (bytes, acknowledged, next) = batch.finish(7);
        assert_eq!((acknowledged, next), (1, 10));
        assert_eq!(
            bytes,
            [
                &[20, 0, 0, 0, 0x10, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10][..],
                &[36, 0, 0, 0, 0, 10, 5, 4, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
                &[8, 0, 1, 0, b'a', b'b', b'c', 0, 8, 0, 2, 0, 0, 0, 0, 6],
                &[20, 0, 0, 0, 0x11, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
            ]
            .concat(),
            "little-endian machines only; the encoder itself is not"
        );
    }

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attrs::new().bytes(3, &[9]);
        assert_eq!(inner.0, [5, 0, 3, 0, 9, 0, 0, 0]);
        assert_eq!(Attrs::new().nest(4, &inner).0, [12, 0, 4, 0x80, 5, 0, 3, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn acknowledgements_and_errors_are_told_apart() {
        let ack = |code: i32| [&36_u32.to_ne_bytes()[..], &[2, 0], &[0; 10], &code.to_ne_bytes(), &[0; 16]].concat();
        let mut answers = Answers::default();
        answers.read(&[ack(0), ack(-17), ack(-2), ack(0)].concat());
        assert_eq!(answers, Answers { acknowledged: 2, error: Some(17) });
        let whole = ack(0);
        for cut in 1..whole.len() {
            let mut answers = Answers::default();
            answers.read(&whole[..cut]);
            assert_eq!(answers.acknowledged, 0, "cut at {cut}");
        }
    }
}
