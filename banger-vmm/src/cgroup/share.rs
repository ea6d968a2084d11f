//! The group of a user, which holds the groups of the user's VMs: what they may take together,
//! whatever each of them may take. So a user whose group is full takes nothing from another's.

use super::{Cgroups, IO, Kind, Tree, at, gone};
use banger_policy::shares::Share;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::{fs, io};

/// Weights of BFQ, whose file has another name, end here.
const MOST_OF_BFQ: u64 = 1000;

impl Cgroups {
    /// From now on the user's VMs have this share: those that run at once, others when they start.
    /// Without groups there is nothing to share.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn share(&self, owner: u32, share: Share) -> io::Result<()> {
        let Kind::Tree(tree) = &self.kind else { return Ok(()) };
        tree.shares.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, share);
        match tree.share_of(&tree.vms.join(owner.to_string())) {
            // No VM of that user runs.
            Err(error) if gone(&error) => Ok(()),
            done => done,
        }
    }

    /// Users who have a group.
    #[must_use]
    pub fn owners(&self) -> Vec<u32> {
        let Kind::Tree(tree) = &self.kind else { return Vec::new() };
        let folders = fs::read_dir(&tree.vms).into_iter().flatten().flatten();
        folders.filter_map(|owner| owner.file_name().to_str()?.parse().ok()).collect()
    }

    /// The group of a user; `None` without groups.
    #[must_use]
    pub fn owner_path(&self, owner: u32) -> Option<PathBuf> {
        let Kind::Tree(tree) = &self.kind else { return None };
        Some(tree.vms.join(owner.to_string()))
    }
}

impl Tree {
    /// Writes what is known of the user whose group this is.
    pub(super) fn share_of(&self, group: &Path) -> io::Result<()> {
        let uid = group.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(share) = uid.and_then(|uid| shares.get(&uid)) else { return Ok(()) };
        let limit = |bytes: Option<u64>| bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        for (controller, file, value) in [
            ("cpu", "cpu.weight", share.cpu_weight.to_string()),
            // What is kept in the group may go before what is there must end.
            ("memory", "memory.high", limit(share.memory_high)),
            ("memory", "memory.max", limit(share.memory_max)),
            ("pids", "pids.max", share.pids.to_string()),
        ] {
            if self.controllers.iter().any(|have| have == controller) {
                set(&group.join(file), &value)?;
            }
        }
        weigh_io(self, group, share.io_weight)
    }
}

pub(super) fn weigh_io(tree: &Tree, group: &Path, weight: u64) -> io::Result<()> {
    if tree.controllers.iter().any(|have| have == IO) {
        // Which of the two there is depends on the kernel; it may have neither.
        for (file, weight) in [("io.weight", weight), ("io.bfq.weight", weight.min(MOST_OF_BFQ))] {
            match set(&group.join(file), &format!("default {weight}")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && group.exists() => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// Writes a file of the kernel's, which is there or is not.
pub(super) fn set(path: &Path, value: &str) -> io::Result<()> {
    let opened = fs::File::options().write(true).truncate(true).open(path);
    opened.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|error| at(path, &error))
}
