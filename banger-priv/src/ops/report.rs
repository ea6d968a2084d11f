//! The helper's own rows, as facts for the daemon.

use super::{Answer, Denied, Machine};
use crate::kernel::Kernel;
use banger_policy::VmId;
use banger_policy::holding::{Cow, Disk, Row, Tap};
use banger_proto::helper::{HelperError, Holding, HoldingPage, PAGE, TapIdentity};
use std::collections::BTreeSet;
use std::ops::Bound;

impl<K: Kernel> Machine<K> {
    /// What is held for a VM.
    ///
    /// # Errors
    /// [`HelperError::NotYours`] when nothing is.
    pub fn identity(&self, vm: VmId) -> Answer<Holding> {
        self.holding(vm).ok_or(Denied::new(HelperError::NotYours, "not-yours"))
    }

    /// The VMs after `after`, ordered by id.
    #[must_use]
    pub fn list(&self, after: Option<VmId>) -> HoldingPage {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = (from, Bound::Unbounded);
        let mut ids: BTreeSet<VmId> = BTreeSet::new();
        ids.extend(self.ledger.borrow().rows().range(range).map(|(vm, _)| *vm).take(PAGE.saturating_add(1)));
        ids.extend(self.cows.borrow().records().range(range).map(|(vm, _)| *vm).take(PAGE.saturating_add(1)));
        let more = ids.len() > PAGE;
        let holdings: Vec<Holding> = ids.into_iter().take(PAGE).filter_map(|vm| self.holding(vm)).collect();
        let next = if more { holdings.last().map(|holding| holding.vm) } else { None };
        HoldingPage { holdings, next }
    }

    fn holding(&self, vm: VmId) -> Option<Holding> {
        let row = self.row(&vm);
        let cow = self.cows.borrow().get(&vm).cloned();
        let owner = row.as_ref().map(|row| row.owner).or_else(|| cow.as_ref().map(|cow: &Cow| cow.owner))?;
        let empty = Holding {
            vm,
            owner,
            tap: None,
            disk: None,
            cow: cow.as_ref().map(|cow| self.cow_record(cow)),
            nat: false,
            pid: None,
            quarantined: false,
        };
        Some(row.map_or(empty.clone(), |row| filled(&row, empty)))
    }
}

fn filled(row: &Row, empty: Holding) -> Holding {
    let tap = TapIdentity { tap_device: row.vm.tap_name(), generation: row.generation };
    Holding {
        tap: matches!(row.tap, Tap::Held { .. }).then_some(tap),
        disk: match &row.disk {
            Disk::Held(held) => Some(super::disk::identity(row, held)),
            _ => None,
        },
        nat: row.nat,
        pid: row.process.map(|process| process.pid),
        quarantined: row.quarantined,
        ..empty
    }
}
