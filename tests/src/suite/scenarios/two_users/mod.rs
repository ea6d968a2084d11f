//! Two users of one host: bob against alice. Every call with what is hers, what lies on the host, a
//! guest in which he is root, and loads that shall take the daemon from her. All of it fails, and
//! her VM notices nothing.

mod caller;
mod load;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub(in crate::suite) use self::caller::role;
use self::caller::{Attempt, Given, Targets};
use crate::suite::command::{Finished, Run};
use crate::suite::guests::{Guest, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::peer::place;
use crate::suite::scene::Scene;
use crate::suite::vmm::{STILL, with_vmm};
use crate::suite::watch::{DAEMON_MEMORY_KIB, Watch};

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "two-users",
    about: "one user attacks another's VM, images, jobs and daemon",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("every-attempt-fails-and-the-other-notices-nothing", attack),
        Scenario::new("no-load-takes-the-daemon-from-the-other", load_the_daemon),
    ]
}

/// Lists of alice's whose times are taken.
const LISTS: &str = "200";
/// Seconds of each load.
const LOAD: u32 = 10;
/// A call of a role, at most.
const ROLE: Duration = Duration::from_secs(60);

/// What is attacked, and what of it is looked at again afterwards.
struct Victim {
    vm: Guest,
    address: String,
    boot: String,
    beats: u64,
}

impl Victim {
    /// It is the same boot, and its heart has gone on.
    fn is_unharmed(&mut self, scene: &Scene) -> Result<()> {
        self.vm.is(scene, "running")?;
        ensure!(self.vm.boot_id(scene)? == self.boot, "alice's VM was started again");
        let beats = self.vm.counter(scene)?;
        ensure!(beats > self.beats, "the heartbeat of alice's VM stands at {beats}");
        self.beats = beats;
        reaches_in_time(scene, "alice", &self.address)
    }
}

fn attack(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let (daemon, helper) = (scene.main_pid("bangerd.service")?, scene.main_pid("banger-priv.service")?);
    let (mut alice, targets) = scene.step("alice has a VM, an image, a kernel, a job and a ticket", victim)?;
    let mut attempts = scene.step("bob calls with what is hers", |scene| {
        let told = told(scene, "bob", &format!("calls '{}'", serde_json::to_string(&targets)?))?;
        let attempts: Vec<Attempt> = serde_json::from_value(told)?;
        let faults: Vec<String> =
            attempts.iter().filter_map(|one| Some(format!("{}: {}", one.what, one.fault.as_ref()?))).collect();
        ensure!(faults.is_empty(), "{} of {} attempts: {}", faults.len(), attempts.len(), faults.join("\n"));
        Ok(attempts.len())
    })?;
    alice.is_unharmed(scene)?;
    attempts += scene.step("he looks for what lies on the host", |scene| on_the_host(scene, &alice))?;
    alice.is_unharmed(scene)?;
    attempts += scene.step("he is root in a guest", |scene| in_a_guest(scene, &mut alice))?;
    scene.measured("attempts", attempts);
    ensure!(attempts >= 40, "too few attempts");
    ensure!(scene.main_pid("bangerd.service")? == daemon, "the daemon was started again");
    ensure!(scene.main_pid("banger-priv.service")? == helper, "the helper was started again");
    ensure!(names(scene, "alice")? == ["victim"] && names(scene, "bob")?.is_empty(), "VMs have come or gone");
    scene.step("alice deletes what is hers", |scene| {
        alice.vm.delete(scene)?;
        scene.banger("alice", &["image", "delete", "alices"])?.ok()?;
        scene.banger("alice", &["kernel", "delete", "alices"])?.ok()?;
        Ok(())
    })?;
    scene.passed()
}

fn victim(scene: &mut Scene) -> Result<(Victim, Targets)> {
    let tiny = scene.material("tiny.tar").context("the harness has not brought tiny.tar")?;
    scene.banger_long("alice", &["image", "import", "--name", "alices", "--size", "300M", &tiny])?.ok()?;
    scene.user("alice", "banger kernel import --name alices $(ls /boot/vmlinuz-* | tail -n 1)")?.ok()?;
    let images = scene.banger("alice", &["image", "list", "--json"])?.ok()?.json()?;
    let image = images.as_array().and_then(|all| all.iter().find(|image| image["name"] == "alices"));
    let image = image.and_then(|image| image["id"].as_str()).with_context(|| format!("no image in {images}"))?;
    let vm = Guest::run(scene, "alice", "victim")?;
    vm.start_counter(scene)?;
    let record = vm.record(scene)?;
    let address = record.pointer("/runtime/guest_ip").and_then(|value| value.as_str());
    let address = address.with_context(|| format!("no address in {record}"))?.to_owned();
    let given: Given = serde_json::from_value(told(scene, "alice", "given victim")?)?;
    let uid = scene.root("id -u alice")?.trim().parse()?;
    let targets = Targets {
        uid,
        vm: (vm.id.clone(), "victim".to_owned()),
        image: (image.to_owned(), "alices".to_owned()),
        kernel: "alices".to_owned(),
        given,
    };
    let (boot, beats) = (vm.boot_id(scene)?, vm.counter(scene)?);
    let mut victim = Victim { vm, address, boot, beats };
    victim.is_unharmed(scene)?;
    Ok((victim, targets))
}

