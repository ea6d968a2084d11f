//! VMs from creation to deletion: exit statuses, several VMs, several users, stop and start, and
//! every way in which a guest ends by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::inventory::{Inventory, Kind};
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "lifecycle",
    about: "run, stop, start, kill, delete, and guests that end by themselves",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("exit-status-passes-through", exit_status),
        Scenario::new("what-an-import-carries", exact_import),
        Scenario::new("created-holds-nothing-until-started", created),
        Scenario::new("two-vms-at-once", two_at_once),
        Scenario::new("bob-neither-sees-nor-touches-alices-vm", other_user),
        Scenario::new("stop-start-restart-keep-both-disks", stop_and_start),
        Scenario::new("kill-and-start-again", kill_and_start),
        Scenario::new("vmm-killed-from-outside", |scene| ends(scene, End::Vmm)),
        Scenario::new("guest-powers-off", |scene| ends(scene, End::Inside("poweroff", &["power", "shut", "halt"]))),
        Scenario::new("guest-reboots", |scene| ends(scene, End::Inside("reboot", &["reboot"]))),
        Scenario::new("guest-panics", |scene| ends(scene, End::Inside("echo c > /proc/sysrq-trigger", &["panic"]))),
        Scenario::new("ctrl-c-during-run-leaves-nothing", interrupted),
        Scenario::new("client-killed-during-run", client_killed),
        Scenario::new("run-rm-leaves-nothing", run_rm),
    ]
}

/// Within this `vm list` tells the truth (docs/contract.md, "States of a VM").
const TRUTH: Duration = Duration::from_secs(5);

fn exit_status(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "status")?;
    for status in [0, 1, 42, 255] {
        guest.shell(scene, &format!("exit {status}"))?.exits(status)?;
    }
    let both = guest.shell(scene, "echo out; echo err >&2")?.ok()?;
    ensure!(both.stdout == "out\n" && both.stderr.contains("err"), "streams are mixed: {both}");
    guest.delete(scene)?;
    scene.passed()
}

/// Owners, modes, names and links of the odd folder in the tiny image; see `hostvm/material.rs`.
fn exact_import(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "exact")?;
    let seen = guest
        .shell(scene, "cd /odd && stat -c '%n %a %u:%g %h' . * && readlink absolute && cat 'second name'")?
        .ok()?;
    for line in [
        ". 2750 0:0 ",
        "owned by others 640 1234:5678 2",
        r"back\x2dslash 644 0:0 1",
        "quote\"d 4755 0:7 1",
        "second name 640 1234:5678 2",
        "absolute 777 42:42 1",
        "/etc/bench-release",
        "owned\n",
    ] {
        ensure!(seen.stdout.contains(line), "{line:?} is not in {seen}");
    }
    guest.delete(scene)?;
    scene.passed()
}

fn created(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::create(scene, "alice", "early")?;
    guest.is(scene, "created")?;
    let holds = |kind: Kind, inventory: &Inventory| {
        inventory.of(kind).any(|(name, detail)| name.contains("bgr-") || detail.contains("BANGER-"))
    };
    let inventory = Inventory::take()?;
    for kind in [Kind::Link, Kind::Dm, Kind::Route] {
        ensure!(!holds(kind, &inventory), "a VM that was never started holds a {kind}");
    }
    scene.banger("alice", &["vm", "create", "--name", "early", "--image", "tiny"])?.refused(&["early"])?;
    guest.order(scene, "start")?.ok()?;
    ensure!(holds(Kind::Link, &Inventory::take()?), "a running VM shows no tap: this check sees nothing");
    guest.order(scene, "start")?.refused(&["early"])?;
    guest.delete(scene)?;
    scene.passed()
}

fn two_at_once(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let first = Guest::run(scene, "alice", "first")?;
    let second = Guest::run(scene, "alice", "second")?;
    first.is(scene, "running")?;
    second.is(scene, "running")?;
    ensure!(first.boot_id(scene)? != second.boot_id(scene)?, "two VMs have one guest");
    first.shell(scene, "echo mine > /root/mine")?.ok()?;
    second.shell(scene, "test ! -e /root/mine")?.ok()?;
    scene.banger_long("alice", &["vm", "delete", "first", "second"])?.ok()?;
    ensure!(names(scene, "alice")?.is_empty(), "VMs are left");
    scene.passed()
}

fn other_user(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "private")?;
    ensure!(names(scene, "bob")?.is_empty(), "bob sees VMs");
    let missing = scene.banger("bob", &["vm", "show", "nonesuch"])?.refused(&["nonesuch"])?;
    for name in ["private", guest.id.as_str()] {
        for words in [
            &["vm", "show", name][..],
            &["vm", "stop", name],
            &["vm", "kill", name],
            &["vm", "delete", name],
            &["vm", "logs", name],
            &["vm", "exec", name, "--", "id"],
        ] {
            let refused = scene.banger("bob", words)?.refused(&[name])?;
            // "Not yours" and "never existed" are one answer.
            let (mine, other) = (refused.stderr.replace(name, "X"), missing.stderr.replace("nonesuch", "X"));
            let reason = |text: &str| text.rsplit(": ").next().unwrap_or_default().to_owned();
            ensure!(reason(&mine) == reason(&other), "bob can tell whether alice's VM exists: {mine:?} and {other:?}");
        }
    }
    scene.banger("bob", &["vm", "list", "--all"])?.refused(&[])?;
    guest.is(scene, "running")?;
    let own = Guest::run(scene, "bob", "private")?;
    ensure!(own.id != guest.id, "one VM for two users");
    own.delete(scene)?;
    guest.shell(scene, "true")?.ok()?;
    guest.delete(scene)?;
    scene.passed()
}

