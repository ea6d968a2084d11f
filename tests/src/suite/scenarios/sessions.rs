//! Sessions: commands in the background of a guest, which outlive the command line, the daemon and,
//! with their logs, the guest itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::Run;
use crate::suite::command::Finished;
use crate::suite::guests::{Guest, TINY};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite =
    Suite { name: "sessions", about: "commands in the background of guests", setup: Setup::Guests, scenarios };

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a-session-keeps-its-output-and-its-status", kept),
        Scenario::new("input-is-sent-and-each-refusal-is-its-own", sent),
        Scenario::new("a-session-outlives-daemon-and-agent", outlives),
        Scenario::new("who-follows-loses-no-line-by-the-daemons-end", followed),
        Scenario::new("after-a-stop-the-log-is-there-and-the-status-is-true", stopped),
        Scenario::new("a-stopped-vm-is-read-and-left-as-it-was", read),
        Scenario::new("a-terminal-is-left-and-found-again", terminal),
        Scenario::new("run-starts-the-session-app", app),
        Scenario::new("with-restart-always-the-session-app-comes-back", again),
        Scenario::new("run-shows-what-the-entrypoint-writes-and-ends-with-it", entrypoint),
    ]
}

fn session(scene: &Scene, words: &[&str]) -> Result<Finished> {
    scene.banger_long("alice", &[&["vm", "session"], words].concat())
}

fn status(scene: &Scene, vm: &str, name: &str) -> Result<String> {
    let shown = session(scene, &["show", "--json", vm, name])?.ok()?.json()?;
    shown.get("status").and_then(Value::as_str).map(str::to_owned).with_context(|| shown.to_string())
}

fn says(scene: &Scene, vm: &str, name: &str, text: &str) -> Result<()> {
    let what = format!("session {name} of {vm} has written {text:?}");
    let seen = || {
        let log = session(scene, &["logs", vm, name])?.ok()?.stdout;
        Ok((!log.contains(text)).then_some(log))
    };
    scene.wait_until(&what, Duration::from_secs(10), seen).map(drop)
}

fn kept(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "kept")?;
    let script = "echo out; echo err >&2; sleep 1; seq 5; exit 7";
    session(scene, &["start", "--name", "job", "kept", "--", "sh", "-c", script])?.ok()?.says("job")?;
    session(scene, &["wait", "kept", "job"])?.exits(7)?;
    let log = session(scene, &["logs", "kept", "job"])?.ok()?;
    ensure!(log.stdout == "out\n1\n2\n3\n4\n5\n" && log.stderr.contains("err"), "{log}");
    let last = session(scene, &["logs", "--stream", "stdout", "-n", "2", "kept", "job"])?.ok()?;
    ensure!(last.stdout == "4\n5\n", "{last}");
    ensure!(status(scene, "kept", "job")? == "exited");
    // More than the log keeps, while somebody follows who does not read.
    let flood = "head -c 40000000 /dev/zero | tr '\\0' x; echo; echo end";
    session(scene, &["start", "--name", "flood", "kept", "--", "sh", "-c", flood])?.ok()?;
    session(scene, &["wait", "kept", "flood"])?.exits(0)?;
    session(scene, &["logs", "-n", "1", "kept", "flood"])?.ok()?.says("end")?;
    let used = guest.shell(scene, "du -sk /root/.banger | cut -f 1")?.ok()?.stdout;
    ensure!(used.trim().parse::<u64>().is_ok_and(|used| used < 20_000), "the log has no bound: {used}");
    session(scene, &["rm", "kept", "job", "flood"])?.ok()?;
    session(scene, &["list", "kept"])?.ok()?.does_not_say("job")?;
    guest.delete(scene)?;
    scene.passed()
}