/// What a role prints, played by a user.
fn told(scene: &Scene, user: &str, words: &str) -> Result<serde_json::Value> {
    started(user, words)?.wait(scene.limit(ROLE))?.ok()?.json()
}

fn started(user: &str, words: &str) -> Result<Run> {
    Run::start(Some(user), &["sh", "-c", &format!("exec {}", place::role(&format!("two-users {words}"))?)])
}

/// Whether a user of the host hears the guest's SSH server.
fn reaches(scene: &Scene, user: &str, address: &str) -> Result<bool> {
    let line = format!("socat -T 4 - TCP:{address}:22,connect-timeout=4 </dev/null | head -c 4");
    Ok(scene.user(user, &line)?.stdout.contains("SSH-"))
}

/// A user reaches his own guest, which may be slow to answer when the host is an emulated one.
fn reaches_in_time(scene: &Scene, user: &str, address: &str) -> Result<()> {
    let what = format!("{user} reaches the guest at {address}");
    let tried = scene.wait_until(&what, Duration::from_secs(8), || {
        Ok((!reaches(scene, user, address)?).then(|| "no answer from its SSH server".to_owned()))
    });
    tried.map(drop)
}

/// Files, sockets, processes and devices. Root's own look at each is the control: what is not there
/// proves nothing.
fn on_the_host(scene: &mut Scene, alice: &Victim) -> Result<usize> {
    let (id, vmm, cgroup) = (&alice.vm.id, alice.vm.vmm(scene)?, alice.vm.cgroup(scene)?);
    let folder = format!("/var/lib/banger/vms/{id}");
    let store = "/var/lib/banger";
    let looked: Vec<String> = [
        format!("head -c 1 {folder}/console.log"),
        format!("head -c 1 {folder}/work.ext4"),
        format!("ls {folder}"),
        format!("head -c 1 {store}/banger.db"),
        format!("head -c 1 {store}/socket_key"),
        format!("ls {store}/backups"),
        format!("ls {store}/images"),
        "head -c 1 /dev/loop0".to_owned(),
        "head -c 1 $(ls -d /dev/dm-* | head -n 1)".to_owned(),
        "dmsetup ls".to_owned(),
        format!("head -c 1 /proc/{vmm}/environ"),
        format!("ls -l /proc/{vmm}/fd"),
        format!("kill -0 {vmm}"),
        format!("test -w {cgroup}/cgroup.kill"),
        "socat -u /dev/null UNIX-CONNECT:/run/banger/priv.sock".to_owned(),
        "nft list ruleset".to_owned(),
    ]
    .into();
    for line in &looked {
        scene.root(&format!("PATH=$PATH:/usr/sbin; {line} >/dev/null")).context("the control")?;
        failed(&scene.user("bob", &format!("PATH=$PATH:/usr/sbin; {line}"))?)?;
    }
    ensure!(!reaches(scene, "bob", &alice.address)?, "bob has reached alice's guest from the host");
    Ok(looked.len() + 1)
}

fn failed(ended: &Finished) -> Result<()> {
    ensure!(!ended.status.success(), "it was done: {ended}");
    Ok(())
}

/// What root of a guest can send. That bob's own way into his guest goes on is the control of the
/// guest's network.
fn in_a_guest(scene: &mut Scene, alice: &mut Victim) -> Result<usize> {
    let bob = Guest::run(scene, "bob", "mallory")?;
    let (hers, gateway) = (&alice.address, "172.16.0.1");
    let record = bob.record(scene)?;
    let his = record.pointer("/runtime/guest_ip").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    reaches_in_time(scene, "bob", &his).context("the control")?;
    let hear = |options: &str, address: &str, port: u16| {
        format!("nc -w 3 {options} {address} {port} </dev/null | grep -q SSH-")
    };
    // The controls: what fails below fails in the network, not for want of a program.
    for line in [hear("", &his, 22), format!("ping -c 1 -W 3 {his}"), "command -v arping ip".to_owned()] {
        bob.shell(scene, &line)?.ok().context("the control")?;
    }
    // Announcements have no answer: whether they took alice's place is what the look at her VM
    // after each line tells.
    let lines = [
        format!("ping -c 1 -W 3 {hers}"),
        hear("", hers, 22),
        hear("", gateway, 22),
        hear("", "10.0.2.15", 22),
        format!("ping -c 1 -W 3 {gateway}"),
        format!("ip route add 10.0.2.0/24 via {gateway}; ping -c 1 -W 3 10.0.2.2"),
        format!("ip addr add {hers}/32 dev eth0; ping -c 1 -W 3 -I {hers} {gateway}"),
        hear(&format!("-s {hers}"), gateway, 22),
        format!("arping -c 3 -w 3 -U -I eth0 -s {hers} {hers} | grep -q 'reply from'"),
        format!(
            "ip addr del {hers}/32 dev eth0; ip addr add {gateway}/32 dev eth0; arping -c 3 -w 3 -A -I eth0 -s {gateway} {hers} | grep -q 'reply from'"
        ),
        format!(
            "ip addr del {gateway}/32 dev eth0; ip link set eth0 down; ip link set eth0 address 06:00:ac:10:00:fe; ip link set eth0 up; ping -c 1 -W 3 {hers}"
        ),
    ];
    let before = Instant::now();
    for line in &lines {
        failed(&bob.shell(scene, line)?).with_context(|| line.clone())?;
        alice.is_unharmed(scene)?;
    }
    scene.measured("a heartbeat was seen between any two packets, within s", before.elapsed().as_secs());
    bob.delete(scene)?;
    Ok(lines.len())
}

