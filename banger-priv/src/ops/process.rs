//! The VM's process, and what the firewall lets pass because of it.

use super::{Answer, Denied, Machine};
use crate::fail;
use crate::kernel::Kernel;
use crate::log::{self, Level};
use banger_policy::VmId;
use banger_policy::firewall::Change;
use banger_policy::holding::{self, Refusal, Row, Step};
use banger_proto::helper::{HelperError, ProcessState};
use std::rc::Rc;
use tokio::task::spawn_local;

impl<K: Kernel> Machine<K> {
    /// Records the VM's process, then registers its address. True when it was not known before: each is watched once, however often it is bound.
    ///
    /// # Errors
    /// [`HelperError::NotYours`] for a process that is not the daemon's user's, in this VM's cgroup, alive.
    pub async fn bind_process(&self, vm: VmId, pid: u32) -> Answer<bool> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        let owner = row.as_ref().ok_or(Refusal::NotYours)?.owner;
        let inside = self.kernel.in_vm_cgroup(owner, &vm, pid)?;
        // After the cgroup: alive here means that the number was this process's there, too.
        let seen = self.kernel.process(pid)?;
        let its = seen.filter(|seen| inside && seen.uids == [self.daemon_uid; 4] && seen.alive);
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

    /// From now on the end of the VM's process takes its address out of the firewall. Without fail points: a helper that dies
    /// in between finds the dead process when it recovers.
    pub fn watch(self: &Rc<Self>, vm: VmId) {
        let machine = Rc::clone(self);
        spawn_local(async move {
            let Some(bound) = machine.row(&vm).and_then(|row| row.process) else { return };
            if let Err(error) = machine.kernel.ended(bound).await {
                return log::record(Level::Error, &format!("watch vm={vm} verdict=failed rule={}", error.step));
            }
            let Ok(_turn) = machine.turn(vm).await else { return };
            let Some(row) = machine.row(&vm).filter(|row| row.process == Some(bound)) else { return };
            let withdrawn = machine.kernel.firewall_change(&Change::between(row.registration().as_ref(), None)).is_ok();
            let noted = withdrawn && machine.ledger.borrow_mut().put(row.without_process()).is_ok();
            let (level, verdict) = if noted { (Level::Info, "ok") } else { (Level::Critical, "failed") };
            log::record(level, &format!("watch vm={vm} verdict={verdict} rule=process-ended"));
        });
    }

    /// Switches NAT.
    ///
    /// # Errors
    /// The policy's or the kernel's.
    pub async fn set_nat(&self, vm: VmId, on: bool) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        match holding::set_nat(row.as_ref(), on).granted()? {
            Step::Stored => Ok(()),
            Step::Do(grant) => self.register(row, grant.into_row()),
        }
    }

    /// The row first: what is registered after a crash is what the rows say, for the whole table is made
    /// from them at start.
    fn register(&self, old: Option<Row>, new: Row) -> Answer<()> {
        let before = old.as_ref().and_then(Row::registration);
        let change = Change::between(before.as_ref(), new.registration().as_ref());
        self.put(new)?;
        let changed = self.kernel.firewall_change(&change);
        if let (Err(_), Some(old)) = (&changed, old) {
            self.put(old)?;
        }
        fail::point("registered");
        Ok(changed?)
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
