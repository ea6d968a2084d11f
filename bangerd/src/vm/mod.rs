//! The VMs of this host: who may see which, an actor for each, and the way to leave an order with
//! it.
//!
//! Called by the services in `rpc`. Everything that changes a VM goes through its actor; what is
//! here only looks, checks, and delegates.

mod actor;
mod create;
mod effects;
pub(crate) mod error;
mod fellows;
pub(crate) mod host;
pub(crate) mod machine;
pub(crate) mod named;
mod names;
mod order;
mod owner;
pub(crate) mod program;
mod publish;
mod quota;
mod reach;
mod readers;
mod reconcile;
mod record;
mod renumber;
pub(crate) mod resume;
mod set;
mod shared;
pub(crate) mod shares;
mod size;
mod start;
pub(crate) mod stats;
mod steps;
pub(crate) mod sweep;
mod teardown;
mod view;
mod watch;
mod workspace;

pub(crate) use fellows::Fellows;
pub(crate) use order::Ask;
pub(crate) use readers::{Readers, Way};

#[cfg(test)]
mod sim;
#[cfg(test)]
pub(crate) mod tests;

use crate::config::Live;
use crate::db::{Db, DbError, NewVm, VmRow};
use crate::error::OverLimit;
use crate::handles;
use crate::jobs::Jobs;
use crate::net::names::Names;
use crate::paths::Paths;
use crate::ports::Ports;
use crate::privileged::Privileged;
use crate::refused::Refusals;
use crate::store::Store;
use crate::users::UserDatabase;
use banger_link::link::Link;
use banger_policy::lifecycle::State;
use banger_policy::network::VmNetwork;
use banger_policy::quota::UserLimits;
use banger_policy::{Peer, VmId, VmName};
use banger_proto::daemon::SshAccess;
use banger_proto::model::{CreateRequest, JobId, Leaks};
use error::{AdminsOnly, VmError};
use machine::{Machine, Seat};
use order::Order;
use shared::Shared;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Attempts at a name that nobody has.
const NAME_ATTEMPTS: usize = 10;

/// What actors work with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) paths: Paths,
    pub(crate) config: Live,
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
    /// Guests that read disks of VMs that do not run.
    pub(crate) readers: Readers,
    /// Addresses of names in lists of destinations.
    pub(crate) names: Names,
    /// What the host listens on for VMs.
    pub(crate) ports: Ports,
    /// Who has to tell guests of each other.
    pub(crate) fellows: Fellows,
    /// All that is known of VMs without asking the database.
    pub(crate) actors: Arc<Actors>,
    /// What guests asked for in vain.
    pub(crate) refusals: Arc<Refusals>,
    /// What is known of the VMMs' binaries.
    pub(crate) programs: Arc<program::Programs>,
    /// Whether names of VMs are answered by this daemon.
    pub(crate) names_port: Arc<crate::dns::Held>,
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
    /// From now on the daemon starts nothing by itself, and no start that is at work comes to its
    /// end: the host would end the guest in the middle of its boot.
    fn host_goes_down(&self) {
        self.turns.host_goes_down();
        for entry in self.actors.lock().values() {
            entry.shared.interrupt(Ask::HostDown.interrupts());
        }
    }

    /// The VM is gone, and its actor with it. Whoever follows it has nothing to wait for.
    fn forget(&self, vm: &VmId) {
        if let Some(entry) = self.actors.lock().remove(vm) {
            entry.shared.gone().cancel();
        }
        self.fellows.changed();
    }
}

/// A VM's console, for whoever is shown it.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) path: PathBuf,
    /// Ends when the VM is no longer theirs to see.
    pub(crate) ownership: CancellationToken,
    /// Ends when nothing is written any more, because the VM is deleted.
    pub(crate) gone: CancellationToken,
}

/// The VMs of this host.
#[derive(Debug)]
pub(crate) struct Vms {
    pub(crate) ctx: Arc<Context>,
    store: Arc<Store>,
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

    /// What belongs to no VM; with `fix` it is released.
    pub(crate) async fn leaks(&self, peer: &Peer, fix: bool) -> Result<Leaks, VmError> {
        if !peer.admin {
            return Err(VmError::AdminsOnly(AdminsOnly::SeeLeaks));
        }
        sweep::leaks(&self.ctx, &self.store, fix).await
    }

    /// Leaves with the VM's actor what somebody who uses the VM asks. The answer is the job to
    /// watch.
    pub(crate) async fn order(&self, peer: &Peer, word: &str, ask: Ask) -> Result<JobId, VmError> {
        let row = self.find(peer, word).await?;
        let vm = row.id;
        let job = self.ask(peer, row, word, ask)?;
        self.touch(&self.ctx.db.of(peer.uid), vm).await;
        Ok(job)
    }

