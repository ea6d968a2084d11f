//! COW files and their records on the host's disk. Everything here may wait for that disk, so it is
//! called on the disk's thread, and at start, when nothing is served yet.
//!
//! Each file has a durable record beside it, written first and removed last, because the files
//! outlive a reboot and the ledger does not. A record that is not `ready` is an attempt that was
//! interrupted.

use crate::images::{plain, size};
use crate::kernel::{At, KernelError, Outcome};
use crate::record;
use banger_policy::VmId;
use banger_policy::helper::holding::Cow;
use banger_policy::room;
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, fallocate, fstat, fstatvfs, fsync, ftruncate, openat2, statat,
};
use rustix::io::{Errno, retry_on_intr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Ending of the records.
const RECORD: &str = ".json";
/// The file is not the one that the record speaks of.
const CHANGED: KernelError = KernelError { step: "cow-changed", errno: libc::ESTALE };
/// A file is reserved in pieces of this size, so that others' jobs are done in between. Bytes.
pub const PIECE: u64 = 64 << 20;
/// A file is freed in pieces of this size, for the same reason. Bytes.
const FREED_PIECE: u64 = 1 << 30;

/// A record, and what its file takes on the host's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As it is on the disk.
    pub cow: Cow,
    /// Bytes, as measured when the file was made, lengthened, or found at start.
    pub allocated_bytes: u64,
}

/// The folder of the COW files: the helper's own, never the daemon's.
#[derive(Clone, Debug)]
pub struct Folder(Arc<OwnedFd>);

fn record_name(vm: &VmId) -> String {
    format!("{vm}{RECORD}")
}

impl Folder {
    pub(super) fn new(folder: OwnedFd) -> Self {
        Self(Arc::new(folder))
    }

    /// The VMs that have a record.
    pub(super) fn names(&self) -> io::Result<Vec<VmId>> {
        let names = record::names(self.0.as_fd(), RECORD)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A VM's record; `None` when it is damaged, or another VM's.
    pub(super) fn read(&self, vm: &VmId) -> io::Result<Option<Cow>> {
        let cow: Option<Cow> = record::read(self.0.as_fd(), &record_name(vm))?;
        Ok(cow.filter(|cow| cow.vm == *vm))
    }

    /// Replaces a record; the file stays as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, cow: &Cow) -> Outcome<()> {
        record::replace(self.0.as_fd(), &record_name(&cow.vm), cow, true).at("cow-record")
    }

