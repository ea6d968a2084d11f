//! COW files and the base images under them. The files are the helper's own, never the daemon's: a forged
//! header in one makes the kernel allocate four times the chunk size that it claims.
//!
//! Each has a durable record beside it, written first and removed last, because the files outlive a reboot
//! and the ledger does not. A record that is not `ready` is an attempt that was interrupted.

use crate::kernel::{At, KernelError, Outcome};
use crate::log::{self, Level};
use crate::record;
use banger_policy::holding::Cow;
use banger_policy::id::ROOTFS_FILE;
use banger_policy::limits::MAX_DISK_BYTES;
use banger_policy::room;
use banger_policy::snapshot::CHUNK_BYTES;
use banger_policy::{Digest, VmId};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fallocate, fstat, fstatvfs, fsync, ftruncate,
    openat2, statat,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Ending of the records.
const RECORD: &str = ".json";
/// The file is not the one that the record speaks of.
const CHANGED: KernelError = KernelError { step: "cow-changed", errno: libc::ESTALE };

/// All COW files of the host.
#[derive(Debug)]
pub struct Cows {
    folder: OwnedFd,
    records: BTreeMap<VmId, Cow>,
    damaged: BTreeSet<VmId>,
}

impl Cows {
    /// Reads the folder and undoes interrupted attempts.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(folder: OwnedFd) -> io::Result<Self> {
        let mut cows = Self { folder, records: BTreeMap::new(), damaged: BTreeSet::new() };
        for name in record::names(cows.folder.as_fd(), RECORD)? {
            let Ok(vm) = name.parse::<VmId>() else { continue };
            match record::read::<Cow>(cows.folder.as_fd(), &format!("{name}{RECORD}"))? {
                Some(cow) if cow.vm == vm && cow.ready => {
                    cows.records.insert(vm, cow);
                    if let Err(error) = cows.shrink_back(vm) {
                        // The VM's next call tries again, and is told.
                        let (step, errno) = (error.step, error.errno);
                        log::record(Level::Critical, &format!("cow vm={vm} verdict=failed rule={step} errno={errno}"));
                    }
                }
                Some(cow) if cow.vm == vm => cows.remove(vm)?,
                _ => {
                    log::record(Level::Critical, &format!("cow vm={vm} verdict=quarantined rule=damaged-record"));
                    cows.damaged.insert(vm);
                }
            }
        }
        Ok(cows)
    }

    /// The record of a VM's COW file.
    #[must_use]
    pub fn get(&self, vm: &VmId) -> Option<&Cow> {
        self.records.get(vm)
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> &BTreeMap<VmId, Cow> {
        &self.records
    }

    /// The record cannot be read; nothing of this VM is touched until an administrator has looked.
    #[must_use]
    pub fn is_damaged(&self, vm: &VmId) -> bool {
        self.damaged.contains(vm)
    }

    /// Writes the record of an attempt, then makes the empty file.
    ///
    /// # Errors
    /// EEXIST when there is a file without a record: it is not ours to overwrite.
    pub fn begin(&self, cow: &Cow) -> Outcome<OwnedFd> {
        match statat(&self.folder, cow.vm.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at("cow-look"),
            Ok(_) => return Err(KernelError { step: "cow-exists", errno: libc::EEXIST }),
        }
        self.write(cow)?;
        crate::fail::point("cow-recorded");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat2(&self.folder, cow.vm.to_string(), flags, Mode::RUSR | Mode::WUSR, record::beneath()).at("cow-create")
    }

    /// Writes the record of a growth to `root_bytes`, then answers the file that is to become longer.
    ///
    /// # Errors
    /// As [`Cows::file`].
    pub fn begin_growth(&mut self, cow: &Cow, root_bytes: u64) -> Outcome<OwnedFd> {
        let file = self.file(cow)?;
        self.put(Cow { growing_to: Some(root_bytes), ..cow.clone() })?;
        crate::fail::point("cow-growing");
        Ok(file)
    }

    /// Marks an attempt to make or to lengthen a file as finished; the file has been reserved.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&mut self, file: BorrowedFd<'_>, cow: &Cow) -> Outcome<()> {
        fsync(file).at("cow-sync")?;
        crate::fail::point("cow-reserved");
        self.put(Cow { ready: true, growing_to: None, ..cow.clone() })
    }

    /// Undoes a growth that was not finished: nothing has used what the file has beyond its recorded length.
    ///
    /// # Errors
    /// As [`Cows::file`]; the record stays as it is then.
    pub fn shrink_back(&mut self, vm: VmId) -> Outcome<()> {
        let Some(cow) = self.records.get(&vm).filter(|cow| cow.growing_to.is_some()).cloned() else { return Ok(()) };
        let (file, bytes) = self.open_file(&cow)?;
        if bytes > cow.file_bytes {
            ftruncate(&file, cow.file_bytes).at("cow-truncate")?;
            fsync(&file).at("cow-sync")?;
        }
        crate::fail::point("cow-shrunk");
        self.put(Cow { growing_to: None, ..cow })
    }

    /// May so much more be reserved?
    ///
    /// # Errors
    /// ENOSPC when less than the host's reserve would stay free.
    pub fn room(&self, bytes: u64) -> Outcome<()> {
        let stat = fstatvfs(&self.folder).at("cow-room")?;
        let short = room::check(bytes, stat.f_bavail.saturating_mul(stat.f_frsize)).is_err();
        if short { Err(KernelError { step: "host-reserve", errno: libc::ENOSPC }) } else { Ok(()) }
    }

    fn write(&self, cow: &Cow) -> Outcome<()> {
        record::replace(self.folder.as_fd(), &format!("{}{RECORD}", cow.vm), cow, true).at("cow-record")
    }

    fn put(&mut self, cow: Cow) -> Outcome<()> {
        self.write(&cow)?;
        self.records.insert(cow.vm, cow);
        Ok(())
    }

    /// Replaces a record; the file stays as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, cow: &Cow) -> Outcome<()> {
        record::replace(self.folder.as_fd(), &format!("{}{RECORD}", cow.vm), cow, true).at("cow-record")?;
        self.records.insert(cow.vm, cow.clone());
        Ok(())
    }

    /// Removes file and record; gone already is success.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, vm: VmId) -> io::Result<()> {
        let name = format!("{vm}{RECORD}");
        // Back to an attempt first: a crash before the end is then completed at start.
        if let Some(cow) = self.records.get(&vm) {
            let cow = Cow { ready: false, ..cow.clone() };
            record::replace(self.folder.as_fd(), &name, &cow, true)?;
            self.records.remove(&vm);
        }
        crate::fail::point("cow-removing");
        record::remove(self.folder.as_fd(), &vm.to_string())?;
        crate::fail::point("cow-removed");
        record::remove(self.folder.as_fd(), &name)
    }

    /// Opens a finished COW file for the loop device.
    ///
    /// # Errors
    /// ESTALE when the file is not the one that the record speaks of.
    pub fn file(&self, cow: &Cow) -> Outcome<OwnedFd> {
        match self.open_file(cow)? {
            (file, bytes) if bytes == cow.file_bytes => Ok(file),
            _ => Err(CHANGED),
        }
    }

    /// The file, which is the helper's own and not shorter than its record says, and its length.
    fn open_file(&self, cow: &Cow) -> Outcome<(OwnedFd, u64)> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat2(&self.folder, cow.vm.to_string(), flags, Mode::empty(), record::beneath()).at("cow-open")?;
        let stat = fstat(&file).at("cow-stat")?;
        // The folder's owner is the helper's uid: looked at when it was opened.
        let own = stat.st_uid == fstat(&self.folder).at("cow-stat")?.st_uid
            && Mode::from_raw_mode(stat.st_mode) == Mode::RUSR | Mode::WUSR;
        let bytes = size(&stat);
        if plain(&stat) && own && bytes >= cow.file_bytes { Ok((file, bytes)) } else { Err(CHANGED) }
    }

    /// What the file takes on the host's disk, bytes.
    #[must_use]
    pub fn allocated(&self, vm: &VmId) -> u64 {
        let blocks = statat(&self.folder, vm.to_string(), AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_blocks);
        u64::try_from(blocks).unwrap_or(0).saturating_mul(512)
    }
}

