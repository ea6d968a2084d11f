//! The address of a VM at its start: another one when the network is another one than at its last,
//! and a word about routes of the host that lead there as well.

use super::actor::Actor;
use super::error::VmError;
use crate::db::DbError;
use crate::jobs::Job;
use crate::net::subnet;

impl Actor {
    /// Nothing of the VM runs: what held its last address is gone.
    pub(super) async fn renumber(&mut self, job: &Job) -> Result<(), VmError> {
        let network = self.ctx.config.now().network;
        let leased = self.db().lease_again(self.row.id, network).await.map_err(|error| match error {
            DbError::NoAddress(all) => VmError::NoAddress(all),
            error => error.into(),
        })?;
        if u32::from(leased.get()) != self.row.address_index {
            tracing::info!("its address is now {}: the network is another one", network.guest(leased));
            self.row.address_index = leased.get().into();
        }
        // Not refused: the host's route to the guest itself is the narrowest there is, so the guest
        // works. What is in the way is the guest, of whoever is meant by the other route.
        let address = network.guest(leased);
        let bridge = self.ctx.config.now().bridge_name.clone();
        let routes = tokio::task::spawn_blocking(move || subnet::clashes(network, &bridge)).await.unwrap_or_default();
        if let Some(route) = routes.iter().find(|route| route.contains(address)) {
            job.warn(format!(
                "the address {address} is also behind a route of this host: {route}; `banger doctor` says how to \
                 choose another network"
            ));
        }
        Ok(())
    }
}