    /// Leaves the deletion of a VM that is idle, which is decided when its turn comes. What was
    /// ordered before is done before.
    pub(crate) async fn prune(&self, peer: &Peer, word: &str) -> Result<JobId, VmError> {
        let row = self.find(peer, word).await?;
        if row.making || self.starts(&row.id) || row.waits_to_run() {
            return Err(VmError::NotIdle(row.name));
        }
        self.ask(peer, row, word, Ask::Prune)
    }

    /// The same for a VM that was found by `word`.
    fn ask(&self, peer: &Peer, row: VmRow, word: &str, ask: Ask) -> Result<JobId, VmError> {
        let (vm, title) = (row.id, ask.title(&row.name));
        let entry = self.actor(row);
        let job = self.ctx.jobs.begin(peer, title.clone())?;
        let id = job.id();
        tracing::info!(banger_vm = %vm, banger_job = %id, banger_uid = peer.uid, "{title}");
        entry.shared.interrupt(ask.interrupts());
        if matches!(ask, Ask::HostDown) {
            self.ctx.host_goes_down();
        }
        if ask.cuts_readers() {
            self.ctx.readers.cut(&vm);
        }
        // Only an actor whose VM was just deleted takes no more orders.
        let gone = |_| VmError::JustDeleted(word.to_owned());
        entry.orders.send(Order::Asked(Box::new(job), Box::new(ask))).map_err(gone)?;
        Ok(id)
    }

    /// Somebody uses it: the sweep for stale VMs leaves it alone.
    async fn touch(&self, db: &Db, vm: VmId) {
        if entry_of(self, &vm).is_some_and(|entry| !entry.shared.is_new_use()) {
            return;
        }
        if let Err(error) = db.touch_vm(vm).await {
            tracing::warn!(banger_vm = %vm, "cannot note the use: {}", crate::error::chain(&error));
        }
    }

