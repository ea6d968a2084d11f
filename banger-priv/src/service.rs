//! The helper's tarpc service: every call runs to its end on a task of its own, is counted, and leaves one
//! line in the journal.
//!
//! A client that goes away, cancels or runs out of patience stops waiting; it never stops an operation.

use crate::kernel::Kernel;
use crate::log::{self, Level};
use crate::ops::{Answer, Machine};
use banger_policy::rate::Bucket;
use banger_policy::{Digest, VmId};
use banger_proto::helper::{
    CowRecord, DiskIdentity, Helper, HelperError, Holding, HoldingPage, ProcessState, TapIdentity,
};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;
use tarpc::context::Context;
use tokio::task::spawn_local;

/// Calls per second, and at once: a daemon that finds 256 VMs at its start asks three things about each.
const CALLS: (u32, u32) = (200, 1000);
/// Records per second, and at once, of what a peer can cause without end. With them and one of every call
/// the journal's own limit (10,000 in 30 s) is never reached, so no flood hides a decision.
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

/// One per connection; all share one machine and one limiter.
#[derive(Debug)]
pub(crate) struct Service<K> {
    machine: Rc<Machine<K>>,
    limiter: Rc<Limiter>,
    notes: Rc<Limiter>,
}

impl<K> Clone for Service<K> {
    fn clone(&self) -> Self {
        let (machine, limiter, notes) = (Rc::clone(&self.machine), Rc::clone(&self.limiter), Rc::clone(&self.notes));
        Self { machine, limiter, notes }
    }
}

impl<K: Kernel> Service<K> {
    pub(crate) fn new(machine: Rc<Machine<K>>) -> Self {
        Self { machine, limiter: Rc::new(Limiter::new(CALLS)), notes: Rc::new(Limiter::new(NOTES)) }
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
            if self.notes.take() {
                audit(op, vm, &Err::<(), _>((HelperError::Rate, "rate")), Instant::now());
            }
            return Err(HelperError::Rate);
        }
        let task = spawn_local(async move {
            let start = Instant::now();
            let answer = call(&self.machine).await.map_err(|denied| (denied.code, denied.rule));
            audit(op, vm, &answer, start);
            answer.map_err(|(code, _)| code)
        });
        // A task that panicked has ended the process (`panic = "abort"`).
        task.await.unwrap_or(Err(HelperError::Ledger))
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

/// The service: each operation by its name, its arguments and what it answers.
macro_rules! operations {
    ($($name:ident $vm:expr, ($($argument:ident: $kind:ty),*) -> $answer:ty, |$machine:ident| $call:expr;)*) => {
        impl<K: Kernel> Helper for Service<K> {$(
            async fn $name(self, _: Context, $($argument: $kind),*) -> Result<$answer, HelperError> {
                self.run(stringify!($name), $vm, async move |$machine: &Rc<Machine<K>>| $call).await
            }
        )*}
    };
}

operations! {
    acquire_tap Some(vm), (vm: VmId, owner: u32, index: u16) -> TapIdentity, |m| m.acquire_tap(vm, owner, index).await;
    release_tap Some(vm), (vm: VmId, tap: TapIdentity) -> (), |m| m.release_tap(vm, &tap).await;
    create_disk Some(vm), (vm: VmId, owner: u32, image: Digest, bytes: u64) -> CowRecord,
        |m| m.create_disk(vm, owner, image, bytes).await;
    attach_disk Some(vm), (vm: VmId, owner: u32) -> DiskIdentity, |m| m.attach_disk(vm, owner).await;
    detach_disk Some(vm), (vm: VmId, disk: DiskIdentity) -> (), |m| m.detach_disk(vm, &disk).await;
    discard_disk Some(vm), (vm: VmId) -> (), |m| m.discard_disk(vm).await;
    enable_nat Some(vm), (vm: VmId) -> (), |m| m.set_nat(vm, true).await;
    disable_nat Some(vm), (vm: VmId) -> (), |m| m.set_nat(vm, false).await;
    bind_process Some(vm), (vm: VmId, pid: u32) -> (), |m| {
        if m.bind_process(vm, pid).await? { m.watch(vm) }
        Ok(())
    };
    process_running Some(vm), (vm: VmId, pid: u32) -> ProcessState, |m| m.process_running(vm, pid);
    identity Some(vm), (vm: VmId) -> Holding, |m| m.identity(vm);
    list None, (after: Option<VmId>) -> HoldingPage, |m| Ok(m.list(after));
    release Some(vm), (vm: VmId) -> (), |m| m.release(vm).await;
}
