//! The operations: what the policy granted, done in the order that survives a crash at any step.
//!
//! For each: a row with the intent is in the ledger before the kernel is asked, the kernel's
//! identity of what was made is in it before the caller is answered. Operations on one VM wait for
//! each other; those of different VMs do not. Nothing here looks at who is asking: [`crate::serve`]
//! admits the daemon alone.

mod cow;
mod disk;
mod process;
mod recover;
mod tap;

use crate::cow::Cows;
use crate::disk_thread::DiskThread;
use crate::fail;
use crate::images::Images;
use crate::kernel::{Kernel, KernelError, Outcome};
use crate::ledger::Ledger;
use banger_policy::VmId;
use banger_policy::helper::firewall::Change;
use banger_policy::helper::holding::{self, Disk, Refusal, Row, Step};
use banger_policy::net::Network;
use banger_proto::helper::{HelperError, Holding, HoldingPage, PAGE};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How often a busy object is looked at again, and for how long: udev keeps a device open for some
/// milliseconds after it appears, a dying VMM until its memory is given back.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
const BUSY_TRIES: u32 = 250;

/// Why an operation was not done: the code that the daemon gets, and a fixed word for the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {code}")]
pub struct Denied {
    /// For the daemon.
    pub code: HelperError,
    /// For the journal.
    pub rule: &'static str,
}

impl Denied {
    fn new(code: HelperError, rule: &'static str) -> Self {
        Self { code, rule }
    }
}

impl From<KernelError> for Denied {
    fn from(error: KernelError) -> Self {
        let code = match error.errno {
            libc::EBUSY | libc::EEXIST => HelperError::Busy,
            libc::ENOSPC | libc::EDQUOT => HelperError::NoSpace,
            errno => HelperError::Kernel(errno),
        };
        Self { code, rule: error.step }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.into(), refusal.word())
    }
}

/// What every operation answers.
pub type Answer<T> = Result<T, Denied>;

/// Everything that the helper knows and holds.
#[derive(Debug)]
pub struct Machine<K> {
    kernel: K,
    ledger: RefCell<Ledger>,
    cows: RefCell<Cows>,
    images: Images,
    disk: DiskThread,
    network: Network,
    daemon_uid: u32,
    turns: RefCell<BTreeMap<VmId, Arc<Mutex<()>>>>,
}

impl<K: Kernel> Machine<K> {
    /// Nothing is changed yet; see [`Machine::recover`]. The disk's thread need not have been
    /// started.
    #[must_use]
    pub fn new(
        kernel: K,
        ledger: Ledger,
        cows: Cows,
        images: Images,
        disk: DiskThread,
        network: Network,
        daemon_uid: u32,
    ) -> Self {
        let (ledger, cows) = (RefCell::new(ledger), RefCell::new(cows));
        Self { kernel, ledger, cows, images, disk, network, daemon_uid, turns: RefCell::default() }
    }

    /// The kernel, for tests.
    #[must_use]
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Waits for the operations on this VM that came before.
    async fn turn(&self, vm: VmId) -> Answer<OwnedMutexGuard<()>> {
        if self.ledger.borrow().is_damaged(&vm) {
            return Err(Denied::new(HelperError::Quarantined, "damaged-ledger-file"));
        }
        let lock = {
            let mut turns = self.turns.borrow_mut();
            // A lock that only this map holds has nobody waiting; at most 64 calls are in flight.
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(turns.entry(vm).or_default())
        };
        Ok(lock.lock_owned().await)
    }

    fn row(&self, vm: &VmId) -> Option<Row> {
        self.ledger.borrow().rows().get(vm).cloned()
    }

    fn put(&self, row: Row) -> Answer<()> {
        self.ledger.borrow_mut().put(row).map_err(|_| Denied::new(HelperError::Ledger, "ledger-write"))?;
        fail::point("ledger-written");
        Ok(())
    }

    /// Commits that an attempt came to nothing. A row that holds nothing then was opened for it,
    /// and nobody was told its generation.
    fn abandon(&self, row: Row) -> Answer<()> {
        if row.is_empty() && row.process.is_none() { self.close(row.vm) } else { self.put(row) }
    }

    /// Does the process that was bound still run? A look-up that fails is never taken for "no".
    fn running(&self, row: Option<&Row>) -> Answer<bool> {
        let Some(bound) = row.and_then(|row| row.process) else { return Ok(false) };
        let seen = self.kernel.process(bound.pid)?;
        Ok(seen.is_some_and(|seen| seen.process == bound && seen.alive))
    }

