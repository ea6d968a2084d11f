//! What the helper knows of the COW files: their records in memory. The files themselves, which may
//! wait for the host's disk, are [`Folder`]'s.
//!
//! The files are the helper's own, never the daemon's: a forged header in one makes the kernel
//! allocate four times the chunk size that it claims.

mod folder;

pub use folder::{Folder, Kept, PIECE};

use crate::kernel::KernelError;
use crate::log::{self, Level};
use banger_policy::VmId;
use banger_policy::helper::holding::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::os::fd::OwnedFd;

/// All COW files of the host, as their records on the disk say. An attempt is known from before its
/// first step until nothing of it is left.
#[derive(Debug)]
pub struct Cows {
    folder: Folder,
    kept: BTreeMap<VmId, Kept>,
    /// Files that are being made or erased, or that could not be erased.
    attempts: BTreeMap<VmId, Cow>,
    damaged: BTreeSet<VmId>,
}

impl Cows {
    /// Reads the folder and undoes interrupted attempts. Waits for the disk.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(folder: OwnedFd) -> io::Result<Self> {
        let folder = Folder::new(folder);
        let (mut kept, mut attempts, mut damaged) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for vm in folder.names()? {
            match folder.read(&vm) {
                Ok(Some(cow)) if cow.ready => drop(kept.insert(vm, found(&folder, cow))),
                Ok(Some(attempt)) if is_left(&folder, &attempt) => drop(attempts.insert(vm, attempt)),
                Ok(Some(_)) => {}
                // Also one that the disk does not give back: the helper serves the other VMs.
                unread => {
                    let errno = unread.err().and_then(|error| error.raw_os_error()).unwrap_or_default();
                    let line = format!("cow vm={vm} verdict=quarantined rule=damaged-record errno={errno}");
                    log::record(Level::Critical, &line);
                    damaged.insert(vm);
                }
            }
        }
        Ok(Self { folder, kept, attempts, damaged })
    }

    /// The files.
    #[must_use]
    pub fn folder(&self) -> Folder {
        self.folder.clone()
    }

    /// The record of a VM's COW file.
    #[must_use]
    pub fn get(&self, vm: &VmId) -> Option<&Kept> {
        self.kept.get(vm)
    }

    /// The VMs behind `after` that have a record, in the order of their ids.
    pub fn after(&self, after: Bound<VmId>) -> impl Iterator<Item = VmId> {
        self.kept.range((after, Bound::Unbounded)).map(|(vm, _)| *vm)
    }

    /// How many files there are, those included that are being made.
    #[must_use]
    pub fn count(&self) -> usize {
        self.kept.len().saturating_add(self.attempts.len())
    }

    /// The record cannot be read; nothing of this VM is touched until an administrator has looked.
    #[must_use]
    pub fn is_damaged(&self, vm: &VmId) -> bool {
        self.damaged.contains(vm)
    }

    /// The attempt that a VM's file still is, whose end nobody has seen.
    #[must_use]
    pub fn attempt(&self, vm: &VmId) -> Option<&Cow> {
        self.attempts.get(vm)
    }

    /// From now on the VM's file is an attempt: being made, or being erased.
    pub fn attempted(&mut self, cow: Cow) {
        self.kept.remove(&cow.vm);
        self.attempts.insert(cow.vm, cow);
    }

    /// The attempt is over, and nothing of it is left.
    pub fn erased(&mut self, vm: &VmId) {
        self.attempts.remove(vm);
    }

    /// The record says something else now; the file is as it was.
    pub fn change(&mut self, cow: Cow) {
        if let Some(kept) = self.kept.get_mut(&cow.vm) {
            kept.cow = cow;
        }
    }

    /// The VM's file is whole, and its record says this.
    pub fn keep(&mut self, kept: Kept) {
        self.attempts.remove(&kept.cow.vm);
        self.kept.insert(kept.cow.vm, kept);
    }
}

/// A finished file; a growth of it that was interrupted is undone.
fn found(folder: &Folder, cow: Cow) -> Kept {
    let vm = cow.vm;
    if cow.growing_to.is_some()
        && let Ok(kept) = folder.shrink_back(cow.clone()).map_err(|error| failed(vm, error))
    {
        return kept;
    }
    Kept { allocated_bytes: folder.allocated(&vm), cow }
}

/// Erases an attempt that was interrupted; answers whether something of it is left.
fn is_left(folder: &Folder, attempt: &Cow) -> bool {
    let mut more = Ok(true);
    while more == Ok(true) {
        more = folder.erase_piece(attempt);
    }
    more.map_err(|error| failed(attempt.vm, error)).is_err()
}

/// The VM's next call tries again, and is told: one file that cannot be changed does not end the
/// helper, which others need.
fn failed(vm: VmId, KernelError { step, errno }: KernelError) {
    log::record(Level::Critical, &format!("cow vm={vm} verdict=failed rule={step} errno={errno}"));
}

#[cfg(test)]
#[path = "cow_tests.rs"]
mod tests;
