//! Whose a VM is, and what becomes of it when its owner is no longer there. A host gives the number
//! of a user who is gone to the next one, and the kernel knows numbers only: no VM runs for a
//! number that has another name than it had when the VM was made or given.

use super::actor::Actor;
use super::error::{AdminsOnly, VmError};
use super::machine::Seat;
use super::order::{Ask, Order};
use super::{Vms, entry_of};
use crate::db::{DbError, VmRow};
use crate::error::OverLimit;
use crate::users::Named;
use banger_policy::Peer;
use banger_policy::access::Owner;
use banger_policy::lifecycle::State;
use banger_proto::model::JobId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked whether owners of running VMs are still who they were.
const LOOK: Duration = Duration::from_secs(60);

impl Actor {
    /// # Errors
    /// When its owner's number has another name now, or none, or that cannot be found out.
    pub(super) async fn owner_is_there(&self) -> Result<(), VmError> {
        let (users, uid) = (Arc::clone(&self.ctx.users), self.row.owner);
        let named = tokio::task::spawn_blocking(move || users.name_of(uid)).await.unwrap_or(Named::Unknown);
        match named {
            Named::As(name) if name == self.row.owner_name => Ok(()),
            Named::As(_) | Named::Gone => {
                let (owner, vm) = (self.row.owner_name.clone(), self.row.name.clone());
                Err(VmError::OwnerGone { owner, vm, uid })
            }
            Named::Unknown => Err(VmError::OwnerUnknown(uid)),
        }
    }

    /// The row decides. The helper's record of the disk follows at the next start: a crash between
    /// the two would else leave them apart.
    pub(super) async fn give_to(&mut self, to: &Peer) -> Result<(), VmError> {
        if self.row.who() == to.owner() {
            return Ok(());
        }
        let name = &self.row.name;
        if self.row.state == State::Running {
            return Err(VmError::RunsForItsOwner(name.clone()));
        }
        if self.row.state == State::Error {
            // What a teardown could not end is found by its owner: it ends as this owner's, or the
            // VM stays so.
            let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?;
            self.kill_processes(&seat).await?;
        }
        let name = &self.row.name;
        let given = self.db().give_vm(self.id(), to.owner(), to.limits).await;
        given.map_err(|error| match error {
            DbError::Taken(user) => VmError::TakenBy { user, vm: name.clone() },
            DbError::Limit(why) => OverLimit::of(&to.owner(), why).into(),
            error => error.into(),
        })?;
        // Who reads it reads for the owner that it had.
        self.ctx.readers.cut(&self.id());
        self.shared.end_ownership();
        tracing::info!(from = self.row.owner_name, to = %to.name, "given away");
        (self.row.owner, self.row.owner_name, self.row.boot_id) = (to.uid, to.name.clone().into_owned(), None);
        self.ctx.fellows.changed();
        Ok(())
    }
}

impl Vms {
    /// Asks the VM's actor to give it to a user.
    pub(crate) async fn give(&self, peer: &Peer, word: &str, user: String) -> Result<JobId, VmError> {
        let row = self.find(peer, word).await?;
        if !peer.admin {
            return Err(VmError::AdminsOnly(AdminsOnly::Give));
        }
        let (users, wanted) = (Arc::clone(&self.ctx.users), user.clone());
        let account = tokio::task::spawn_blocking(move || users.account(&wanted)).await.ok().flatten();
        let account =
            account.ok_or_else(|| VmError::NoSuchUser(user.chars().filter(|c| !c.is_control()).take(80).collect()))?;
        let limits = self.ctx.config.now().limits.of(account.uid, &account.name, &account.groups);
        let to = Peer { uid: account.uid, name: account.name.into(), admin: false, limits };
        self.ask(peer, row, word, Ask::Give(to))
    }

    /// Stops what runs for a number that somebody else has now: the network lets that number in.
    /// One without a name lets nobody in.
    pub(crate) fn watch_owners(self: &Arc<Self>) {
        let vms = Arc::clone(self);
        tokio::spawn(async move {
            let mut tick = interval(LOOK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                vms.ctx.handles.any().await;
                tick.tick().await;
                vms.stop_what_is_nobodys().await;
            }
        });
    }

    pub(super) async fn stop_what_is_nobodys(&self) {
        let rows = self.ctx.db.vms(None, None, u32::MAX).await.unwrap_or_default();
        let running: Vec<VmRow> = rows.into_iter().filter(|row| row.state == State::Running).collect();
        let owners: BTreeMap<u32, Named> = running.iter().map(|row| (row.owner, Named::Unknown)).collect();
        let users = Arc::clone(&self.ctx.users);
        let asked = tokio::task::spawn_blocking(move || {
            owners.into_keys().map(|uid| (uid, users.name_of(uid))).collect::<BTreeMap<_, _>>()
        });
        let names = asked.await.unwrap_or_default();
        for row in running {
            let Some(Named::As(name)) = names.get(&row.owner) else { continue };
            if *name == row.owner_name {
                continue;
            }
            let Owner { uid, name: was } = row.who();
            let reason = format!("stopped because uid {uid} is no longer {was}");
            if let Some(entry) = entry_of(self, &row.id) {
                // An actor that is gone has no VM to stop.
                drop(entry.orders.send(Order::Disowned(reason)));
            }
        }
    }
}
