//! Running VMs as DNS tells of them.

use super::Vms;
use super::error::VmError;
use crate::db::VmRow;
use banger_policy::VmName;
use banger_policy::access::Owner;
use banger_policy::lifecycle::State;
use std::net::Ipv4Addr;

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) owner: Owner,
    pub(crate) name: VmName,
    pub(crate) address: Ipv4Addr,
}

impl Vms {
    /// Those of a name, whoever owns them. What `vm show` would call stopped is not among them.
    pub(crate) async fn running_named(&self, name: &VmName) -> Result<Vec<Runs>, VmError> {
        let settled = self.settled();
        let rows = self.ctx.db.vms_named(name.clone()).await?;
        Ok(self.of_running(&rows, &settled))
    }

    /// The one that has an address.
    pub(crate) async fn running_at(&self, address: Ipv4Addr) -> Result<Option<Runs>, VmError> {
        let settled = self.settled();
        let mut rows = self.ctx.db.vms(None, None, u32::MAX).await?;
        rows.retain(|row| row.state == State::Running);
        Ok(self.of_running(&rows, &settled).into_iter().find(|vm| vm.address == address))
    }

    fn of_running(&self, rows: &[VmRow], settled: &std::collections::HashSet<banger_policy::VmId>) -> Vec<Runs> {
        let runs = rows.iter().filter_map(|row| {
            let record = self.record(row, settled);
            let address = record.runtime.guest_ip;
            let runs = record.state == State::Running && !row.making && !address.is_unspecified();
            runs.then(|| Runs { owner: row.who(), name: row.name.clone(), address })
        });
        runs.collect()
    }
}
