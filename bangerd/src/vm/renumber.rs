//! The address of a VM at its start: another one when the network is another one than at its last,
//! or when a route of the host leads to just that address; and a word about wider routes that lead
//! there as well.

use super::actor::Actor;
use super::error::VmError;
use crate::db::DbError;
use crate::jobs::Job;
use crate::net::subnet::{self, Route};

impl Actor {
    /// Nothing of the VM runs: what held its last address is gone.
    pub(super) async fn renumber(&mut self, job: &Job) -> Result<(), VmError> {
        let (network, bridge) = (self.ctx.config.now().network, self.ctx.config.now().bridge_name.clone());
        let routes = tokio::task::spawn_blocking(move || subnet::clashes(network, &bridge)).await.unwrap_or_default();
        let foreign = routes.iter().filter_map(Route::only).collect();
        let leased = self.db().lease_again(self.row.id, network, foreign).await.map_err(|error| match error {
            DbError::NoAddress(all) => VmError::NoAddress(all),
            error => error.into(),
        })?;
        let address = network.guest(leased);
        if u32::from(leased.get()) != self.row.address_index {
            tracing::info!("its address is now {address}: the former one is another's, or of another network");
            self.row.address_index = leased.get().into();
        }
        // Not refused: the host's route to the guest itself is the narrowest there is, so the guest
        // works. What is in the way is the guest, of whoever is meant by the other route.
        if let Some(route) = routes.iter().find(|route| route.contains(address)) {
            job.warn(format!(
                "the address {address} is also behind a route of this host: {route}; `banger doctor` says how to \
                 choose another network"
            ));
        }
        Ok(())
    }
}
