//! What an entry is, from its header and the extended headers before it.

use super::super::acl;
use super::super::error::ImageError;
use super::super::header::{Header, NotANumber};
use super::super::names::{EntryPath, printable, symlink_target};
use super::super::pax::Pax;
use super::super::source::Progress;
use super::super::sparse::{MAX_PIECES, decimal_map, pieces};
use super::super::tree::Meta;
use super::super::xattr::{self, Xattr};
use super::{Archive, Entry, Kind};

/// Range of an ext4 timestamp with 34-bit seconds (1901 to 2446).
const TIMES: std::ops::RangeInclusive<i64> = -0x8000_0000..=0x3_7fff_ffff;
/// The largest file of ext4 with blocks of 4 KiB, bytes.
const MAX_FILE: u64 = (1 << 44) - 4096;

impl Archive<'_> {
    pub(super) fn entry(
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
        if let Some(odd) = pax.odd.take() {
            progress.warn(&format!("\"{}\": {odd}", printable(&raw)));
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
        let mut xattrs = self.attributes(pax, &kind, &raw, progress)?;
        if let Some(acl) = xattrs.iter_mut().find(|attribute| attribute.name == xattr::ACCESS) {
            // docker and containerd set the mode last. GNU tar sets the ACL last: bsdtar's headers
            // have the owning group's bits there, and not the mask.
            if self.of_go() {
                acl::change_mode(&mut acl.value, meta.mode);
            } else {
                meta.mode = meta.mode & !0o777 | acl::mode_bits(&acl.value);
            }
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
        let malformed = || progress.warn(&format!("\"{}\": its ACL is left out: no kernel takes it", printable(raw)));
        match sorted.malformed.first() {
            Some(name) if self.of_go() => return Err(self.unsupported(raw, format!("a malformed {name}"), remove)),
            Some(_) => malformed(),
            None => {}
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
            let Some(value) = acl::of_text(xattr::acl_for(name), &text, &mut unknown) else {
                malformed();
                continue;
            };
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
}
