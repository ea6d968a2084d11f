//! What `banger quota` shows: each limit of a user, its use, and where it comes from.

use super::Vms;
use super::error::{AdminsOnly, VmError};
use crate::db::Has;
use crate::turns::Turns;
use crate::users::{Named, UserDatabase};
use crate::util::blocking;
use banger_policy::Peer;
use banger_policy::access::Owner;
use banger_policy::quota::Limited;
use banger_proto::model::{Quota, QuotaLimit, QuotaPage};
use std::sync::{Arc, LazyLock};

/// Users of one page.
const PAGE: usize = 16;
/// Pages for which the user database is asked at a time, one of a user: it may be slow, and all
/// work that blocks shares one pool of threads.
static ASKING: LazyLock<Arc<Turns>> = LazyLock::new(|| Turns::new(4, 1));

impl Vms {
    /// The peer's own; everyone's who has something, in pages, for an administrator with `all`.
    pub(crate) async fn quotas(
        &self,
        peer: &Peer,
        all: bool,
        after: Option<(u32, String)>,
    ) -> Result<QuotaPage, VmError> {
        if all && !peer.admin {
            return Err(VmError::AdminsOnly(AdminsOnly::SeeAllVms));
        }
        let one = (!all).then(|| peer.owner());
        let after = after.map(|(uid, name)| Owner { uid, name: name.into() });
        let limit = u32::try_from(PAGE + 1).unwrap_or(u32::MAX);
        let mut has = self.ctx.db.has(one, after, limit).await?;
        let more = has.len() > PAGE;
        has.truncate(PAGE);
        let next = has.last().filter(|_| more).map(|has| (has.owner.uid, has.owner.name.to_string()));
        let jobs: Vec<u64> = has.iter().map(|has| self.ctx.jobs.at_work(&has.owner)).collect();
        let host = self.ctx.db.host_has().await?;
        let (users, limits) = (Arc::clone(&self.ctx.users), self.ctx.config.now().limits.clone());
        let hosts = limits.host();
        let asked = move || Ok(has.iter().zip(jobs).map(|(has, jobs)| quota(has, jobs, &*users, &limits)).collect());
        let turn = ASKING.take(peer.uid).await;
        let quotas = blocking::<Vec<Quota>, VmError>(move || {
            let _turn = turn;
            asked()
        });
        let quotas = quotas.await?;
        let of_host = |what: Limited, used, limit| entry(what, used, limit, "[limits.host]".to_owned());
        let host = vec![
            of_host(Limited::HostMemory, host.memory, hosts.memory),
            of_host(Limited::HostDisk, host.disk, hosts.disk),
        ];
        Ok(QuotaPage { quotas, next, host })
    }
}

fn quota(has: &Has, jobs: u64, users: &dyn UserDatabase, limits: &crate::config::limits::Limits) -> Quota {
    let Owner { uid, name } = &has.owner;
    // Of a user who is gone nothing is known but what is left.
    let known = users.name_of(*uid) == Named::As(name.to_string());
    let account = if known { users.account(name) } else { None };
    let groups = account.map(|account| account.groups).unwrap_or_default();
    let allowed = limits.of(*uid, name, &groups);
    let used = |what| match what {
        Limited::Vms => has.vms.vms,
        Limited::Running => has.vms.running,
        Limited::Disk | Limited::HostDisk => has.vms.disk,
        Limited::Memory | Limited::HostMemory => has.vms.memory,
        Limited::Images => has.images,
        Limited::Kernels => has.kernels,
        Limited::Store => has.store,
        Limited::Jobs => jobs,
        Limited::Ports => has.ports,
    };
    let limit = |what: Limited| entry(what, used(what), what.of(&allowed), limits.source_of(what, *uid, name, &groups));
    Quota { owner: *uid, owner_name: name.to_string(), limits: Limited::OF_A_USER.map(limit).into() }
}

fn entry(what: Limited, used: u64, limit: u64, from: String) -> QuotaLimit {
    let limit = (limit != u64::MAX).then_some(limit);
    QuotaLimit { name: what.key().to_owned(), bytes: what.in_bytes(), used, limit, from }
}
