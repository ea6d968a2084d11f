//! Two users of one host: what mallory's VM takes, alice's does not miss. What her user's group was
//! given is read from the host's own files, and compared with the configuration; and nobody starts
//! more than the limits of memory allow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::suite::command::{Finished, Run};
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;
use crate::suite::vmm::{STILL, with_vmm};

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "shares",
    about: "one user's VM takes CPU, memory, disk and processes, and the other's goes on; limits of memory at their edge",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a-neighbour-who-takes-all", |scene| with_config(scene, GREEDY, neighbours)),
        Scenario::new("memory-at-its-edge", |scene| {
            with_vmm(scene, STILL, |scene| with_config(scene, NARROW, edge).map(drop))
        }),
    ]
}

const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/srv/bench/kept.toml";
/// What the neighbour's group must have, as the kernel shows it.
const GREEDY: &str =
    "[limits.users.bob]\\ncpu_weight = 50\\nmemory_high = \"1G\"\\nmemory_max = \"2G\"\\npids = 900\\n";
const SHOWN: [(&str, &str); 4] =
    [("cpu.weight", "50"), ("memory.high", "1073741824"), ("memory.max", "2147483648"), ("pids.max", "900")];
/// Room for two VMs of alice's, and for three on the host: each counts 276M. Bob's own limit would
/// be half of the host's, which is one VM too.
const NARROW: &str = "[limits.users.alice]\\nmemory = \"600M\"\\n[limits.users.bob]\\nmemory = \"1G\"\\n";
const NARROW_HOST: &str = "memory = \"900M\"";
/// Commands whose times are taken.
const COMMANDS: usize = 20;
/// More than this a command never takes, whatever the neighbour does. Not a promise: a bound beyond
/// which alice is locked out.
const LOCKED_OUT: Duration = Duration::from_secs(30);
const ENDS: Duration = Duration::from_secs(120);

