//! User-space processes and control groups, from `/proc` and the cgroup file system.
//!
//! A process is named by what it runs and where, not by its pid: a service that was restarted is
//! the same process to the inventory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Inventory, Kind};

/// `PF_KTHREAD` of `include/linux/sched.h`: field 9 of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// `USER_HZ`, the unit of start times in `/proc/PID/stat`: 100 on every architecture that banger
/// runs on.
const TICKS: f64 = 100.0;

/// Processes of the distribution that come and go with every connection or device event: the
/// bench's own ssh connections and udev's workers.
const TRANSIENT: &[&str] = &["sshd-session:", "sshd: root", "(udev-worker)"];

/// Services of the distribution that D-Bus or a socket starts when somebody asks, and that end by
/// themselves.
const ON_DEMAND: &[&str] = &[
    "systemd-hostnamed.service",
    "systemd-timedated.service",
    "systemd-localed.service",
    "polkit.service",
    "user.slice",
];

/// Of the package: its timer runs it every half minute, for some seconds under emulation.
const ON_SCHEDULE: &str = "/system.slice/banger-host-firewall.service";

/// Made by systemd when it runs `ExecReload=` of a service whose groups are delegated, and there
/// until the service ends (systemd's CGROUP_DELEGATION.md). What runs in it is seen as a process.
const RELOADED: &str = "/system.slice/bangerd.service/.control";

/// Made by the daemon for the first process that parses an import, and there until the daemon ends.
/// What runs in it is seen as a process.
const CONVERT: &str = "/system.slice/bangerd.service/convert";

/// A run of it that is older hangs, and has leaked.
const ONE_RUN: Duration = Duration::from_secs(60);

pub(super) fn collect(inventory: &mut Inventory) -> Result<()> {
    let ourselves = ancestry(std::process::id())?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the host's boot id")?;
    // As systemd writes it.
    let boot = boot.trim().replace('-', "");
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if ourselves.contains(&pid) {
            continue;
        }
        // A process that ends while it is looked at was not there.
        if let Some(process) = look(pid)
            && !is_transient(&process)
        {
            // The helper is told the boot of the host that it runs in: after a reboot it is the
            // same process. One that was told another boot's id keeps it in its name.
            let command = process.command.replace(&boot, "(this boot)");
            inventory.add(Kind::Process, format!("{command} in {}", process.cgroup), format!("uid {}", process.uid));
        }
    }
    cgroups(Path::new("/sys/fs/cgroup"), "", inventory)
}

#[derive(Debug)]
struct Process {
    command: String,
    cgroup: String,
    uid: String,
    age: Duration,
}

/// This process, its parent and so on: the ssh connection and shell that run the suite.
fn ancestry(mut pid: u32) -> Result<BTreeSet<u32>> {
    let mut seen = BTreeSet::new();
    while pid > 1 && seen.insert(pid) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("read the state of process {pid}"))?;
        pid = stat_field(&stat, 4).and_then(|field| field.parse().ok()).unwrap_or(0);
    }
    Ok(seen)
}

/// Field by its number in proc_pid_stat(5); the name in field 2 may hold blanks and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?)
}

fn look(pid: u32) -> Option<Process> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    if stat_field(&stat, 9)?.parse::<u64>().ok()? & KERNEL_THREAD != 0 {
        return None;
    }
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<String> = raw
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let command = if words.is_empty() { format!("[{}]", read("comm")?.trim()) } else { words.join(" ") };
    let cgroup = read("cgroup")?.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned))?;
    let status = read("status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.to_owned();
    let since_boot = fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = since_boot.split_whitespace().next()?.parse().ok()?;
    let started = stat_field(&stat, 22)?.parse::<f64>().ok()? / TICKS;
    Some(Process { command, cgroup, uid, age: Duration::try_from_secs_f64(now - started).unwrap_or_default() })
}

fn is_transient(process: &Process) -> bool {
    // What PID 1 forks to close a descriptor or to empty a folder for it: `(sd-close)`,
    // `(sd-rmrf)`.
    let of_pid_1 = process.cgroup == "/init.scope" && process.command.starts_with("[(sd-");
    of_pid_1
        || TRANSIENT.iter().any(|start| process.command.starts_with(start))
        || on_demand(&process.cgroup)
        || (process.cgroup == ON_SCHEDULE && process.age < ONE_RUN)
}

fn on_demand(cgroup: &str) -> bool {
    cgroup.split('/').any(|part| ON_DEMAND.contains(&part))
}

/// Limits of what banger has made. Elsewhere they follow the distribution's defaults, which systemd
/// computes again at every `daemon-reload`.
fn limits(path: &Path, name: &str) -> String {
    if !name.contains("/bangerd.service/") {
        return String::new();
    }
    let limit = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default().trim().to_owned();
    format!("memory.max {}, pids.max {}", limit("memory.max"), limit("pids.max"))
}

fn cgroups(folder: &Path, name: &str, inventory: &mut Inventory) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // It went while the tree was walked.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let child = format!("{name}/{}", entry.file_name().display());
        if on_demand(&child) || child == ON_SCHEDULE || child == RELOADED || child == CONVERT {
            continue;
        }
        let path = entry.path();
        inventory.add(Kind::Cgroup, &child, limits(&path, &child));
        cgroups(&path, &child, inventory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat = "437 (odd) name)) S 358 437 437 0 -1 4194560 900 0 0";
        assert_eq!(stat_field(stat, 3), Some("S"));
        assert_eq!(stat_field(stat, 4), Some("358"));
        assert_eq!(stat_field(stat, 9), Some("4194560"));
    }

    #[test]
    fn this_test_is_seen_as_a_process_and_as_its_own_ancestor() -> Result<()> {
        let pid = std::process::id();
        assert!(ancestry(pid)?.contains(&pid));
        let process = look(pid).context("this process is not seen")?;
        assert!(!process.command.is_empty());
        assert_eq!(process.uid, nix::unistd::getuid().to_string());
        Ok(())
    }

    #[test]
    fn only_the_first_process_has_passing_children_of_its_own() {
        let process = |command: &str, cgroup: &str| Process {
            command: command.to_owned(),
            cgroup: cgroup.to_owned(),
            uid: "0".to_owned(),
            age: Duration::ZERO,
        };
        assert!(is_transient(&process("[(sd-close)]", "/init.scope")));
        assert!(!is_transient(&process("[(sd-close)]", "/system.slice/bangerd.service/daemon")));
        assert!(!is_transient(&process("sleep 60", "/init.scope")));
    }

    #[test]
    fn a_run_of_the_packages_timer_is_a_leak_when_it_hangs() {
        let run = |age| Process {
            command: "[host-firewall]".to_owned(),
            cgroup: ON_SCHEDULE.to_owned(),
            uid: "0".to_owned(),
            age,
        };
        assert!(is_transient(&run(Duration::from_secs(5))));
        assert!(!is_transient(&run(ONE_RUN)));
    }

    #[test]
    fn only_named_services_of_the_distribution_are_on_demand() {
        assert!(on_demand("/system.slice/polkit.service"));
        assert!(!on_demand("/system.slice/bangerd.service/vms/1001/aa"));
        assert!(!on_demand("/system.slice/polkit.service.evil"));
    }
}