    /// Makes a finished file an attempt again, which is erased. On a full disk its record says so
    /// as soon as something of the file has been freed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn give_up(&self, cow: Cow) -> Outcome<()> {
        match self.write(&Cow { ready: false, ..cow }) {
            Err(KernelError { errno: libc::ENOSPC | libc::EDQUOT, .. }) => Ok(()),
            written => written,
        }
    }

    /// Writes the record of an attempt, then makes the empty file.
    ///
    /// # Errors
    /// EEXIST when there is a file without a record: it is not ours to overwrite.
    pub fn begin(&self, cow: &Cow) -> Outcome<OwnedFd> {
        match statat(&self.0, cow.vm.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at("cow-look"),
            Ok(_) => return Err(KernelError { step: "cow-exists", errno: libc::EEXIST }),
        }
        self.write(cow)?;
        crate::fail::point("cow-recorded");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = openat2(&self.0, cow.vm.to_string(), flags, Mode::RUSR | Mode::WUSR, record::beneath());
        if made.is_err() {
            // No file was made for which it could speak.
            drop(record::remove(self.0.as_fd(), &record_name(&cow.vm)));
        }
        made.at("cow-create")
    }

    /// Writes the record of a growth to `root_bytes`; answers it, and the file that is to become
    /// longer.
    ///
    /// # Errors
    /// As [`Folder::file`].
    pub fn begin_growth(&self, cow: Cow, root_bytes: u64) -> Outcome<(Cow, OwnedFd)> {
        let file = self.file(&cow)?;
        let growing = Cow { growing_to: Some(root_bytes), ..cow };
        self.write(&growing)?;
        crate::fail::point("cow-growing");
        Ok((growing, file))
    }

    /// Reserves the next piece of a file that is to have `end` bytes and has `from` of them;
    /// answers how many it has then. The host's reserve is looked at for all that is still to come:
    /// others write too.
    ///
    /// # Errors
    /// ENOSPC, or EOPNOTSUPP on a file system that cannot reserve.
    pub fn reserve_piece(&self, file: BorrowedFd<'_>, from: u64, end: u64) -> Outcome<u64> {
        // What was reserved before does not have to be free.
        self.room(end.saturating_sub(allocated(&fstat(file).at("cow-stat")?)))?;
        let piece = PIECE.min(end.saturating_sub(from));
        // On a full disk nothing that runs is hurt, because the file is whole before anything uses
        // it.
        retry_on_intr(|| fallocate(file, FallocateFlags::empty(), from, piece)).at("cow-reserve")?;
        crate::fail::point("cow-piece");
        Ok(from.saturating_add(piece))
    }

    /// Marks an attempt to make or to lengthen a file as finished; the file has been reserved.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self, file: BorrowedFd<'_>, cow: Cow) -> Outcome<Kept> {
        fsync(file).at("cow-sync")?;
        crate::fail::point("cow-reserved");
        self.keep(file, Cow { ready: true, growing_to: None, ..cow })
    }

    /// Writes the last record of a file that is whole.
    fn keep(&self, file: BorrowedFd<'_>, cow: Cow) -> Outcome<Kept> {
        self.write(&cow)?;
        Ok(Kept { cow, allocated_bytes: allocated(&fstat(file).at("cow-stat")?) })
    }

    /// Undoes a growth that was not finished: nothing has used what the file has beyond its
    /// recorded length.
    ///
    /// # Errors
    /// As [`Folder::file`]; the record stays as it is then.
    pub fn shrink_back(&self, cow: Cow) -> Outcome<Kept> {
        let (file, bytes) = self.open(&cow)?;
        if bytes > cow.file_bytes {
            ftruncate(&file, cow.file_bytes).at("cow-truncate")?;
            fsync(&file).at("cow-sync")?;
        }
        crate::fail::point("cow-shrunk");
        self.keep(file.as_fd(), Cow { growing_to: None, ..cow })
    }

    /// Frees a piece of an attempt's file, and at last removes file and record; answers whether
    /// there is more to do. A file without the attempt's own record is not ours and stays; gone
    /// already is success.
    ///
    /// # Errors
    /// The kernel's.
    pub fn erase_piece(&self, attempt: &Cow) -> Outcome<bool> {
        let vm = &attempt.vm;
        match self.read(vm) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).at("cow-remove"),
            Ok(Some(found)) if found.generation == attempt.generation => {
                // It was finished but for the answer.
                if found.ready {
                    self.give_up(found)?;
                }
            }
            Ok(_) => return Err(KernelError { step: "cow-remove", errno: libc::ESTALE }),
        }
        let (name, flags) = (vm.to_string(), OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK);
        match openat2(&self.0, &name, flags, Mode::empty(), record::beneath()) {
            Ok(file) => {
                let stat = fstat(&file).at("cow-stat")?;
                let bytes = size(&stat);
                // What somebody has linked elsewhere keeps its bytes.
                if plain(&stat) && bytes > FREED_PIECE {
                    ftruncate(&file, bytes.saturating_sub(FREED_PIECE)).at("cow-truncate")?;
                    crate::fail::point("cow-freed");
                    return Ok(true);
                }
            }
            // Nothing there, or no file that could be freed: its name goes all the same.
            Err(Errno::NOENT | Errno::LOOP) => {}
            Err(errno) => return Err(errno).at("cow-open"),
        }
        crate::fail::point("cow-removing");
        record::remove(self.0.as_fd(), &name).at("cow-remove")?;
        crate::fail::point("cow-removed");
        record::remove(self.0.as_fd(), &record_name(vm)).at("cow-remove")?;
        Ok(false)
    }

    /// Opens a finished COW file for the loop device.
    ///
    /// # Errors
    /// ESTALE when the file is not the one that the record speaks of.
    pub fn file(&self, cow: &Cow) -> Outcome<OwnedFd> {
        match self.open(cow)? {
            (file, bytes) if bytes == cow.file_bytes => Ok(file),
            _ => Err(CHANGED),
        }
    }

    /// The file, which is the helper's own and not shorter than its record says, and its length.
    fn open(&self, cow: &Cow) -> Outcome<(OwnedFd, u64)> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat2(&self.0, cow.vm.to_string(), flags, Mode::empty(), record::beneath()).at("cow-open")?;
        let stat = fstat(&file).at("cow-stat")?;
        // The folder's owner is the helper's uid: looked at when it was opened.
        let own = stat.st_uid == fstat(&self.0).at("cow-stat")?.st_uid
            && Mode::from_raw_mode(stat.st_mode) == Mode::RUSR | Mode::WUSR;
        let bytes = size(&stat);
        if plain(&stat) && own && bytes >= cow.file_bytes { Ok((file, bytes)) } else { Err(CHANGED) }
    }

    /// What a file takes now; nothing when it is not there.
    pub(super) fn allocated(&self, vm: &VmId) -> u64 {
        statat(&self.0, vm.to_string(), AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| allocated(&stat))
    }

    /// May so much more be reserved?
    ///
    /// # Errors
    /// ENOSPC when less than the host's reserve would stay free.
    pub fn room(&self, bytes: u64) -> Outcome<()> {
        let stat = fstatvfs(&self.0).at("cow-room")?;
        let short = room::check(bytes, stat.f_bavail.saturating_mul(stat.f_frsize)).is_err();
        if short { Err(KernelError { step: "host-reserve", errno: libc::ENOSPC }) } else { Ok(()) }
    }
}

/// Blocks of stat(2) have 512 bytes on every file system.
fn allocated(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}
