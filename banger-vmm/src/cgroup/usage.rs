//! What a VM takes, and whether it was ended for want of memory: read from files that only the
//! kernel writes.

use super::{Place, VmCgroup, keyed, read};
use std::io;
use std::path::Path;

/// What a VM takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `memory.current`, bytes.
    pub memory_bytes: u64,
    /// `usage_usec` of `cpu.stat`, microseconds.
    pub cpu_usec: u64,
    /// Read from disks since its start, bytes; of disks that are no other disk's device.
    pub read_bytes: u64,
    /// Written likewise.
    pub written_bytes: u64,
}

/// Whose limit of memory was reached when the kernel ended a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// The VM's own.
    Vm,
    /// That of all VMs of its owner.
    User,
    /// None of ours: the host has no memory left.
    Host,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vm => "out of memory: the host's kernel ended it, its VMM took more than its guest's memory allows",
            Self::User => {
                "out of memory: the host's kernel ended it, all VMs of its owner together reached the limit memory_max"
            }
            Self::Host => "out of memory: the host's kernel ended it, the host has no memory left",
        })
    }
}

impl VmCgroup {
    /// What the VM takes now; without groups, what `/proc` says of its process.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn usage(&self) -> io::Result<Usage> {
        match &self.place {
            Place::Group { path, .. } => {
                let (read_bytes, written_bytes) = disks(&read(&path.join("io.stat")).unwrap_or_default(), is_layer);
                Ok(Usage {
                    memory_bytes: read(&path.join("memory.current"))?.trim().parse().unwrap_or(0),
                    cpu_usec: keyed(&read(&path.join("cpu.stat"))?, "usage_usec").unwrap_or(0),
                    read_bytes,
                    written_bytes,
                })
            }
            Place::Process { .. } => {
                let Some(held) = self.tracked() else { return Ok(Usage::default()) };
                process_usage(held.pid())
            }
        }
    }

    /// Whether the kernel has ended something of the VM for want of memory since its group was
    /// made, and whose limit that was. `memory.events` counts what was ended in a group, and
    /// `memory.events.local` how often the group's own limit was the cause (the kernel's cgroup-v2
    /// documentation).
    #[must_use]
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        let Place::Group { path, .. } = &self.place else { return None };
        let count = |path: &Path, file: &str, key: &str| {
            read(&path.join(file)).ok().and_then(|text| keyed(&text, key)).unwrap_or(0)
        };
        if count(path, "memory.events", "oom_kill") == 0 {
            return None;
        }
        let at_limit = |path: &Path| count(path, "memory.events.local", "oom") > 0;
        Some(match path.parent() {
            _ if at_limit(path) => OutOfMemory::Vm,
            Some(owner) if at_limit(owner) => OutOfMemory::User,
            _ => OutOfMemory::Host,
        })
    }
}

/// Bytes read and written by `io.stat`. The same bytes pass several devices: a loop device and
/// device-mapper stand on another one, which is counted.
fn disks(text: &str, is_layer: impl Fn(&str) -> bool) -> (u64, u64) {
    let (mut all_read, mut all_written) = (0_u64, 0_u64);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next().is_none_or(&is_layer) {
            continue;
        }
        for word in words {
            match word.split_once('=') {
                Some(("rbytes", bytes)) => all_read = all_read.saturating_add(bytes.parse().unwrap_or(0)),
                Some(("wbytes", bytes)) => all_written = all_written.saturating_add(bytes.parse().unwrap_or(0)),
                _ => {}
            }
        }
    }
    (all_read, all_written)
}

/// Does this device, as `major:minor`, stand on another one?
fn is_layer(device: &str) -> bool {
    let known = Path::new("/sys/dev/block").join(device);
    ["loop", "dm"].iter().any(|kind| known.join(kind).exists())
}

/// From `/proc/PID/status` (`VmRSS`, KiB) and `stat` (proc_pid_stat(5): fields 14 and 15, 1/100 s).
fn process_usage(pid: u32) -> io::Result<Usage> {
    let status = read(Path::new(&format!("/proc/{pid}/status")))?;
    let stat = read(Path::new(&format!("/proc/{pid}/stat")))?;
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    // The name, field 2, may hold anything but ends at the last parenthesis.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let resident: u64 = resident.unwrap_or(0);
    Ok(Usage {
        memory_bytes: resident.saturating_mul(1024),
        cpu_usec: ticks.saturating_mul(10_000),
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_several_devices_counts_once() {
        let text =
            "7:3 rbytes=5 wbytes=7 rios=1\n8:0 rbytes=100 wbytes=20 rios=3 wios=1 dbytes=9\n259:1 wbytes=1\nbad\n";
        assert_eq!(disks(text, |device| device == "7:3"), (100, 21));
        assert_eq!(disks("", |_| false), (0, 0));
    }
}
