//! The helper's own record of what it holds: a row per VM in a tmpfs folder, so that it has exactly
//! the life of the kernel objects it speaks of. Written before and after each kernel operation,
//! never trusted blindly at start (see [`crate::ops`]'s recovery).

use crate::log::{self, Level};
use crate::record;
use banger_policy::VmId;
use banger_policy::helper::holding::{Row, Rows};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat2};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// One helper at a time.
const LOCK: &str = ".lock";

/// What a file holds: a row, and the boot in which it means something.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sheet {
    /// Raised when the meaning of a field changes; a newer helper reads all older ones.
    format: u32,
    boot: String,
    row: Row,
}

const FORMAT: u32 = 1;

/// The rows in memory and their files.
#[derive(Debug)]
pub struct Ledger {
    folder: OwnedFd,
    _lock: OwnedFd,
    boot: String,
    rows: Rows,
    damaged: BTreeSet<VmId>,
}

impl Ledger {
    /// Reads the folder. Rows of another boot speak of objects that are gone, and are dropped.
    ///
    /// # Errors
    /// The kernel's, or that another helper has it; the helper must not serve then.
    pub fn open(folder: OwnedFd, boot: String) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = openat2(&folder, LOCK, flags, Mode::RUSR | Mode::WUSR, record::beneath())?;
        let taken = |_| io::Error::other("another banger-priv is running on it");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(taken)?;
        let (mut rows, mut damaged) = (Rows::new(), BTreeSet::new());
        for name in record::names(folder.as_fd(), "")? {
            // No VM has such a name, so none can be kept from working by it.
            let Ok(vm) = name.parse::<VmId>() else { continue };
            match record::read::<Sheet>(folder.as_fd(), &name) {
                Ok(Some(sheet)) if sheet.format <= FORMAT && sheet.row.vm == vm => {
                    if sheet.boot == boot {
                        rows.insert(vm, sheet.row);
                    } else {
                        record::remove(folder.as_fd(), &name)?;
                    }
                }
                _ => {
                    log::record(Level::Critical, &format!("ledger vm={vm} verdict=quarantined rule=damaged-file"));
                    damaged.insert(vm);
                }
            }
        }
        Ok(Self { folder, _lock: lock, boot, rows, damaged })
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Its file cannot be read: nobody knows what the VM holds, so nothing of it may be changed
    /// until an administrator has looked and removed the file.
    #[must_use]
    pub fn is_damaged(&self, vm: &VmId) -> bool {
        self.damaged.contains(vm)
    }

    /// Writes a row: on the file first.
    ///
    /// # Errors
    /// The kernel's; nothing has changed then.
    pub fn put(&mut self, row: Row) -> io::Result<()> {
        let sheet = Sheet { format: FORMAT, boot: self.boot.clone(), row };
        record::replace(self.folder.as_fd(), &sheet.row.vm.to_string(), &sheet, false)?;
        self.rows.insert(sheet.row.vm, sheet.row);
        Ok(())
    }

    /// Closes a row.
    ///
    /// # Errors
    /// The kernel's; the row stands then.
    pub fn close(&mut self, vm: VmId) -> io::Result<()> {
        record::remove(self.folder.as_fd(), &vm.to_string())?;
        self.rows.remove(&vm);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::helper::holding::{Disk, Tap};

    fn row() -> Row {
        let vm = VmId::from_bytes([7; 32]).unwrap();
        Row {
            vm,
            owner: 1,
            generation: 2,
            tap: Tap::None,
            disk: Disk::Intent,
            reach: banger_policy::reach::Reach::default(),
            process: None,
            quarantined: false,
        }
    }

    fn open(path: &std::path::Path, boot: &str) -> io::Result<Ledger> {
        // Another test of this process may start a program at this moment, which has the lock until
        // it begins.
        let mut opened = Ledger::open(record::folder(path, OFlags::RDONLY).unwrap(), boot.to_owned());
        for _ in 0..20 {
            if opened.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            opened = Ledger::open(record::folder(path, OFlags::RDONLY).unwrap(), boot.to_owned());
        }
        opened
    }

    #[test]
    fn rows_survive_a_restart_but_not_a_reboot() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path(), "boot-1").unwrap();
        ledger.put(row()).unwrap();
        assert!(open(folder.path(), "boot-1").is_err(), "one helper at a time");
        drop(ledger);
        assert_eq!(open(folder.path(), "boot-1").unwrap().rows().values().collect::<Vec<_>>(), [&row()]);
        assert!(open(folder.path(), "boot-2").unwrap().rows().is_empty());
        assert!(open(folder.path(), "boot-1").unwrap().rows().is_empty(), "dropped for good");
    }

    #[test]
    fn a_closed_row_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path(), "b").unwrap();
        ledger.put(row()).unwrap();
        ledger.close(row().vm).unwrap();
        ledger.close(row().vm).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [LOCK]);
    }

    #[test]
    fn a_damaged_or_misnamed_file_quarantines_its_vm_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path(), "b").unwrap();
        ledger.put(row()).unwrap();
        drop(ledger);
        let path = folder.path().join(row().vm.to_string());
        let bytes = std::fs::read(&path).unwrap();
        let other = VmId::from_bytes([0xab; 32]).unwrap();
        std::fs::write(folder.path().join(other.to_string()), &bytes).unwrap();
        std::fs::write(folder.path().join("notes"), b"by somebody").unwrap();
        let ledger = open(folder.path(), "b").unwrap();
        assert_eq!((ledger.rows().len(), ledger.is_damaged(&row().vm), ledger.is_damaged(&other)), (1, false, true));
        drop(ledger);
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let ledger = open(folder.path(), "b").unwrap();
            assert!(ledger.is_damaged(&row().vm) && ledger.rows().is_empty(), "cut at {cut}");
        }
    }
}
