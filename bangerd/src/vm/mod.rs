//! The VMs of this host: who may see which, an actor for each, and the way to leave an order with it.
//!
//! Called by the services in `rpc`. Everything that changes a VM goes through its actor; what is here only
//! looks, checks, and delegates.

mod actor;
mod create;
pub(crate) mod host;
pub(crate) mod machine;
mod names;
mod order;
pub(crate) mod orphans;
mod owner;
mod reconcile;
mod record;
pub(crate) mod resume;
mod set;
mod shared;
mod size;
mod start;
pub(crate) mod stats;
mod steps;
mod teardown;

#[cfg(test)]
mod sim;
#[cfg(test)]
pub(crate) mod tests;

use crate::config::Config;
use crate::db::{Db, DbError, NewVm, VmRow};
use crate::error::{internal, over_limit};
use crate::guest::ssh::Session;
use crate::handles;
use crate::jobs::Jobs;
use crate::paths::Paths;
use crate::privileged::Privileged;
use crate::store::Store;
use crate::users::UserDatabase;
use banger_policy::lifecycle::State;
use banger_policy::{Peer, VmId, VmName, access};
use banger_proto::daemon::{KillSignal, SshAccess};
use banger_proto::model::{ApiError, CreateRequest, ErrorCode, JobId, Leaks, SetRequest, VmPage, VmRecord, VmStats};
use machine::{Machine, Seat};
use order::Order;
use shared::{Shared, Wait};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// VMs per page of a list; a page fits a frame.
const PAGE: u32 = 16;
/// Attempts at a name that nobody has.
const NAME_ATTEMPTS: usize = 10;

/// What actors work with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) paths: Paths,
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) handles: handles::Store,
    pub(crate) privileged: Privileged,
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) jobs: Arc<Jobs>,
    /// This boot of the host, as `/proc/sys/kernel/random/boot_id` says (proc(5)).
    pub(crate) boot_id: String,
    pub(crate) turns: resume::Turns,
    /// Who has which number on this host.
    pub(crate) users: Arc<dyn UserDatabase>,
    /// All that is known of VMs without asking the database.
    pub(crate) actors: Arc<Actors>,
}

/// The actors by VM.
#[derive(Debug, Default)]
pub(crate) struct Actors(Mutex<HashMap<VmId, Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    orders: mpsc::UnboundedSender<Order>,
    shared: Arc<Shared>,
}

impl Entry {
    fn of(place: &actor::Place) -> Self {
        Self { orders: place.orders.clone(), shared: Arc::clone(&place.shared) }
    }
}

impl Actors {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Entry>> {
        // Every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry_of(vms: &Vms, vm: &VmId) -> Option<Entry> {
    vms.ctx.actors.lock().get(vm).cloned()
}

impl Context {
    /// The VM is gone, and its actor with it.
    fn forget(&self, vm: &VmId) {
        self.actors.lock().remove(vm);
    }
}

/// The VMs of this host.
#[derive(Debug)]
pub(crate) struct Vms {
    pub(crate) ctx: Arc<Context>,
    store: Arc<Store>,
}

/// A VM's order that needs nothing but a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verb {
    Start,
    Stop,
    /// A stop because the host goes down.
    HostDown,
    Restart,
    Kill(KillSignal),
    Set(SetRequest),
    Delete,
}

