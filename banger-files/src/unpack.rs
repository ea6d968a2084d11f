//! Unpacking below a folder, whoever wrote the archive.
//!
//! Every path is resolved by the kernel from the folder's descriptor, without links and never above
//! it (openat2(2), `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`); only [`unpack_own`] follows links of
//! the folder (`RESOLVE_IN_ROOT`). What stands in the way of a file is replaced, not written
//! through, and only when all of the new file has come. Only files, folders and links are made;
//! set-id bits are dropped.

use crate::pack::as_path;
use crate::raw::{self, Entry};
use crate::{Error, Left};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, ftruncate, futimens,
    linkat, mkdirat, openat, openat2, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tar::EntryType;

/// What an archive may bring at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Permissions that nothing gets, as umask(2): whoever wrote the archive does not open files to
    /// others.
    pub mask: u32,
}

impl Limits {
    /// For an archive of a trusted side.
    pub const NONE: Self = Self { bytes: u64::MAX, entries: u64::MAX, mask: 0 };
}

/// What an archive has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// The first links that may lead out of what was unpacked, each with its target.
    pub outside: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many more of them there are.
    pub more_outside: u64,
}

/// A block of zeros of this length, and aligned to it, becomes a hole.
const BLOCK: usize = 4096;
/// Of the names of all folders together, which are kept until the end, bytes: millions of folders.
const MOST_NAMES: u64 = 256 * 1024 * 1024;
/// Links out of the archive that are named.
const NAMED: usize = 20;
/// How many names are tried for a new file that has not got its own yet. One is taken only if it
/// was left by a process of the same number that was killed.
const TRIES: u32 = 1000;

/// Opens the folder into which is unpacked. Links on the way to it are followed.
///
/// # Errors
/// [`Error::Path`].
pub fn open_folder(path: &Path) -> Result<OwnedFd, Error> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::errno(path))
}

/// Unpacks a tar stream below a folder.
///
/// # Errors
/// What the archive or the system says; what was unpacked until then stays.
pub fn unpack(from: impl Read, into: &OwnedFd, limits: Limits) -> Result<Unpacked, Error> {
    let mut tree = Tree::new(into, limits);
    raw::each(from, |entry, data| tree.entry(entry, data))?;
    tree.finish()
}

/// Unpacks an archive of whoever owns the folder. Links in the folder lead to where they lead, a
/// link from `/` to the folder; what no tar stream of ours carries is left out, and given back.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_own(from: impl Read, into: &OwnedFd) -> Result<Left, Error> {
    let mut tree = Tree { own: Some(Left::default()), ..Tree::new(into, Limits::NONE) };
    raw::each(from, |entry, data| tree.entry(entry, data))?;
    let left = tree.own.clone().unwrap_or_default();
    tree.finish().map(|_| left)
}

/// Unpacks what has this name or is below it, and refuses an archive with anything else: whoever
/// was asked for one file does not choose which others of the folder are replaced. With `.` the
/// contents of the folder are what is asked for, and their names with them.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_named(from: impl Read, into: &OwnedFd, limits: Limits, name: &[u8]) -> Result<Unpacked, Error> {
    let mut tree = Tree { only: clean(name)?, ..Tree::new(into, limits) };
    raw::each(from, |entry, data| tree.entry(entry, data))?;
    tree.finish()
}

/// Unpacks the named files and links, and refuses an archive with anything else. Of the modes only
/// whether the owner may execute a file counts: their reader is not root, who has packed them.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_only(
    from: impl Read,
    into: &OwnedFd,
    limits: Limits,
    names: &BTreeSet<Vec<u8>>,
) -> Result<Unpacked, Error> {
    let mut tree = Tree::new(into, limits);
    raw::each(from, |entry, data| {
        let wanted = clean(&entry.name)?.is_some_and(|name| names.contains(&name));
        if !wanted || entry.kind == EntryType::Directory {
            return Err(Error::Name(shown(&entry.name)));
        }
        tree.entry(&Entry { mode: entry.mode & 0o100 | 0o600, ..entry.clone() }, data)
    })?;
    tree.finish()
}

struct Tree<'a> {
    root: &'a OwnedFd,
    /// The folder of the entry before: mostly the next one's too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Modes and times of folders, set when nothing more is written into them.
    folders: BTreeMap<Vec<u8>, (u32, i64)>,
    /// Bytes of their names.
    names: u64,
    limits: Limits,
    done: Unpacked,
    /// The one name that the archive may have at its top; any when `None`.
    only: Option<Vec<u8>>,
    /// Of an archive of the folder's owner: what is left out.
    own: Option<Left>,
}

/// The name as it is used: relative, and without empty parts. `None`: the folder itself.
fn clean(name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) || name.contains(&0) {
        return Err(Error::Name(shown(name)));
    }
    Ok(Some(parts.join(&b'/')).filter(|name| !name.is_empty()))
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