/// Reserves `bytes` from `from` on; on a full disk nothing that runs is hurt, because the file is whole
/// before anything uses it.
///
/// # Errors
/// ENOSPC, or EOPNOTSUPP on a file system that cannot reserve.
pub fn reserve(file: BorrowedFd<'_>, from: u64, bytes: u64) -> Outcome<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), from, bytes) {
            Err(Errno::INTR) => {}
            other => return other.at("cow-reserve"),
        }
    }
}

/// The daemon's image folder.
#[derive(Debug)]
pub struct Images {
    folder: OwnedFd,
    daemon_uid: u32,
}

impl Images {
    /// `folder`: a handle on it, good for passing through.
    #[must_use]
    pub fn new(folder: OwnedFd, daemon_uid: u32) -> Self {
        Self { folder, daemon_uid }
    }

    /// Opens a base image: a plain, read-only file of the daemon's, in whole chunks. Answers its size too.
    ///
    /// # Errors
    /// EINVAL when it is anything else.
    pub fn base(&self, image: &Digest) -> Outcome<(OwnedFd, u64)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let resolve = record::beneath() | ResolveFlags::NO_XDEV;
        let file =
            openat2(&self.folder, format!("{image}/{ROOTFS_FILE}"), flags, Mode::empty(), resolve).at("base-open")?;
        let stat = fstat(&file).at("base-stat")?;
        let bytes = size(&stat);
        let writable = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WUSR | Mode::WGRP | Mode::WOTH);
        let whole = bytes > 0 && bytes <= MAX_DISK_BYTES && bytes.is_multiple_of(CHUNK_BYTES);
        if plain(&stat) && stat.st_uid == self.daemon_uid && !writable && whole {
            Ok((file, bytes))
        } else {
            Err(KernelError { step: "base-refused", errno: libc::EINVAL })
        }
    }
}

