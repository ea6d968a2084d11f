//! The header block of a tar entry, by its own rules: POSIX.1-1988 ustar, GNU, star, and what came
//! before them.
//!
//! Sources: `tar.h` and "Basic Tar Format" in GNU tar's manual, star(5), and pax in POSIX.1-2017.
//! Fields that a dialect does not have are not looked at.

use std::ops::Range;

/// Bytes of a header, and the unit of everything else.
pub(crate) const BLOCK: u64 = 512;
/// The same as a length of memory.
const BLOCK_LEN: usize = 512;

const CHECKSUM: Range<usize> = 148..156;
const PREFIX: Range<usize> = 345..500;
/// star keeps two times behind a shorter prefix.
const STAR_PREFIX: Range<usize> = 345..476;

/// Of the last access and the last change, in GNU's dialect.
const GNU_TIMES: [Range<usize>; 2] = [345..357, 357..369];

/// One header block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header([u8; BLOCK_LEN]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Before POSIX: neither prefix nor device numbers are certain.
    Old,
    Posix,
    Star,
    Gnu,
}

/// Offset and length of a piece of a sparse file.
type Piece = (i64, i64);

/// A field that is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotANumber;

impl Header {
    pub(crate) const fn new(block: [u8; BLOCK_LEN]) -> Self {
        Self(block)
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whether the checksum is right: the sum of all bytes, its own field as spaces. Some writers
    /// have added signed bytes.
    pub(crate) fn is_valid(&self) -> bool {
        let bytes =
            || (0..).zip(self.0).map(|(at, byte): (usize, u8)| if CHECKSUM.contains(&at) { b' ' } else { byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        self.number(CHECKSUM).is_ok_and(|sum| sum == unsigned || sum == signed)
    }

    fn field(&self, range: Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    /// Up to the first NUL.
    fn text(&self, range: Range<usize>) -> &[u8] {
        let field = self.field(range);
        field.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn dialect(&self) -> Dialect {
        match self.field(257..265) {
            b"ustar  \0" => Dialect::Gnu,
            // Whatever the version says.
            [b'u', b's', b't', b'a', b'r', 0, _, _] if self.field(508..512) == b"tar\0" => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', 0, _, _] => Dialect::Posix,
            _ => Dialect::Old,
        }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    /// Prefix and name. `of_go`: as Go reads them.
    pub(crate) fn path(&self, of_go: bool) -> Vec<u8> {
        let prefix = match self.dialect() {
            Dialect::Posix => self.text(PREFIX),
            Dialect::Star => self.text(STAR_PREFIX),
            Dialect::Gnu if of_go && self.has_misplaced_prefix() => self.text(PREFIX),
            Dialect::Gnu | Dialect::Old => &[],
        };
        let name = self.text(0..100);
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Before 1.8 Go wrote a prefix into GNU headers, too. It shows where the times that belong
    /// there are no numbers (`archive/tar/reader.go`).
    fn has_misplaced_prefix(&self) -> bool {
        let is_time = |range: Range<usize>| self.field(range.clone()).first() == Some(&0) || self.number(range).is_ok();
        !(is_time(GNU_TIMES[0].clone()) && is_time(GNU_TIMES[1].clone())) && self.text(PREFIX).is_ascii()
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i64, NotANumber> {
        self.number(100..108)
    }

    pub(crate) fn uid(&self) -> Result<i64, NotANumber> {
        self.number(108..116)
    }

    pub(crate) fn gid(&self) -> Result<i64, NotANumber> {
        self.number(116..124)
    }

    pub(crate) fn size(&self) -> Result<i64, NotANumber> {
        self.number(124..136)
    }

    pub(crate) fn mtime(&self) -> Result<i64, NotANumber> {
        self.number(136..148)
    }

    /// Major and minor.
    pub(crate) fn device(&self) -> Result<(i64, i64), NotANumber> {
        Ok((self.number(329..337)?, self.number(337..345)?))
    }

    /// The sparse map of an old GNU header: pieces, whether more follow in blocks of their own, and
    /// the file's size.
    pub(crate) fn sparse(&self) -> Result<(Vec<Piece>, bool, i64), NotANumber> {
        let pieces = pieces(self.field(386..482))?;
        Ok((pieces, self.0.get(482).is_some_and(|byte| *byte != 0), self.number(483..495)?))
    }

    /// A block with more of such a map.
    pub(crate) fn more_sparse(&self) -> Result<(Vec<Piece>, bool), NotANumber> {
        Ok((pieces(self.field(0..504))?, self.0.get(504).is_some_and(|byte| *byte != 0)))
    }

    fn number(&self, range: Range<usize>) -> Result<i64, NotANumber> {
        number(self.field(range))
    }
}

/// Offset and length, twelve bytes each, up to an empty one.
fn pieces(field: &[u8]) -> Result<Vec<Piece>, NotANumber> {
    let used = field.chunks_exact(24).take_while(|piece| piece.first().is_some_and(|byte| *byte != 0));
    used.map(|piece| piece.split_at(12)).map(|(at, length)| Ok((number(at)?, number(length)?))).collect()
}

/// Octal digits between spaces and NULs, nothing for 0; or, with the highest bit set, base 256 in
/// two's complement (GNU).
fn number(raw: &[u8]) -> Result<i64, NotANumber> {
    if let [first, rest @ ..] = raw
        && first & 0x80 != 0
    {
        // The bit that says so is none of the number; the one below is its sign.
        let negative = first & 0x40 != 0;
        let first = if negative { *first } else { first & 0x7f };
        let fill = if negative { -1_i64 } else { 0 };
        return [first].iter().chain(rest).try_fold(fill, |value, byte| {
            value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*byte))).ok_or(NotANumber)
        });
    }
    // As Go reads them: writers pad with either, on either side.
    let start = raw.iter().position(|byte| *byte != 0 && !byte.is_ascii_whitespace()).unwrap_or(raw.len());
    let digits = raw.get(start..).unwrap_or_default();
    let end = digits.iter().position(|byte| *byte == 0 || *byte == b' ').unwrap_or(digits.len());
    let digits = digits.get(..end).unwrap_or_default();
    digits.iter().try_fold(0_i64, |value, digit| {
        let digit = if matches!(digit, b'0'..=b'7') { i64::from(digit - b'0') } else { return Err(NotANumber) };
        value.checked_mul(8).and_then(|value| value.checked_add(digit)).ok_or(NotANumber)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn header(magic: &[u8; 8], trailer: &[u8; 4]) -> Header {
        let mut block = [0; 512];
        block[..4].copy_from_slice(b"name");
        block[257..265].copy_from_slice(magic);
        block[345..350].copy_from_slice(b"where");
        block[476..480].copy_from_slice(b"\x31234");
        block[508..].copy_from_slice(trailer);
        Header::new(block)
    }

    #[test]
    fn the_prefix_counts_in_every_dialect_that_has_one() {
        for magic in [b"ustar\x0000", b"ustar\0\0\0", b"ustar\0 \0", b"ustar\x0012"] {
            assert_eq!(header(magic, &[0; 4]).path(false), b"where/name", "{magic:?}");
            assert_eq!(header(magic, b"tar\0").path(false), b"where/name");
        }
        assert_eq!(header(b"ustar  \0", &[0; 4]).path(false), b"name");
        assert_eq!(header(&[0; 8], &[0; 4]).path(false), b"name");
    }

    #[test]
    fn numbers_of_all_kinds() {
        for (raw, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"644 xxx\0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"\x0001750\0", 0o1750),
            (b"\0\x0000755\0", 0o755),
            (b" \x0001750 ", 0o1750),
            (b"77777777777\0", 0o77_777_777_777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
        ] {
            assert_eq!(number(raw), Ok(value), "{raw:?}");
        }
        for raw in [&b"8"[..], b"-1", b"0x1f", b"\xc0\0\0\0\0\0\0\0\0\0\0\0", b"\x80\0\0\x01\0\0\0\0\0\0\0\0"] {
            assert_eq!(number(raw), Err(NotANumber), "{raw:?}");
        }
    }

    #[test]
    fn checksums_of_signed_and_unsigned_bytes() {
        let mut block = [0; 512];
        block[..3].copy_from_slice(b"\xe9\xe9x");
        let others = i64::from(b'x') + 8 * i64::from(b' ');
        for sum in [others + 2 * 0xe9, others + 2 * (0xe9 - 256)] {
            let text = format!("{sum:06o}\0 ");
            if sum < 0 {
                continue;
            }
            block[148..156].copy_from_slice(text.as_bytes());
            assert!(Header::new(block).is_valid(), "{text}");
        }
        block[0] = 0;
        assert!(!Header::new(block).is_valid());
        let sparse = Header::new([0; 512]).sparse().unwrap();
        assert_eq!(sparse, (vec![], false, 0));
    }
}