impl<'a> Tree<'a> {
    fn new(root: &'a OwnedFd, limits: Limits) -> Self {
        let (folders, done) = (BTreeMap::new(), Unpacked::default());
        Self { root, last: None, folders, names: 0, limits, done, only: None, own: None }
    }

    /// The name as it is used, if it is one that was asked for.
    fn asked_for(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let Some(path) = clean(name)? else { return Ok(None) };
        let within =
            |only: &Vec<u8>| path.strip_prefix(only.as_slice()).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
        match &self.only {
            Some(only) if !within(only) => Err(Error::Unasked(shown(&path))),
            _ => Ok(Some(path)),
        }
    }

    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), Error> {
        self.done.entries += 1;
        if self.done.entries > self.limits.entries {
            return Err(Error::Limit(format!("{} files", self.limits.entries)));
        }
        // Whatever it is: data behind a folder or a link is skipped, and must have been sent.
        self.done.bytes = self.done.bytes.saturating_add(entry.size);
        if self.done.bytes > self.limits.bytes {
            return Err(Error::Limit(format!("{} MiB", self.limits.bytes >> 20)));
        }
        let Some(path) = self.asked_for(&entry.name)? else {
            // The folder itself, which has its mode already.
            return Ok(());
        };
        let (folder, _) = split(&path);
        let at = || Error::errno(as_path(&path));
        if matches!(entry.kind, EntryType::Directory) {
            return self.folder(&path, entry);
        }
        match entry.kind {
            EntryType::Regular | EntryType::Continuous => {
                let mask = self.limits.mask;
                let parent = self.parent(folder)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let make = |name: &[u8]| openat(parent, name, flags, Mode::from_raw_mode(0o600));
                put(parent, &path, make, |file, _| {
                    let mut file = File::from(file);
                    if copy(data, &mut file, &path)? != entry.size {
                        return Err(Error::Truncated);
                    }
                    fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777 & !mask)).map_err(at())?;
                    futimens(&file, &times(entry.mtime)).map_err(at())
                })
            }
            EntryType::Symlink => {
                self.note_outside(&path, &entry.target);
                let parent = self.parent(folder)?;
                let make = |name: &[u8]| symlinkat(entry.target.as_slice(), parent, name);
                put(parent, &path, make, |(), name| {
                    utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(at())
                })?;
                // The way to it may have led through what had this name.
                self.last = None;
                Ok(())
            }
            EntryType::Link => {
                let target = self.asked_for(&entry.target)?.ok_or_else(|| Error::Name(shown(&entry.target)))?;
                let (target_folder, target_name) = split(&target);
                let from = self.parent(target_folder)?.try_clone().map_err(Error::path(as_path(&target)))?;
                let parent = self.parent(folder)?;
                let make = |name: &[u8]| linkat(&from, target_name, parent, name, AtFlags::empty());
                put(parent, &path, make, |(), _| Ok(()))
            }
            kind => match &mut self.own {
                Some(left) if matches!(kind, EntryType::Fifo | EntryType::Char | EntryType::Block) => {
                    left.skipped.push(path);
                    Ok(())
                }
                _ => Err(Error::Kind(shown(&entry.name))),
            },
        }
    }

    fn note_outside(&mut self, path: &[u8], target: &[u8]) {
        if !leads_out(path, target, self.only.as_deref().unwrap_or_default()) {
            return;
        }
        if self.done.outside.len() < NAMED {
            self.done.outside.push((path.to_vec(), target.to_vec()));
        } else {
            self.done.more_outside += 1;
        }
    }

    fn folder(&mut self, path: &[u8], entry: &Entry) -> Result<(), Error> {
        let (folder, name) = split(path);
        let parent = self.parent(folder)?;
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Error::errno(as_path(path)))?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                    // As tar(1) with --keep-directory-symlink: `bin/` of an archive goes where
                    // `bin` leads.
                    if self.own.is_some() && self.open(path, OFlags::PATH).is_ok() {
                        return Ok(());
                    }
                    return Err(Error::Path { path: as_path(path).to_owned(), source: Errno::NOTDIR.into() });
                }
            }
            Err(error) => return Err(Error::errno(as_path(path))(error)),
        }
        let known = self.folders.insert(path.to_vec(), (entry.mode & 0o1777 & !self.limits.mask, entry.mtime));
        if known.is_none() {
            self.names = self.names.saturating_add(path.len() as u64);
        }
        if self.names > MOST_NAMES {
            return Err(Error::Limit(format!("{} MiB of folders' names", MOST_NAMES >> 20)));
        }
        Ok(())
    }

    /// The folder of that name, made when it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<&OwnedFd, Error> {
        let known = self.last.as_ref().is_some_and(|(last, _)| last == path);
        if !known {
            let folder = match self.open(path, OFlags::PATH) {
                Err(Errno::NOENT) => self.make(path)?,
                other => other.map_err(|error| link_or(error, path))?,
            };
            self.last = Some((path.to_vec(), folder));
        }
        match &self.last {
            Some((_, folder)) => Ok(folder),
            None => Err(Error::Name(shown(path))),
        }
    }

    fn make(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        let mut around = self.open(b"", OFlags::PATH).map_err(Error::errno("."))?;
        let mut begin = 0;
        for end in ends {
            let part = path.get(begin..end).unwrap_or_default();
            match mkdirat(&around, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(Error::errno(as_path(path))(error)),
            }
            let so_far = path.get(..end).unwrap_or_default();
            around = self.open(so_far, OFlags::PATH).map_err(|error| link_or(error, path))?;
            begin = end + 1;
        }
        Ok(around)
    }

    /// A folder that is there.
    fn open(&self, path: &[u8], how: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = match self.own {
            Some(_) => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            None => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        };
        openat2(self.root.as_fd(), path, how | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The innermost first: a folder's time changes with what is made in it, and its mode may
    /// forbid that.
    fn finish(self) -> Result<Unpacked, Error> {
        for (path, (mode, mtime)) in self.folders.iter().rev() {
            let at = || Error::errno(as_path(path));
            let folder = self.open(path, OFlags::RDONLY).map_err(at())?;
            futimens(&folder, &times(*mtime)).map_err(at())?;
            fchmod(&folder, Mode::from_raw_mode(*mode)).map_err(at())?;
        }
        Ok(self.done)
    }
}

fn link_or(error: Errno, path: &[u8]) -> Error {
    if error == Errno::LOOP || error == Errno::XDEV {
        Error::Link(shown(path))
    } else {
        Error::errno(as_path(path))(error)
    }
}

/// Whether a link may lead out of the folder, or of `within` in it. Behind a name, `..` may: the
/// name may be another link, from which the kernel goes up.
fn leads_out(path: &[u8], target: &[u8], within: &[u8]) -> bool {
    let parts = |path: &'_ [u8]| {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        parts.map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (mut at, mut named) = (parts(split(path).0), false);
    for part in parts(target) {
        if part != b".." {
            at.push(part);
            named = true;
        } else if named || at.pop().is_none() {
            return true;
        }
    }
    target.starts_with(b"/") || !at.starts_with(&parts(within))
}

/// Makes a file or link beside the last name of `path` and puts it in that place when `fill` has
/// finished it: whatever ends the stream before, what had the name keeps it. A folder, device, pipe
/// or socket stays, and is an error.
fn put<T>(
    parent: &OwnedFd,
    path: &[u8],
    make: impl Fn(&[u8]) -> Result<T, Errno>,
    fill: impl FnOnce(T, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (at, (_, name)) = (|| Error::errno(as_path(path)), split(path));
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
            return Err(at()(Errno::ISDIR));
        }
        // Whoever may make a file in /dev would replace a device by it.
        Ok(found) if !matches!(FileType::from_raw_mode(found.st_mode), FileType::RegularFile | FileType::Symlink) => {
            return Err(Error::InTheWay(shown(path)));
        }
        Ok(_) | Err(Errno::NOENT) => {}
        Err(error) => return Err(at()(error)),
    }
    let (new, made) = beside(make).map_err(at())?;
    let placed = fill(made, &new).and_then(|()| renameat(parent, new.as_slice(), parent, name).map_err(at()));
    // Also when it was renamed: two names of one file both stay (rename(2)).
    let left = unlinkat(parent, new.as_slice(), AtFlags::empty());
    placed.and_then(|()| match left {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(at()(error)),
    })
}

