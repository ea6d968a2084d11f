//! The helper's tarpc service: every call runs to its end on a task of its own, is counted, and
//! leaves one line in the journal.
//!
//! A client that goes away, cancels or runs out of patience stops waiting; it never stops an
//! operation.

use crate::kernel::Kernel;
use crate::log::{self, Level};
use crate::ops::{Answer, Machine};
use banger_policy::rate::Bucket;
use banger_policy::reach::Reach;
use banger_policy::{Digest, VmId};
use banger_proto::helper::{
    CowRecord, DiskIdentity, Helper, HelperError, Holding, HoldingPage, ProcessState, TapIdentity,
};
use banger_proto::transport::HELPER_LIMITS;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tarpc::context::Context;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

/// Calls per second, and at once: a daemon that finds 256 VMs at its start asks three things about
/// each.
const CALLS: (u32, u32) = (200, 1000);
/// Records per second, and at once, of what a peer can cause without end. With them and one of
/// every call the journal's own limit (10,000 in 30 s) is never reached, so no flood hides a
/// decision.
const NOTES: (u32, u32) = (1, 20);

/// A bucket and the clock that fills it.
#[derive(Debug)]
pub(crate) struct Limiter(Cell<(Bucket, Instant)>);

impl Limiter {
    pub(crate) fn new((per_second, burst): (u32, u32)) -> Self {
        Self(Cell::new((Bucket::new(per_second, burst), Instant::now())))
    }

    pub(crate) fn take(&self) -> bool {
        let (mut bucket, before) = self.0.get();
        let now = Instant::now();
        let taken = bucket.take(now.saturating_duration_since(before));
        self.0.set((bucket, now));
        taken
    }
}

/// One per connection; all share one machine, one limiter and the operations under way.
#[derive(Debug)]
pub(crate) struct Service<K> {
    machine: Rc<Machine<K>>,
    limiter: Rc<Limiter>,
    notes: Rc<Limiter>,
    /// A permit for each operation until it has ended, whatever has become of the connection that
    /// asked for it.
    under_way: Arc<Semaphore>,
}

impl<K> Clone for Service<K> {
    fn clone(&self) -> Self {
        Self {
            machine: Rc::clone(&self.machine),
            limiter: Rc::clone(&self.limiter),
            notes: Rc::clone(&self.notes),
            under_way: Arc::clone(&self.under_way),
        }
    }
}

impl<K: Kernel> Service<K> {
    pub(crate) fn new(machine: Rc<Machine<K>>) -> Self {
        Self {
            machine,
            limiter: Rc::new(Limiter::new(CALLS)),
            notes: Rc::new(Limiter::new(NOTES)),
            under_way: Arc::new(Semaphore::new(HELPER_LIMITS.max_in_flight)),
        }
    }

    /// Records what a peer can cause without end.
    pub(crate) fn note(&self, level: Level, text: &str) {
        if self.notes.take() {
            log::record(level, text);
        }
    }

    /// Runs one operation to its end, whether or not somebody waits for it.
    async fn run<T: 'static, F>(self, op: &'static str, vm: Option<VmId>, call: F) -> Result<T, HelperError>
    where
        F: AsyncFnOnce(&Rc<Machine<K>>) -> Answer<T> + 'static,
    {
        if !self.limiter.take() {
            return Err(self.refuse(op, vm, "rate"));
        }
        let Ok(permit) = Arc::clone(&self.under_way).try_acquire_owned() else {
            return Err(self.refuse(op, vm, "operations-under-way"));
        };
        let task = spawn_local(async move {
            let _permit = permit;
            let start = Instant::now();
            let answer = call(&self.machine).await.map_err(|denied| (denied.code, denied.rule));
            audit(op, vm, &answer, start);
            answer.map_err(|(code, _)| code)
        });
        // A task that panicked has ended the process (`panic = "abort"`).
        task.await.unwrap_or(Err(HelperError::Ledger))
    }

    fn refuse(&self, op: &'static str, vm: Option<VmId>, rule: &'static str) -> HelperError {
        if self.notes.take() {
            audit(op, vm, &Err::<(), _>((HelperError::Rate, rule)), Instant::now());
        }
        HelperError::Rate
    }
}