fn stop_and_start(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "keeper")?;
    // Without a sync: a clean stop must not lose what was just written.
    guest.shell(scene, "echo root > /etc/kept; echo work > /root/kept")?.ok()?;
    let first = guest.boot_id(scene)?;
    guest.order(scene, "stop")?.ok()?;
    guest.is(scene, "stopped")?;
    guest.ended_by_its_init(scene)?;
    guest.shell(scene, "true")?.refused(&["keeper"])?;
    guest.order(scene, "start")?.ok()?;
    let kept = "cat /etc/kept /root/kept";
    ensure!(guest.shell(scene, kept)?.ok()?.stdout == "root\nwork\n", "a stop lost fresh writes");
    ensure!(guest.boot_id(scene)? != first, "the guest was not started again");
    guest.order(scene, "restart")?.ok()?;
    ensure!(guest.shell(scene, kept)?.ok()?.stdout == "root\nwork\n", "a restart lost writes");
    guest.delete(scene)?;
    scene.passed()
}

fn kill_and_start(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "victim")?;
    guest.shell(scene, "echo kept > /root/kept; sync")?.ok()?;
    guest.order(scene, "kill")?.ok()?;
    guest.is(scene, "stopped")?;
    guest.order(scene, "start")?.ok()?;
    ensure!(guest.shell(scene, "cat /root/kept")?.ok()?.stdout == "kept\n", "synced data is lost");
    guest.delete(scene)?;
    scene.passed()
}

/// How a guest ends without anybody having asked banger.
enum End {
    Vmm,
    Inside(&'static str, &'static [&'static str]),
}

fn ends(scene: &mut Scene, end: End) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "ending")?;
    let words: &[&str] = match end {
        End::Vmm => {
            scene.root(&format!("kill -KILL {}", guest.vmm(scene)?))?;
            &["vmm", "firecracker", "killed", "signal"]
        }
        End::Inside(line, words) => {
            // The connection may end before the command does; how it ends is not the question here.
            let _ = guest.shell(scene, &format!("(sleep 0.5; {line}) >/dev/null 2>&1 &"))?;
            words
        }
    };
    let took = guest.becomes(scene, "stopped", words, TRUTH)?;
    scene.measured("seconds until the list told the truth", format!("{:.1}", took.as_secs_f64()));
    guest.order(scene, "start")?.ok()?;
    guest.shell(scene, "true")?.ok()?;
    guest.delete(scene)?;
    scene.passed()
}

fn interrupted(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    // Early in the start, and later.
    for delay in [300, 2000] {
        let line = format!("banger vm run --name interrupted {} -- true", TINY.join(" "));
        let mut run = crate::suite::Run::start_on_terminal(Some("alice"), &line)?;
        std::thread::sleep(Duration::from_millis(delay));
        ensure!(!run.has_ended()?, "it had ended before Ctrl-C could reach it");
        run.type_in("\x03")?;
        let finished = run.wait(scene.limit(Duration::from_secs(20)))?;
        ensure!(!finished.status.success(), "an interrupted run must not claim success: {finished}");
        ensure!(names(scene, "alice")?.is_empty(), "an interrupted run has left a VM");
    }
    scene.passed()
}

/// A client that dies does not take the VM with it, and does not leave half of one.
fn client_killed(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = [&["vm", "run", "--detach", "--name", "orphan"], TINY].concat();
    let run = scene.start_banger("alice", &words)?;
    scene.wait_until("the VM is known", Duration::from_secs(10), || {
        Ok(names(scene, "alice")?.is_empty().then(|| "no VM".to_owned()))
    })?;
    run.signal(Signal::SIGKILL)?;
    drop(run);
    scene.wait_until("the VM is running although nobody waits for it", Duration::from_secs(40), || {
        let list = scene.banger("alice", &["vm", "list"])?.ok()?.stdout;
        Ok((!list.contains("running")).then_some(list))
    })?;
    scene.banger_long("alice", &["vm", "exec", "-T", "-n", "orphan", "--", "true"])?.ok()?;
    scene.banger_long("alice", &["vm", "delete", "orphan"])?.ok()?;
    scene.passed()
}

fn run_rm(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = [&["vm", "run", "--rm", "--name", "brief"], TINY, &["--", "sh", "-c", "exit 7"]].concat();
    scene.banger_long("alice", &words)?.exits(7)?;
    ensure!(names(scene, "alice")?.is_empty(), "--rm has left a VM");
    scene.passed()
}