impl Vms {
    pub(crate) fn new(ctx: Context, store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { ctx: Arc::new(ctx), store })
    }

    /// The actor of a VM whose row was found.
    fn actor(&self, row: VmRow) -> Entry {
        let mut actors = self.ctx.actors.lock();
        if let Some(entry) = actors.get(&row.id) {
            return entry.clone();
        }
        let place = actor::Place::new();
        let entry = Entry::of(&place);
        actors.insert(row.id, entry.clone());
        place.work(Arc::clone(&self.ctx), row, None);
        entry
    }

    /// A page of the peer's VMs; of everyone's for an administrator with `all`.
    pub(crate) async fn list(&self, peer: &Peer, all: bool, after: Option<VmId>) -> Result<VmPage, ApiError> {
        if all && !peer.admin {
            return Err(ApiError::new(ErrorCode::Denied, "only root and the group banger-admin see everyone's VMs"));
        }
        let owner = if all { None } else { Some(peer.owner()) };
        let settled = self.settled();
        let rows = self.ctx.db.vms(owner, after, PAGE + 1).await.map_err(|error| internal(&error))?;
        let more = rows.len() > usize::try_from(PAGE).unwrap_or(usize::MAX);
        let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
        let vms: Vec<VmRecord> = rows.iter().take(page).map(|row| record::brief(self.record(row, &settled))).collect();
        let next = vms.last().map(|vm| vm.id).filter(|_| more);
        Ok(VmPage { vms, next })
    }

    pub(crate) async fn show(&self, peer: &Peer, word: &str) -> Result<VmRecord, ApiError> {
        let settled = self.settled();
        Ok(self.record(&self.find(peer, word).await?, &settled))
    }

    /// A glance tells one that cannot be running, whatever its row still says: a list that is asked for right after a crash does not lie, nor one
    /// while it takes long to release what a dead VM held. Of one whose end is watched for, its monitor knows more than a glance.
    fn record(&self, row: &VmRow, settled: &HashSet<VmId>) -> VmRecord {
        let mut record = record::of(row, &self.ctx, self.stats_of(&row.id));
        let shared = self.ctx.actors.lock().get(&row.id).map(|entry| Arc::clone(&entry.shared));
        let shared = shared.filter(|_| settled.contains(&row.id));
        if shared.as_ref().is_some_and(|shared| shared.running().is_some()) {
            return record;
        }
        let glance = reconcile::glance(row, &self.ctx);
        // Why it ended, while its end is at work.
        let known = shared.map(|shared| shared.ended());
        let ends = row.state == State::Running && known.as_ref().is_some_and(|known| !known.is_empty());
        if glance.is_some() || ends {
            (record.state, record.runtime.state) = (State::Stopped, State::Stopped);
            record.runtime.last_error = known.or_else(|| glance.map(str::to_owned)).unwrap_or_default();
        }
        record
    }

    /// VMs of which it is known what became of their earlier run. To be asked before their rows are read, so that a row is never older than the
    /// answer.
    fn settled(&self) -> HashSet<VmId> {
        let actors = self.ctx.actors.lock();
        actors.iter().filter(|(_, entry)| entry.shared.is_settled()).map(|(vm, _)| *vm).collect()
    }

    fn stats_of(&self, vm: &VmId) -> Option<VmStats> {
        entry_of(self, vm)?.shared.stats()
    }

    /// By exact name first, then id, then unique prefix of an id; another user's, for an administrator, by `user/name` or id. What the peer may not
    /// see does not exist.
    async fn find(&self, peer: &Peer, word: &str) -> Result<VmRow, ApiError> {
        let found = self.ctx.db.find_vms(peer, word.to_owned()).await;
        let mut rows = found.map_err(|error| internal(&error))?;
        let no_such = || {
            let quoted = word.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
            let hint = if peer.admin {
                "`banger vm list` shows your VMs. One of another user is named USER/VM or by its id: `banger vm list --all`."
            } else {
                "`banger vm list` shows the VMs that there are."
            };
            ApiError::new(ErrorCode::NotFound, format!("no such VM: {quoted}")).hint(hint)
        };
        if rows.len() > 1 {
            return Err(ApiError::new(ErrorCode::Ambiguous, format!("{word} fits more than one VM"))
                .hint("Name it by its whole id: `banger vm list --json` shows them."));
        }
        let row = rows.pop().ok_or_else(no_such)?;
        access::vm(peer, &row.who()).granted().map_err(|_| no_such())?;
        Ok(row)
    }

    /// What belongs to no VM; with `fix` it is released.
    pub(crate) async fn leaks(&self, peer: &Peer, fix: bool) -> Result<Leaks, ApiError> {
        if !peer.admin {
            return Err(ApiError::new(
                ErrorCode::Denied,
                "only root and the group banger-admin see what belongs to no VM",
            ));
        }
        orphans::leaks(&self.ctx, fix).await
    }

    /// Leaves an order with the VM's actor. The answer is the job to watch.
    pub(crate) async fn order(&self, peer: &Peer, word: &str, verb: Verb) -> Result<JobId, ApiError> {
        let row = self.find(peer, word).await?;
        let title = match verb {
            Verb::Start => format!("start {}", row.name),
            Verb::Stop | Verb::HostDown => format!("stop {}", row.name),
            Verb::Restart => format!("restart {}", row.name),
            Verb::Kill(_) => format!("kill {}", row.name),
            Verb::Set(_) => format!("set {}", row.name),
            Verb::Delete => format!("delete {}", row.name),
        };
        let vm = row.id;
        let entry = self.actor(row);
        let job = self.ctx.jobs.begin(peer, title.clone())?;
        let id = job.id();
        tracing::info!(banger_vm = %vm, banger_job = %id, banger_uid = peer.uid, "{title}");
        let order = match verb {
            Verb::Start => Order::Start(job),
            Verb::Stop => Order::Stop(job),
            Verb::HostDown => Order::HostDown(job),
            Verb::Restart => Order::Restart(job),
            Verb::Kill(signal) => Order::Kill(job, signal),
            Verb::Set(request) => Order::Set(job, request),
            Verb::Delete => Order::Delete(job),
        };
        // A wait for a guest that shall end anyway ends now. A stop does not cut a clean shutdown short.
        match verb {
            Verb::Kill(_) => entry.shared.interrupt(&[Wait::Start, Wait::Shutdown]),
            Verb::Stop | Verb::HostDown | Verb::Delete => entry.shared.interrupt(&[Wait::Start]),
            Verb::Start | Verb::Restart | Verb::Set(_) => {}
        }
        // Only an actor whose VM was just deleted takes no more orders.
        let gone = || ApiError::new(ErrorCode::NotFound, format!("{word} was deleted just now"));
        entry.orders.send(order).map_err(|_| gone())?;
        self.touch(vm).await;
        Ok(id)
    }

    /// Somebody uses it: the sweep for stale VMs leaves it alone.
    async fn touch(&self, vm: VmId) {
        if let Err(error) = self.ctx.db.touch_vm(vm).await {
            tracing::warn!(banger_vm = %vm, "cannot note the use: {}", crate::error::chain(&error));
        }
    }

    /// Checks the request, and leaves the making of the VM with a task of its own.
    pub(crate) async fn create(
        self: &Arc<Self>,
        peer: &Peer,
        request: CreateRequest,
        keep: bool,
    ) -> Result<JobId, ApiError> {
        let bad = |error: &dyn std::error::Error| ApiError::new(ErrorCode::BadRequest, error.to_string());
        let name: Option<VmName> = match request.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => Some(name.parse().map_err(|error| bad(&error))?),
            None => None,
        };
        let host = size::HostSize::of_this_host();
        let image = self.store.pick_image(peer, request.image_name.as_deref()).await?;
        let defaults = &self.ctx.config.vm_defaults;
        let spec = size::resolve(&request, defaults, host, image.build_size).map_err(|error| bad(&error))?;
        size::fits(&image, spec)?;
        let kernel = self.store.pick_kernel(peer, request.kernel_name.as_deref()).await?;
        let mut bytes = [0; 32];
        host::fill_random(&mut bytes)?;
        let id = VmId::from_bytes(bytes).map_err(|error| bad(&error))?;
        let first = match &name {
            Some(name) => name.clone(),
            None => names::generated(&id, 0).ok_or_else(|| ApiError::new(ErrorCode::Internal, "no name"))?,
        };
        let new = NewVm {
            id,
            owner: peer.owner(),
            name: first,
            image_id: image.id,
            image_name: image.name,
            image_config: image.config,
            kernel_id: kernel.id,
            spec,
            nat: request.nat,
            restart: request.restart,
            starts: !request.no_start,
        };
        let job = self.ctx.jobs.begin(peer, format!("create {}", new.name))?;
        let job_id = job.id();
        tracing::info!(banger_vm = %id, banger_job = %job_id, banger_uid = peer.uid, "create {}", new.name);
        // Not part of the call: a client that goes away at any point leaves a whole VM or none.
        let (vms, peer) = (Arc::clone(self), peer.clone());
        tokio::spawn(async move {
            // Before the row: who finds that shall not take the VM for one that an earlier run left half made.
            let place = actor::Place::new();
            vms.ctx.actors.lock().insert(id, Entry::of(&place));
            let inserted = match vms.helper_answers(peer.uid, id).await {
                Ok(()) => vms.insert(&peer, new, name.is_some()).await,
                Err(error) => Err(error),
            };
            match inserted {
                Err(error) => {
                    vms.ctx.forget(&id);
                    job.finish(Err(error));
                }
                Ok(row) => {
                    let create = Order::Create { job, start: !request.no_start, keep };
                    place.work(Arc::clone(&vms.ctx), row, Some(create));
                }
            }
        });
        Ok(job_id)
    }

    /// Without the helper nothing can be made, and nothing that was begun could be undone: then not even a row.
    async fn helper_answers(&self, owner: u32, vm: VmId) -> Result<(), ApiError> {
        match self.ctx.privileged.of(owner).identity(vm).await {
            Err(error) if error.refusal().is_none() => Err(error.api("the helper")),
            _ => Ok(()),
        }
    }

    /// Writes the row; a name that nobody chose is drawn again while it is taken.
    async fn insert(&self, peer: &Peer, mut new: NewVm, named: bool) -> Result<VmRow, ApiError> {
        for attempt in 1.. {
            let name = new.name.clone();
            match self.ctx.db.insert_vm(new.clone(), self.ctx.config.network, peer.limits).await {
                Ok(row) => return Ok(row),
                Err(DbError::Taken(_)) if !named && attempt < NAME_ATTEMPTS => {
                    let next = names::generated(&new.id, attempt);
                    new.name = next.ok_or_else(|| ApiError::new(ErrorCode::Internal, "no name is free"))?;
                }
                Err(DbError::Taken(_)) => {
                    return Err(ApiError::new(ErrorCode::AlreadyExists, format!("a VM named {name} exists already"))
                        .hint("Choose another name, or delete that VM."));
                }
                Err(DbError::Limit(why)) => return Err(over_limit(peer, &why)),
                Err(error @ DbError::Gone) => return Err(ApiError::new(ErrorCode::NotFound, error.to_string())),
                Err(error @ DbError::NoAddress(_)) => {
                    return Err(ApiError::new(ErrorCode::Limit, error.to_string())
                        .hint("Delete VMs that are not needed, or give them a larger network with cidr."));
                }
                Err(error) => return Err(internal(&error)),
            }
        }
        Err(ApiError::new(ErrorCode::Internal, "no name is free"))
    }

    /// The way into a running VM of the peer's; the use is noted, and lasts as long as the visit.
    pub(crate) async fn session(&self, peer: &Peer, word: &str) -> Result<(Arc<Session>, shared::Visit), ApiError> {
        let row = self.find(peer, word).await?;
        let name = row.name.clone();
        let id = row.id;
        let not_running = || {
            ApiError::new(ErrorCode::NotRunning, format!("{name} is not running"))
                .hint(format!("Start it with `banger vm start {name}`."))
        };
        if row.state != State::Running {
            return Err(not_running());
        }
        let entry = self.actor(row);
        let session =
            entry.shared.found_running().await.and_then(|running| running.session()).ok_or_else(not_running)?;
        self.touch(id).await;
        Ok((session, entry.shared.enter()))
    }

    /// The console's file of a VM of the peer's.
    pub(crate) async fn console(&self, peer: &Peer, word: &str) -> Result<PathBuf, ApiError> {
        let row = self.find(peer, word).await?;
        Ok(self.ctx.paths.vm(&row.id).console())
    }

    /// Lets the holder of a key into the peer's VM, now and at later boots.
    pub(crate) async fn ssh_access(&self, peer: &Peer, word: &str, public_key: &str) -> Result<SshAccess, ApiError> {
        let key = crate::guest::keys::parse_public(public_key)
            .map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
        let row = self.find(peer, word).await?;
        let vm = row.id;
        let seat = Seat::new(&row, &self.ctx.paths, self.ctx.config.network)?;
        let (session, _visit) = self.session(peer, word).await?;
        self.ctx.db.add_key(peer.owner(), key).await.map_err(|error| internal(&error))?;
        let mut keys = self.ctx.db.keys(row.who()).await.map_err(|error| internal(&error))?;
        if !peer.owns(&row.who()) {
            // An administrator gets into this boot of the VM only.
            keys.extend(self.ctx.db.keys(peer.owner()).await.map_err(|error| internal(&error))?);
        }
        session.set_authorized_keys(&keys).await.map_err(|error| crate::error::failed("the guest's keys", &error))?;
        Ok(SshAccess { vm, host_key: self.ctx.machine.host_key(&seat)? })
    }
}
