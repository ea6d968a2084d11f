//! A guest that no longer works, in every way that it can: no command of its user waits longer than
//! it may, what cannot be done says which layer is silent, and no other VM notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::command::Finished;
use crate::suite::guests::{Guest, TINY};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "wedged",
    about: "a guest that stands still, is full or destroyed: every command ends in time and says why",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("ends-while-it-boots", ends_while_it_boots),
        Scenario::new("agent-killed", agent_killed),
        Scenario::new("agent-frozen", |scene| frozen(scene, Frozen::Agent)),
        Scenario::new("guest-frozen", |scene| frozen(scene, Frozen::Vmm)),
        Scenario::new("disks-full", disks_full),
        Scenario::new("memory-full", memory_full),
        Scenario::new("console-flooded", console_flooded),
        Scenario::new("clock-jumped", clock_jumped),
        Scenario::new("everything-removed", everything_removed),
        Scenario::new("fork-bomb", fork_bomb),
    ]
}

const NAME: &str = "wedged";
/// The longest that a command may take: the daemon gives a guest 20 s, and the command line gives
/// the agent 20 s more for `stats`.
const DEADLINE: Duration = Duration::from_secs(45);
/// What becomes of a guest that is silent.
const SILENT: &str = "no sign of life";

/// What a user asks of a VM, by the name of the command.
const ASKED: &[(&str, &str)] = &[
    ("list", "banger vm list"),
    ("show", "banger vm show wedged"),
    ("logs", "banger vm logs --tail 5 wedged"),
    ("exec", "banger vm exec -n wedged -- true"),
    ("stats", "banger vm stats wedged"),
    ("health", "banger vm health wedged"),
    ("ports", "banger vm ports wedged"),
    ("cp", "banger vm cp /etc/os-release wedged:/root/copied"),
    ("session", "banger vm session list wedged"),
    ("ssh", "banger vm ssh wedged -- true"),
];
/// Of these, what needs nothing of the guest.
const OF_THE_HOST: &[&str] = &["list", "show", "logs"];