fn with_config(scene: &mut Scene, users: &str, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<Outcome> {
    scene.allow_database_growth();
    let host = if users == NARROW { NARROW_HOST } else { "" };
    scene.root(&format!(
        "cp -a {CONFIG} {KEPT}; grep -q '^\\[limits.host\\]' {CONFIG} || printf '[limits.host]\\n' >> {CONFIG}; \
         sed -i 's/^\\[limits.host\\]/&\\n{host}/' {CONFIG}; printf '{users}' >> {CONFIG}; systemctl restart bangerd.service"
    ))?;
    let result = work(scene);
    scene.root(&format!("cp -a {KEPT} {CONFIG}; rm {KEPT}; systemctl restart bangerd.service"))?;
    result?;
    scene.passed()
}

/// Sorted times of small commands in a VM.
fn latencies(scene: &Scene, vm: &Guest) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(COMMANDS);
    for _ in 0..COMMANDS {
        let begun = Instant::now();
        vm.shell(scene, "true")?.ok()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn at(times: &[Duration], percent: usize) -> f64 {
    let index = times.len().saturating_sub(1) * percent / 100;
    times.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
}

/// What mallory's guest is told to do, each for as long as the VM runs: CPU, memory, disk,
/// processes and the console.
const LOADS: [(&str, &str); 5] = [
    ("cpu", "for n in 1 2 3 4; do (while :; do :; done) & done"),
    ("memory", "(while :; do tail -c 100000000 /dev/zero >/dev/null; done) &"),
    ("disk", "(while :; do dd if=/dev/zero of=/root/load bs=65536 count=400; sync; done) &"),
    ("processes", "(while :; do sh -c : & sh -c : ; done) &"),
    ("console", "(while :; do echo flood; done >/dev/console) &"),
];

fn neighbours(scene: &mut Scene) -> Result<()> {
    let alice = Guest::run(scene, "alice", "calm")?;
    alice.start_counter(scene)?;
    let boot = alice.boot_id(scene)?;
    let rest = scene.step("alice's commands at rest", |scene| latencies(scene, &alice))?;
    let mallory = Guest::run(scene, "bob", "mallory")?;
    scene.step("the neighbour's group is what the configuration says", |scene| group_is(scene, &mallory))?;
    scene.step("the neighbour takes all that there is", |scene| {
        for (what, line) in LOADS {
            let line = format!("({line}) </dev/null >/dev/null 2>&1");
            mallory.shell(scene, &line)?.ok().with_context(|| what)?;
        }
        Ok(())
    })?;
    let beats = alice.counter(scene)?;
    let under = scene.step("alice's commands beside that", |scene| latencies(scene, &alice))?;
    for percent in [50, 99] {
        let (before, with) = (at(&rest, percent), at(&under, percent));
        scene.measured(&format!("alice's exec at rest, p{percent}, ms"), format!("{before:.0}"));
        scene.measured(&format!("alice's exec beside a load, p{percent}, ms"), format!("{with:.0}"));
        scene.measured(&format!("ratio, p{percent}"), format!("{:.2}", with / before.max(0.001)));
    }
    ensure!(under.iter().all(|time| *time < scene.limit(LOCKED_OUT)), "alice is locked out: {under:?}");
    ensure!(alice.boot_id(scene)? == boot, "alice's VM was started again");
    ensure!(alice.counter(scene)? > beats, "the heartbeat of alice's VM stands still");
    group_is(scene, &mallory).context("after the load")?;
    mallory.order(scene, "kill")?.ok()?;
    mallory.delete(scene)?;
    alice.delete(scene)
}

/// The kernel's own files, which no program of ours writes but once.
fn group_is(scene: &Scene, vm: &Guest) -> Result<()> {
    let group = vm.cgroup(scene)?;
    let user = group.rsplit_once('/').map(|(user, _)| user).context("a VM's group lies in its user's")?;
    for (file, wanted) in SHOWN {
        let told = scene.root(&format!("cat {user}/{file}"))?;
        ensure!(told.trim() == wanted, "{file} of the user's group is {told:?}, and the configuration says {wanted}");
    }
    Ok(())
}

fn start_all(scene: &Scene, user: &str, names: &[&str]) -> Result<(usize, Vec<Finished>)> {
    let runs: Result<Vec<Run>> = names.iter().map(|name| scene.start_banger(user, &["vm", "start", name])).collect();
    let ends = runs?.into_iter().map(|run| run.wait(scene.limit(ENDS))).collect::<Result<Vec<_>>>()?;
    let (done, refused): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.status.success());
    Ok((done.len(), refused))
}

fn edge(scene: &mut Scene) -> Result<()> {
    const HERS: [&str; 4] = ["a", "b", "c", "d"];
    scene.step("VMs that do not run", |scene| {
        for (user, names) in [("alice", &HERS[..]), ("bob", &HERS[..2])] {
            for name in names {
                scene.banger_long(user, &[&["vm", "create", "--name", name], TINY].concat())?.ok()?;
            }
        }
        Ok(())
    })?;
    scene.step("of four at once, two start, and the others are told why", |scene| {
        let (done, refused) = start_all(scene, "alice", &HERS)?;
        ensure!(done == 2, "{done} run");
        refused.into_iter().try_for_each(|refused| {
            refused.refused(&["limit memory is 600M", "552M are in use", "[limits.users.alice]"]).map(drop)
        })
    })?;
    scene.step("of the host's, one is left for bob, and root makes no more", |scene| {
        let (done, refused) = start_all(scene, "bob", &HERS[..2])?;
        ensure!(done == 1, "{done} run");
        refused.into_iter().try_for_each(|refused| {
            refused.refused(&["this host's limit memory is 900M", "[limits.host]"]).map(drop)
        })?;
        scene.banger_long("root", &[&["vm", "run", "--detach", "--name", "r"], TINY].concat())?.refused(&["memory"])?;
        Ok(())
    })?;
    scene.step("the daemon dies, and what runs counts as before", |scene| {
        scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
        let (done, _) = start_all(scene, "alice", &["a", "b", "c", "d"])?;
        ensure!(done == 0, "{done} more run");
        let told = scene.banger("alice", &["quota", "--json"])?.ok()?.json()?;
        let limits = told.pointer("/users/0/limits").and_then(|limits| limits.as_array());
        let memory = limits.and_then(|limits| limits.iter().find(|limit| limit["name"] == "memory"));
        let memory = memory.with_context(|| format!("no limit of memory in {told}"))?;
        ensure!(memory["used"] == 552 << 20 && memory["limit"] == 600 << 20, "{memory}");
        Ok(())
    })?;
    for user in ["alice", "bob"] {
        for name in names(scene, user)? {
            scene.banger_long(user, &["vm", "delete", &name])?.ok()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert!((at(&times, 50) - 50.0).abs() < 1e-6 && (at(&times, 99) - 99.0).abs() < 1e-6);
        assert!(at(&[], 50).abs() < 1e-6);
    }
}
