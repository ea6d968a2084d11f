//! A workspace in the place of an older one, in one step.
//!
//! Root does it for another user, since what was built in the old one may be anybody's. That user
//! may change names meanwhile, and so no name is followed twice: folders are opened from their
//! parents' descriptors, and nobody but root enters the new one before it is complete.

use crate::manifest::{self, recorded};
use crate::pack::as_path;
use crate::{Error, Limits, Unpacked, unpack};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid, chownat, fchmod, fstat,
    linkat, mkdirat, openat, openat2, readlinkat, renameat_with, statat, symlinkat,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a replacement of the same folder is waited for: one that was interrupted ends soon, and
/// another user's is not to be overwritten unseen.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// Of the new folder until it is complete, and of its parents.
const PRIVATE: Mode = Mode::RWXU;
/// Of the new folder and of its parents that are made.
const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// Whose the files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: Uid,
    gid: Gid,
}

impl Owner {
    /// `UID:GID`.
    pub(crate) fn parse(word: &[u8]) -> Option<Self> {
        let (uid, gid) = std::str::from_utf8(word).ok()?.split_once(':')?;
        // -1 means "unchanged" to the kernel.
        let id = |text: &str| text.parse::<u32>().ok().filter(|number| *number != u32::MAX);
        Some(Self { uid: Uid::from_raw(id(uid)?), gid: Gid::from_raw(id(gid)?) })
    }
}

/// How a workspace is to be replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Without one the files are whoever's who does this.
    pub(crate) owner: Option<Owner>,
    /// What the folder must be ([`manifest::state`]).
    pub(crate) state: Option<&'a str>,
    /// How long another replacement of the folder is waited for.
    pub(crate) wait: Duration,
}

