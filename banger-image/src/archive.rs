//! Entries of a tar archive: ustar, GNU, star and PAX, read at their offsets from a [`Window`].
//!
//! What GNU tar and the readers of container engines accept is accepted, with the same tree. The
//! walk is ours because every bound and every refusal here is ours to answer for, and because
//! entries must be found again later by offset.

mod entry;

use super::content::Piece;
use super::error::ImageError;
use super::header::{BLOCK, Header, NotANumber};
use super::names::{EntryPath, NameFault, printable};
use super::pax::{Malformed, Pax};
use super::source::{Budget, Progress, Window};
use super::tree::Meta;
use super::xattr::Xattr;

/// Extended attributes of one entry fit 64 KiB in Linux; twenty of them would not.
const MAX_PAX: u64 = 1 << 20;
/// A GNU long name: `PATH_MAX`, and the block that pads it.
const MAX_LONG_NAME: u64 = 4096 + BLOCK;
/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File {
        offset: u64,
        size: u64,
    },
    /// `stored` bytes at `offset` hold the data of all pieces.
    Sparse {
        offset: u64,
        stored: u64,
        size: u64,
        pieces: Box<[Piece]>,
    },
    Symlink(Box<[u8]>),
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
    ended: bool,
    any: bool,
    globals: Globals,
}

/// What is done about PAX headers that are for all entries behind them.
#[derive(Debug)]
enum Globals {
    /// As docker and containerd do it with layers.
    PassedOver,
    /// As GNU tar and bsdtar do it.
    Heeded(Box<Pax>),
}

impl<'a> Archive<'a> {
    pub(crate) fn new(window: &'a Window, layer: &'a str) -> Self {
        let globals = Globals::Heeded(Box::new(Pax { of_gnu: true, ..Pax::default() }));
        Self { window, layer, at: 0, ended: false, any: false, globals }
    }

