//! `systemctl restart` of both services again and again, under a guest that writes to its disks and
//! whose agent speaks over vsock each second.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{DAEMON, HELPER, Life, no_unit_has_failed, writer};
use crate::suite::guests::Guest;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// The longest time for which no daemon may hear the guest's agent.
const SILENCE: Duration = Duration::from_secs(5);
/// After each restart: administrators do not spin, and the agent is to be met at different moments
/// of its own.
const PAUSE: Duration = Duration::from_millis(700);
/// How often everything is looked at.
const LOOK: u32 = 10;

const CONFIG: &str = "/etc/banger/banger.toml";

/// In each turn both are restarted once: in one order, in the other, together.
const TURNS: [&[&[&str]]; 3] = [&[&[DAEMON], &[HELPER]], &[&[HELPER], &[DAEMON]], &[&[DAEMON, HELPER]]];

pub(super) fn under_load(scene: &mut Scene, times: u32) -> Result<Outcome> {
    scene.allow_database_growth();
    // Each word of the agent is a line of the journal then, with the time at which the daemon heard
    // it.
    scene.root(&format!(
        "cp --archive {CONFIG} /run/bench.toml && sed -i 's/^log_level.*/log_level = \"info,banger_link::control=trace\"/' {CONFIG} && \
         grep -q control=trace {CONFIG} && systemctl restart {DAEMON}"
    ))?;
    let result = restarted(scene, times);
    scene
        .root(&format!("cp --archive /run/bench.toml {CONFIG} && rm /run/bench.toml && systemctl restart {DAEMON}"))?;
    result?;
    scene.passed()
}

fn restarted(scene: &mut Scene, times: u32) -> Result<()> {
    let guest = Guest::run(scene, "alice", "writer")?;
    let life = Life::of(scene, &guest)?;
    writer::start(scene, &guest)?;
    scene.step(&format!("{times} restarts of each service"), |scene| {
        for (count, turn) in (1..=times).zip(TURNS.iter().cycle()) {
            for units in *turn {
                restart(scene, units).with_context(|| format!("restart {count} of {times}"))?;
                std::thread::sleep(PAUSE);
            }
            if count % LOOK == 0 || count == times {
                life.goes_on(scene, &guest).with_context(|| format!("after {count} restarts"))?;
                scene.banger("alice", &["vm", "list"])?.ok()?.says("writer")?.says("running")?;
                no_unit_has_failed(scene)?;
            }
        }
        Ok(())
    })?;
    let written = scene.step("no number is lost, repeated or read wrong", |scene| writer::check(scene, &guest))?;
    scene.measured("numbers written and read back on both disks", written.last);
    scene.measured("longest pause between two of them, s", written.longest_pause);
    let (longest, daemons) = scene.step("the agent was heard all the time", |scene| heard(scene, &guest))?;
    scene.measured("longest silence of the agent over vsock, s", format!("{longest:.2}"));
    scene.measured("daemons that heard it", daemons);
    let allowed = scene.limit(SILENCE).as_secs_f64();
    ensure!(longest <= allowed, "no daemon has heard the agent for {longest:.1} s; {allowed} s are allowed here");
    ensure!(written.longest_pause <= allowed, "the guest did not write for {} s", written.longest_pause);
    // A daemon that is replaced before the agent has found it proves nothing: most must have heard
    // it.
    ensure!(daemons > usize::try_from(times / 2)?, "only {daemons} daemons have heard the agent");
    guest.delete(scene)
}

/// Other processes afterwards, and no restart but this one.
fn restart(scene: &Scene, units: &[&str]) -> Result<()> {
    let pids = || units.iter().map(|unit| scene.main_pid(unit)).collect::<Result<Vec<_>>>();
    let before = pids()?;
    scene.root(&format!("systemctl restart {}", units.join(" ")))?;
    for ((unit, then), now) in units.iter().zip(before).zip(pids()?) {
        ensure!(then != now, "{unit} was not restarted");
        let by_itself = scene.root(&format!("systemctl show -P NRestarts {unit}"))?;
        ensure!(by_itself.trim() == "0", "{unit} has been restarted by systemd {} times", by_itself.trim());
    }
    Ok(())
}

/// The longest time between two words of the agent, whichever daemon heard them, and how many
/// daemons that were.
fn heard(scene: &Scene, guest: &Guest) -> Result<(f64, usize)> {
    let line = format!(
        "journalctl --no-pager --boot -o json --output-fields=MESSAGE,_PID,_SOURCE_REALTIME_TIMESTAMP \
         _SYSTEMD_UNIT={DAEMON} BANGER_VM={} | grep 'heard the guest.s agent'",
        guest.id
    );
    let (mut times, mut daemons) = (Vec::new(), BTreeSet::new());
    for line in scene.root(&line)?.lines() {
        let entry: Value = serde_json::from_str(line).context("a line of the journal")?;
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        // When it was said, where the journal knows; else when the journal took it down.
        let time = text("_SOURCE_REALTIME_TIMESTAMP").or_else(|| text("__REALTIME_TIMESTAMP")).context("no time")?;
        times.push(time.parse::<u64>().with_context(|| format!("a time of the journal: {time:?}"))?);
        daemons.insert(text("_PID").context("no pid")?.to_owned());
    }
    times.sort_unstable();
    let gaps = times.iter().zip(times.iter().skip(1)).map(|(first, next)| Duration::from_micros(next - first));
    let longest = gaps.max().context("the agent was heard less than twice")?;
    Ok((longest.as_secs_f64(), daemons.len()))
}