    /// Changes what the firewall lets pass for a VM. No flow is older than its guest's address, and
    /// none lives on that would not be let begin any more.
    ///
    /// After an error less may pass than the row says, never more.
    fn let_pass(&self, row: &Row, change: &Change) -> Outcome<()> {
        let Some(address) = row.address().filter(|_| !change.is_empty()) else { return Ok(()) };
        if change.opens() {
            self.kernel.end_flows(address)?;
        }
        self.kernel.firewall_change(change)?;
        if change.narrows() {
            // After the elements: from here on no packet begins a flow.
            self.kernel.end_flows(address)?;
        }
        Ok(())
    }

    /// Takes the VM's address out of the firewall and ends its flows: first in every teardown.
    fn withdraw(&self, row: &Row) -> Answer<()> {
        self.let_nothing_pass(row)?;
        fail::point("withdrawn");
        Ok(())
    }

    fn let_nothing_pass(&self, row: &Row) -> Outcome<()> {
        let most = row.registrable(self.ledger.borrow().rows());
        self.let_pass(row, &Change::between(most.as_ref(), None))
    }

    /// Commits what an undo came to: the row without the object, or that somebody else had a hand
    /// in it.
    fn undone(&self, row: Row, without: Row, result: Answer<()>) -> Answer<()> {
        match result {
            Ok(()) => self.put(without)?,
            Err(Denied { code: HelperError::Quarantined, .. }) => self.put(row.with_quarantine(true))?,
            Err(_) => {}
        }
        result
    }

    /// Releases everything but the COW file. On a quarantined row it looks again: what an
    /// administrator has put right is then released like anything else.
    ///
    /// # Errors
    /// The first thing that could not be released; the rest has been.
    pub async fn release(&self, vm: VmId) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        let running = self.running(row.as_ref())?;
        let Step::Do(grant) = holding::release(row.as_ref(), running).granted()? else { return Ok(()) };
        let mut row = grant.into_row().with_quarantine(false);
        self.withdraw(&row)?;
        let tap = self.drop_tap(&row).await;
        if tap.is_ok() {
            row = row.without_tap();
        }
        let disk = self.drop_disk(&row).await;
        if disk.is_ok() {
            row = row.with_disk(Disk::None);
        }
        if row.is_empty() {
            return self.close(vm);
        }
        let quarantined = |result: &Answer<()>| result.is_err_and(|denied| denied.code == HelperError::Quarantined);
        let foreign = quarantined(&tap) || quarantined(&disk);
        self.put(row.with_quarantine(foreign))?;
        if quarantined(&disk) { disk } else { tap.and(disk) }
    }

    fn close(&self, vm: VmId) -> Answer<()> {
        self.ledger.borrow_mut().close(vm).map_err(|_| Denied::new(HelperError::Ledger, "ledger-close"))
    }
}

impl<K: Kernel> Machine<K> {
    /// What is held for a VM.
    ///
    /// # Errors
    /// [`HelperError::NotYours`] when nothing is.
    pub fn identity(&self, vm: VmId) -> Answer<Holding> {
        Ok(self.holding(vm).ok_or(Refusal::NotYours)?)
    }

    /// The VMs after `after`, ordered by id.
    #[must_use]
    pub fn list(&self, after: Option<VmId>) -> HoldingPage {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let enough = PAGE.saturating_add(1);
        let mut ids = BTreeSet::new();
        ids.extend(self.ledger.borrow().rows().range(range).map(|(vm, _)| *vm).take(enough));
        ids.extend(self.cows.borrow().after(range.0).take(enough));
        let more = ids.len() > PAGE;
        let holdings: Vec<Holding> = ids.into_iter().take(PAGE).filter_map(|vm| self.holding(vm)).collect();
        let next = holdings.last().filter(|_| more).map(|holding| holding.vm);
        HoldingPage { holdings, next }
    }

    fn holding(&self, vm: VmId) -> Option<Holding> {
        let cows = self.cows.borrow();
        let cow = cows.get(&vm).map(|kept| (&kept.cow, kept.allocated_bytes));
        Holding::of(vm, self.row(&vm).as_ref(), cow)
    }
}

/// Waits a little; `false` when the tries are used up.
async fn again(tries: &mut u32) -> bool {
    *tries = tries.saturating_add(1);
    if *tries < BUSY_TRIES {
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    *tries < BUSY_TRIES
}