/// Unpacks a workspace beside `folder` and then puts it in its place, which `placed` hears of: the
/// old folder is removed after that. What the folder held beside the workspace before, such as what
/// was built there, is taken over.
pub(crate) fn replace(
    folder: &Path,
    Wanted { owner, state, wait }: Wanted<'_>,
    from: impl Read,
    placed: impl FnOnce(),
) -> Result<Unpacked, Error> {
    let name = folder.file_name().ok_or_else(|| Error::Name(folder.display().to_string()))?;
    let around = folder.parent().unwrap_or(Path::new("/"));
    let beside = |end: &[u8]| as_path(&[b".", name.as_bytes(), end].concat()).to_owned();
    let staged = beside(b".banger-new");
    make_folder(around, owner)?;
    let at = openat(CWD, around, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::errno(around))?;
    let _lock = Lock::take(&anchor(&at).join(beside(b".banger-lock")), folder, wait)?;
    let staged_path = anchor(&at).join(&staged);
    // Left by one that was interrupted.
    remove(&staged_path)?;
    let made = stage(&at, &staged, folder, owner, from).and_then(|unpacked| {
        // Last of all, because the files were on their way for as long as the network took.
        if let Some(state) = state
            && manifest::state(&anchor(&at).join(name))? != state
        {
            return Err(Error::Meanwhile(folder.to_owned()));
        }
        let taken = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let how = if taken { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        renameat_with(&at, &staged, &at, name, how).map_err(Error::errno(folder))?;
        placed();
        Ok(unpacked)
    });
    // The new one, when it did not get its place; else the old one.
    drop(remove(&staged_path));
    made
}

/// Makes the new folder, complete, under another name.
fn stage(at: &OwnedFd, name: &Path, folder: &Path, owner: Option<Owner>, from: impl Read) -> Result<Unpacked, Error> {
    mkdirat(at, name, PRIVATE).map_err(Error::errno(name))?;
    let new = open_below(at, name).map_err(Error::errno(name))?;
    let unpacked = unpack(from, &new, Limits::NONE)?;
    let path = anchor(&new);
    if let Some(owner) = owner {
        give(&path, owner)?;
    }
    // What is taken over was not prepared: it stays something that the guest has added.
    manifest::record(&path)?;
    if let Some(owner) = owner {
        let records = path.join(crate::RECORDS);
        give_one(&records, owner)?;
        give(&records, owner)?;
    }
    match open_below(at, Path::new(folder.file_name().unwrap_or_default())) {
        Ok(old) => TakeOver { old, new: &new, folder, seen: BTreeMap::new() }.all()?,
        // There is none, or a file or a link.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(Error::errno(folder)(error)),
    }
    if let Some(Owner { uid, gid }) = owner {
        rustix::fs::fchown(&new, Some(uid), Some(gid)).map_err(Error::errno(folder))?;
    }
    fchmod(&new, FOLDER).map_err(Error::errno(folder))?;
    Ok(unpacked)
}

/// A folder by its descriptor, whatever becomes of its name.
fn anchor(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// A folder below another one, no link being followed.
fn open_below(folder: &OwnedFd, name: &Path) -> Result<OwnedFd, Errno> {
    let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(folder, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// With those around it.
fn make_folder(path: &Path, owner: Option<Owner>) -> Result<(), Error> {
    let (false, Some(around), Some(name)) = (path.is_dir(), path.parent(), path.file_name()) else { return Ok(()) };
    make_folder(around, owner)?;
    let at = openat(CWD, around, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(Error::errno(around))?;
    match mkdirat(&at, name, FOLDER) {
        Ok(()) => {}
        // By somebody else.
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(Error::errno(path)(error)),
    }
    let Some(Owner { uid, gid }) = owner else { return Ok(()) };
    let made = open_below(&at, Path::new(name)).map_err(Error::errno(path))?;
    rustix::fs::fchown(&made, Some(uid), Some(gid)).map_err(Error::errno(path))
}

/// Gives what is below a folder to a user. Nobody else enters it.
fn give(path: &Path, owner: Owner) -> Result<(), Error> {
    let mut folders = vec![path.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at).map_err(Error::path(&at))? {
            let entry = entry.map_err(Error::path(&at))?;
            give_one(&entry.path(), owner)?;
            if entry.file_type().map_err(Error::path(&at))?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

fn give_one(path: &Path, Owner { uid, gid }: Owner) -> Result<(), Error> {
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(Error::errno(path))
}

/// Whatever is there.
fn remove(path: &Path) -> Result<(), Error> {
    let gone = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    gone.map_err(Error::path(path))
}

/// A file beside the folder that is locked (flock(2)) while the folder is being replaced, and gone
/// afterwards.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(path: &Path, folder: &Path, wait: Duration) -> Result<Self, Error> {
        let end = Instant::now() + wait;
        // Not through a link, and without waiting for whoever made a pipe of it.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
            let file = options.open(path).map_err(Error::path(path))?;
            match file.try_lock() {
                Ok(()) => {
                    let ours = file.metadata().map_err(Error::path(path))?;
                    // Whoever had it may have removed it meanwhile, and the next one made another.
                    let is_it = path
                        .symlink_metadata()
                        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
                    if is_it {
                        return Ok(Self { path: path.to_owned(), _file: file });
                    }
                }
                Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
                Err(TryLockError::WouldBlock) => return Err(Error::Busy(folder.to_owned())),
                Err(TryLockError::Error(error)) => return Err(Error::path(path)(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked.
        let _ = fs::remove_file(&self.path);
    }
}

/// Brings what the old folder has, and neither its manifest, nor its tree, nor the new folder: a
/// hard link to each file, so that the old folder stays whole until it is replaced.
struct TakeOver<'a> {
    old: OwnedFd,
    new: &'a OwnedFd,
    /// For people.
    folder: &'a Path,
    /// The old one's folders on the way.
    seen: BTreeMap<Vec<u8>, Stat>,
}

impl TakeOver<'_> {
    fn all(&mut self) -> Result<(), Error> {
        let old = anchor(&self.old);
        let mut known: BTreeSet<Vec<u8>> = recorded(&old).unwrap_or_default().into_keys().collect();
        known.extend(manifest::checked_out(&old));
        let disk = fstat(&self.old).map_err(Error::errno(self.folder))?.st_dev;
        let mut folders = vec![Vec::new()];
        while let Some(name) = folders.pop() {
            let shown = self.folder.join(as_path(&name));
            let from = match open_below(&self.old, as_path(&name)) {
                Ok(from) => from,
                // It went away meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(Error::errno(&shown)(error)),
            };
            // The old folder is removed at the end, and what is mounted in it would be emptied.
            let stat = fstat(&from).map_err(Error::errno(&shown))?;
            if stat.st_dev != disk {
                return Err(Error::Mounted(shown));
            }
            self.seen.insert(name.clone(), stat);
            for entry in Dir::read_from(&from).map_err(Error::errno(&shown))? {
                let file = entry.map_err(Error::errno(&shown))?.file_name().to_owned().into_bytes();
                if matches!(file.as_slice(), b"." | b"..") || (name.is_empty() && file == b".git") {
                    continue;
                }
                let path = if name.is_empty() { file.clone() } else { [&name, b"/".as_slice(), &file].concat() };
                let Ok(found) = statat(&from, as_path(&file), AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let is_folder = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let taken = statat(self.new, as_path(&path), AtFlags::SYMLINK_NOFOLLOW);
                if is_folder(&found) && taken.as_ref().map_or(true, is_folder) {
                    folders.push(path);
                } else if taken.is_err() && !known.contains(&path) && self.makes_room(&name)? {
                    self.bring(&from, as_path(&file), as_path(&path), &found)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a folder of the old one in the new one, owner and mode as they were. False when a file
    /// stands in the way now: then what was below goes.
    fn makes_room(&self, name: &[u8]) -> Result<bool, Error> {
        let ends = name.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([name.len()]) {
            let folder = name.get(..end).unwrap_or_default();
            let Some(was) = self.seen.get(folder).filter(|_| !folder.is_empty()) else { continue };
            match mkdirat(self.new, as_path(folder), PRIVATE) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                Err(error) => return Err(Error::errno(self.folder.join(as_path(folder)))(error)),
            }
            let made = open_below(self.new, as_path(folder)).map_err(Error::errno(self.folder))?;
            // Another user than root cannot, and has the folder then.
            let (uid, gid) = (Uid::from_raw(was.st_uid), Gid::from_raw(was.st_gid));
            let _ = rustix::fs::fchown(&made, Some(uid), Some(gid));
            fchmod(&made, Mode::from_raw_mode(was.st_mode)).map_err(Error::errno(self.folder))?;
        }
        Ok(true)
    }

    fn bring(&self, from: &OwnedFd, file: &Path, to: &Path, found: &Stat) -> Result<(), Error> {
        let shown = || Error::errno(self.folder.join(to));
        match linkat(from, file, self.new, to, AtFlags::empty()) {
            // It may not be linked (protected_hardlinks of proc_sys_fs(5), chattr(1)), or has too
            // many links.
            Err(Errno::PERM | Errno::MLINK) => self.copy(from, file, to, found),
            // It went away meanwhile.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => Ok(()),
            Err(error) => Err(shown()(error)),
        }
    }

    fn copy(&self, from: &OwnedFd, file: &Path, to: &Path, found: &Stat) -> Result<(), Error> {
        let shown = self.folder.join(to);
        let owner = (Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)));
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = openat(from, file, flags | OFlags::RDONLY, Mode::empty()).map_err(Error::errno(&shown))?;
                let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let copy = openat(self.new, to, create, Mode::RUSR | Mode::WUSR).map_err(Error::errno(&shown))?;
                let (mut source, mut copy) = (File::from(source), File::from(copy));
                io::copy(&mut source, &mut copy).map_err(Error::path(&shown))?;
                let _ = rustix::fs::fchown(&copy, owner.0, owner.1);
                fchmod(&copy, Mode::from_raw_mode(found.st_mode & 0o777)).map_err(Error::errno(&shown))?;
                let modified = source.metadata().and_then(|found| found.modified()).map_err(Error::path(&shown))?;
                copy.set_modified(modified).map_err(Error::path(&shown))
            }
            FileType::Symlink => {
                let target = readlinkat(from, file, Vec::new()).map_err(Error::errno(&shown))?;
                symlinkat(target, self.new, to).map_err(Error::errno(&shown))?;
                let _ = chownat(self.new.as_fd(), to, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW);
                Ok(())
            }
            // What belongs to a program that runs: a socket, a pipe.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