fn sent(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "sent")?;
    session(scene, &["start", "--name", "cat", "--stdin", "pipe", "sent", "--", "cat"])?.ok()?;
    session(scene, &["send", "sent", "cat", "one\n"])?.ok()?.says("4 bytes written")?;
    session(scene, &["send", "sent", "cat", ""])?.ok()?.says("0 bytes written")?;
    says(scene, "sent", "cat", "one")?;
    let line =
        "seq 100000 > /tmp/alice-seq && banger vm session send --eof --file /tmp/alice-seq sent cat; rm /tmp/alice-seq";
    scene.user("alice", line)?.ok()?;
    session(scene, &["wait", "sent", "cat"])?.exits(0)?;
    session(scene, &["logs", "-n", "1", "sent", "cat"])?.ok()?.says("100000\n")?;
    session(scene, &["send", "sent", "cat", "x"])?.refused(&["cat is not running", "exited (0)"])?;
    session(scene, &["start", "--name", "deaf", "sent", "--", "sleep", "1000"])?.ok()?;
    session(scene, &["send", "sent", "deaf", "x"])?.refused(&["without standard input", "--stdin pipe"])?;
    session(scene, &["start", "--name", "deaf", "sent", "--", "true"])?.refused(&["deaf runs already"])?;
    session(scene, &["start", "sent", "--", "nonesuch"])?.exits(127)?;
    session(scene, &["stop", "sent", "deaf"])?.ok()?.says("killed (TERM)")?;
    guest.order(scene, "stop")?.ok()?;
    session(scene, &["send", "sent", "cat", "x"])?.refused(&["sent is not running", "vm start"])?;
    guest.delete(scene)?;
    scene.passed()
}

fn outlives(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "lasting")?;
    session(scene, &["start", "--name", "cat", "--stdin", "pipe", "lasting", "--", "cat"])?.ok()?;
    let line = "banger vm session logs -f lasting cat";
    let follower = Run::start(Some("alice"), &["sh", "-c", line])?;
    std::thread::sleep(scene.limit(Duration::from_secs(2)));
    scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
    session(scene, &["send", "lasting", "cat", "after the daemon\n"])?.ok()?;
    // The agent is started again by init, and finds the sessions.
    // Of two processes of that name, the first is its supervisor.
    let kill = "for p in $(ls /proc | grep '^[0-9]*$' | sort -n); do [ \"$(cat /proc/$p/comm 2>/dev/null)\" = banger-agent ] && last=$p; done; kill -9 $last";
    let _ = guest.shell(scene, kill)?;
    let send =
        || Ok(session(scene, &["send", "lasting", "cat", "after the agent\n"])?.ok().err().map(|e| e.to_string()));
    scene.wait_until("the agent serves again", Duration::from_secs(20), send)?;
    says(scene, "lasting", "cat", "after the agent")?;
    session(scene, &["send", "--eof", "lasting", "cat", ""])?.ok()?;
    let followed = follower.wait(scene.limit(Duration::from_secs(15)))?.ok()?;
    ensure!(followed.stdout == "after the daemon\nafter the agent\n", "the connection was cut: {followed}");
    guest.delete(scene)?;
    scene.passed()
}

/// Sessions that are followed at once, when the suite is named and in a sampled run.
const FOLLOWED: [usize; 2] = [20, 5];

fn followed(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "followed")?;
    let [whole, sampled] = FOLLOWED;
    let count = if scene.sample().is_some() { sampled } else { whole };
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let followers = scene.step("sessions count, and are followed", |scene| {
        let start = |number: usize| {
            let name = format!("count{number}");
            session(scene, &["start", "--name", &name, "followed", "--", "sh", "-c", script])?.ok()?;
            scene.start_user("alice", &format!("banger vm session logs -f followed {name}"))
        };
        (0..count).map(start).collect::<Result<Vec<_>>>()
    })?;
    scene.step("the daemon is killed under them", |scene| {
        for _ in 0..2 {
            scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
            std::thread::sleep(scene.limit(Duration::from_secs(2)));
            scene.banger("alice", &["vm", "list"])?.ok()?.says("running")?;
        }
        Ok(())
    })?;
    let expected: String = (1..=300).map(|number| format!("line {number}\n")).collect();
    for follower in followers {
        let ended = follower.wait(scene.limit(Duration::from_secs(120)))?.ok()?;
        ensure!(ended.stdout == expected, "lines are missing: {ended}");
    }
    guest.delete(scene)?;
    scene.passed()
}

