//! A guest whose root is hostile, against the daemon: every word that a guest can say on its SSH port and its control channel. Another user's VM,
//! a real one, runs beside it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::hostile_agent::{NAME, OVER, after_the_login, before_the_login, line, on_the_control_channel};
use crate::suite::Run;
use crate::suite::guests::{Guest, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;
use crate::suite::vmm::with_vmm;
use crate::suite::watch::{DAEMON_MEMORY_KIB, Watch};

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "hostile-agent",
    about: "a guest that attacks the daemon harms nobody but itself",
    // The other user's guest is a real one.
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("every-attempt-fails-and-the-others-notice-nothing", attack)]
}

/// Calls whose time is taken.
const CALLS: usize = 20;

fn attack(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let other = Guest::run(scene, "bob", "bystander")?;
    other.start_counter(scene)?;
    let boot = other.boot_id(scene)?;
    let before = other.counter(scene)?;
    with_vmm(scene, "hostile-agent", attacked)?;
    scene.step("the other user's VM is unharmed", |scene| {
        ensure!(other.boot_id(scene)? == boot, "it was started again");
        let now = other.counter(scene)?;
        ensure!(now > before, "its counter stands at {now}, and was {before}");
        Ok(())
    })?;
    other.delete(scene)?;
    scene.passed()
}

fn attacked(scene: &mut Scene) -> Result<()> {
    let daemon = scene.main_pid("bangerd.service")?;
    let at_rest = scene.step("at rest", times_of_a_list)?;
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
        // What it announced without the token was not believed, and what it announced with it has not ended it.
        hostile.is(scene, "running")?;
        Ok(attempts.len())
    })?;
    let busy = scene.step("meanwhile", times_of_a_list)?;
    let raw = scene.step("before the login", |scene| {
        let attempts = before_the_login();
        // All at once: some of them take the daemon's whole patience.
        let begun: Result<Vec<Run>> = attempts
            .iter()
            .map(|_| scene.start_banger("alice", &["vm", "exec", "--no-tty", "--no-stdin", NAME, "--", "nothing"]))
            .collect();
        for run in begun? {
            run.wait(scene.limit(Duration::from_secs(200)))?.refused(&[])?;
        }
        Ok(attempts.len())
    })?;
    let tricks = scene.step("after the login", |scene| {
        let attempts = after_the_login();
        for (index, attempt) in attempts.iter().enumerate() {
            let ended = scene
                .start_banger("alice", &["vm", "exec", "--no-tty", "--no-stdin", NAME, "--", attempt])?
                .wait(scene.limit(Duration::from_secs(60)))?;
            if index == 0 {
                ended.ok().context("the control: a server that does nothing of the kind is served")?;
            } else {
                ended.refused(&[]).with_context(|| format!("{attempt} was not cut off"))?;
            }
        }
        Ok(attempts.len() - 1)
    })?;
    let seen = watch.end()?;
    scene.measured("attempts", control + raw + tricks);
    scene.measured("daemon's memory before, KiB", seen.memory_before);
    scene.measured("daemon's memory at most, KiB", seen.memory_most);
    scene.measured("daemon's share of one CPU meanwhile, percent", seen.cpu_percent);
    scene.measured("another user's list, median at rest and meanwhile, ms", format!("{at_rest} and {busy}"));
    ensure!(control + raw + tricks >= 20, "too few attempts");
    ensure!(seen.memory_most < DAEMON_MEMORY_KIB, "the daemon took {} KiB", seen.memory_most);
    ensure!(scene.main_pid("bangerd.service")? == daemon, "the daemon was started again");
    ensure!(names(scene, "bob")? == ["bystander"], "bob's VMs have changed");
    scene.step("the hostile VM is deleted like any other", |scene| hostile.delete(scene))
}

/// The median of what another user's `vm list` takes, milliseconds.
fn times_of_a_list(scene: &mut Scene) -> Result<u128> {
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let begun = Instant::now();
        scene.banger("bob", &["vm", "list"])?.ok()?.says("bystander")?;
        times.push(begun.elapsed().as_millis());
    }
    times.sort_unstable();
    times.get(CALLS / 2).copied().context("no times")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_many_and_have_names_of_their_own() {
        let all = [on_the_control_channel(), before_the_login(), after_the_login()].concat();
        let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert!(unique.len() == all.len() && all.len() > 20, "{all:?}");
    }
}
