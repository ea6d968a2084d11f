//! What others may look at and touch without waiting in an actor's queue.

use super::machine::Running;
use super::program::Program;
use banger_proto::model::VmStats;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a call waits for an actor that still looks for the VM's earlier run.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// A use so soon after another one is not written: each time waits for the disk.
pub(super) const SAME_USE: Duration = Duration::from_secs(10);

/// What an actor may be waiting for, that somebody else's order may make pointless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A start, until the guest is ready.
    Start,
    /// A guest that was asked to shut down.
    Shutdown,
}

/// What others may look at and touch without waiting for the actor.
#[derive(Debug, Default)]
pub(super) struct Shared {
    running: Mutex<Option<Arc<dyn Running>>>,
    /// Which Firecracker that is.
    program: Mutex<Option<Program>>,
    stats: Mutex<Option<VmStats>>,
    waiting: Mutex<Option<(Wait, CancellationToken)>>,
    /// Whether it is known what became of the VM's earlier run.
    settled: watch::Sender<bool>,
    /// Why it no longer runs, until that is recorded.
    ended: Mutex<String>,
    /// Sessions that are open.
    sessions: Arc<()>,
    /// Ends when the VM becomes another user's.
    ownership: Mutex<CancellationToken>,
    /// Ends when there is no such VM any more.
    gone: CancellationToken,
    /// When a use was written last.
    used: Mutex<Option<Instant>>,
}

/// Somebody is in the VM, as long as this is held.
#[derive(Debug)]
pub(crate) struct Visit(#[expect(dead_code, reason = "held, and counted")] Arc<()>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The guest, while it runs.
    pub(super) fn running(&self) -> Option<Arc<dyn Running>> {
        lock(&self.running).clone()
    }

    /// The same, once it is known what became of the VM's earlier run.
    pub(super) async fn found_running(&self) -> Option<Arc<dyn Running>> {
        // Time over: then what is known now is the answer.
        drop(tokio::time::timeout(SETTLE_LIMIT, self.settled.subscribe().wait_for(|settled| *settled)).await);
        self.running()
    }

    pub(super) fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// From now on it is known.
    pub(super) fn settle(&self) {
        self.settled.send_replace(true);
    }

    pub(super) fn enter(&self) -> Visit {
        Visit(Arc::clone(&self.sessions))
    }

    /// How many are in it.
    pub(super) fn sessions(&self) -> usize {
        Arc::strong_count(&self.sessions).saturating_sub(1)
    }

    /// Whether somebody is in it, also somebody whom an earlier daemon let in. Until its agent has
    /// spoken nobody knows.
    pub(super) fn in_use(&self) -> bool {
        self.sessions() > 0 || self.running().is_some_and(|running| running.commands() != Some(0))
    }

    pub(super) fn stats(&self) -> Option<VmStats> {
        lock(&self.stats).clone()
    }

    /// Of a VM that has ended meanwhile they are forgotten.
    pub(super) fn set_stats(&self, stats: VmStats) {
        let running = lock(&self.running);
        if running.is_some() {
            *lock(&self.stats) = Some(stats);
        }
    }

    pub(super) fn set_running(&self, running: Option<Arc<dyn Running>>) {
        let runs = running.is_some();
        let mut now = lock(&self.running);
        *now = running;
        *lock(&self.program) = None;
        drop(now);
        if runs {
            lock(&self.ended).clear();
        } else {
            *lock(&self.stats) = None;
        }
    }

    pub(super) fn program(&self) -> Option<Program> {
        lock(&self.program).clone()
    }

    /// Of one that has ended meanwhile it is forgotten.
    pub(super) fn set_program(&self, of: &Arc<dyn Running>, program: Program) {
        let running = lock(&self.running);
        if running.as_ref().is_some_and(|running| Arc::ptr_eq(running, of)) {
            *lock(&self.program) = Some(program);
        }
    }

    pub(super) fn set_ended(&self, reason: &str) {
        reason.clone_into(&mut lock(&self.ended));
    }

    pub(super) fn ended(&self) -> String {
        lock(&self.ended).clone()
    }

    pub(super) fn set_waiting(&self, waiting: Option<(Wait, CancellationToken)>) {
        *lock(&self.waiting) = waiting;
    }

    /// Somebody uses it now: whether that is to be written.
    pub(super) fn is_new_use(&self) -> bool {
        let mut used = lock(&self.used);
        let is_new = used.is_none_or(|last| last.elapsed() >= SAME_USE);
        if is_new {
            *used = Some(Instant::now());
        }
        is_new
    }

    /// Ends when the VM is given away. To be had before it is looked whose the VM is.
    pub(super) fn ownership(&self) -> CancellationToken {
        lock(&self.ownership).clone()
    }

    /// Whoever has been shown the VM as its owner's is shown no more of it.
    pub(super) fn end_ownership(&self) {
        std::mem::take(&mut *lock(&self.ownership)).cancel();
    }

    /// Ends with the VM.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Whether the actor waits for a guest to be ready.
    pub(super) fn starts(&self) -> bool {
        lock(&self.waiting).as_ref().is_some_and(|(wait, _)| *wait == Wait::Start)
    }

    /// Ends the actor's wait when it is of one of these kinds.
    pub(super) fn interrupt(&self, kinds: &[Wait]) {
        if let Some((wait, token)) = lock(&self.waiting).as_ref()
            && kinds.contains(wait)
        {
            token.cancel();
        }
    }
}