fn stopped(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "halted")?;
    let polite = "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.2; done";
    session(scene, &["start", "--name", "polite", "halted", "--", "sh", "-c", polite])?.ok()?;
    says(scene, "halted", "polite", "begun")?;
    guest.order(scene, "stop")?.ok()?;
    // A guest of its own reads them.
    session(scene, &["logs", "halted", "polite"])?.ok()?.says("begun\nbye\n")?;
    session(scene, &["list", "halted"])?.ok()?.says("exited (3)")?;
    ensure!(status(scene, "halted", "polite")? == "exited");
    session(scene, &["wait", "halted", "polite"])?.refused(&["halted is not running", "vm start"])?;
    guest.is(scene, "stopped")?;
    guest.order(scene, "start")?.ok()?;
    session(scene, &["wait", "halted", "polite"])?.exits(3)?;
    session(scene, &["logs", "halted", "polite"])?.ok()?.says("begun\nbye\n")?;
    // A power cut.
    session(scene, &["start", "--name", "cut", "halted", "--", "sh", "-c", "echo begun; sync; sleep 1000"])?.ok()?;
    says(scene, "halted", "cut", "begun")?;
    guest.shell(scene, "sync")?.ok()?;
    guest.order(scene, "kill")?.ok()?;
    session(scene, &["logs", "halted", "cut"])?.ok()?.says("begun\n")?;
    guest.order(scene, "start")?.ok()?;
    ensure!(status(scene, "halted", "cut")? == "lost");
    session(scene, &["logs", "halted", "cut"])?.ok()?.says("begun\n")?;
    session(scene, &["wait", "halted", "cut"])?.refused(&["lost: the guest ended"])?;
    guest.delete(scene)?;
    scene.passed()
}

/// The file that is read in [`read`], bytes.
const READ: &str = "6000000";