/// Makes something under a name that nothing has.
fn beside<T>(make: impl Fn(&[u8]) -> Result<T, Errno>) -> Result<(Vec<u8>, T), Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..TRIES {
        let name = format!(".banger-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes();
        match make(&name) {
            Ok(made) => return Ok((name, made)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

/// Blocks of zeros become holes.
fn copy(data: &mut dyn Read, file: &mut File, path: &[u8]) -> Result<u64, Error> {
    let mut buffer = vec![0; 64 * BLOCK];
    let (mut length, mut hole) = (0_u64, false);
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match data.read(rest) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Stream(error)),
            }
        }
        let bytes = buffer.get(..filled).unwrap_or_default();
        for block in bytes.chunks(BLOCK) {
            let zero = block.len() == BLOCK && block.iter().all(|byte| *byte == 0);
            let put = match (zero, hole) {
                (true, _) => Ok(()),
                (false, true) => file.seek(SeekFrom::Start(length)).and_then(|_| file.write_all(block)),
                (false, false) => file.write_all(block),
            };
            put.map_err(Error::path(as_path(path)))?;
            hole = zero;
            length += block.len() as u64;
        }
        if filled < buffer.len() {
            break;
        }
    }
    if hole {
        ftruncate(&*file, length).map_err(Error::errno(as_path(path)))?;
    }
    Ok(length)
}

#[cfg(test)]
mod tests;
