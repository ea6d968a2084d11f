//! How far a running VM's guest reaches: what the row says, with the addresses that names have now,
//! as the helper is told it. Names are asked for again while the VM runs.

use super::Vms;
use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::order::Order;
use crate::db::VmRow;
use crate::net::names::Found;
use banger_policy::Digest;
use banger_policy::lifecycle::State;
use banger_policy::network::HostName;
use banger_policy::reach::{Mode, Reach};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// How often the names of running VMs are asked for.
const REFRESH: Duration = Duration::from_secs(30);

impl Vms {
    /// Has every actor ask for its names again and again.
    pub(crate) fn refresh_names_in_background(self: &Arc<Self>) {
        let vms = Arc::clone(self);
        tokio::spawn(async move {
            let mut tick = interval(REFRESH);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                vms.ctx.handles.any().await;
                tick.tick().await;
                let actors: Vec<_> = vms.ctx.actors.lock().values().cloned().collect();
                // An actor that is gone has no names.
                actors.into_iter().for_each(|entry| drop(entry.orders.send(Order::AskNames)));
            }
        });
    }
}

impl Actor {
    /// Brings what a running VM's guest reaches to what the row says.
    pub(super) async fn align_network(&mut self) -> Result<(), VmError> {
        let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?;
        let reach = self.reach();
        // Not known any more, until the helper has answered.
        self.reach_told = None;
        let aligned = self.ctx.privileged.of(seat.owner).set_network(seat.id, reach.clone()).await;
        aligned.map_err(|error| error.at("the network"))?;
        self.reach_told = Some(reach);
        Ok(())
    }

    fn reach(&self) -> Reach {
        let network = &self.row.network;
        let targets = match network.mode {
            Mode::Allow => self.names_known.targets(network, self.ctx.config.now().default_dns),
            Mode::None | Mode::Public | Mode::Nat => Vec::new(),
        };
        Reach { mode: network.mode, targets, group: group_of(&self.row) }
    }

    /// For a start or a change, which waits a little for its names.
    pub(super) async fn learn_names(&mut self) {
        let found = self.ctx.names.look_up(self.row.owner, self.names()).await;
        self.names_known.learn(&self.row.network, found, Instant::now());
    }

    /// The names in the list.
    pub(super) fn names(&self) -> Vec<HostName> {
        self.row.network.names().into_iter().cloned().collect()
    }

    /// What is done every half minute: names are asked for. Without names, a change whose answer
    /// was lost, or that was taken back while the helper was away, is brought to what the row says.
    pub(super) async fn look_at_network(&mut self) {
        if !self.names().is_empty() {
            self.ask_names();
        } else if self.row.state == State::Running
            && self.reach_told.is_none()
            && let Err(error) = self.align_network().await
        {
            tracing::warn!("{}", error.message());
        }
    }

    /// Asks for the names of a running VM without waiting: a stop has not to wait for a resolver.
    /// The answer is an order.
    pub(super) fn ask_names(&mut self) {
        let names = self.names();
        if names.is_empty() || self.names_asked || self.row.state != State::Running {
            return;
        }
        let Some(orders) = self.own_orders.upgrade() else { return };
        self.names_asked = true;
        let (looks, owner) = (self.ctx.names.clone(), self.row.owner);
        tokio::spawn(async move {
            let found = looks.refresh(owner, names).await;
            // An actor that is gone needs no names.
            drop(orders.send(Order::Names(found)));
        });
    }

    /// The answer. The helper is told what is another than it was told last.
    pub(super) async fn names_came(&mut self, found: Found) {
        self.names_asked = false;
        let now = Instant::now();
        self.names_known.learn(&self.row.network, found, now);
        // After a restart of the daemon, the helper still has what the names led to before.
        if self.reach_told.is_none() && !self.names_known.is_whole(&self.row.network, now) {
            return;
        }
        if self.row.state == State::Running
            && self.reach_told.as_ref() != Some(&self.reach())
            && let Err(error) = self.align_network().await
        {
            tracing::warn!("{}", error.message());
        }
    }
}

/// The id of a VM's private network: its owner's login name and its own in one sum. So it is
/// another one for another user, also for the next user who gets the same number.
fn group_of(row: &VmRow) -> Option<Digest> {
    let name = row.network.private.as_ref()?;
    let mut sum = Sha256::new();
    // No login name has a zero in it.
    for part in ["banger private network", row.owner_name.as_str(), name.as_str()] {
        sum.update(part.as_bytes());
        sum.update([0]);
    }
    Digest::from_bytes(sum.finalize().into()).ok()
}
