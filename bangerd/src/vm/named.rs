//! Running VMs as DNS tells of them.

use super::error::VmError;
use super::{Vms, entry_of};
use banger_policy::access::Owner;
use banger_policy::lifecycle::State;
use banger_policy::{VmId, VmName};
use std::collections::HashSet;
use std::net::Ipv4Addr;

/// A VM that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) owner: Owner,
    pub(crate) name: VmName,
    pub(crate) address: Ipv4Addr,
}

/// A VM whose row says that it runs. Nothing else of it has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    vm: VmId,
    pub(crate) owner: Owner,
}

impl Vms {
    /// Those of a name, whoever owns them.
    pub(crate) async fn running_named(&self, name: &VmName) -> Result<Vec<Claims>, VmError> {
        let found = self.ctx.db.running_named(name.clone()).await?;
        Ok(found.into_iter().map(|(vm, owner)| Claims { vm, owner }).collect())
    }

    /// The one that has an address.
    pub(crate) async fn running_at(&self, address: Ipv4Addr) -> Result<Option<Claims>, VmError> {
        let index = self.ctx.config.now().network.index_of(address);
        let known = self.ctx.handles.at(address).map(|(vm, _)| vm);
        let found = self.ctx.db.running_at(address, index, known).await?;
        Ok(found.map(|(vm, owner)| Claims { vm, owner }))
    }

    /// What is told of it. Nothing of what `vm show` would call stopped.
    pub(crate) async fn runs(&self, claims: Claims) -> Result<Option<Runs>, VmError> {
        let settled = entry_of(self, &claims.vm).is_some_and(|entry| entry.shared.is_settled());
        let Some(row) = self.ctx.db.vm(claims.vm).await?.filter(|row| row.who() == claims.owner) else {
            return Ok(None);
        };
        let settled: HashSet<VmId> = settled.then_some(claims.vm).into_iter().collect();
        let record = self.record(&row, &settled);
        let address = record.runtime.guest_ip;
        let runs = record.state == State::Running && !row.making && !address.is_unspecified();
        Ok(runs.then_some(Runs { owner: claims.owner, name: row.name, address }))
    }
}
