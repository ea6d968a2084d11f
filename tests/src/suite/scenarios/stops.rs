//! A stop soon after a start, whatever the guest's init is: it may not listen yet. None is killed,
//! and nothing that was written is lost.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::root_disk::checked;
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "stops",
    about: "a stop soon after a start, under every kind of init",
    setup: Setup::Guests,
    scenarios: || scenarios(SAMPLE),
};

pub(in crate::suite) const LONG: Suite = Suite {
    name: "stops-long",
    about: "a stop at each tenth of the first ten seconds, under every kind of init; twenty right after a write",
    setup: Setup::Guests,
    scenarios: || {
        let mut all = scenarios(EACH);
        all.push(Scenario::new("twenty-stops-right-after-a-write", right_after_a_write));
        all
    },
};

/// When it is stopped after its start, tenths of a second.
type Times = fn() -> Vec<u32>;

const SAMPLE: Times = || vec![0, 2, 7, 20];
const EACH: Times = || (0..100).collect();

fn scenarios(times: Times) -> Vec<Scenario> {
    let of = |name: &str, kind: Kind| {
        Scenario::new(name, move |scene| {
            let mut times = times();
            if let Some(seed) = scene.sample() {
                // One moment for each kind, another one for the next.
                let index = seed.wrapping_add(kind as u64).checked_rem(times.len() as u64).unwrap_or(0);
                times = times.into_iter().skip(usize::try_from(index)?).take(1).collect();
            }
            stops(scene, kind, &times)
        })
    };
    vec![
        of("our-own-pid-1", Kind::Own),
        of("a-script", Kind::Script),
        of("a-script-that-ends-on-sigterm", Kind::ScriptThatEnds),
        of("busybox", Kind::Busybox),
        of("systemd", Kind::Systemd),
        Scenario::new("a-soft-reboot-of-systemd-keeps-the-agent", soft_reboot),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Own,
    Script,
    ScriptThatEnds,
    Busybox,
    Systemd,
}

const TINY: &str = "/srv/bench/tiny.tar";
const ARCHIVE: &str = "/srv/bench/stops.tar";

impl Kind {
    /// The image's archive; the tiny one with another init, made here.
    fn archive(self, scene: &Scene) -> Result<&'static str> {
        let init = match self {
            Self::Own => return Ok(TINY),
            Self::Systemd => return Ok("/srv/bench/debian-systemd.tar"),
            Self::Script => {
                "rm bin/init; printf '#!/bin/sh\\nwhile :; do sleep 1; done\\n' > bin/init; chmod 755 bin/init"
            }
            Self::ScriptThatEnds => {
                "rm bin/init; printf '#!/bin/sh\\ntrap \"echo ended > /root/trapped; exit 0\" TERM\\nwhile :; do sleep 1; done\\n' > bin/init; chmod 755 bin/init"
            }
            Self::Busybox => {
                "mkdir etc/init.d; printf '#!/bin/sh\\nsleep 2\\n' > etc/init.d/rcS; chmod 755 etc/init.d/rcS"
            }
        };
        scene.root(&format!(
            "set -e; work=$(mktemp -d); cd $work; tar xpf {TINY}; {init}; tar cf {ARCHIVE} .; cd /; rm -rf $work"
        ))?;
        Ok(ARCHIVE)
    }
}

fn stops(scene: &mut Scene, kind: Kind, times: &[u32]) -> Result<Outcome> {
    scene.allow_database_growth();
    let archive = kind.archive(scene)?;
    let words = ["image", "import", archive, "--name", "stopped", "--size", "1G"];
    scene.banger_long("alice", &words)?.ok()?;
    scene.root(&format!("rm -f {ARCHIVE}"))?;
    let memory = if kind == Kind::Systemd { "512M" } else { "256M" };
    let words = [
        "vm",
        "create",
        "--name",
        "soon",
        "--image",
        "stopped",
        "--vcpu",
        "1",
        "--memory",
        memory,
        "--root-size",
        "512M",
        "--disk-size",
        "64M",
    ];
    scene.banger_long("alice", &words)?.ok()?;
    let guest = Guest::known(scene, "alice", "soon")?;
    let mut written = "none".to_owned();
    for tenths in times {
        let title = format!("a stop {}.{} s after the start", tenths / 10, tenths % 10);
        written = scene.step(&title, |scene| one(scene, &guest, kind, *tenths, &written))?;
    }
    guest.order(scene, "start")?.ok()?;
    ensure!(kept(scene, &guest)? == written, "the last stop lost writes");
    if kind == Kind::ScriptThatEnds {
        guest.shell(scene, "cat /root/trapped")?.ok()?.says("ended")?;
    }
    guest.order(scene, "stop")?.ok()?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "stopped"])?.ok()?;
    scene.passed()
}

