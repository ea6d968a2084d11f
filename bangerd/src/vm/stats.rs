//! Measures running VMs, and stops those that nobody used for long.

use super::order::Order;
use super::{Vms, entry_of};
use crate::util::allocated;
use banger_policy::VmId;
use banger_policy::lifecycle::State;
use banger_proto::model::VmStats;
use banger_proto::time::Timestamp;
use banger_vmm::cgroup::Usage;
use banger_vmm::console;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How often it is looked for VMs that nobody uses.
const SWEEP: Duration = Duration::from_secs(60);
/// A clock that gained more than that on the time that passed was set.
const CLOCK_SET: u64 = 60;
/// How long the helper may take to say what root disks take. Without an answer it is what it was.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts both loops; they end with the daemon, and sleep while no VM runs.
pub(crate) fn spawn(vms: &Arc<Vms>) {
    let measured = Arc::clone(vms);
    tokio::spawn(async move {
        let mut changes = measured.ctx.config.changes();
        let mut before = HashMap::new();
        loop {
            measured.ctx.handles.any().await;
            before = measure(&measured, &before).await;
            let pause = sleep(measured.ctx.config.now().stats_poll_interval);
            tokio::select! {
                () = pause => {}
                () = changes.next() => {}
            }
        }
    });
    let swept = Arc::clone(vms);
    tokio::spawn(async move {
        let mut changes = swept.ctx.config.changes();
        let mut clock = Clock::now();
        loop {
            swept.ctx.handles.any().await;
            let was_set = clock.was_set(Clock::now());
            let limit = swept.ctx.config.now().auto_stop_stale_after;
            if limit.is_zero() {
                changes.next().await;
                continue;
            }
            sweep(&swept, limit, was_set).await;
            tokio::select! {
                () = sleep(SWEEP) => {}
                () = changes.next() => {}
            }
        }
    });
}

/// The host's clock, beside one that nobody sets.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// Seconds since 1970.
    wall: u64,
    passed: Instant,
}

impl Clock {
    fn now() -> Self {
        Self { wall: Timestamp::now().unix(), passed: Instant::now() }
    }

    /// Whether the clock was set forward since the last call: the times of uses that are written
    /// are then of another clock.
    fn was_set(&mut self, now: Self) -> bool {
        let passed = now.passed.saturating_duration_since(self.passed).as_secs();
        let gained = now.wall.saturating_sub(self.wall).saturating_sub(passed);
        *self = now;
        gained > CLOCK_SET
    }
}

/// CPU time of each VM when it was last looked at, microseconds.
pub(super) type CpuTimes = HashMap<VmId, (Instant, u64)>;

pub(super) async fn measure(vms: &Arc<Vms>, before: &CpuTimes) -> CpuTimes {
    let rows = vms.ctx.db.vms(None, None, u32::MAX).await.unwrap_or_default();
    let overlays = timeout(PATIENCE, overlays(vms)).await.ok().flatten();
    let mut now = CpuTimes::new();
    for row in rows.iter().filter(|row| row.state == State::Running) {
        let Some(entry) = entry_of(vms, &row.id) else { continue };
        let Some(Usage { memory_bytes: rss_bytes, cpu_usec, .. }) = vms.ctx.machine.usage(row.owner, &row.id) else {
            continue;
        };
        let looked = Instant::now();
        let paths = vms.ctx.paths.vm(&row.id);
        let system_overlay_bytes = match &overlays {
            Some(overlays) => overlays.get(&row.id).copied().unwrap_or(0),
            None => entry.shared.stats().map_or(0, |last| last.system_overlay_bytes),
        };
        let pid = vms.ctx.handles.cached(&row.id).and_then(|held| held.pid);
        entry.shared.set_stats(VmStats {
            collected_at: Timestamp::now(),
            cpu_percent: before.get(&row.id).map_or(0.0, |(at, usec)| percent(*usec, cpu_usec, looked - *at)),
            rss_bytes,
            vsz_bytes: pid.and_then(vsz_of).unwrap_or(0),
            system_overlay_bytes,
            work_disk_bytes: allocated(&paths.work_disk()),
            metrics_raw: last_metrics(&paths.metrics()),
        });
        now.insert(row.id, (looked, cpu_usec));
    }
    now
}

/// What root disks take, by the helper's list: a question about one VM would wait for the other
/// calls of that VM and its owner, which may wait for the disk.
async fn overlays(vms: &Vms) -> Option<HashMap<VmId, u64>> {
    let (mut all, mut after) = (HashMap::new(), None);
    loop {
        let page = vms.ctx.privileged.list(after).await.ok()?;
        all.extend(page.holdings.iter().filter_map(|held| Some((held.vm, held.cow.as_ref()?.allocated_bytes))));
        after = page.next;
        if after.is_none() {
            return Some(all);
        }
    }
}

fn percent(before: u64, after: u64, passed: Duration) -> f64 {
    let used = Duration::from_micros(after.saturating_sub(before));
    if passed.is_zero() { 0.0 } else { used.as_secs_f64() / passed.as_secs_f64() * 100.0 }
}

/// proc_pid_statm(5): the first number is the size of the program, in pages.
fn vsz_of(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').next()?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

/// Firecracker appends an object a line, as long as the VM runs: what is long ago is freed.
fn last_metrics(path: &Path) -> String {
    /// A longer one would not fit a reply, bytes.
    const MAX: usize = 16 << 10;
    let line = console::trim(path).and_then(|()| console::last_line(path, MAX));
    line.unwrap_or_else(|error| {
        tracing::debug!("{}: {error}", path.display());
        String::new()
    })
}

/// With a clock that was set, nobody knows how long a VM was not used: it counts as used now.
async fn sweep(vms: &Arc<Vms>, limit: Duration, was_set: bool) {
    let now = Timestamp::now().unix();
    for row in vms.ctx.db.vms(None, None, u32::MAX).await.unwrap_or_default() {
        let idle = now.saturating_sub(row.last_touched_at.unix());
        let Some(entry) = entry_of(vms, &row.id).filter(|_| row.state == State::Running) else { continue };
        if was_set {
            drop(vms.ctx.db.touch_vm(row.id).await);
        } else if entry.shared.in_use() || vms.ctx.ports.used(&row.id) {
            vms.touch(&vms.ctx.db, row.id).await;
        } else if idle > limit.as_secs() {
            // An actor that is gone has no VM to stop.
            drop(entry.orders.send(Order::Stale(limit.as_secs())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_time_used_over_time_passed() {
        let second = Duration::from_secs(1);
        assert!((percent(0, 500_000, second) - 50.0).abs() < 1e-9);
        assert!((percent(7, 7, second)).abs() < 1e-9);
        assert!((percent(9, 3, second)).abs() < 1e-9, "a counter that was reset");
        assert!((percent(0, 1, Duration::ZERO)).abs() < 1e-9);
    }

    #[test]
    fn a_clock_that_is_set_forward_is_noticed_once() {
        let start = Clock { wall: 1_000, passed: Instant::now() };
        let later = |wall, seconds| Clock { wall, passed: start.passed + Duration::from_secs(seconds) };
        let mut clock = start;
        assert!(!clock.was_set(later(1_060, 60)), "time passed");
        assert!(!clock.was_set(later(1_150, 120)), "a slow host");
        assert!(clock.was_set(later(40_000_000, 180)), "set");
        assert!(!clock.was_set(later(40_000_060, 240)), "and then it runs on");
        assert!(!clock.was_set(later(1_000, 300)), "back: the times of uses lie ahead, and nothing is idle");
    }
}
