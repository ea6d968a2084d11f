//! At start: the ledger is compared with the kernel, then marked objects without a row are swept away.
//!
//! An intent is undone. What is held and gone is struck out. What is held and changed is quarantined.
//! An object without our mark is never touched, whatever its name. Doing it twice changes nothing.

use super::{Machine, Stop};
use crate::kernel::{Kernel, Outcome};
use crate::log::{self, Level};
use banger_policy::VmId;
use banger_policy::holding::{Disk, Row, Tap};
use std::fmt::Display;

impl<K: Kernel> Machine<K> {
    /// Makes ledger, firewall and kernel agree. Before anything is served.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the firewall cannot be made: the helper must not serve then.
    pub async fn recover(&self) -> Outcome<()> {
        let rows: Vec<Row> = self.ledger.borrow().rows().values().cloned().collect();
        for row in rows {
            let checked = self.check_disk(self.check_tap(row.clone()).await?)?;
            if checked != row && self.put(checked).is_err() {
                note(Level::Critical, &row.vm, "ledger-write");
            }
        }
        self.rebuild_firewall()?;
        self.sweep_links().await?;
        self.sweep_disks()
    }

    fn rebuild_firewall(&self) -> Outcome<()> {
        let registrations: Vec<_> = self.ledger.borrow().rows().values().filter_map(Row::registration).collect();
        self.kernel.firewall_rebuild(&registrations)
    }

    async fn check_tap(&self, row: Row) -> Outcome<Row> {
        let ifindex = match row.tap {
            Tap::None => return Ok(row),
            Tap::Intent { .. } => return self.settle(row.clone(), self.drop_tap_now(&row).await),
            Tap::Held { ifindex, .. } => ifindex,
        };
        let link = self.kernel.link_by_index(ifindex).await?;
        let name = row.vm.tap_name();
        Ok(match link {
            Some(link) if link.tun && link.name == name && link.alias == row.vm.tap_alias(row.generation) => row,
            Some(_) => quarantine(row, "tap-changed"),
            None => {
                note(Level::Warning, &row.vm, "tap-gone");
                row.without_tap()
            }
        })
    }

    /// Undoes an intent without waiting: a start must not hang on a device that somebody holds.
    async fn drop_tap_now(&self, row: &Row) -> Result<Row, Stop> {
        match self.kernel.link_by_name(&row.vm.tap_name()).await? {
            Some(link) if link.carrier => Err(Stop::Busy("tap-open")),
            _ => self.drop_tap(row).await,
        }
    }

    fn check_disk(&self, row: Row) -> Outcome<Row> {
        if row.disk == Disk::None {
            return Ok(row);
        }
        let uuid = row.vm.dm_uuid(row.generation);
        let device = self.kernel.dm_find(&uuid)?;
        let ours = device.as_ref().is_some_and(|device| super::disk::matches(device, &row));
        match (device, row.disk) {
            (None, Disk::Intent) => Ok(row.with_disk(Disk::None)),
            (None, _) => {
                note(Level::Warning, &row.vm, "dm-gone");
                Ok(row.with_disk(Disk::None))
            }
            (Some(_), _) if !ours => Ok(quarantine(row, "dm-changed")),
            (Some(_), Disk::Held(_)) => Ok(row),
            (Some(_), _) => {
                let removed = self.kernel.dm_remove(&uuid).map_err(Stop::from);
                self.settle(row.clone(), removed.map(|()| row.with_disk(Disk::None)))
            }
        }
    }

    /// An intent that cannot be undone now stays an intent; the VM's next call tries again.
    fn settle(&self, row: Row, result: Result<Row, Stop>) -> Outcome<Row> {
        match result {
            Ok(row) => Ok(row),
            Err(Stop::Busy(rule)) => {
                note(Level::Warning, &row.vm, rule);
                Ok(row)
            }
            Err(Stop::Mismatch(rule)) => Ok(quarantine(row, rule)),
            Err(Stop::Kernel(error)) if error.errno == libc::EBUSY => {
                note(Level::Warning, &row.vm, error.step);
                Ok(row)
            }
            Err(Stop::Kernel(error)) => Err(error),
        }
    }

    /// May an object with this mark go? Not while a row of that boot of the VM speaks of one, nor while
    /// nobody can know, the row being damaged.
    fn is_orphan(&self, vm: &VmId, generation: u64, held: impl Fn(&Row) -> bool) -> bool {
        let ledger = self.ledger.borrow();
        let spoken_for =
            ledger.rows().get(vm).is_some_and(|row| row.generation == generation && (row.quarantined || held(row)));
        !ledger.is_damaged(vm) && !spoken_for
    }

    async fn sweep_links(&self) -> Outcome<()> {
        for link in self.kernel.links().await? {
            let Some((vm, generation)) = link.alias.strip_prefix("banger:1:").and_then(|mark| parse_mark(mark, ':'))
            else {
                continue;
            };
            let whole = link.tun && link.name == vm.tap_name() && link.alias == vm.tap_alias(generation);
            if !whole || !self.is_orphan(&vm, generation, |row| row.tap != Tap::None) {
                continue;
            }
            if link.carrier {
                note(Level::Critical, &vm, "orphan-tap-open");
            } else {
                note(Level::Warning, &vm, "orphan-tap-removed");
                self.kernel.delete_link(link.ifindex).await?;
            }
        }
        Ok(())
    }

    fn sweep_disks(&self) -> Outcome<()> {
        for device in self.kernel.dm_list()? {
            let Some((vm, generation)) = device.uuid.strip_prefix("BANGER-").and_then(|mark| parse_mark(mark, '-'))
            else {
                continue;
            };
            let whole = device.name == vm.dm_name() && device.uuid == vm.dm_uuid(generation);
            if !whole || !self.is_orphan(&vm, generation, |row| row.disk != Disk::None) {
                continue;
            }
            match self.kernel.dm_remove(&device.uuid) {
                Ok(()) => note(Level::Warning, &vm, "orphan-dm-removed"),
                Err(error) if error.errno == libc::EBUSY => note(Level::Critical, &vm, "orphan-dm-open"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The VM and the generation in a mark of ours.
fn parse_mark(mark: &str, separator: char) -> Option<(VmId, u64)> {
    let (vm, generation) = mark.split_once(separator)?;
    Some((vm.parse().ok()?, u64::from_str_radix(generation, 16).ok()?))
}

fn quarantine(row: Row, rule: &str) -> Row {
    note(Level::Critical, &row.vm, rule);
    row.with_quarantine(true)
}

fn note(level: Level, vm: &VmId, rule: impl Display) {
    log::record(level, &format!("recover vm={vm} rule={rule}"));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_whole_marks_are_ours() {
        let vm = VmId::from_bytes([9; 32]).unwrap();
        let alias = vm.tap_alias(77);
        assert_eq!(parse_mark(alias.strip_prefix("banger:1:").unwrap(), ':'), Some((vm, 77)));
        assert_eq!(parse_mark(vm.dm_uuid(77).strip_prefix("BANGER-").unwrap(), '-'), Some((vm, 77)));
        for bad in ["bridge", "", ":", &format!("{vm}:"), &format!("{vm}:x"), &format!("{}:1", "0".repeat(64))] {
            assert_eq!(parse_mark(bad, ':'), None, "{bad}");
        }
    }
}
