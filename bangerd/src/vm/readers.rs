//! Reading what a VM that does not run has on its work disk.
//!
//! No process of the host parses what a guest wrote: a small guest is started that has nothing but
//! that disk, read-only, and answers as the VM's own agent would. It has an id of its own, so
//! nothing of the VM is touched, and a cgroup and folders under it that belong to no row: what a
//! crash leaves is found by the sweep. It lives as long as its one client.

use super::error::{VmError, joined};
use super::machine::{Running, Seat};
use super::shared::Visit;
use super::teardown::remove_folder;
use super::{Context, Vms};
use crate::paths::VmPaths;
use crate::turns::{Turn, Turns};
use crate::util::{blocking, fill_random};
use banger_link::link::Link;
use banger_policy::lifecycle::State;
use banger_policy::{Peer, VmId, VmName};
use banger_proto::model::VmSpec;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Readers of the whole host at a time; a user has one.
const AT_ONCE: usize = 16;
/// How long a user waits for a turn.
const PATIENCE: Duration = Duration::from_secs(60);
/// A kernel, an initramfs with its modules, and the page cache of what is read, MiB.
const MEMORY_MIB: u32 = 256;
/// Ends the id of each reader. An id of a VM is random: one in 2^64 ends so.
const MARK: [u8; 8] = *b"\xffreader\xff";

/// The readers that there are.
#[derive(Debug)]
pub(crate) struct Readers {
    turns: Arc<Turns>,
    /// By their own ids: whose disk they read, and their end.
    open: Mutex<HashMap<VmId, (VmId, CancellationToken)>>,
}

impl Default for Readers {
    fn default() -> Self {
        Self { turns: Turns::new(AT_ONCE, 1), open: Mutex::default() }
    }
}

impl Readers {
    fn open(&self) -> MutexGuard<'_, HashMap<VmId, (VmId, CancellationToken)>> {
        // Every change is one insert or remove.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ids that belong to no row, and not to nobody.
    pub(super) fn ids(&self) -> Vec<VmId> {
        self.open().keys().copied().collect()
    }

    #[cfg(test)]
    pub(super) fn wanted_by(&self, uid: u32) -> usize {
        self.turns.wanted_by(uid)
    }

    /// Somebody changes the VM: what is read would no longer be what is there.
    pub(super) fn cut(&self, vm: &VmId) {
        self.open().values().filter(|(of, _)| of == vm).for_each(|(_, end)| end.cancel());
    }

    /// Whether an id is a reader's, of this daemon or of one before it.
    pub(super) fn is_id(vm: &VmId) -> bool {
        vm.as_bytes().ends_with(&MARK)
    }
}

fn new_id() -> Result<VmId, VmError> {
    let mut bytes = [0; 32];
    fill_random(&mut bytes)?;
    if let Some(end) = bytes.last_chunk_mut() {
        *end = MARK;
    }
    Ok(VmId::from_bytes(bytes)?)
}

/// The way to what is on a VM's disks.
#[derive(Debug)]
pub(crate) enum Way {
    /// The VM runs.
    Running(Arc<Link>, #[expect(dead_code, reason = "held, and counted")] Option<Visit>),
    /// It does not, and somebody else reads for it.
    Reader(Box<Reader>),
}

impl Way {
    pub(crate) fn link(&self) -> &Link {
        match self {
            Self::Running(link, _) => link,
            Self::Reader(reader) => &reader.link,
        }
    }

    /// Resolves when it has to be left.
    pub(crate) async fn cut(&self) {
        match self {
            Self::Running(..) => std::future::pending().await,
            Self::Reader(reader) => reader.end.cancelled().await,
        }
    }

    /// Returns when nothing of it is left.
    pub(crate) async fn leave(self) {
        if let Self::Reader(mut reader) = self
            && let Some(rest) = reader.rest.take()
        {
            rest.clear().await;
        }
    }
}

/// A guest that reads.
#[derive(Debug)]
pub(crate) struct Reader {
    link: Arc<Link>,
    end: CancellationToken,
    /// What it leaves; taken by whoever clears it away.
    rest: Option<Rest>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            tokio::spawn(rest.clear());
        }
    }
}

/// What is there from the moment at which a reader is begun.
#[derive(Debug)]
struct Rest {
    ctx: Arc<Context>,
    owner: u32,
    id: VmId,
    paths: VmPaths,
    _turn: Turn,
}

