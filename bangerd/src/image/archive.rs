//! Entries of a tar archive: ustar, GNU and PAX, read at their offsets from a [`Window`].
//!
//! Only header fields come from the `tar` crate; the walk is ours because every bound and every refusal here
//! is ours to answer for, and because entries must be found again later by offset.

use super::error::ImageError;
use super::names::{EntryPath, NameFault, printable, symlink_target};
use super::pax::{Malformed, Pax};
use super::source::{Budget, Progress, Window, check};
use super::xattr::{self, Xattr};
use std::collections::BTreeMap;
use std::io;
use tar::Header;

const BLOCK: u64 = 512;
/// Extended attributes of one entry fit 64 KiB in Linux; twenty of them would not.
const MAX_PAX: u64 = 1 << 20;
/// A GNU long name: `PATH_MAX` and its NUL.
const MAX_LONG_NAME: u64 = 4097;
/// Range of an ext4 timestamp with 34-bit seconds (1901 to 2446).
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;

/// Owner, permissions, time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File { offset: u64, size: u64 },
    Symlink(Box<str>),
    Hardlink(EntryPath),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) path: EntryPath,
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
    pub(crate) xattrs: Vec<Xattr>,
}

/// A walk over an archive.
pub(crate) struct Archive<'a> {
    window: &'a Window,
    layer: &'a str,
    at: u64,
    /// Whether the end marker (two zero blocks) must be there: yes, unless a digest says that all is there.
    strict_end: bool,
    ended: bool,
    any: bool,
}

impl<'a> Archive<'a> {
    pub(crate) fn new(window: &'a Window, layer: &'a str, strict_end: bool) -> Self {
        Self { window, layer, at: 0, strict_end, ended: false, any: false }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// All that is wrong with the archive, named by layer and entry.
    pub(crate) fn next(&mut self, budget: &mut Budget) -> Result<Option<Entry>, ImageError> {
        let mut pax = Pax::default();
        loop {
            let header_at = self.at;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            budget.spend_entry()?;
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' | b'X' => self.pax(&header, &mut pax)?,
                b'g' => self.global(&header)?,
                b'L' => pax.path = pax.path.take().or(Some(self.long_name(&header)?)),
                b'K' => pax.linkpath = pax.linkpath.take().or(Some(self.long_name(&header)?)),
                // A volume label: a name, no entry.
                b'V' => self.at = self.skip(header_at, field(&header, 124..136, header_at, self.layer)?)?,
                _ => return self.entry(&header, header_at, pax).map(Some),
            }
        }
    }

