//! The package: what it puts on a host, that it works as shipped, and that nothing stays when it is
//! purged.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inventory::{Inventory, leaks};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "install",
    about: "the package as shipped: users, units, sockets, refusal of strangers, purge",
    setup: Setup::Package,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("install-use-purge", install_use_purge)]
}

const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive dpkg --install /srv/bench/banger.deb";
const PURGE: &str = "DEBIAN_FRONTEND=noninteractive dpkg --purge banger";
const UNITS: &[&str] = &["bangerd.socket", "banger-priv.socket", "banger-priv.service"];

/// Units scoring worse than this in `systemd-analyze security` break the budget.
const EXPOSURE_LIMIT: f64 = 2.0;
/// Budget of the helper's resident memory.
const RESIDENT_LIMIT_KIB: u64 = 4096;

fn install_use_purge(scene: &mut Scene) -> Result<Outcome> {
    let before = Inventory::take()?;
    scene.step("install the package", |scene| {
        scene.root(INSTALL)?;
        scene.root("usermod --append --groups banger alice; usermod --append --groups banger bob").map(drop)
    })?;
    scene.step("units are active, none failed", active)?;
    // Before anything is asked of them: the first answers bring more of the programs into memory.
    scene.step("helper and daemon are within their budgets", budgets)?;
    scene.step("docs/admin.md explains all that is another than before", |_| super::explained::all(&before))?;
    scene.step("users, groups, sockets and folders have their owners and modes", ownership)?;
    scene.step("alice, in the group, is served; carol, outside of it, is not", |scene| {
        scene.banger("alice", &["vm", "list"])?.ok()?;
        scene.banger("carol", &["vm", "list"])?.refused(&["banger"]).map(drop)
    })?;
    scene.step(
        "the host's kernel is there for everybody, and nobody's to take away but an administrator's",
        |scene| {
            let kernel = scene.root("uname -r")?.trim().to_owned();
            scene.banger("alice", &["kernel", "list"])?.ok()?.says(&kernel)?.says("shared")?;
            scene.banger("alice", &["kernel", "delete", &kernel])?.refused(&[])?;
            scene.root(&format!("banger kernel delete {kernel}")).map(drop)
        },
    )?;
    scene.step("at rest, both hold little memory and wake up seldom", at_rest)?;
    scene.step("installing once more changes nothing, and brings nothing back", |scene| {
        scene.root(INSTALL)?;
        let kernels = scene.banger("alice", &["kernel", "list"])?.ok()?;
        ensure!(kernels.stdout.is_empty() && kernels.stderr.contains("no kernels"), "{kernels}");
        scene.banger("alice", &["vm", "list"])?.ok().map(drop)
    })?;
    scene.step("purge leaves nothing", |scene| {
        scene.root(PURGE)?;
        let units = scene.root("systemctl list-units --all --no-legend --plain 'banger*'")?;
        // The bench's own unit is the host VM's, not the package's.
        let left: Vec<&str> = units.lines().filter(|line| !line.starts_with("banger-bench.service")).collect();
        ensure!(left.is_empty(), "units are left:\n{}", left.join("\n"));
        let files = scene.root("find / -xdev -path /proc -prune -o -path /srv/bench -prune -o -path /var/log -prune -o -name '*banger*' -print; ls -d /run/banger* 2>/dev/null || :")?;
        let left: Vec<&str> = files.lines().filter(|line| !line.ends_with("/banger-bench.service")).collect();
        ensure!(left.is_empty(), "files are left:\n{}", left.join("\n"));
        scene.wait_until("the host is as before", Duration::from_secs(5), || {
            let difference = leaks(&before, &Inventory::take()?, &[]);
            Ok((!difference.leaks.is_empty()).then(|| difference.to_string()))
        })
        .map(drop)
    })?;
    scene.passed()
}

