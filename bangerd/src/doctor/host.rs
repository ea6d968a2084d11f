//! The host's kernel and hardware: what VMs need of them, and what would make guests less well
//! separated.

use super::read;
use crate::vm::Context;
use crate::vm::host::check_kvm;
use crate::vm::machine::MachineError;
use banger_proto::model::{ApiError, Check};
use banger_vmm::confine;
use rustix::process::{Resource, getrlimit};
use std::io;
use std::path::Path;

/// The oldest kernel that is supported: Landlock of ABI 6, and filters in deletions of connection
/// tracking.
const KERNEL_FLOOR: (u32, u32) = (6, 12);
/// Kernel modules, each with what shows that it is there when it is built in.
const MODULES: [(&str, &str); 4] = [
    ("tun", "/sys/class/misc/tun"),
    ("loop", "/sys/class/misc/loop-control"),
    ("dm_mod", "/sys/class/misc/device-mapper"),
    ("dm_snapshot", "/sys/module/dm_snapshot"),
];
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Descriptors that the daemon may have open, at least: some per VM and session.
const OPEN_FILES: u64 = 16_384;
/// Processes that the host can have, at least: a VMM has a thread per vCPU and some more.
const PROCESSES: u64 = 16_384;
/// A VM with the smallest useful memory, MiB.
const MEMORY_FLOOR: u64 = 256;

pub(super) fn checks(ctx: &Context) -> Vec<Check> {
    vec![
        kvm(check_kvm()),
        kernel(&rustix::system::uname().release().to_string_lossy()),
        landlock(confine::supported()),
        modules(|path| Path::new(path).exists()),
        cgroup(ctx.machine.delegated()),
        controllers(&read("/sys/fs/cgroup/cgroup.controllers")),
        open_files(getrlimit(Resource::Nofile).current),
        processes(&read("/proc/sys/kernel/pid_max"), &read("/proc/sys/kernel/threads-max")),
        memory(&read("/proc/meminfo")),
        clock_source(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        mitigations(&vulnerabilities()),
        same_page_merging(&read("/sys/kernel/mm/ksm/run")),
    ]
}

fn kvm(usable: Result<(), MachineError>) -> Check {
    match usable {
        Ok(()) => Check::pass("kvm", "the daemon can use /dev/kvm"),
        Err(MachineError::NoKvm(why)) if why.kind() == io::ErrorKind::PermissionDenied => Check::fail(
            "kvm",
            "the daemon may not use /dev/kvm: its user must be in the group of that device",
            // Group and mode of the device are udev's to set, by the rules that it brings itself.
            "sudo usermod --append --groups kvm bangerd && sudo udevadm trigger --action=add --settle /dev/kvm && \
             sudo systemctl restart bangerd",
        ),
        Err(error) => {
            let error = ApiError::from(error);
            Check::fail("kvm", error.message, error.hint)
        }
    }
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_FLOOR {
        return Check::pass("kernel", format!("Linux {release}"));
    }
    let floor = format!("{}.{}", KERNEL_FLOOR.0, KERNEL_FLOOR.1);
    Check::fail(
        "kernel",
        format!("Linux {release} is older than {floor}"),
        format!(
            "boot Linux {floor} or newer: Debian 13, Ubuntu 26.04 (24.04: linux-generic-hwe-24.04), RHEL 10, Fedora"
        ),
    )
}

/// Without it neither the helper nor a VMM starts: that it is compiled in does not mean that it is
/// switched on.
fn landlock<E: std::fmt::Display>(supported: Result<(), E>) -> Check {
    match supported {
        Ok(()) => Check::pass("landlock", "Landlock confines VMMs and the helper (ABI 6)"),
        Err(error) => Check::fail(
            "landlock",
            format!("this kernel does not confine VMMs ({error})"),
            "boot Linux 6.12 or newer with landlock in its list of security modules: lsm= on the kernel's command \
             line, read from /sys/kernel/security/lsm",
        ),
    }
}

fn modules(there: impl Fn(&str) -> bool) -> Check {
    let missing: Vec<&str> = MODULES.iter().filter(|(_, sign)| !there(sign)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Check::pass("modules", MODULES.map(|(name, _)| name).join(", "));
    }
    let missing = missing.join(" ");
    // A distribution's kernel for clouds may have them in another package, which modprobe's error
    // then shows.
    Check::fail("modules", format!("not there: {missing}"), format!("sudo modprobe --all {missing}"))
}

fn cgroup(delegated: bool) -> Check {
    if delegated {
        return Check::pass("cgroup", "delegated; VMs have limits of their own");
    }
    Check::warn(
        "cgroup",
        "not delegated: VMs run without limits and are found by pid",
        "sudo systemctl restart bangerd   # started by its unit, and not by hand",
    )
}

fn controllers(there: &str) -> Check {
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !there.split_whitespace().any(|word| word == *name)).collect();
    if missing.is_empty() {
        return Check::pass("cgroup controllers", CONTROLLERS.join(", "));
    }
    Check::fail(
        "cgroup controllers",
        format!("this host does not have: {}", missing.join(", ")),
        "boot without systemd.unified_cgroup_hierarchy=0 and cgroup_disable= on the kernel's command line",
    )
}