fn read(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "asleep")?;
    let fill = format!(
        "mkdir /root/kept; head -c {READ} /dev/urandom > /root/kept/data; md5sum < /root/kept/data; ln -s data /root/kept/link"
    );
    let sum = guest.shell(scene, &fill)?.ok()?.stdout;
    guest.order(scene, "stop")?.ok()?;
    let disk = format!("/var/lib/banger/vms/{}/work.ext4", guest.id);
    let digest = |scene: &Scene| scene.root(&format!("sha256sum {disk} | cut -c 1-64"));
    let before = digest(scene)?;
    scene.step("its files are copied, by its owner alone", |scene| {
        scene.user("alice", "banger vm cp asleep:kept /tmp/alice-asleep")?.ok()?;
        let seen = scene.user(
            "alice",
            "md5sum < /tmp/alice-asleep/data; readlink /tmp/alice-asleep/link; rm -r /tmp/alice-asleep",
        )?;
        seen.ok()?.says(&sum)?.says("data\n")?;
        scene.user("alice", "banger vm cp asleep:kept/data - | tar -xO | md5sum")?.ok()?.says(&sum)?;
        scene.banger("alice", &["vm", "cp", "asleep:/etc/passwd", "/tmp"])?.refused(&["only what is below /root"])?;
        scene.banger("alice", &["vm", "cp", "/etc/passwd", "asleep:"])?.refused(&["into VMs that run"])?;
        scene.banger_long("alice", &["vm", "cp", "asleep:nonesuch", "/tmp"])?.refused(&["nonesuch"])?;
        scene.banger("bob", &["vm", "cp", "asleep:kept", "/tmp"])?.refused(&["no such VM"])?;
        Ok(())
    })?;
    scene.step("nothing of it is changed", |scene| {
        ensure!(digest(scene)? == before, "the work disk was written to");
        guest.is(scene, "stopped")
    })?;
    // It waits for a reader of its pipe that never comes.
    let held = "banger vm cp asleep:kept/data - | sleep 1000";
    scene.step("who starts it does not wait for somebody who reads", |scene| {
        let reading = scene.start_user("alice", held)?;
        reader_is_there(scene)?;
        guest.order(scene, "start")?.ok()?;
        ensure!(guest.shell(scene, "md5sum < /root/kept/data")?.ok()?.stdout == sum);
        drop(reading);
        guest.order(scene, "stop")?.ok().map(drop)
    })?;
    scene.step("a daemon that is killed leaves no reader", |scene| {
        let reading = scene.start_user("alice", held)?;
        reader_is_there(scene)?;
        scene.root("systemctl kill --kill-whom=main -s KILL bangerd.service")?;
        scene
            .wait_until("the reader is gone", Duration::from_secs(30), || {
                scene.banger("alice", &["vm", "list"])?.ok()?;
                let left = scene.root(READERS)?;
                Ok((!left.is_empty()).then_some(left))
            })
            .map(drop)?;
        drop(reading);
        guest.is(scene, "stopped")
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// Their ids end in a mark.
const READERS: &str = "ls -d /sys/fs/cgroup/system.slice/bangerd.service/vms/*/*ff726561646572ff 2>/dev/null; :";

fn reader_is_there(scene: &Scene) -> Result<()> {
    scene
        .wait_until("a reader runs", Duration::from_secs(20), || {
            let found = scene.root(&format!("for group in $({READERS}); do cat $group/cgroup.procs; done"))?;
            Ok(found.trim().is_empty().then_some(found))
        })
        .map(drop)
}

fn terminal(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "screen")?;
    session(scene, &["start", "--name", "shell", "--tty", "screen", "--", "sh"])?.ok()?;
    let attach = "stty cols 101 rows 37; banger vm session attach screen shell";
    let mut run = Run::start_on_terminal(Some("alice"), attach)?;
    std::thread::sleep(scene.limit(Duration::from_secs(1)));
    run.type_in("stty size; echo mark$((40+2))\r")?;
    says(scene, "screen", "shell", "mark42")?;
    run.type_in("\r~.")?;
    run.wait(scene.limit(Duration::from_secs(15)))?.ok()?.says("37 101")?.says("mark42")?;
    ensure!(status(scene, "screen", "shell")? == "running");
    let mut run = Run::start_on_terminal(Some("alice"), attach)?;
    std::thread::sleep(scene.limit(Duration::from_secs(1)));
    run.type_in("exit 5\r")?;
    run.wait(scene.limit(Duration::from_secs(15)))?.exits(5)?.says("mark42")?;
    guest.delete(scene)?;
    scene.passed()
}

fn app(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = [&["vm", "run", "-d", "--name", "served"], TINY, &["--", "sh", "-c", "echo serving; sleep 1000"]];
    scene.banger_long("alice", &words.concat())?.ok()?.says("served\n")?;
    let guest = Guest::known(scene, "alice", "served")?;
    says(scene, "served", "app", "serving")?;
    ensure!(status(scene, "served", "app")? == "running");
    guest.delete(scene)?;
    scene.passed()
}

/// By the number in its id: which session of the name it is.
fn number(scene: &Scene, vm: &str, name: &str) -> Result<u64> {
    let shown = session(scene, &["show", "--json", vm, name])?.ok()?.json()?;
    let id = shown.get("id").and_then(Value::as_str).with_context(|| shown.to_string())?;
    id.rsplit('.').next().and_then(|number| number.parse().ok()).with_context(|| id.to_owned())
}

fn becomes(scene: &Scene, vm: &str, name: &str, wanted: (u64, &str)) -> Result<()> {
    let what = format!("session {name} of {vm} is number {} and {}", wanted.0, wanted.1);
    let seen = || {
        let (number, status) = (number(scene, vm, name)?, status(scene, vm, name)?);
        Ok(((number, status.as_str()) != wanted).then(|| format!("{number}, {status}")))
    };
    scene.wait_until(&what, Duration::from_secs(20), seen).map(drop)
}

fn again(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let script = "echo boot $(cat /proc/sys/kernel/random/boot_id); exec sleep 1000";
    let words = [&["vm", "run", "-d", "--restart", "always", "--name", "always"], TINY, &["--", "sh", "-c", script]];
    scene.banger_long("alice", &words.concat())?.ok()?.says("always\n")?;
    let guest = Guest::known(scene, "alice", "always")?;
    becomes(scene, "always", "app", (1, "running"))?;
    scene.step("when it ends", |scene| {
        session(scene, &["kill", "always", "app"])?.ok()?;
        becomes(scene, "always", "app", (2, "running"))
    })?;
    scene.step("with the VM", |scene| {
        guest.order(scene, "restart")?.ok()?;
        becomes(scene, "always", "app", (3, "running"))?;
        says(scene, "always", "app", &guest.boot_id(scene)?)
    })?;
    scene.step("not when it was stopped, but with the VM's next start", |scene| {
        session(scene, &["stop", "always", "app"])?.ok()?;
        std::thread::sleep(scene.limit(Duration::from_secs(3)));
        ensure!(number(scene, "always", "app")? == 3 && status(scene, "always", "app")? == "killed");
        guest.order(scene, "restart")?.ok()?;
        becomes(scene, "always", "app", (4, "running"))
    })?;
    guest.delete(scene)?;
    scene.passed()
}

fn entrypoint(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = ["vm", "run", "--rm", "--entrypoint", "--name", "shown"];
    let words = [&words, TINY, &["--", "sh", "-c", "echo out; echo err >&2; sleep 1; echo last; exit 6"]];
    let ended = scene.banger_long("alice", &words.concat())?.exits(6)?;
    ensure!(ended.stdout == "out\nlast\n" && ended.stderr.contains("err\n"), "{ended}");
    scene.banger("alice", &["vm", "show", "shown"])?.refused(&["shown"])?;
    scene.passed()
}
