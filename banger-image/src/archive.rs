//! Entries of a tar archive: ustar, GNU, star and PAX, read at their offsets from a [`Window`].
//!
//! What GNU tar and the readers of container engines accept is accepted, with the same tree. The
//! walk is ours because every bound and every refusal here is ours to answer for, and because
//! entries must be found again later by offset.

use super::acl;
use super::content::Piece;
use super::error::ImageError;
use super::header::{BLOCK, Header, NotANumber};
use super::names::{EntryPath, NameFault, printable, symlink_target};
use super::pax::{Malformed, Pax};
use super::source::{Budget, Progress, Window};
use super::sparse::{MAX_PIECES, decimal_map, pieces};
use super::tree::Meta;
use super::xattr::{self, Xattr};

/// Extended attributes of one entry fit 64 KiB in Linux; twenty of them would not.
const MAX_PAX: u64 = 1 << 20;
/// A GNU long name: `PATH_MAX`, and the block that pads it.
const MAX_LONG_NAME: u64 = 4096 + BLOCK;
/// Range of an ext4 timestamp with 34-bit seconds (1901 to 2446).
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;
/// The largest file of ext4 with blocks of 4 KiB, bytes.
const MAX_FILE: u64 = (1 << 44) - 4096;

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
            budget.spend_entry()?;
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

    fn entry(
        &mut self,
        header: &Header,
        header_at: u64,
        mut pax: Pax,
        progress: &dyn Progress,
    ) -> Result<Entry, ImageError> {
        let raw = pax.sparse.name.take().or_else(|| pax.path.take()).unwrap_or_else(|| header.path(self.of_go()));
        let kind = header.kind();
        // These have no data, whatever their size says: GNU tar writes that of the target into hard
        // links, others that of what they have read into folders.
        let size = match kind {
            b'1'..=b'6' => 0,
            _ => pax.size.map_or_else(|| self.size(header, header_at), Ok)?,
        };
        let path = EntryPath::parse(&raw).map_err(|fault| self.name(&raw, fault))?;
        if let Some((what, instead)) = pax.unsupported.take() {
            return Err(self.unsupported(&raw, what, instead));
        }
        let link = |pax: &mut Pax| pax.linkpath.take().unwrap_or_else(|| header.link());
        let kind = match kind {
            b'S' => self.old_sparse(header, header_at, size)?,
            b'0' | 0 | b'7' if pax.sparse.any => self.sparse(&pax, header_at, size)?,
            b'0' | 0 | b'7' => {
                let offset = self.at;
                self.at = self.skip(header_at, size)?;
                if raw.ends_with(b"/") { Kind::Dir } else { Kind::File { offset, size } }
            }
            b'1' => {
                let link = link(&mut pax);
                Kind::Hardlink(EntryPath::parse(&link).map_err(|fault| self.name(&raw, fault))?)
            }
            b'2' => Kind::Symlink(symlink_target(&link(&mut pax)).map_err(|fault| self.name(&raw, fault))?),
            b'3' => self.device(header, header_at, &pax, &raw).map(|(major, minor)| Kind::Char(major, minor))?,
            b'4' => self.device(header, header_at, &pax, &raw).map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Dir,
            // A folder of an incremental dump: its data is the list of its names.
            b'D' => {
                self.at = self.skip(header_at, size)?;
                Kind::Dir
            }
            b'6' => Kind::Fifo,
            b'M' => {
                return Err(self.unsupported(&raw, "a part on another volume".into(), "make an archive of one volume"));
            }
            other if self.of_go() => {
                let what = format!("the unknown type {:?}", char::from(other));
                return Err(self.unsupported(&raw, what, "make a ustar, GNU or PAX archive"));
            }
            // A regular file (POSIX.1-2017, "ustar Interchange Format").
            other => {
                let what = format!("the unknown type {:?} is taken for a file", char::from(other));
                progress.warn(&format!("\"{}\": {what}", printable(&raw)));
                let offset = self.at;
                self.at = self.skip(header_at, size)?;
                Kind::File { offset, size }
            }
        };
        if let Kind::File { size, .. } | Kind::Sparse { size, .. } = &kind
            && *size > MAX_FILE
        {
            return Err(self.unsupported(&raw, format!("{size} bytes"), "a file on ext4 has 16 TiB at most"));
        }
        let mut meta = self.meta(header, header_at, &pax, &raw, progress)?;
        let xattrs = self.attributes(pax, &kind, &raw, progress)?;
        // bsdtar's headers have the owning group's bits here, and not the mask.
        if let Some(acl) = xattrs.iter().find(|attribute| attribute.name == xattr::ACCESS) {
            meta.mode = meta.mode & !0o777 | acl::mode_bits(&acl.value);
        }
        Ok(Entry { path, kind, meta, xattrs })
    }

    fn meta(
        &self,
        header: &Header,
        header_at: u64,
        pax: &Pax,
        raw: &[u8],
        progress: &dyn Progress,
    ) -> Result<Meta, ImageError> {
        let mode = self.number(header.mode(), header_at)? & 0o7777;
        let id = |pax: Option<i64>, own: Result<i64, NotANumber>| {
            let number = pax.map_or_else(|| self.number(own, header_at), Ok)?;
            // As chown(2) takes them: -2 is 4294967294. -1 means "as it is" there, and is nobody's.
            let id = u32::try_from(number).ok().or_else(|| i32::try_from(number).ok().map(i32::cast_unsigned));
            id.filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.unsupported(raw, format!("owner {number}"), "ids are at most 4294967294"))
        };
        let mut mtime = match pax.mtime {
            Some(time) => time,
            None => (self.number(header.mtime(), header_at)?, 0),
        };
        if !TIMES.contains(&mtime.0) {
            progress.warn(&format!("\"{}\": its time, {}, becomes one that ext4 has", printable(raw), mtime.0));
            mtime = (mtime.0.clamp(*TIMES.start(), *TIMES.end()), 0);
        }
        Ok(Meta {
            mode: u16::try_from(mode).unwrap_or_default(),
            uid: id(pax.uid, header.uid())?,
            gid: id(pax.gid, header.gid())?,
            mtime,
        })
    }

    fn attributes(
        &self,
        mut pax: Pax,
        kind: &Kind,
        raw: &[u8],
        progress: &dyn Progress,
    ) -> Result<Vec<Xattr>, ImageError> {
        let remove = "remove the attribute from the image";
        let sorted = xattr::for_ext4(pax.xattrs).map_err(|what| self.unsupported(raw, what, remove))?;
        for name in &sorted.left_out {
            progress.warn(&format!("\"{}\": the attribute {name} means nothing on Linux", printable(raw)));
        }
        let mut kept = sorted.kept;
        // Links have no ACL of their own, and only folders have one for what is made in them.
        let is_dir = matches!(kind, Kind::Dir);
        let default = pax.acl_default.take().filter(|_| is_dir).map(|text| (xattr::DEFAULT, text));
        let access = pax.acl_access.take().filter(|_| !matches!(kind, Kind::Symlink(_)));
        for (name, text) in access.map(|text| (xattr::ACCESS, text)).into_iter().chain(default) {
            if kept.iter().any(|known| known.name == name) || text.trim_ascii().is_empty() {
                continue;
            }
            let mut unknown = Vec::new();
            let value = acl::of_text(xattr::acl_for(name), &text, &mut unknown);
            let value = value.ok_or_else(|| self.unsupported(raw, "a malformed ACL".into(), remove))?;
            for user in unknown {
                progress.warn(&format!("\"{}\": its ACL names {user} without a number", printable(raw)));
            }
            if !value.is_empty() {
                kept.push(Xattr { name: name.to_owned(), value });
            }
        }
        Ok(kept)
    }

    fn device(&self, header: &Header, header_at: u64, pax: &Pax, raw: &[u8]) -> Result<(u32, u32), ImageError> {
        let own = || header.device().map_err(|NotANumber| self.bad(header_at, "a numeric field is no number"));
        let (major, minor) = match (pax.devmajor, pax.devminor) {
            (Some(major), Some(minor)) => (i64::try_from(major).ok(), i64::try_from(minor).ok()),
            (major, minor) => {
                let (own_major, own_minor) = own()?;
                let or = |pax: Option<u64>, own| pax.map_or(Some(own), |number| i64::try_from(number).ok());
                (or(major, own_major), or(minor, own_minor))
            }
        };
        let bounded =
            |number: Option<i64>, most: u32| number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= most);
        match (bounded(major, 4095), bounded(minor, 1_048_575)) {
            (Some(major), Some(minor)) => Ok((major, minor)),
            _ => {
                let what = format!("device number {major:?}:{minor:?}");
                Err(self.unsupported(raw, what, "ext4 holds majors to 4095 and minors to 1048575"))
            }
        }
    }

    /// A sparse file as GNU tar wrote it before PAX: the map is in the header and in blocks behind
    /// it.
    fn old_sparse(&mut self, header: &Header, header_at: u64, stored: u64) -> Result<Kind, ImageError> {
        let bad = |archive: &Self| archive.bad(header_at, "its sparse map is damaged");
        let (mut map, mut more, size) = header.sparse().map_err(|NotANumber| bad(self))?;
        while more {
            let block = self.block()?.ok_or_else(|| self.truncated("inside a sparse map"))?;
            let (pieces, again) = block.more_sparse().map_err(|NotANumber| bad(self))?;
            map.extend(pieces);
            more = again;
            if map.len() > MAX_PIECES {
                return Err(bad(self));
            }
        }
        let map = map.into_iter().flat_map(|(at, length)| [at, length]);
        let map: Option<Vec<u64>> = map.map(|number| u64::try_from(number).ok()).collect();
        let size = u64::try_from(size).ok();
        let offset = self.at;
        self.at = self.skip(header_at, stored)?;
        let size = size.ok_or_else(|| bad(self))?;
        let pieces = pieces(&map.unwrap_or_default(), stored, size).ok_or_else(|| bad(self))?;
        Ok(Kind::Sparse { offset, stored, size, pieces })
    }

    /// A sparse file in PAX: the map is in the records, or, since format 1.0, at the beginning of
    /// the data.
    fn sparse(&mut self, pax: &Pax, header_at: u64, stored: u64) -> Result<Kind, ImageError> {
        let bad = |archive: &Self| archive.bad(header_at, "its sparse map is damaged");
        let start = self.at;
        let next = self.skip(header_at, stored)?;
        let size = pax.sparse.size.ok_or_else(|| bad(self))?;
        let (map, used) = match pax.sparse.version {
            Some((1, 0)) => {
                let data = self.window.part(start, stored).ok_or_else(|| bad(self))?;
                decimal_map(&data).ok_or_else(|| bad(self))?
            }
            None | Some((0, _)) => (pax.sparse.map.clone(), 0),
            Some(_) => return Err(bad(self)),
        };
        self.at = next;
        let stored = stored.checked_sub(used).ok_or_else(|| bad(self))?;
        let pieces = pieces(&map, stored, size).ok_or_else(|| bad(self))?;
        Ok(Kind::Sparse { offset: start + used, stored, size, pieces })
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