/// How all of [`ASKED`] ended, at once.
struct Answers(Vec<(&'static str, Finished)>);

impl Answers {
    fn of(&self, name: &str) -> Result<Finished> {
        let found = self.0.iter().find(|(asked, _)| *asked == name);
        found.map(|(_, ended)| ended.clone()).with_context(|| format!("{name} was not asked"))
    }
}

/// Asks everything at once. Each must end in time; what needs nothing of the guest must succeed.
fn asked(scene: &mut Scene, beside: &Guest) -> Result<Answers> {
    scene.step("every command ends in time", |scene| {
        let deadline = scene.limit(DEADLINE);
        let running = ASKED
            .iter()
            .map(|(name, line)| Ok((*name, scene.start_user("alice", line)?)))
            .collect::<Result<Vec<_>>>()?;
        // Meanwhile another user's VM is used.
        beside.shell(scene, "true")?.ok()?;
        let mut ended = Vec::new();
        for (name, run) in running {
            let finished = run.wait(deadline)?;
            ensure!(!finished.stderr.contains("panicked"), "{finished}");
            ended.push((name, if OF_THE_HOST.contains(&name) { finished.ok()? } else { finished }));
        }
        Ok(Answers(ended))
    })
}

fn begin(scene: &mut Scene) -> Result<(Guest, Guest)> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/alice/.local*", "alice's SSH key for her VMs is made once"));
    Ok((Guest::run(scene, "alice", NAME)?, Guest::run(scene, "bob", "beside")?))
}

fn end(scene: &mut Scene, guest: &Guest, beside: &Guest) -> Result<Outcome> {
    guest.delete(scene)?;
    beside.is(scene, "running")?;
    beside.delete(scene)?;
    scene.passed()
}

/// `vm stop` with a short time, which it may exceed by what the host does itself.
fn stop(scene: &Scene) -> Result<Finished> {
    scene.banger_long("alice", &["vm", "stop", "--timeout", "20", NAME])
}

/// A line that goes on in the guest when the command has ended.
fn in_background(line: &str) -> String {
    format!("({line}) </dev/null >/dev/null 2>&1 &")
}

/// The agent's process: of two of that name, the first is its supervisor.
const AGENT: &str = "for p in $(ls /proc | grep '^[0-9]*$' | sort -n); do [ \"$(cat /proc/$p/comm 2>/dev/null)\" = banger-agent ] && agent=$p; done";

fn ends_while_it_boots(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = [&["vm", "run", "--detach", "--keep-on-error", "--name", NAME], TINY].concat();
    let run = scene.start_banger("alice", &words)?;
    let kill = "test -s /var/lib/banger/vms/*/handles.json && grep -q . /var/lib/banger/vms/*/console.log && \
        cat /sys/fs/cgroup/system.slice/bangerd.service/vms/*/*/cgroup.procs | grep . | xargs kill -KILL";
    scene.wait_until("the guest's kernel speaks", Duration::from_secs(20), || {
        Ok((!scene.root_any(kill)?.status.success()).then(|| "an empty console".to_owned()))
    })?;
    let killed = std::time::Instant::now();
    let failed = run.wait(scene.limit(Duration::from_secs(60)))?.refused(&["ended before it was ready", "killed"])?;
    let noticed = killed.elapsed();
    scene.measured("seconds until the start failed", format!("{:.1}", noticed.as_secs_f64()));
    ensure!(noticed < scene.limit(Duration::from_secs(10)), "it was waited for: {failed}");
    ensure!(failed.stderr.contains("the console's last lines"), "{failed}");
    Guest::known(scene, "alice", NAME)?.delete(scene)?;
    scene.passed()
}

fn agent_killed(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    let boot = guest.boot_id(scene)?;
    let _ = guest.shell(scene, &format!("{AGENT}; kill -9 $agent"))?;
    asked(scene, &beside)?;
    let serves = || Ok(guest.shell(scene, "true")?.ok().err().map(|error| error.to_string()));
    scene.wait_until("the agent serves again", Duration::from_secs(20), serves)?;
    ensure!(guest.boot_id(scene)? == boot, "the guest was started again");
    stop(scene)?.ok()?;
    guest.becomes(scene, "stopped", &[], Duration::from_secs(5))?;
    end(scene, &guest, &beside)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    Agent,
    Vmm,
}

/// Who is silent; or that the guest has ended, if the daemon gave it up before.
fn is_told(finished: &Finished, silent: &str) -> Result<()> {
    let told = [silent, "before it answered"];
    ensure!(told.iter().any(|words| finished.stderr.contains(words) || finished.stdout.contains(words)), "{finished}");
    Ok(())
}

fn frozen(scene: &mut Scene, what: Frozen) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    let freeze = |scene: &Scene| match what {
        Frozen::Agent => {
            // Another word each time: the console keeps those of earlier boots.
            let told = format!("frozen {}", scene.root("cat /proc/uptime")?.trim().replace(['.', ' '], "-"));
            let line = format!("sleep 1; {AGENT}; kill -STOP $agent; echo {told} > /dev/console");
            guest.shell(scene, &in_background(&line))?.ok()?;
            scene.wait_until("the agent stands still", Duration::from_secs(15), || {
                let console = scene.banger("alice", &["vm", "logs", "--tail", "20", NAME])?.ok()?.stdout;
                Ok((!console.contains(&told)).then_some(console))
            })?;
            Ok(())
        }
        Frozen::Vmm => scene.root(&format!("kill -STOP {}", guest.vmm(scene)?)).map(drop),
    };
    freeze(scene)?;
    let answers = asked(scene, &beside)?;
    let silent = match what {
        Frozen::Agent => "its agent did not",
        Frozen::Vmm => "the VM stands still",
    };
    for name in ["exec", "stats", "ports", "cp", "session"] {
        is_told(&answers.of(name)?.refused(&[])?, silent)?;
    }
    answers.of("ssh")?.refused(&[])?;
    is_told(&answers.of("health")?.exits(1)?, silent)?;
    scene.step("the daemon gives it up by itself, and says why", |scene| {
        guest.becomes(scene, "stopped", &[SILENT], Duration::from_secs(40)).map(drop)
    })?;
    scene.step("a stop of one that is silent ends in time", |scene| {
        guest.order(scene, "start")?.ok()?;
        freeze(scene)?;
        let stopped = scene.banger_long("alice", &["vm", "stop", "--timeout", "5", NAME])?.ok()?;
        ensure!(stopped.took < scene.limit(Duration::from_secs(20)), "{stopped}");
        ensure!(stopped.stderr.contains("did not shut down"), "{stopped}");
        guest.is(scene, "stopped")
    })?;
    scene.step("and so does a delete", |scene| {
        guest.order(scene, "start")?.ok()?;
        freeze(scene)?;
        scene.banger_long("alice", &["vm", "kill", NAME])?.ok().map(drop)
    })?;
    end(scene, &guest, &beside)
}