    /// The next header block, checked; `None` at the end marker.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0_u8; 512];
        let left = self.window.len().saturating_sub(self.at);
        if left == 0 {
            self.ended = true;
            return if self.strict_end { Err(self.truncated("no end-of-archive marker")) } else { Ok(None) };
        }
        if left < BLOCK {
            return Err(if self.any { self.truncated("inside a header") } else { self.not_tar() });
        }
        self.window.read_exact_at(&mut block, self.at).map_err(|source| ImageError::Read { source })?;
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum = (0_usize..)
            .zip(&block)
            .fold(0_u32, |sum, (i, b)| sum.wrapping_add(u32::from(if (148..156).contains(&i) { b' ' } else { *b })));
        if header.cksum().ok() != Some(sum) {
            return Err(if self.any { self.bad(self.at, "its checksum is wrong") } else { self.not_tar() });
        }
        self.any = true;
        self.at += BLOCK;
        Ok(Some(header))
    }

    fn entry(&mut self, header: &Header, header_at: u64, pax: Pax) -> Result<Entry, ImageError> {
        let raw = pax.path.as_deref().map_or_else(|| header.path_bytes(), |path| path.into());
        let raw = raw.as_ref();
        let number = |range| field(header, range, header_at, self.layer);
        let data_at = self.at;
        let kind = header.entry_type().as_byte();
        // GNU tar writes the size of the target into hard links that have no data.
        let size = if kind == b'1' { 0 } else { pax.size.map_or_else(|| number(124..136), Ok)? };
        self.at = self.skip(header_at, size)?;
        let path = EntryPath::parse(raw).map_err(|fault| self.name(raw, fault))?;
        if let Some((what, instead)) = pax.unsupported {
            return Err(self.unsupported(raw, what, instead));
        }
        let link = || {
            let header_link = header.link_name_bytes();
            pax.linkpath.clone().unwrap_or_else(|| header_link.map(Into::into).unwrap_or_default())
        };
        let device = |pax: Option<u64>, range, limit: u64| {
            let n = pax.map_or_else(|| number(range), Ok)?;
            u32::try_from(n).ok().filter(|_| n <= limit).ok_or_else(|| {
                self.unsupported(
                    raw,
                    format!("device number part {n}"),
                    "ext4 holds majors to 4095 and minors to 1048575",
                )
            })
        };
        let device_numbers = || Ok((device(pax.devmajor, 329..337, 4095)?, device(pax.devminor, 337..345, 1_048_575)?));
        let kind = match kind {
            b'0' | 0 | b'7' if raw.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' => Kind::File { offset: data_at, size },
            b'1' => {
                let link = link();
                Kind::Hardlink(EntryPath::parse(&link).map_err(|fault| self.name(raw, fault))?)
            }
            b'2' => Kind::Symlink(symlink_target(&link()).map_err(|fault| self.name(raw, fault))?),
            b'3' => device_numbers().map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => device_numbers().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.unsupported(raw, "a sparse map".into(), "make the archive without --sparse")),
            b'M' | b'D' => {
                return Err(self.unsupported(raw, "a multi-volume or incremental part".into(), "make a plain archive"));
            }
            other => {
                let what = format!("the unknown type {:?}", char::from(other));
                return Err(self.unsupported(raw, what, "make a ustar, GNU or PAX archive"));
            }
        };
        let id = |pax: Option<u64>, range| {
            let n = pax.map_or_else(|| number(range), Ok)?;
            u32::try_from(n).map_err(|_| self.unsupported(raw, format!("owner {n}"), "ids have 32 bits"))
        };
        let (seconds, nanos) = match pax.mtime {
            Some(time) => time,
            None => (number(136..148)?.cast_signed(), 0),
        };
        if !TIMES.contains(&seconds) {
            return Err(self.unsupported(raw, format!("time {seconds}"), "ext4 holds the years 1901 to 2446"));
        }
        let mode = number(100..108)? & 0o7777;
        let meta = Meta {
            mode: u16::try_from(mode).unwrap_or_default(),
            uid: id(pax.uid, 108..116)?,
            gid: id(pax.gid, 116..124)?,
            mtime: (seconds, nanos),
        };
        let xattrs = xattr::for_ext4(pax.xattrs)
            .map_err(|what| self.unsupported(raw, what, "remove the attribute from the image"))?;
        Ok(Entry { path, kind, meta, xattrs })
    }

    /// Where the next header is, after `size` bytes of data.
    fn skip(&self, header_at: u64, size: u64) -> Result<u64, ImageError> {
        let padded = size.checked_next_multiple_of(BLOCK).and_then(|padded| self.at.checked_add(padded));
        let Some(next) = padded else {
            return Err(self.bad(header_at, "its size is impossible"));
        };
        // The padding of the last entry may be missing, its data may not.
        if self.at + size > self.window.len() {
            return Err(self.truncated("inside a file"));
        }
        Ok(next.min(self.window.len()))
    }

    /// The data of a meta entry, at most `limit` bytes.
    fn data(&mut self, header: &Header, limit: u64, what: &str) -> Result<Vec<u8>, ImageError> {
        let header_at = self.at.saturating_sub(BLOCK);
        let size = field(header, 124..136, header_at, self.layer)?;
        if size > limit {
            return Err(self.bad(header_at, &format!("{what} of {size} bytes")));
        }
        let next = self.skip(header_at, size)?;
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.window.read_exact_at(&mut data, self.at).map_err(|source| ImageError::Read { source })?;
        self.at = next;
        Ok(data)
    }

    fn pax(&mut self, header: &Header, pax: &mut Pax) -> Result<(), ImageError> {
        let header_at = self.at.saturating_sub(BLOCK);
        let data = self.data(header, MAX_PAX, "a PAX header")?;
        pax.extend(&data).map_err(|Malformed(why)| self.bad(header_at, why))
    }

    /// Global headers: `git archive` writes a comment. One that would change entries is refused.
    fn global(&mut self, header: &Header) -> Result<(), ImageError> {
        let header_at = self.at.saturating_sub(BLOCK);
        let mut pax = Pax::default();
        self.pax(header, &mut pax)?;
        let harmless = pax.path.is_none()
            && pax.linkpath.is_none()
            && pax.size.is_none()
            && pax.uid.is_none()
            && pax.gid.is_none()
            && pax.xattrs.is_empty()
            && pax.unsupported.is_none();
        if harmless { Ok(()) } else { Err(self.bad(header_at, "a global PAX header that changes entries")) }
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let mut name = self.data(header, MAX_LONG_NAME, "a name")?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn not_tar(&self) -> ImageError {
        ImageError::NotTar { layer: self.layer.to_owned() }
    }

    fn truncated(&self, at: &str) -> ImageError {
        ImageError::Truncated { layer: self.layer.to_owned(), at: format!("{at}, at byte {}", self.at) }
    }

    fn bad(&self, offset: u64, why: &str) -> ImageError {
        ImageError::Header { layer: self.layer.to_owned(), offset, why: why.to_owned() }
    }

    fn name(&self, raw: &[u8], fault: NameFault) -> ImageError {
        ImageError::Name { layer: self.layer.to_owned(), entry: printable(raw), fault }
    }

    fn unsupported(&self, raw: &[u8], what: String, instead: &'static str) -> ImageError {
        ImageError::Unsupported { layer: self.layer.to_owned(), entry: printable(raw), what, instead }
    }
}