/// A regular file under one name.
fn plain(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn vm() -> VmId {
        VmId::from_bytes([3; 32]).unwrap()
    }

    fn image() -> Digest {
        Digest::from_bytes([4; 32]).unwrap()
    }

    fn cow(bytes: u64) -> Cow {
        Cow {
            vm: vm(),
            owner: 1,
            image: image(),
            base_bytes: 1 << 20,
            root_bytes: bytes,
            file_bytes: bytes,
            growing_to: None,
            generation: 2,
            ready: false,
        }
    }

    fn cows(path: &Path) -> Cows {
        Cows::open(record::folder(path, OFlags::RDONLY).unwrap()).unwrap()
    }

    fn make(cows: &mut Cows) {
        let file = cows.begin(&cow(1 << 20)).unwrap();
        reserve(file.as_fd(), 0, 1 << 20).unwrap();
        cows.finish(file.as_fd(), &cow(1 << 20)).unwrap();
    }

    #[test]
    fn a_finished_file_survives_a_restart_and_an_attempt_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = cows(folder.path());
        drop(first.begin(&cow(1 << 20)).unwrap());
        first = cows(folder.path());
        assert!(first.get(&vm()).is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the attempt is undone whole");
        make(&mut first);
        let second = cows(folder.path());
        assert_eq!(second.get(&vm()), Some(&Cow { ready: true, ..cow(1 << 20) }));
        assert!(second.allocated(&vm()) >= 1 << 20);
        drop(second.file(second.get(&vm()).unwrap()).unwrap());
        let mut second = second;
        second.remove(vm()).unwrap();
        second.remove(vm()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_growth_that_was_interrupted_is_undone_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(vm().to_string());
        let mut first = cows(folder.path());
        make(&mut first);
        let before = first.get(&vm()).unwrap().clone();
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        // Before, in the middle of, and after the reservation.
        for more in [0, 4096, 1 << 20] {
            let mut growing = cows(folder.path());
            let file = growing.begin_growth(&before, 2 << 20).unwrap();
            if more > 0 {
                reserve(file.as_fd(), 1 << 20, more).unwrap();
            }
            drop(growing);
            let again = cows(folder.path());
            assert_eq!(again.get(&vm()), Some(&before), "{more}");
            drop(again.file(&before).unwrap());
            assert!(fs::read(&path).unwrap() == vec![7; 1 << 20], "what was written is kept");
        }
        // Finished, it stays.
        let mut growing = cows(folder.path());
        let file = growing.begin_growth(&before, 2 << 20).unwrap();
        reserve(file.as_fd(), 1 << 20, 1 << 20).unwrap();
        growing.finish(file.as_fd(), &Cow { root_bytes: 2 << 20, file_bytes: 2 << 20, ..before }).unwrap();
        let again = cows(folder.path());
        let grown = again.get(&vm()).unwrap();
        assert_eq!((grown.root_bytes, grown.growing_to, grown.ready), (2 << 20, None, true));
        drop(again.file(grown).unwrap());
        assert_eq!(fs::read(&path).unwrap().get(..1 << 20), Some(&[7; 1 << 20][..]));
    }

    #[test]
    fn a_file_that_was_cut_while_it_grew_is_not_filled_up_with_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = cows(folder.path());
        make(&mut first);
        let before = first.get(&vm()).unwrap().clone();
        drop(first.begin_growth(&before, 2 << 20).unwrap());
        let path = folder.path().join(vm().to_string());
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let mut again = cows(folder.path());
        assert_eq!(again.get(&vm()).unwrap().growing_to, Some(2 << 20), "it is not taken for settled");
        assert_eq!(again.shrink_back(vm()).unwrap_err().errno, libc::ESTALE);
        assert_eq!(fs::metadata(&path).unwrap().len(), 4096);
    }

    #[test]
    fn a_file_without_a_record_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(vm().to_string());
        fs::write(&path, b"somebody's").unwrap();
        let cows = cows(folder.path());
        assert_eq!(cows.begin(&cow(1 << 20)).unwrap_err().errno, libc::EEXIST);
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
        assert!(!folder.path().join(format!("{}.json", vm())).exists(), "and no record is made for it");
    }

    #[test]
    fn a_file_that_was_exchanged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut cows = cows(folder.path());
        make(&mut cows);
        let record = cows.get(&vm()).unwrap().clone();
        let path = folder.path().join(vm().to_string());
        let refuse = |why: &str| assert!(cows.file(&record).is_err(), "{why}");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        refuse("readable by others");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&path, folder.path().join("second")).unwrap();
        refuse("a second name");
        fs::remove_file(folder.path().join("second")).unwrap();
        drop(cows.file(&record).unwrap());
        fs::write(&path, b"short").unwrap();
        refuse("another size");
        fs::remove_file(&path).unwrap();
        refuse("gone");
    }

    #[test]
    fn a_damaged_record_quarantines_its_vm_alone() {
        let folder = tempfile::tempdir().unwrap();
        make(&mut cows(folder.path()));
        let path = folder.path().join(format!("{}.json", vm()));
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let cows = cows(folder.path());
            assert!(cows.is_damaged(&vm()) && cows.get(&vm()).is_none(), "cut at {cut}");
            assert!(folder.path().join(vm().to_string()).exists());
        }
    }

    /// Everything that must not become a loop device.
    #[test]
    fn only_a_plain_read_only_file_of_the_daemon_is_a_base() {
        let images = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let directory = images.path().join(image().to_string());
        let path = directory.join(ROOTFS_FILE);
        let attempt = |uid| Images::new(record::folder(images.path(), OFlags::PATH).unwrap(), uid).base(&image());
        assert_eq!(attempt(me).unwrap_err().errno, libc::ENOENT);
        fs::create_dir(&directory).unwrap();
        let good = |bytes: usize| {
            drop(fs::remove_file(&path));
            fs::write(&path, vec![0; bytes]).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        };
        good(8192);
        assert_eq!(attempt(me).unwrap().1, 8192);
        assert_eq!(attempt(me + 1).unwrap_err().step, "base-refused", "another owner");
        for size in [0, 4095, 4097] {
            good(size);
            assert_eq!(attempt(me).unwrap_err().step, "base-refused", "{size} bytes");
        }
        good(4096);
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "writable");
        good(4096);
        fs::hard_link(&path, directory.join("second")).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "two names");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("second", &path).unwrap();
        assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a symbolic link");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a fifo");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(attempt(me).unwrap_err().step, "base-refused", "a folder");
        fs::remove_dir(&path).unwrap();
        fs::remove_file(directory.join("second")).unwrap();
        fs::remove_dir(&directory).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join(ROOTFS_FILE), vec![0; 4096]).unwrap();
        std::os::unix::fs::symlink(outside.path(), &directory).unwrap();
        assert_eq!(attempt(me).unwrap_err().errno, libc::ELOOP, "a folder that is a link");
    }
}