    /// A layer of an image: what is said of all entries is passed over.
    pub(crate) fn of_layer(window: &'a Window, layer: &'a str) -> Self {
        Self { globals: Globals::PassedOver, ..Self::new(window, layer) }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// All that is wrong with the archive, named by layer and entry.
    pub(crate) fn next(&mut self, budget: &mut Budget, progress: &dyn Progress) -> Result<Option<Entry>, ImageError> {
        let mut pax = self.global_pax();
        let (mut name, mut target) = (None, None);
        loop {
            let header_at = self.at;
            let Some(header) = self.header(progress)? else {
                return Ok(None);
            };
            match header.kind() {
                b'x' | b'X' | b'g' | b'L' | b'K' | b'V' => budget.spend_header()?,
                _ => budget.spend_entry()?,
            }
            match header.kind() {
                // The second of two counts, and nothing of the first.
                b'x' | b'X' => {
                    pax = self.global_pax();
                    self.pax(&header, &mut pax)?;
                }
                b'g' => self.global(&header, progress)?,
                b'L' => name = Some(self.long_name(&header)?),
                b'K' => target = Some(self.long_name(&header)?),
                // A volume label: a name, no entry.
                b'V' => self.at = self.skip(header_at, self.size(&header, header_at)?)?,
                _ => {
                    pax.path = pax.path.take().or(name);
                    pax.linkpath = pax.linkpath.take().or(target);
                    return self.entry(&header, header_at, pax, progress).map(Some);
                }
            }
        }
    }

    /// What is said of every entry.
    fn global_pax(&self) -> Pax {
        match &self.globals {
            Globals::PassedOver => Pax::default(),
            Globals::Heeded(pax) => Pax::clone(pax),
        }
    }

    /// Whether this is to be read as Go does it, and not as GNU tar.
    const fn of_go(&self) -> bool {
        matches!(self.globals, Globals::PassedOver)
    }

    /// The next header block, checked; `None` at the end of the archive.
    fn header(&mut self, progress: &dyn Progress) -> Result<Option<Header>, ImageError> {
        if self.ended {
            return Ok(None);
        }
        let Some(header) = self.block()? else {
            // Two blocks of zeros belong here. Every reader does without, and so would no archive
            // that was cut in a file.
            if self.any {
                progress.warn(&format!("{}: it has no end-of-archive marker", self.layer));
            }
            self.ended = true;
            // A layer without a byte is one that changes nothing.
            return if self.any || self.window.len() == 0 { Ok(None) } else { Err(self.not_tar()) };
        };
        if header.is_zero() {
            self.ended = true;
            return match self.block()? {
                Some(second) if !second.is_zero() => {
                    if self.of_go() {
                        return Err(self.bad(self.at - BLOCK, "there is a lone block of zeros before it"));
                    }
                    let at = self.at - 2 * BLOCK;
                    progress.warn(&format!(
                        "{}: it ends at a lone block of zeros, at byte {at}, and has more behind it",
                        self.layer
                    ));
                    Ok(None)
                }
                _ => Ok(None),
            };
        }
        if !header.is_valid() {
            return Err(if self.any { self.bad(self.at - BLOCK, "its checksum is wrong") } else { self.not_tar() });
        }
        self.any = true;
        Ok(Some(header))
    }

    /// `None` when nothing is left.
    fn block(&mut self) -> Result<Option<Header>, ImageError> {
        let left = self.window.len().saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        if left < BLOCK {
            // What is left of an end-of-archive marker.
            let rest = self.window.part(self.at, left).filter(|_| self.any && !self.of_go());
            let rest = rest.map(|rest| rest.read_all()).transpose().map_err(|source| ImageError::Read { source })?;
            if rest.is_some_and(|rest| rest.iter().all(|byte| *byte == 0)) {
                return Ok(None);
            }
            return Err(if self.any { self.truncated("inside a header") } else { self.not_tar() });
        }
        let mut block = [0; 512];
        self.window.read_exact_at(&mut block, self.at).map_err(|source| ImageError::Read { source })?;
        self.at += BLOCK;
        Ok(Some(Header::new(block)))
    }

    fn number(&self, value: Result<i64, NotANumber>, header_at: u64) -> Result<i64, ImageError> {
        value.map_err(|NotANumber| self.bad(header_at, "a numeric field is no number"))
    }

    fn size(&self, header: &Header, header_at: u64) -> Result<u64, ImageError> {
        let size = self.number(header.size(), header_at)?;
        u64::try_from(size).map_err(|_| self.bad(header_at, "its size is impossible"))
    }

    /// Where the next header is, after `size` bytes of data.
    fn skip(&self, header_at: u64, size: u64) -> Result<u64, ImageError> {
        let end = self.at.checked_add(size);
        let padded = size.checked_next_multiple_of(BLOCK).and_then(|padded| self.at.checked_add(padded));
        let (Some(end), Some(next)) = (end, padded) else {
            return Err(self.bad(header_at, "its size is impossible"));
        };
        // The padding of the last entry may be missing, its data may not.
        if end > self.window.len() {
            return Err(self.truncated("inside a file"));
        }
        Ok(next.min(self.window.len()))
    }

    /// The data of a meta entry, at most `limit` bytes.
    fn data(&mut self, header: &Header, limit: u64, what: &str) -> Result<Vec<u8>, ImageError> {
        let header_at = self.at.saturating_sub(BLOCK);
        let size = self.size(header, header_at)?;
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

    /// Global headers: `git archive` writes a comment. What only one entry can have is refused.
    fn global(&mut self, header: &Header, progress: &dyn Progress) -> Result<(), ImageError> {
        let header_at = self.at.saturating_sub(BLOCK);
        let data = self.data(header, MAX_PAX, "a PAX header")?;
        let Globals::Heeded(all) = &mut self.globals else {
            let mut pax = Pax::default();
            if pax.extend(&data).is_err() || pax.says_something() {
                progress.warn(&format!("{}: a global PAX header is passed over, as docker does it", self.layer));
            }
            return Ok(());
        };
        let extended = all.extend(&data);
        let of_one = all.path.is_some() || all.linkpath.is_some() || all.size.is_some() || all.sparse.any;
        if let Some(odd) = all.odd.take() {
            progress.warn(&format!("{}: {odd}", self.layer));
        }
        extended.map_err(|Malformed(why)| self.bad(header_at, why))?;
        if of_one { Err(self.bad(header_at, "a global PAX header that names one entry")) } else { Ok(()) }
    }

    /// Up to its first NUL: some writers pad with several.
    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let mut name = self.data(header, MAX_LONG_NAME, "a name")?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name.truncate(end);
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