    /// Checks the request, and leaves the making of the VM with a task of its own.
    pub(crate) async fn create(
        self: &Arc<Self>,
        peer: &Peer,
        request: CreateRequest,
        keep: bool,
    ) -> Result<JobId, VmError> {
        let name: Option<VmName> = match request.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => Some(name.parse::<VmName>()?),
            None => None,
        };
        let host = size::HostSize::of_this_host();
        let image = self.store.pick_image(peer, request.image_name.as_deref()).await?;
        let defaults = self.ctx.config.now().vm_defaults;
        let spec = size::resolve(&request, &defaults, host, image.build_size)?;
        size::fits(&image, spec)?;
        let network = VmNetwork::of(defaults.net).changed(&request.network)?;
        let kernel = self.store.kernel_for(peer, &image, request.kernel_name.as_deref()).await?;
        let ports = publish::check(&request.publish, &peer.limits, self.ctx.ports.rules())?;
        let mut bytes = [0; 32];
        crate::util::fill_random(&mut bytes)?;
        let id = VmId::from_bytes(bytes)?;
        let first = match &name {
            Some(name) => name.clone(),
            None => names::generated(&id, 0).ok_or(VmError::NoName)?,
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
            network,
            restart: request.restart,
            starts: !request.no_start,
        };
        let ask = Ask::Create { start: new.starts, keep };
        let title = ask.title(&new.name);
        let job = self.ctx.jobs.begin(peer, title.clone())?;
        let job_id = job.id();
        tracing::info!(banger_vm = %id, banger_job = %job_id, banger_uid = peer.uid, "{title}");
        // Not part of the call: a client that goes away at any point leaves a whole VM or none.
        let (vms, peer) = (Arc::clone(self), peer.clone());
        tokio::spawn(async move {
            // Before the row: who finds that shall not take the VM for one that an earlier run left
            // half made.
            let place = actor::Place::new();
            vms.ctx.actors.lock().insert(id, Entry::of(&place));
            let inserted = match vms.helper_answers(peer.uid, id).await {
                Ok(()) => vms.insert(&peer, new, name.is_some(), &ports).await,
                Err(error) => Err(error),
            };
            match inserted {
                Err(error) => {
                    match vms.ctx.db.vm(id).await {
                        // It could not be removed again. Its actor does that, now or later.
                        Ok(Some(row)) => place.work(Arc::clone(&vms.ctx), row, None),
                        _ => vms.ctx.forget(&id),
                    }
                    job.finish(Err(error));
                }
                Ok(row) => place.work(Arc::clone(&vms.ctx), row, Some(Order::Asked(Box::new(job), Box::new(ask)))),
            }
        });
        Ok(job_id)
    }

    /// Without the helper nothing can be made, and nothing that was begun could be undone: then not
    /// even a row.
    async fn helper_answers(&self, owner: u32, vm: VmId) -> Result<(), VmError> {
        match self.ctx.privileged.of(owner).identity(vm).await {
            Err(error) if error.refusal().is_none() => Err(error.at("the helper").into()),
            _ => Ok(()),
        }
    }

    /// Writes the row; a name that nobody chose is drawn again while it is taken.
    async fn insert(
        &self,
        peer: &Peer,
        mut new: NewVm,
        named: bool,
        ports: &[publish::Wanted],
    ) -> Result<VmRow, VmError> {
        for attempt in 1.. {
            let name = new.name.clone();
            let config = self.ctx.config.now();
            match self
                .ctx
                .db
                .of(peer.uid)
                .insert_vm(new.clone(), config.network, peer.limits, config.limits.host())
                .await
            {
                Ok(row) if ports.is_empty() => return Ok(row),
                Ok(row) => return self.insert_ports(row, peer.limits, ports).await,
                Err(DbError::Taken(_)) if !named && attempt < NAME_ATTEMPTS => {
                    let next = names::generated(&new.id, attempt);
                    new.name = next.ok_or(VmError::NoName)?;
                }
                Err(DbError::Taken(_)) => return Err(VmError::Taken(name)),
                Err(DbError::Limit(why)) => return Err(OverLimit::of(&peer.owner(), why).into()),
                Err(DbError::Gone) => return Err(VmError::ImageGone),
                Err(DbError::NoAddress(all)) => return Err(VmError::NoAddress(all)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(VmError::NoName)
    }

    /// A VM that is made with ports has them from the beginning, or is not made.
    async fn insert_ports(&self, row: VmRow, limits: UserLimits, ports: &[publish::Wanted]) -> Result<VmRow, VmError> {
        match publish::reserve(&self.ctx, row.id, &row.who(), limits, ports).await {
            Ok(_) => Ok(self.ctx.db.vm(row.id).await?.unwrap_or(row)),
            Err(error) => {
                self.ctx.db.of_vms(row.owner).delete_vm(row.id).await?;
                Err(error)
            }
        }
    }

    /// Whether a VM whose row says otherwise is being started.
    fn starts(&self, vm: &VmId) -> bool {
        entry_of(self, vm).is_some_and(|entry| entry.shared.starts())
    }

    async fn reach(&self, peer: &Peer, word: &str) -> Result<(Arc<Link>, VmId, Entry), VmError> {
        let row = self.find(peer, word).await?;
        let id = row.id;
        let not_running = VmError::not_running(&row);
        if row.state != State::Running {
            return Err(if self.starts(&id) { VmError::Starts(row.name) } else { not_running });
        }
        let entry = self.actor(row);
        let link = entry.shared.found_running().await.and_then(|running| running.link()).ok_or(not_running)?;
        Ok((link, id, entry))
    }

    /// The way into a running VM of the peer's; the use is noted, and lasts as long as the visit.
    pub(crate) async fn link(&self, peer: &Peer, word: &str) -> Result<(Arc<Link>, shared::Visit), VmError> {
        let (link, id, entry) = self.reach(peer, word).await?;
        self.touch(&self.ctx.db.of(peer.uid), id).await;
        Ok((link, entry.shared.enter()))
    }

    /// The same for a look at how the guest is, which is no use.
    pub(crate) async fn look_into(&self, peer: &Peer, word: &str) -> Result<Arc<Link>, VmError> {
        self.reach(peer, word).await.map(|(link, ..)| link)
    }

    /// The console of a VM of the peer's.
    pub(crate) async fn console(&self, peer: &Peer, word: &str) -> Result<Console, VmError> {
        let row = self.find(peer, word).await?;
        let vm = row.id;
        let shared = self.actor(row).shared;
        let (ownership, gone) = (shared.ownership(), shared.gone());
        // Since the first look it may have been given away, or deleted.
        self.find(peer, &vm.to_string()).await?;
        Ok(Console { path: self.ctx.paths.vm(&vm).console(), ownership, gone })
    }

    /// Lets the holder of a key into the peer's VM, now and at later boots.
    pub(crate) async fn ssh_access(&self, peer: &Peer, word: &str, public_key: &str) -> Result<SshAccess, VmError> {
        let key = banger_link::keys::parse_public(public_key)?;
        let row = self.find(peer, word).await?;
        let vm = row.id;
        let seat = Seat::new(&row, &self.ctx.paths, self.ctx.config.now().network)?;
        let (link, _visit) = self.link(peer, word).await?;
        self.ctx.db.of(peer.uid).add_key(peer.owner(), key).await?;
        let mut keys = self.ctx.db.keys(row.who()).await?;
        if !peer.owns(&row.who()) {
            // An administrator gets into this boot of the VM only.
            keys.extend(self.ctx.db.keys(peer.owner()).await?);
        }
        link.set_authorized_keys(&keys).await.map_err(VmError::GuestKeys)?;
        let machine = Arc::clone(&self.ctx.machine);
        Ok(SshAccess { vm, host_key: crate::util::blocking(move || machine.host_key(&seat)).await? })
    }
}