fn active(scene: &mut Scene) -> Result<()> {
    for unit in UNITS {
        scene.wait_until(&format!("{unit} is active"), Duration::from_secs(10), || {
            let state = scene.root_any(&format!("systemctl is-active {unit}"))?.stdout;
            Ok((state.trim() != "active").then_some(state))
        })?;
    }
    let failed = scene.root("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "failed units:\n{failed}");
    Ok(())
}

/// Budget of the daemon's resident memory while there is no VM.
const DAEMON_RESIDENT_LIMIT_KIB: u64 = 20 * 1024;
/// How long both are watched. Their slowest timers have their turn once in it.
const REST: Duration = Duration::from_secs(60);

/// Without a VM, and with nobody who asks. How often they wake up depends on the machine as well:
/// it is printed, and not judged.
fn at_rest(scene: &mut Scene) -> Result<()> {
    let services = [("daemon", "bangerd.service"), ("helper", "banger-priv.service")];
    let pids = services.iter().map(|(_, unit)| scene.main_pid(unit)).collect::<Result<Vec<_>>>()?;
    let before = pids.iter().map(|pid| switches(*pid)).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(REST);
    for (((name, _), pid), before) in services.iter().zip(&pids).zip(before) {
        let now = switches(*pid)?;
        let a_second = |then: u64, now: u64| format!("{:.2}", now.saturating_sub(then) as f64 / REST.as_secs_f64());
        scene.measured(&format!("{name} wake-ups per s at rest"), a_second(before.0, now.0));
        scene.measured(&format!("{name} preempted per s at rest"), a_second(before.1, now.1));
    }
    let resident = resident(scene, pids.first().copied().unwrap_or_default())?;
    scene.measured("daemon resident KiB", resident);
    ensure!(
        resident <= DAEMON_RESIDENT_LIMIT_KIB,
        "the daemon holds {resident} KiB at rest, above {DAEMON_RESIDENT_LIMIT_KIB}"
    );
    Ok(())
}

/// How often the threads of a process have waited for something, and lost their CPU, as far as
/// they still live: proc_pid_status(5).
fn switches(pid: u32) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile has nothing to say any more.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else { continue };
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or_default()
        };
        sum.0 += number("voluntary_ctxt_switches");
        sum.1 += number("nonvoluntary_ctxt_switches");
    }
    ensure!(sum.0 > 0, "process {pid} has never waited for anything");
    Ok(sum)
}

fn resident(scene: &Scene, pid: u32) -> Result<u64> {
    Ok(scene.root(&format!("sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"))?.trim().parse()?)
}

/// Path, and what `stat -c '%F %a %U:%G'` must say of it; the table in docs/architecture.md,
/// "Processes".
const OWNERS: &[(&str, &str)] = &[
    ("/run/banger", "directory 755 root:root"),
    ("/run/banger/bangerd.sock", "socket 660 root:banger"),
    ("/run/banger/priv.sock", "socket 660 root:bangerd"),
    ("/run/banger-priv", "directory 700 root:root"),
    ("/var/lib/banger-priv", "directory 700 root:root"),
    ("/usr/bin/banger", "regular file 755 root:root"),
];

fn ownership(scene: &mut Scene) -> Result<()> {
    for (path, expected) in OWNERS {
        let found = scene.root(&format!("stat -c '%F %a %U:%G' {path}"))?;
        ensure!(found.trim() == *expected, "{path}: expected {expected}, found {}", found.trim());
    }
    let identity = scene.root("id bangerd")?;
    ensure!(identity.contains("(kvm)"), "bangerd is not in group kvm: {identity}");
    ensure!(!identity.contains("uid=0"), "bangerd is root: {identity}");
    scene.root("getent group banger")?;
    let setuid = scene
        .root("dpkg -L banger | while read -r f; do [ -f \"$f\" ] && find \"$f\" -maxdepth 0 -perm /6000; done; :")?;
    ensure!(setuid.trim().is_empty(), "the package brings setuid files:\n{setuid}");
    Ok(())
}

fn budgets(scene: &mut Scene) -> Result<()> {
    let pid = scene.main_pid("banger-priv.service")?;
    let resident = resident(scene, pid)?;
    scene.measured("helper resident KiB", resident);
    // The rest is program text, shared and given back under pressure.
    let anonymous = scene.root(&format!("sed -n 's/^RssAnon:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"))?;
    scene.measured("helper anonymous KiB", anonymous.trim());
    for unit in ["banger-priv.service", "bangerd.service"] {
        let text = scene.root_any(&format!("systemd-analyze security --no-pager {unit}"))?.stdout;
        let score = text.lines().rev().find_map(|line| {
            line.split("exposure level for ").nth(1)?.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok()
        });
        let Some(score) = score else { anyhow::bail!("systemd-analyze gave no score for {unit}:\n{text}") };
        scene.measured(&format!("exposure of {unit}"), score);
        ensure!(score <= EXPOSURE_LIMIT, "{unit} has exposure {score}, above {EXPOSURE_LIMIT}");
    }
    ensure!(resident <= RESIDENT_LIMIT_KIB, "the helper holds {resident} KiB, above {RESIDENT_LIMIT_KIB}");
    Ok(())
}