fn disks_full(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    let fill = "dd if=/dev/zero of=/full bs=64k 2>/dev/null; dd if=/dev/zero of=/root/full bs=64k 2>/dev/null; \
        dd if=/dev/zero of=/root/full2 bs=512 2>/dev/null; sync";
    guest.shell(scene, fill)?;
    let answers = asked(scene, &beside)?;
    for name in ["exec", "stats", "ports", "session"] {
        answers.of(name)?.ok()?;
    }
    answers.of("health")?.exits(1)?.says("FAIL")?;
    // A few bytes find room in what ext4 keeps for itself (`reserved_clusters` in sysfs).
    let large = scene.banger_long("alice", &["vm", "cp", "/usr/bin/banger", &format!("{NAME}:/root/large")])?;
    large.refused(&["No space left"])?;
    // A session needs a folder on that disk: it runs, or says why it cannot.
    let started = scene.banger_long("alice", &["vm", "session", "start", "--name", "job", NAME, "--", "true"])?;
    ensure!(started.status.success() || started.stderr.contains("No space left"), "{started}");
    stop(scene)?.ok()?;
    guest.ended_by_its_init(scene)?;
    scene.step("it starts again, and has room when a file is removed", |scene| {
        guest.order(scene, "start")?.ok()?;
        guest.shell(scene, "rm /full /root/full /root/full2 && echo kept > /root/kept")?.ok()?;
        scene.banger_long("alice", &["vm", "session", "start", "--name", "job", NAME, "--", "true"])?.ok().map(drop)
    })?;
    end(scene, &guest, &beside)
}

fn memory_full(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    scene.step("what takes all memory is ended by the guest's kernel", |scene| {
        let eats = guest.shell(scene, "awk 'BEGIN { s = \"xxxxxxxxxxxxxxxx\"; while (1) s = s s }'")?;
        ensure!(!eats.status.success(), "it was not ended: {eats}");
        Ok(())
    })?;
    // Memory that no end of a process gives back.
    let fill = "mkdir -p /tmp/memory && mount -t tmpfs -o size=100% none /tmp/memory && \
        dd if=/dev/zero of=/tmp/memory/full bs=1M";
    guest.shell(scene, &in_background(fill))?.ok()?;
    std::thread::sleep(scene.limit(Duration::from_secs(5)));
    asked(scene, &beside)?;
    // It may have ended by then: a kernel that finds nothing to end panics.
    if guest.state(scene)?.0 == "running" {
        stop(scene)?.ok()?;
    }
    guest.is(scene, "stopped")?;
    guest.order(scene, "start")?.ok()?;
    guest.shell(scene, "true")?.ok()?;
    end(scene, &guest, &beside)
}

fn console_flooded(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    guest.shell(scene, &in_background("while :; do yes flood > /dev/console; done"))?.ok()?;
    std::thread::sleep(scene.limit(Duration::from_secs(5)));
    let answers = asked(scene, &beside)?;
    for name in ["exec", "stats", "health", "ports", "cp", "session", "ssh"] {
        answers.of(name)?.ok()?;
    }
    answers.of("logs")?.says("flood")?;
    let used = scene.root(&format!("du -k /var/lib/banger/vms/{}/console.log | cut -f 1", guest.id))?;
    ensure!(used.trim().parse::<u64>().is_ok_and(|used| used < 16 << 10), "its console takes {used} KiB");
    stop(scene)?.ok()?;
    guest.is(scene, "stopped")?;
    end(scene, &guest, &beside)
}

fn clock_jumped(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    for time in ["2037-01-01 00:00:00", "2001-01-01 00:00:00"] {
        scene.step(&format!("the guest thinks that it is {time}"), |scene| {
            guest.shell(scene, &format!("date -s '{time}'"))?.ok()?;
            let answers = asked(scene, &beside)?;
            for name in ["exec", "stats", "ports", "cp", "session", "ssh"] {
                answers.of(name)?.ok()?;
            }
            guest.is(scene, "running")
        })?;
    }
    stop(scene)?.ok()?;
    guest.ended_by_its_init(scene)?;
    end(scene, &guest, &beside)
}

fn everything_removed(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    guest.shell(scene, "cd /; rm -rf /bin /sbin /usr /lib /lib64 /etc /home /srv /var /root/* 2>/dev/null; :")?;
    let answers = asked(scene, &beside)?;
    answers.of("exec")?.exits(127)?;
    for name in ["stats", "ports", "cp", "session"] {
        answers.of(name)?.ok()?;
    }
    stop(scene)?.ok()?;
    guest.is(scene, "stopped")?;
    end(scene, &guest, &beside)
}

fn fork_bomb(scene: &mut Scene) -> Result<Outcome> {
    let (guest, beside) = begin(scene)?;
    let boot = guest.boot_id(scene)?;
    let bomb = "echo 400 > /proc/sys/kernel/threads-max; b() { while :; do b & sleep 1; done; }; b";
    guest.shell(scene, &in_background(bomb))?.ok()?;
    std::thread::sleep(scene.limit(Duration::from_secs(5)));
    asked(scene, &beside)?;
    // There is no place for a process, and a stop may need one.
    stop(scene)?.ok()?;
    guest.is(scene, "stopped")?;
    guest.order(scene, "start")?.ok()?;
    ensure!(guest.boot_id(scene)? != boot, "it was not started again");
    end(scene, &guest, &beside)
}
