//! The helper's tarpc service: every call runs to its end on a task of its own, is counted, and leaves one
//! line in the journal.
//!
//! A client that goes away, cancels or runs out of patience stops waiting; it never stops an operation.

use crate::kernel::Kernel;
use crate::log::{self, Level};
use crate::ops::{Answer, Machine};
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

/// A token bucket; the only place where time enters a decision.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_second: f64,
    burst: f64,
    state: Cell<(f64, Instant)>,
}

impl Bucket {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, state: Cell::new((burst, Instant::now())) }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let (tokens, before) = self.state.get();
        let passed = now.saturating_duration_since(before).as_secs_f64();
        let tokens = (tokens + passed * self.per_second).min(self.burst);
        let left = if tokens >= 1.0 { tokens - 1.0 } else { tokens };
        self.state.set((left, now));
        tokens >= 1.0
    }
}

/// One per connection; all share one machine and one bucket.
#[derive(Debug)]
pub(crate) struct Service<K> {
    machine: Rc<Machine<K>>,
    bucket: Rc<Bucket>,
}

impl<K> Clone for Service<K> {
    fn clone(&self) -> Self {
        Self { machine: Rc::clone(&self.machine), bucket: Rc::clone(&self.bucket) }
    }
}

impl<K: Kernel> Service<K> {
    pub(crate) fn new(machine: Rc<Machine<K>>) -> Self {
        Self { machine, bucket: Rc::new(Bucket::new(CALLS.0, CALLS.1)) }
    }

    /// Runs one operation to its end, whether or not somebody waits for it.
    async fn run<T: 'static, F>(self, op: &'static str, vm: Option<VmId>, call: F) -> Result<T, HelperError>
    where
        F: AsyncFnOnce(&Machine<K>) -> Answer<T> + 'static,
    {
        if !self.bucket.take() {
            audit(op, vm, &Err::<(), _>((HelperError::Rate, "rate")), Instant::now());
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

impl<K: Kernel> Helper for Service<K> {
    async fn acquire_tap(
        self,
        _: Context,
        vm: VmId,
        owner: u32,
        address_index: u16,
    ) -> Result<TapIdentity, HelperError> {
        self.run("acquire_tap", Some(vm), async move |m: &Machine<K>| m.acquire_tap(vm, owner, address_index).await)
            .await
    }

    async fn release_tap(self, _: Context, vm: VmId, tap: TapIdentity) -> Result<(), HelperError> {
        self.run("release_tap", Some(vm), async move |m: &Machine<K>| m.release_tap(vm, &tap).await).await
    }

    async fn create_disk(
        self,
        _: Context,
        vm: VmId,
        owner: u32,
        image: Digest,
        cow_bytes: u64,
    ) -> Result<CowRecord, HelperError> {
        self.run("create_disk", Some(vm), async move |m: &Machine<K>| m.create_disk(vm, owner, image, cow_bytes).await)
            .await
    }

    async fn attach_disk(self, _: Context, vm: VmId, owner: u32) -> Result<DiskIdentity, HelperError> {
        self.run("attach_disk", Some(vm), async move |m: &Machine<K>| m.attach_disk(vm, owner).await).await
    }

    async fn detach_disk(self, _: Context, vm: VmId, disk: DiskIdentity) -> Result<(), HelperError> {
        self.run("detach_disk", Some(vm), async move |m: &Machine<K>| m.detach_disk(vm, &disk).await).await
    }

    async fn discard_disk(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("discard_disk", Some(vm), async move |m: &Machine<K>| m.discard_disk(vm).await).await
    }

    async fn enable_nat(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("enable_nat", Some(vm), async move |m: &Machine<K>| m.set_nat(vm, true).await).await
    }

    async fn disable_nat(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("disable_nat", Some(vm), async move |m: &Machine<K>| m.set_nat(vm, false).await).await
    }

    async fn bind_process(self, _: Context, vm: VmId, pid: u32) -> Result<(), HelperError> {
        self.run("bind_process", Some(vm), async move |m: &Machine<K>| m.bind_process(vm, pid).await).await
    }

    async fn process_running(self, _: Context, vm: VmId, pid: u32) -> Result<ProcessState, HelperError> {
        self.run("process_running", Some(vm), async move |m: &Machine<K>| m.process_running(vm, pid)).await
    }

    async fn identity(self, _: Context, vm: VmId) -> Result<Holding, HelperError> {
        self.run("identity", Some(vm), async move |m: &Machine<K>| m.identity(vm)).await
    }

    async fn list(self, _: Context, after: Option<VmId>) -> Result<HoldingPage, HelperError> {
        self.run("list", None, async move |m: &Machine<K>| Ok(m.list(after))).await
    }

    async fn release(self, _: Context, vm: VmId) -> Result<(), HelperError> {
        self.run("release", Some(vm), async move |m: &Machine<K>| m.release(vm).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let bucket = Bucket::new(2, 3);
        let start = Instant::now();
        assert_eq!([0; 4].map(|_| bucket.take_at(start)), [true, true, true, false]);
        let later = start + Duration::from_secs(1);
        assert_eq!([0; 3].map(|_| bucket.take_at(later)), [true, true, false]);
        let much_later = start + Duration::from_secs(3_600);
        assert_eq!([0; 4].map(|_| bucket.take_at(much_later)), [true, true, true, false], "never more than the burst");
        assert!(!bucket.take_at(start), "a clock that goes back gives nothing");
    }
}