/// With a guest that needs no machine: what is asked is whether the daemon hears it all the time,
/// not how much of the host's CPU a load leaves to others.
fn load_the_daemon(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    with_vmm(scene, STILL, |scene| {
        let daemon = scene.main_pid("bangerd.service")?;
        let vm = Guest::run(scene, "alice", "victim")?;
        let process = vm.vmm(scene)?;
        let attempts = loads(scene, &vm, daemon)?;
        scene.measured("attempts", attempts);
        vm.is(scene, "running")?;
        ensure!(vm.vmm(scene)? == process, "alice's VM was started again");
        ensure!(scene.main_pid("bangerd.service")? == daemon, "the daemon was started again");
        vm.delete(scene)
    })
}

/// Loads on the daemon; how long alice's lists take at rest and meanwhile, and what the daemon
/// needs.
fn loads(scene: &mut Scene, alice: &Guest, daemon: u32) -> Result<usize> {
    let folder = "/home/bob/archives";
    scene.step("archives that cost whoever believes them", |scene| {
        scene.user("bob", &format!("mkdir {folder}"))?.ok()?;
        for kind in load::ARCHIVES {
            load::archive(kind, Path::new(&format!("{folder}/{kind}.tar")))?;
        }
        scene.root(&format!("chmod 0644 {folder}/*.tar")).map(drop)
    })?;
    let at_rest = lists(scene)?;
    let mut during = Vec::new();
    let watch = Watch::begin(daemon);
    for kind in load::KINDS {
        let under = scene.step(&format!("the load {kind}"), |scene| {
            let runs = started("bob", &format!("{kind} {LOAD}"))?;
            let times = lists(scene)?;
            let count = runs.wait(scene.limit(ROLE))?.ok()?.json()?["count"].as_u64().unwrap_or(0);
            ensure!(count > 0, "there was no load");
            alice.is(scene, "running")?;
            Ok((times, count))
        })?;
        scene.measured(&format!("{kind}: times"), under.1);
        during.push((kind, under.0));
    }
    for kind in load::ARCHIVES {
        let times = scene.step(&format!("the archive {kind}, four times at once"), |scene| {
            let path = format!("{folder}/{kind}.tar");
            let begun: Result<Vec<Run>> = ["a", "b", "c", "d"]
                .iter()
                .map(|name| scene.start_banger("bob", &["image", "import", "--name", name, &path]))
                .collect();
            let times = lists(scene)?;
            for run in begun? {
                run.wait(scene.limit(ROLE))?.refused(&[])?;
            }
            Ok(times)
        })?;
        during.push((kind, times));
    }
    let seen = watch.end()?;
    scene.root(&format!("rm -r {folder}"))?;
    scene.measured("alice's list at rest, median and p99, ms", shown(&at_rest));
    for (kind, times) in &during {
        scene.measured(&format!("alice's list under {kind}, median and p99, ms"), shown(times));
    }
    scene.measured("daemon's memory before, KiB", seen.memory_before);
    scene.measured("daemon's memory at most, KiB", seen.memory_most);
    scene.measured("daemon's share of one CPU meanwhile, percent", seen.cpu_percent);
    ensure!(seen.memory_most < DAEMON_MEMORY_KIB, "the daemon took {} KiB", seen.memory_most);
    Ok(load::KINDS.len() + load::ARCHIVES.len())
}

fn lists(scene: &Scene) -> Result<Vec<u64>> {
    let mut times: Vec<u64> = serde_json::from_value(told(scene, "alice", &format!("lists {LISTS}"))?)?;
    times.sort_unstable();
    Ok(times)
}

/// Of sorted microseconds.
fn shown(times: &[u64]) -> String {
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0) / 1000;
    format!("{} and {}", at(50), at(99))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_p99_are_milliseconds() {
        let times: Vec<u64> = (1..=200).map(|number| number * 1000).collect();
        assert_eq!(shown(&times), "100 and 198");
    }
}
