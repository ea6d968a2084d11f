//! What users see of VMs: lists, one VM, and which VM a word means.

use super::error::{AdminsOnly, VmError};
use super::{Vms, entry_of, reconcile, record};
use crate::db::VmRow;
use banger_policy::lifecycle::State;
use banger_policy::{Peer, VmId, access};
use banger_proto::model::{RefusedList, VmPage, VmRecord, VmStats};
use banger_proto::transport::DAEMON_LIMITS;
use banger_proto::wire::encoded_bytes;
use std::collections::HashSet;
use std::sync::Arc;

/// VMs per page of a list, as far as they fit; so many fit always.
const PAGE: usize = 64;
const FIT: usize = 16;
/// What a page may have, bytes: a frame without what stands around it.
const BYTES: usize = DAEMON_LIMITS.max_frame - 1024;

impl Vms {
    /// A page of the peer's VMs; of everyone's for an administrator with `all`.
    pub(crate) async fn list(&self, peer: &Peer, all: bool, after: Option<VmId>) -> Result<VmPage, VmError> {
        if all && !peer.admin {
            return Err(VmError::AdminsOnly(AdminsOnly::SeeAllVms));
        }
        let owner = if all { None } else { Some(peer.owner()) };
        let settled = self.settled();
        let limit = u32::try_from(PAGE + 1).unwrap_or(u32::MAX);
        let rows = self.ctx.db.of(peer.uid).vms(owner, after, limit).await?;
        let mut bytes = 0_usize;
        let mut vms: Vec<VmRecord> = Vec::new();
        for row in rows.iter().take(PAGE) {
            let vm = record::brief(self.record(row, &settled));
            bytes = bytes.saturating_add(encoded_bytes(&vm));
            if bytes > BYTES && vms.len() >= FIT {
                break;
            }
            vms.push(vm);
        }
        let next = vms.last().map(|vm| vm.id).filter(|_| rows.len() > vms.len());
        Ok(VmPage { vms, next })
    }

    /// Which repository its owner has prepared is told to nobody else.
    pub(crate) async fn show(&self, peer: &Peer, word: &str) -> Result<VmRecord, VmError> {
        let settled = self.settled();
        let row = self.find(peer, word).await?;
        let mut record = self.record(&row, &settled);
        record.workspace = record.workspace.filter(|_| peer.owns(&row.who()));
        Ok(record)
    }

    /// What its network mode has refused since it runs, as far as this daemon was told.
    pub(crate) async fn refused(&self, peer: &Peer, word: &str) -> Result<RefusedList, VmError> {
        let row = self.find(peer, word).await?;
        Ok(self.ctx.refusals.of(&row.id))
    }

    /// A VM whose row says "running" is shown as stopped when its cgroup shows that it is dead: a
    /// list right after a crash does not lie, nor one while it takes long to release what a dead VM
    /// held. Of a VM whose end is watched for, the monitor knows more than the cgroup.
    pub(super) fn record(&self, row: &VmRow, settled: &HashSet<VmId>) -> VmRecord {
        let mut record = record::of(row, &self.ctx, self.stats_of(&row.id));
        let shared = self.ctx.actors.lock().get(&row.id).map(|entry| Arc::clone(&entry.shared));
        let shared = shared.filter(|_| settled.contains(&row.id));
        if shared.as_ref().is_some_and(|shared| shared.running().is_some()) {
            return record;
        }
        let dead = reconcile::why_dead(row, &self.ctx);
        // Why it ended, while its end is at work.
        let known = shared.map(|shared| shared.ended());
        let ends = row.state == State::Running && known.as_ref().is_some_and(|known| !known.is_empty());
        if dead.is_some() || ends {
            (record.state, record.runtime.state) = (State::Stopped, State::Stopped);
            record.runtime.last_error = known.or_else(|| dead.map(str::to_owned)).unwrap_or_default();
        }
        record
    }

    /// VMs of which it is known what became of their earlier run. To be asked before their rows are
    /// read, so that a row is never older than the answer.
    pub(super) fn settled(&self) -> HashSet<VmId> {
        let actors = self.ctx.actors.lock();
        actors.iter().filter(|(_, entry)| entry.shared.is_settled()).map(|(vm, _)| *vm).collect()
    }

    fn stats_of(&self, vm: &VmId) -> Option<VmStats> {
        entry_of(self, vm)?.shared.stats()
    }

    /// By exact name first, then id, then unique prefix of an id; another user's, for an
    /// administrator, by `user/name` or id. What the peer may not see does not exist.
    pub(super) async fn find(&self, peer: &Peer, word: &str) -> Result<VmRow, VmError> {
        let mut rows = self.ctx.db.of(peer.uid).find_vms(peer, word.to_owned()).await?;
        let no_such = || {
            let shown = word.chars().filter(|c| !c.is_control()).take(80).collect();
            VmError::NotFound { shown, admin: peer.admin }
        };
        if rows.len() > 1 {
            return Err(VmError::Ambiguous(word.to_owned()));
        }
        let row = rows.pop().ok_or_else(no_such)?;
        access::vm(peer, &row.who()).granted().map_err(|_| no_such())?;
        Ok(row)
    }
}