/// The regular files of an archive that is a mere container, by name. Folders and all else are passed over.
///
/// # Errors
/// As [`Archive::next`].
pub(crate) fn files(
    tar: &Window,
    budget: &mut Budget,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Window>, ImageError> {
    let mut files = BTreeMap::new();
    let mut archive = Archive::new(tar, "the archive", true);
    while let Some(entry) = archive.next(budget)? {
        check(progress)?;
        if let Kind::File { offset, size } = entry.kind {
            let window = tar.part(offset, size);
            files.extend(window.map(|window| (entry.path.as_str().to_owned(), window)));
        }
    }
    Ok(files)
}

/// A numeric field: octal text, empty for 0, or base 256 (GNU), of which times may be negative.
fn field(header: &Header, range: std::ops::Range<usize>, at: u64, layer: &str) -> Result<u64, ImageError> {
    let raw = header.as_bytes().get(range).unwrap_or_default();
    let parsed = match raw {
        [first, ..] if first & 0x80 != 0 => {
            let (high, low) = raw.split_at(raw.len().saturating_sub(8));
            let positive = high.iter().skip(1).all(|b| *b == 0) && first & 0x7f == 0;
            let negative = *first == 0xff && high.iter().all(|b| *b == 0xff);
            low.try_into()
                .ok()
                .map(u64::from_be_bytes)
                .map(|n| if high.is_empty() { n << 1 >> 1 } else { n })
                .filter(|_| high.is_empty() || positive || negative)
        }
        _ => {
            let end = raw.iter().position(|b| *b == 0).unwrap_or(raw.len());
            let text = raw.get(..end).and_then(|text| std::str::from_utf8(text).ok()).map(str::trim);
            text.and_then(|text| if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() })
        }
    };
    parsed.ok_or_else(|| ImageError::Header {
        layer: layer.to_owned(),
        offset: at,
        why: io::Error::new(io::ErrorKind::InvalidData, "a numeric field is no number").to_string(),
    })
}