fn open_files(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < OPEN_FILES => Check::warn(
            "open files",
            format!("the daemon may have {limit} files open: too few for many VMs"),
            // Of several drop-ins the last by name wins (systemd.unit(5)).
            "sudo mkdir -p /etc/systemd/system/bangerd.service.d && printf '[Service]\\nLimitNOFILE=65536\\n' | \
             sudo tee /etc/systemd/system/bangerd.service.d/zz-open-files.conf && sudo systemctl daemon-reload && \
             sudo systemctl restart bangerd",
        ),
        Some(limit) => Check::pass("open files", format!("the daemon may have {limit}")),
        None => Check::pass("open files", "no limit"),
    }
}

fn processes(pid_max: &str, threads_max: &str) -> Check {
    let numbers = [("kernel.pid_max", pid_max), ("kernel.threads-max", threads_max)];
    let low = numbers.iter().find_map(|(key, text)| {
        let number: u64 = text.trim().parse().ok()?;
        (number < PROCESSES).then_some((key, number))
    });
    match low {
        None => Check::pass("processes", format!("this host can have {}", pid_max.trim())),
        Some((key, number)) => Check::warn(
            "processes",
            format!("{key} is {number}: too few for many VMs"),
            format!("sudo sysctl --write {key}=4194304   # and a line in /etc/sysctl.d"),
        ),
    }
}

fn memory(meminfo: &str) -> Check {
    let free = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let free: Option<u64> = free.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    match free.map(|kib| kib / 1024) {
        None => Check::warn("memory", "it cannot be read what is free", "cat /proc/meminfo"),
        Some(free) if free < MEMORY_FLOOR => Check::warn(
            "memory",
            format!("{free} MiB are free: the next VM may not start"),
            "banger vm list   # and stop what is not needed",
        ),
        Some(free) => Check::pass("memory", format!("{free} MiB are free")),
    }
}

/// Guests read the host's clock; a slow source costs each of their readings.
fn clock_source(source: &str) -> Check {
    match source.trim() {
        "" => Check::warn("clock", "the clock source cannot be read", "dmesg | grep -i clocksource"),
        fast @ ("tsc" | "kvm-clock" | "arch_sys_counter") => Check::pass("clock", fast),
        slow => Check::warn(
            "clock",
            format!("the host's clock source is {slow}: times are slow to read in guests"),
            "dmesg | grep -i tsc   # says why the kernel does not use it",
        ),
    }
}

/// Name and state of each weakness of the processor that the kernel knows.
fn vulnerabilities() -> Vec<(String, String)> {
    let folder = std::fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let files = folder.into_iter().flatten().flatten();
    files.map(|file| (file.file_name().to_string_lossy().into_owned(), read(file.path()))).collect()
}

/// VMs of different users share the processor.
fn mitigations(states: &[(String, String)]) -> Check {
    let open: Vec<&str> =
        states.iter().filter(|(_, state)| state.starts_with("Vulnerable")).map(|(name, _)| name.as_str()).collect();
    if open.is_empty() {
        return Check::pass("processor", "the kernel guards against every weakness that it knows");
    }
    Check::warn(
        "processor",
        format!("guests may read what is not theirs: {}", open.join(", ")),
        "install the processor's microcode, and boot without mitigations=off on the kernel's command line",
    )
}