impl Rest {
    /// What cannot be removed is the sweep's, which knows it by its id.
    async fn clear(self) {
        if let Err(error) = self.ctx.machine.end_group(self.owner, &self.id).await {
            tracing::warn!(banger_uid = self.owner, "a reader: {}", error.message());
        }
        let folders = [self.paths.runtime, self.paths.dir];
        let removed = blocking(move || joined(folders.iter().map(|folder| remove_folder(folder)))).await;
        if let Err(error) = removed {
            tracing::warn!(banger_uid = self.owner, "a reader: {}", error.message());
        }
        self.ctx.readers.open().remove(&self.id);
    }
}

impl Vms {
    /// The way to a VM of the peer's for somebody who only reads: into the guest if it runs, else
    /// to a reader of its work disk.
    pub(crate) async fn way_to_read(&self, peer: &Peer, word: &str) -> Result<Way, VmError> {
        let row = self.find(peer, word).await?;
        if row.state == State::Running {
            return self.link(peer, word).await.map(|(link, visit)| Way::Running(link, Some(visit)));
        }
        if self.starts(&row.id) {
            return Err(VmError::Starts(row.name));
        }
        let vm = row.id;
        let work_disk = self.ctx.paths.vm(&vm).work_disk();
        if row.making || !work_disk.is_file() {
            return Err(VmError::NothingToRead(row.name));
        }
        let turn = timeout(PATIENCE, self.ctx.readers.turns.take(peer.uid)).await.ok().flatten();
        let turn = turn.ok_or_else(|| VmError::OthersRead(row.name.clone()))?;
        let mut seat = Seat::new(&row, &self.ctx.paths, self.ctx.config.now().network)?;
        seat.id = new_id()?;
        seat.paths = VmPaths { cow: seat.paths.cow, ..self.ctx.paths.vm(&seat.id) };
        seat.spec = VmSpec { vcpu_count: 1, memory_mib: MEMORY_MIB, ..seat.spec };
        let end = CancellationToken::new();
        self.ctx.readers.open().insert(seat.id, (vm, end.clone()));
        let (ctx, owner, id, paths) = (Arc::clone(&self.ctx), seat.owner, seat.id, seat.paths.clone());
        let rest = Rest { ctx, owner, id, paths, _turn: turn };
        // Whoever waited for a turn may have been overtaken: by now it is given away, or runs. From
        // here on, whoever changes it ends this.
        let now = self.find(peer, &vm.to_string()).await.ok();
        if !now.is_some_and(|now| now.id == vm && now.who() == row.who() && now.state == row.state && !now.making) {
            rest.clear().await;
            return Err(VmError::ChangedMeanwhile(row.name));
        }
        // A start cuts the readers that it finds, after it can be seen here.
        if self.starts(&vm) {
            rest.clear().await;
            return Err(VmError::Starts(row.name));
        }
        tracing::info!(banger_vm = %vm, banger_uid = peer.uid, "its work disk is read");
        let started = tokio::select! {
            started = self.reader(&row.name, &seat, work_disk, &end) => started,
            () = end.cancelled() => Err(VmError::ChangedMeanwhile(row.name)),
        };
        match started {
            Ok(link) => Ok(Way::Reader(Box::new(Reader { link, end, rest: Some(rest) }))),
            Err(error) => {
                rest.clear().await;
                Err(error)
            }
        }
    }

    async fn reader(
        &self,
        name: &VmName,
        seat: &Seat,
        work_disk: PathBuf,
        end: &CancellationToken,
    ) -> Result<Arc<Link>, VmError> {
        super::shares::take(&self.ctx, seat.owner).await?;
        let running: Arc<dyn Running> = self.ctx.machine.read(seat, work_disk).await?;
        running.ready(self.ctx.config.now().guest_ready_timeout).await?;
        let link = running.link().ok_or_else(|| VmError::NotRunning { vm: name.clone(), why: String::new() })?;
        // Whoever watches for its end keeps its console short, too: a kernel of the user's own may
        // write to it without end.
        let (ended, end) = (running.ended(), end.clone());
        tokio::spawn(async move {
            ended.await;
            end.cancel();
        });
        Ok(link)
    }
}
