//! The VM's process, and what the firewall lets pass because of it.

use super::{Answer, Denied, Machine};
use crate::fail;
use crate::kernel::Kernel;
use crate::log::{self, Level};
use banger_policy::VmId;
use banger_policy::helper::firewall::Change;
use banger_policy::helper::holding::{self, Process, Refusal, Row, Step};
use banger_policy::reach::Reach;
use banger_proto::helper::{HelperError, ProcessState};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::spawn_local;

/// Between two tries to withdraw the address of a process that has ended.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// Of that many failures in a row, one is written to the journal.
const WATCH_LOGGED: u32 = 60;

impl<K: Kernel> Machine<K> {
    /// Records the VM's process, then registers its address. True when it was not known before:
    /// each is watched once, however often it is bound.
    ///
    /// # Errors
    /// [`HelperError::NotYours`] for a process that is not the daemon's user's, in this VM's
    /// cgroup, alive.
    pub async fn bind_process(&self, vm: VmId, pid: u32) -> Answer<bool> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        let owner = row.as_ref().ok_or(Refusal::NotYours)?.owner;
        let seen = self.kernel.vm_process(owner, &vm, pid)?;
        let its = seen.filter(|seen| seen.uids == [self.daemon_uid; 4] && seen.alive);
        let seen = its.ok_or(Denied::new(HelperError::NotYours, "not-the-vms-process"))?;
        match holding::bind_process(row.as_ref(), seen.process).granted()? {
            Step::Stored => Ok(false),
            Step::Do(grant) => self.register(row, grant.into_row()).map(|()| true),
        }
    }

    /// [`Machine::watch`] for all whose process lives; once, before anything is served.
    pub fn watch_all(self: &Rc<Self>) {
        self.ledger.borrow().rows().keys().for_each(|vm| self.watch(*vm));
    }

    /// From now on the end of the VM's process takes its address out of the firewall. Without fail
    /// points: a helper that dies in between finds the dead process when it recovers.
    ///
    /// While that does not work the address is live without its process, so it is tried until it
    /// does.
    pub fn watch(self: &Rc<Self>, vm: VmId) {
        let machine = Rc::clone(self);
        spawn_local(async move {
            let Some(bound) = machine.row(&vm).and_then(|row| row.process) else { return };
            for failures in 0_u32.. {
                let Err(denied) = machine.withdraw_at_end(vm, bound).await else { return };
                if failures.is_multiple_of(WATCH_LOGGED) {
                    log::record(Level::Critical, &format!("watch vm={vm} verdict=failed rule={}", denied.rule));
                }
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        });
    }

    async fn withdraw_at_end(&self, vm: VmId, bound: Process) -> Answer<()> {
        self.kernel.ended(bound).await?;
        let _turn = self.turn(vm).await?;
        // A teardown that came first has withdrawn it.
        let Some(row) = self.row(&vm).filter(|row| row.process == Some(bound)) else { return Ok(()) };
        self.let_nothing_pass(&row)?;
        let written = self.ledger.borrow_mut().put(row.without_process());
        written.map_err(|_| Denied::new(HelperError::Ledger, "ledger-write"))?;
        log::record(Level::Info, &format!("watch vm={vm} verdict=ok rule=process-ended"));
        Ok(())
    }

    /// Lets the guest reach that far: what it may reach no more goes first.
    ///
    /// # Errors
    /// The policy's or the kernel's.
    pub async fn set_network(&self, vm: VmId, reach: Reach) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let old = self.row(&vm).ok_or(Refusal::NotYours)?;
        let Step::Do(grant) = holding::set_network(Some(&old), reach).granted()? else { return Ok(()) };
        let new = grant.into_row();
        let half = new.halfway_from(&old);
        if half != old {
            self.register(Some(old), half.clone())?;
        }
        if half == new { Ok(()) } else { self.register(Some(half), new) }
    }

    /// What passes after a crash is what the rows say, for the whole table is made from them at
    /// start. So a row that says more is written before anything more passes, and one that says
    /// less when nothing more than that passes: a caller who asks again after a failure is never
    /// told that it has been done.
    fn register(&self, old: Option<Row>, new: Row) -> Answer<()> {
        let passes = |row: &Row| row.registration(self.ledger.borrow().rows());
        let change = Change::between(old.as_ref().and_then(passes).as_ref(), passes(&new).as_ref());
        if change.narrows() {
            self.let_pass(&new, &change)?;
            self.put(new)?;
        } else {
            self.put(new.clone())?;
            let changed = self.let_pass(&new, &change);
            if let (Err(_), Some(old)) = (&changed, old) {
                self.put(old)?;
            }
            changed?;
        }
        fail::point("registered");
        Ok(())
    }

    /// What became of the process that was bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn process_running(&self, vm: VmId, pid: u32) -> Answer<ProcessState> {
        let Ok(bound) = holding::process_running(self.row(&vm).as_ref(), pid).granted() else {
            return Ok(ProcessState::NotYours);
        };
        Ok(match self.kernel.process(pid)? {
            None => ProcessState::Gone,
            Some(seen) if seen.process != bound => ProcessState::NotYours,
            Some(seen) if seen.alive => ProcessState::Running,
            Some(_) => ProcessState::Gone,
        })
    }
}
