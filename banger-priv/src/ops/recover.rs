//! At start: the ledger is compared with the kernel, then marked objects without a row are swept
//! away.
//!
//! An intent is undone. What is held and gone is struck out. What is held and changed is
//! quarantined. An object without our mark is never touched, whatever its name. Doing it twice
//! changes nothing.

use super::{Answer, Machine, disk, tap};
use crate::kernel::{Kernel, LinkKind};
use crate::log::{self, Level};
use banger_policy::VmId;
use banger_policy::helper::holding::{Disk, Row, Rows, Tap};

impl<K: Kernel> Machine<K> {
    /// Makes ledger, firewall and kernel agree. Before anything is served.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the firewall cannot be made: the helper must not serve
    /// then.
    pub async fn recover(&self) -> Answer<()> {
        let rows: Vec<Row> = self.ledger.borrow().rows().values().cloned().collect();
        let mut checked = Rows::new();
        for row in &rows {
            let tap = self.check_tap(row.clone()).await?;
            let disk = self.check_disk(tap)?;
            checked.insert(row.vm, self.check_process(disk)?);
        }
        let registrations: Vec<_> = checked.values().filter_map(|row| row.registration(&checked)).collect();
        self.kernel.firewall_rebuild(&registrations)?;
        // The rows last: what an earlier helper withdrew without ending its flows is known by its
        // old row alone.
        for (row, now) in rows.into_iter().zip(checked.values()) {
            if let (Some(address), None) = (row.address(), now.registration(&checked)) {
                self.kernel.end_flows(address)?;
            }
            if *now != row {
                self.put(now.clone())?;
            }
        }
        self.sweep_links().await?;
        self.sweep_disks()
    }

    fn check_process(&self, row: Row) -> Answer<Row> {
        let ended = row.process.is_some() && !self.running(Some(&row))?;
        Ok(if ended { row.without_process() } else { row })
    }

    async fn check_tap(&self, row: Row) -> Answer<Row> {
        let link = match row.tap {
            Tap::None => return Ok(row),
            Tap::Intent { .. } => {
                self.kernel.link_by_name(&row.vm.tap_name()).await?.filter(|link| tap::is_ours(link, &row))
            }
            Tap::Held { ifindex, .. } => self.kernel.link_by_index(ifindex).await?,
        };
        match link {
            None => Ok(gone(row, "tap-gone").without_tap()),
            Some(link) if !tap::is_ours(&link, &row) => Ok(quarantine(row, "tap-changed")),
            Some(link) if matches!(row.tap, Tap::Intent { .. }) && !link.carrier => {
                self.kernel.delete_link(link.ifindex).await?;
                Ok(row.without_tap())
            }
            // An intent that somebody holds open stays one; the VM's next call tries again.
            Some(_) => Ok(row),
        }
    }

    fn check_disk(&self, row: Row) -> Answer<Row> {
        if row.disk == Disk::None {
            return Ok(row);
        }
        let uuid = row.vm.dm_uuid(row.generation);
        match self.kernel.dm_find(&uuid)? {
            None => Ok(gone(row, "dm-gone").with_disk(Disk::None)),
            Some(device) if !disk::is_ours(&device, &row) => Ok(quarantine(row, "dm-changed")),
            Some(_) if row.disk == Disk::Intent => match self.kernel.dm_remove(&uuid) {
                Err(error) if error.errno == libc::EBUSY => Ok(row),
                other => Ok(other.map(|()| row.with_disk(Disk::None))?),
            },
            Some(_) => Ok(row),
        }
    }

    /// May an object with this mark go? Not while a row of that boot of the VM speaks of one, nor
    /// while nobody can know, the row being damaged.
    fn is_orphan(&self, vm: &VmId, generation: u64, held: impl Fn(&Row) -> bool) -> bool {
        let ledger = self.ledger.borrow();
        let spoken_for =
            ledger.rows().get(vm).is_some_and(|row| row.generation == generation && (row.quarantined || held(row)));
        !ledger.is_damaged(vm) && !spoken_for
    }

    async fn sweep_links(&self) -> Answer<()> {
        for link in self.kernel.links().await? {
            let Some((vm, generation)) = VmId::from_tap_alias(&link.alias) else { continue };
            let whole = link.kind == LinkKind::Tun && link.name == vm.tap_name();
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

    fn sweep_disks(&self) -> Answer<()> {
        for device in self.kernel.dm_list()? {
            let Some((vm, generation)) = VmId::from_dm_uuid(&device.uuid) else { continue };
            if device.name != vm.dm_name() || !self.is_orphan(&vm, generation, |row| row.disk != Disk::None) {
                continue;
            }
            match self.kernel.dm_remove(&device.uuid) {
                Ok(()) => note(Level::Warning, &vm, "orphan-dm-removed"),
                Err(error) if error.errno == libc::EBUSY => note(Level::Critical, &vm, "orphan-dm-open"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Strikes out what is no longer there; an intent may well have come to nothing.
fn gone(row: Row, rule: &str) -> Row {
    note(Level::Warning, &row.vm, rule);
    row
}

fn quarantine(row: Row, rule: &str) -> Row {
    note(Level::Critical, &row.vm, rule);
    row.with_quarantine(true)
}

fn note(level: Level, vm: &VmId, rule: &str) {
    log::record(level, &format!("recover vm={vm} rule={rule}"));
}