/// One line per decision.
fn audit<T>(op: &str, vm: Option<VmId>, answer: &Result<T, (HelperError, &'static str)>, start: Instant) {
    let looks = matches!(op, "process_running" | "identity" | "list");
    let (level, verdict, rule) = match answer {
        Ok(_) if looks => (Level::Debug, "ok", "read"),
        Ok(_) => (Level::Info, "ok", "granted"),
        Err((HelperError::Quarantined, rule)) => (Level::Critical, "quarantined", *rule),
        Err((HelperError::Kernel(_) | HelperError::Ledger, rule)) => (Level::Error, "failed", *rule),
        Err((_, rule)) => (Level::Warning, "denied", *rule),
    };
    let errno = match answer {
        Err((HelperError::Kernel(errno), _)) => format!(" errno={errno}"),
        _ => String::new(),
    };
    let vm = vm.map(|vm| format!(" vm={vm}")).unwrap_or_default();
    let us = start.elapsed().as_micros();
    log::record(level, &format!("op={op}{vm} verdict={verdict} rule={rule}{errno} us={us}"));
}

impl<K: Kernel> Helper for Service<K> {
    async fn acquire_tap(self, _: Context, vm: VmId, owner: u32, index: u16) -> Result<TapIdentity, HelperError> {
        self.run("acquire_tap", Some(vm), async move |m| m.acquire_tap(vm, owner, index).await).await
    }

    async fn release_tap(self, _: Context, vm: VmId, tap: TapIdentity) -> Result<(), HelperError> {
        self.run("release_tap", Some(vm), async move |m| m.release_tap(vm, &tap).await).await
    }

    async fn create_disk(
        self,
        _: Context,
        vm: VmId,
        owner: u32,
        image: Digest,
        bytes: u64,
    ) -> Result<CowRecord, HelperError> {
        self.run("create_disk", Some(vm), async move |m| m.create_disk(vm, owner, image, bytes).await).await
    }

    async fn grow_disk(self, _: Context, vm: VmId, owner: u32, bytes: u64) -> Result<CowRecord, HelperError> {
        self.run("grow_disk", Some(vm), async move |m| m.grow_disk(vm, owner, bytes).await).await
    }

    async fn attach_disk(self, _: Context, vm: VmId, owner: u32) -> Result<DiskIdentity, HelperError> {
        self.run("attach_disk", Some(vm), async move |m| m.attach_disk(vm, owner).await).await
    }

    async fn give_disk(self, _: Context, vm: VmId, owner: u32) -> Result<(), HelperError> {
        self.run("give_disk", Some(vm), async move |m| m.give_disk(vm, owner).await).await
    }

    async fn detach_disk(self, _: Context, vm: VmId, disk: DiskIdentity) -> Result<(), HelperError> {
        self.run("detach_disk", Some(vm), async move |m| m.detach_disk(vm, &disk).await).await
    }

    async fn discard_disk(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("discard_disk", Some(vm), async move |m| m.discard_disk(vm).await).await
    }

    async fn set_network(self, _: Context, vm: VmId, reach: Reach) -> Result<(), HelperError> {
        self.run("set_network", Some(vm), async move |m| m.set_network(vm, reach).await).await
    }

    async fn bind_process(self, _: Context, vm: VmId, pid: u32) -> Result<(), HelperError> {
        self.run("bind_process", Some(vm), async move |m: &Rc<Machine<K>>| {
            if m.bind_process(vm, pid).await? {
                m.watch(vm);
            }
            Ok(())
        })
        .await
    }

    async fn process_running(self, _: Context, vm: VmId, pid: u32) -> Result<ProcessState, HelperError> {
        self.run("process_running", Some(vm), async move |m| m.process_running(vm, pid)).await
    }

    async fn identity(self, _: Context, vm: VmId) -> Result<Holding, HelperError> {
        self.run("identity", Some(vm), async move |m| m.identity(vm)).await
    }

    async fn list(self, _: Context, after: Option<VmId>) -> Result<HoldingPage, HelperError> {
        self.run("list", None, async move |m| Ok(m.list(after))).await
    }

    async fn release(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("release", Some(vm), async move |m| m.release(vm).await).await
    }
}