/// Merged pages tell one guest what is in the memory of another, by the time that a write takes.
fn same_page_merging(run: &str) -> Check {
    if run.trim() == "1" {
        return Check::warn(
            "memory merging",
            "KSM merges equal pages of different users",
            "echo 2 | sudo tee /sys/kernel/mm/ksm/run",
        );
    }
    Check::pass("memory merging", "off")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    #[test]
    fn a_host_without_kvm() {
        let kvm_of = |kind: io::ErrorKind| kvm(Err(MachineError::NoKvm(kind.into())));
        let absent = kvm_of(io::ErrorKind::NotFound);
        assert!(absent.status == Fail && absent.mend.contains("firmware"), "{absent:?}");
        let denied = kvm_of(io::ErrorKind::PermissionDenied);
        assert!(denied.status == Fail && denied.mend.contains("--groups kvm bangerd"), "{denied:?}");
        assert_eq!(kvm(Ok(())).status, Pass);
    }

    #[test]
    fn a_kernel_without_landlock_is_told_what_to_do() {
        let failed = landlock(Err("not supported"));
        assert_eq!(failed.status, Fail);
        assert!(failed.detail.contains("(not supported)") && failed.mend.contains("lsm="), "{failed:?}");
        assert_eq!(landlock(Ok::<(), String>(())).status, Pass);
    }

    #[test]
    fn the_kernel_floor() {
        for (release, status) in [
            ("6.12.0", Pass),
            ("6.12.48+deb13-cloud-amd64", Pass),
            ("7.0.1", Pass),
            ("6.11.9-arch1-1", Fail),
            ("5.14.0-503.el9", Fail),
            ("odd", Fail),
        ] {
            assert_eq!(kernel(release).status, status, "{release}");
        }
    }

    #[test]
    fn missing_modules_are_loaded_by_the_command_that_is_shown() {
        let check = modules(|path| !path.contains("tun") && !path.contains("snapshot"));
        assert_eq!((check.status, check.mend.as_str()), (Fail, "sudo modprobe --all tun dm_snapshot"));
        assert_eq!(modules(|_| true).status, Pass);
    }

    #[test]
    fn groups_and_controllers() {
        assert_eq!((cgroup(false).status, cgroup(true).status), (Warn, Pass));
        assert_eq!(controllers("cpuset cpu io memory hugetlb pids rdma misc\n").status, Pass);
        let check = controllers("cpuset io pids\n");
        assert!(check.status == Fail && check.detail.ends_with("cpu, memory"), "{check:?}");
    }

    #[test]
    fn limits_that_are_too_low() {
        assert_eq!(open_files(Some(1024)).status, Warn);
        assert_eq!((open_files(Some(65_536)).status, open_files(None).status), (Pass, Pass));
        let check = processes("4194304\n", "4000\n");
        assert!(check.status == Warn && check.mend.contains("kernel.threads-max=4194304"), "{check:?}");
        assert_eq!(processes("4194304\n", "63000\n").status, Pass);
    }

    #[test]
    fn memory_that_is_short() {
        assert_eq!(memory("MemTotal: 8000000 kB\nMemAvailable:    2048000 kB\n").status, Pass);
        assert_eq!(memory("MemAvailable:     100000 kB\n").status, Warn);
        assert_eq!(memory("").status, Warn);
    }

    #[test]
    fn what_makes_guests_slower_or_less_separate() {
        assert_eq!((clock_source("tsc\n").status, clock_source("hpet\n").status), (Pass, Warn));
        assert_eq!((same_page_merging("0\n").status, same_page_merging("1\n").status), (Pass, Warn));
        let state =
            |text: &str| vec![("mds".to_owned(), text.to_owned()), ("l1tf".to_owned(), "Not affected".to_owned())];
        assert_eq!(mitigations(&state("Mitigation: Clear CPU buffers\n")).status, Pass);
        let check = mitigations(&state("Vulnerable: Clear CPU buffers attempted, no microcode\n"));
        assert!(check.status == Warn && check.detail.ends_with(": mds"), "{check:?}");
    }
}
