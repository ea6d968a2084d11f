//! A guest whose root is hostile, against the daemon: every word that a guest can say on the
//! commands' port and its control channel. Another user's VM runs beside it, whose commands are
//! timed. Both are guests without a machine: the attack is on what the daemon hears, and an
//! emulated kernel that stands still would tell nothing of that.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::hostile_agent::{
    NAME, OVER, before_it_is_open, goes_on, line, on_an_open_connection, on_the_control_channel,
};
use crate::suite::Run;
use crate::suite::guests::{Guest, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;
use crate::suite::vmm::with_vmm;
use crate::suite::watch::{DAEMON_MEMORY_KIB, Watch};

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "hostile-agent",
    about: "a guest that attacks the daemon harms nobody but itself",
    setup: Setup::Still,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("every-attempt-fails-and-the-others-notice-nothing", attack)]
}

/// Commands whose time is taken.
const COMMANDS: usize = 20;

/// Who does not keep to the protocol is given up at once.
const CUT_OFF: Duration = Duration::from_secs(15);
/// How long a command line listens to a guest that keeps to the protocol and says nothing.
const LISTENS: Duration = Duration::from_secs(5);

/// What the daemon says of an agent whose heartbeat has come five seconds late.
const LATE: &str = "is heard again";

fn attack(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    with_vmm(scene, "hostile-agent", attacked)
}

fn attacked(scene: &mut Scene) -> Result<()> {
    let daemon = scene.main_pid("bangerd.service")?;
    let other = Guest::run(scene, "bob", "bystander")?;
    let unharmed = other.vmm(scene)?;
    let at_rest = scene.step("at rest", times_of_a_command)?;
    let watch = Watch::begin(daemon);
    let hostile = Guest::run(scene, "alice", NAME)?;
    let console = format!("/var/lib/banger/vms/{}/console.log", hostile.id);
    let control = scene.step("on the control channel", |scene| {
        scene.wait_until("all attempts are made", Duration::from_secs(200), || {
            let said = scene.root(&format!("cat {console}"))?;
            Ok((!said.contains(OVER)).then_some(said))
        })?;
        let said = scene.root(&format!("cat {console}"))?;
        let attempts = on_the_control_channel();
        for attempt in &attempts {
            let wanted = format!("{}ended as it must", line(attempt));
            ensure!(said.contains(&wanted), "{attempt}: {said}");
        }
        // What it announced without the token was not believed, and what it announced with it has
        // not ended it.
        hostile.is(scene, "running")?;
        Ok(attempts.len())
    })?;
    let (raw, busy) = scene.step("before a connection is open", |scene| {
        let attempts = before_it_is_open();
        // All at once: some of them take the daemon's whole patience.
        let begun: Result<Vec<Run>> = attempts.iter().map(|_| command(scene, "alice", NAME, "nothing")).collect();
        let busy = times_of_a_command(scene)?;
        for run in begun? {
            run.wait(scene.limit(Duration::from_secs(200)))?.refused(&[])?;
        }
        Ok((attempts.len(), busy))
    })?;
    let mut flooded = Vec::new();
    let mut held = Vec::new();
    let tricks = scene.step("on an open connection", |scene| {
        let attempts = on_an_open_connection();
        for (index, attempt) in attempts.iter().enumerate() {
            let run = command(scene, "alice", NAME, attempt)?;
            if index > 0 {
                flooded.push(time_of_a_command(scene)?);
            }
            if index == 0 {
                let ended = run.wait(scene.limit(CUT_OFF))?;
                ended.ok().context("the control: an agent that does nothing of the kind is served")?;
            } else if goes_on(attempt) {
                // It is the user's own process that listens, and the user who ends it.
                ensure!(run.wait_or_end(scene.limit(LISTENS))?.is_none(), "{attempt} ended by itself");
                held.push(*attempt);
            } else {
                let ended = run.wait(scene.limit(CUT_OFF))?;
                ended.refused(&[]).with_context(|| format!("{attempt} was believed"))?;
            }
        }
        Ok(attempts.len() - 1)
    })?;
    let seen = watch.end()?;
    scene.measured("attempts", control + raw + tricks);
    scene.measured("daemon's memory before, KiB", seen.memory_before);
    scene.measured("daemon's memory at most, KiB", seen.memory_most);
    scene.measured("daemon's share of one CPU meanwhile, percent", seen.cpu_percent);
    scene.measured("another user's command, median and longest at rest, ms", at_rest);
    scene.measured("the same before a connection is open, ms", busy);
    scene.measured("the same on an open connection, ms", Times::of(flooded)?);
    scene.measured("listened to until the user had enough", format!("{held:?}"));
    ensure!(control + raw + tricks >= 20, "too few attempts");
    ensure!(seen.memory_most < DAEMON_MEMORY_KIB, "the daemon took {} KiB", seen.memory_most);
    ensure!(scene.main_pid("bangerd.service")? == daemon, "the daemon was started again");
    scene.step("the other user's VM is unharmed", |scene| {
        ensure!(names(scene, "bob")? == ["bystander"], "bob's VMs have changed");
        ensure!(other.vmm(scene)? == unharmed, "it was started again");
        let words = scene.root(&format!(
            "journalctl --sync; journalctl --no-pager -q -o cat _PID={daemon} BANGER_VM={}",
            other.id
        ))?;
        ensure!(!words.trim().is_empty(), "the daemon's journal has nothing of it: a late heartbeat would not be seen");
        let late = words.lines().filter(|line| line.contains(LATE)).count();
        scene.measured("its heartbeats that came more than five seconds late", late);
        ensure!(late == 0, "its agent was heard more than five seconds late, {late} times");
        Ok(())
    })?;
    scene.step("both are deleted like any other", |scene| {
        hostile.delete(scene)?;
        other.delete(scene)
    })
}

/// `vm exec` of a word that the guest's agent knows.
fn command(scene: &Scene, user: &str, vm: &str, word: &str) -> Result<Run> {
    scene.start_banger(user, &["vm", "exec", "--no-tty", "--no-stdin", vm, "--", word])
}

/// What another user's command takes, milliseconds.
struct Times {
    median: u128,
    longest: u128,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}", self.median, self.longest)
    }
}

impl Times {
    fn of(mut times: Vec<u128>) -> Result<Self> {
        times.sort_unstable();
        let median = *times.get(times.len() / 2).context("no times")?;
        Ok(Self { median, longest: *times.last().context("no times")? })
    }
}

fn times_of_a_command(scene: &mut Scene) -> Result<Times> {
    Times::of((0..COMMANDS).map(|_| time_of_a_command(scene)).collect::<Result<_>>()?)
}

fn time_of_a_command(scene: &Scene) -> Result<u128> {
    let begun = Instant::now();
    command(scene, "bob", "bystander", "nothing")?.wait(scene.limit(Duration::from_secs(20)))?.ok()?;
    Ok(begun.elapsed().as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_many_and_have_names_of_their_own() {
        let all = [on_the_control_channel(), before_it_is_open(), on_an_open_connection()].concat();
        let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert!(unique.len() == all.len() && all.len() > 20, "{all:?}");
    }
}