/// What is written in the moment before a stop, to both disks and without a sync.
fn right_after_a_write(scene: &mut Scene) -> Result<Outcome> {
    const STOPS: u32 = 20;
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "writer")?;
    for stop in 1..=STOPS {
        scene.step(&format!("written, stopped, both disks clean, started, read ({stop} of {STOPS})"), |scene| {
            let write =
                "for disk in / /root/; do head -c 4000000 /dev/urandom > ${disk}fresh; done; md5sum /fresh /root/fresh";
            let written = guest.shell(scene, write)?.ok()?.stdout;
            let stopped = guest.order(scene, "stop")?.ok()?;
            ensure!(!stopped.stderr.contains("did not shut down"), "it was killed: {stopped}");
            checked(scene, &guest)?;
            scene.root(&format!("e2fsck -fn /var/lib/banger/vms/{}/work.ext4", guest.id))?;
            guest.order(scene, "start")?.ok()?;
            let read = guest.shell(scene, "md5sum /fresh /root/fresh")?.ok()?.stdout;
            ensure!(read == written, "written:\n{written}read:\n{read}");
            Ok(())
        })?;
    }
    guest.delete(scene)?;
    scene.passed()
}

/// systemd begins anew with the same kernel: every process but the agent's supervisor ends, and
/// every disk is unmounted.
fn soft_reboot(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let archive = Kind::Systemd.archive(scene)?;
    scene.banger_long("alice", &["image", "import", archive, "--name", "soft", "--size", "1G"])?.ok()?;
    let line =
        "vm run -d --name soft --image soft --vcpu 1 --memory 512M --root-size 512M --disk-size 64M --restart always";
    let words: Vec<&str> = line.split(' ').chain(["--", "sleep", "100000"]).collect();
    scene.banger_long("alice", &words)?.ok()?;
    let guest = Guest::known(scene, "alice", "soft")?;
    let counted = "systemctl show --property SoftRebootsCount --value";
    let up = |scene: &Scene, wanted: &str| {
        let seen = || {
            let said = guest.shell(scene, &format!("{counted}; systemctl is-system-running"))?;
            let mut lines = said.stdout.lines();
            let there = lines.next() == Some(wanted) && lines.next().is_some_and(|state| state != "starting");
            Ok((!there).then(|| said.to_string()))
        };
        scene.wait_until("systemd is up and the agent serves", Duration::from_secs(90), seen)
    };
    if guest.shell(scene, "test -e /usr/lib/systemd/system/soft-reboot.target")?.ok().is_err() {
        guest.delete(scene)?;
        scene.banger("alice", &["image", "delete", "soft"])?.ok()?;
        return Ok(Outcome::Skipped("the guest's systemd knows no soft-reboot".to_owned()));
    }
    up(scene, "0")?;
    let boot = guest.boot_id(scene)?;
    guest.shell(scene, "echo kept > /root/kept; sync; systemctl soft-reboot --no-block")?.ok()?;
    up(scene, "1")?;
    ensure!(guest.boot_id(scene)? == boot, "the guest has booted");
    guest.is(scene, "running")?;
    guest
        .shell(scene, "cat /root/kept; grep -o '^/dev/vdb /root ' /proc/mounts")?
        .ok()?
        .says("kept\n/dev/vdb /root")?;
    let again = || {
        let shown = scene.banger("alice", &["vm", "session", "show", "--json", "soft", "app"])?.ok()?.json()?;
        let running = shown.get("status").and_then(|status| status.as_str()) == Some("running");
        Ok((!running).then(|| shown.to_string()))
    };
    scene.wait_until("the session that is to run runs", Duration::from_secs(20), again)?;
    guest.order(scene, "stop")?.ok()?;
    guest.ended_by_its_init(scene)?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "soft"])?.ok()?;
    scene.passed()
}

/// A start, a write and a stop: what was written.
fn one(scene: &mut Scene, guest: &Guest, kind: Kind, tenths: u32, before: &str) -> Result<String> {
    guest.order(scene, "start")?.ok()?;
    let begun = std::time::Instant::now();
    let words = format!(
        "cat /kept /root/kept 2>/dev/null; cat /proc/1/comm; echo {tenths} > /kept; echo {tenths} > /root/kept"
    );
    let said = guest.shell(scene, &words)?.ok()?.stdout;
    let expected = if before == "none" { String::new() } else { before.to_owned() };
    ensure!(said.starts_with(&expected), "an earlier stop lost writes: {said:?}, expected {expected:?}");
    let first = said.lines().last().unwrap_or_default();
    // systemd gives itself another name, somewhat later.
    ensure!(first == "init" || (kind == Kind::Systemd && first == "systemd"), "PID 1 is {first:?}");
    let offset = Duration::from_millis(u64::from(tenths) * 100);
    std::thread::sleep(offset.saturating_sub(begun.elapsed()));
    let stopped = guest.order(scene, "stop")?.ok()?;
    ensure!(!stopped.stderr.contains("did not shut down"), "it was killed: {stopped}");
    guest.is(scene, "stopped")?;
    match kind {
        Kind::Script => ensure!(guest.ended_by_its_init(scene).is_err(), "the console says nothing of the agent"),
        Kind::ScriptThatEnds => {}
        _ => guest.ended_by_its_init(scene)?,
    }
    Ok(format!("{tenths}\n{tenths}\n"))
}

fn kept(scene: &Scene, guest: &Guest) -> Result<String> {
    Ok(guest.shell(scene, "cat /kept /root/kept")?.ok()?.stdout)
}
