//! A process under attack, watched from outside: its memory at most, and its share of a CPU.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// What the daemon may have in memory at any time, whatever users and guests do.
pub(super) const DAEMON_MEMORY_KIB: u64 = 200 * 1024;

/// Looks at a process until it is ended.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
    daemon: u32,
    memory_before: u64,
    cpu_before: u64,
    begun: Instant,
}

/// What was seen: KiB, and percent of one CPU.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) memory_before: u64,
    pub(super) memory_most: u64,
    pub(super) cpu_percent: u128,
}

impl Watch {
    pub(super) fn begin(daemon: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !stopped.load(Ordering::Relaxed) {
                most = most.max(memory(daemon).unwrap_or(0));
                thread::sleep(Duration::from_millis(50));
            }
            most
        });
        Self {
            stop,
            thread,
            daemon,
            memory_before: memory(daemon).unwrap_or(0),
            cpu_before: cpu(daemon).unwrap_or(0),
            begun: Instant::now(),
        }
    }

    pub(super) fn end(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let memory_most = self.thread.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?;
        ensure!(memory_most > 0, "nothing was seen of process {}", self.daemon);
        let ticks = cpu(self.daemon).context("the daemon is gone")?.saturating_sub(self.cpu_before);
        // A tick is a hundredth of a second on every Linux (USER_HZ).
        let cpu_percent = u128::from(ticks) * 1000 / self.begun.elapsed().as_millis().max(1);
        Ok(Seen { memory_before: self.memory_before, memory_most, cpu_percent })
    }
}

/// Resident memory in KiB.
fn memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

/// Time on CPUs in ticks: fields 14 and 15 of proc_pid_stat(5), counted behind the name.
fn cpu(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_seen() {
        let pid = std::process::id();
        assert!(memory(pid).is_some_and(|kib| kib > 1000) && cpu(pid).is_some());
    }
}
