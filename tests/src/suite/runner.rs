//! Runs a suite: setup, then each scenario between two inventories. A scenario that asks for a reboot is continued by a second call after it.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::list::{Outcome, Reboot, Scenario, Setup, Suite};
use super::product;
use super::report::{self, Report, Result as ScenarioResult, Step, Verdict};
use super::scene::{Scene, Surroundings};
use crate::inventory::{Difference, Inventory, leaks};

/// Exit status that asks the harness for a reboot of the host VM: clean, and by power cut.
pub const REBOOT_STATUS: (u8, u8) = (75, 76);

/// What has ended may take this long to disappear (a cgroup, a udev event); what stays longer has leaked.
const SETTLE: Duration = Duration::from_secs(3);

/// Several runs of the host-firewall timer and the rests between them: with two host VMs on two emulated CPUs an inventory may be longer than a rest.
const TIMER: Duration = Duration::from_secs(150);

/// The inventory between two runs of what timers start: that comes and goes by itself, and is nobody's leak. Whatever was at work while the inventory was
/// taken is in it, so the services are looked at before and after.
fn at_rest() -> Result<Inventory> {
    let begun = Instant::now();
    loop {
        let before = oneshots()?;
        let mut busy = at_work(&before);
        if busy.is_empty() {
            let inventory = Inventory::take()?;
            let after = oneshots()?;
            if before == after {
                return Ok(inventory);
            }
            busy = at_work(&after);
        }
        if begun.elapsed() > TIMER {
            report::print_line(&format!("  not at rest within {} s: {}", TIMER.as_secs(), busy.join(" ")));
            return Inventory::take();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What systemd says of each service: its type, state, and which run of it that is.
fn oneshots() -> Result<String> {
    let properties = "--property=Id,Type,ActiveState,InvocationID";
    let mut show = Command::new("systemctl");
    // All: one that is not at work right now may have been in between.
    show.args(["show", "--all", "--type=service", properties, "*.service"]).stdin(Stdio::null());
    let shown = show.output().context("run systemctl")?;
    // A systemd that does not answer right now has services that are not at rest; whoever asks goes on after a time.
    let text =
        if shown.status.success() { shown.stdout } else { b"Type=oneshot\nId=systemd\nActiveState=activating".into() };
    let text = String::from_utf8_lossy(&text).into_owned();
    // One that never ran is only remembered or forgotten by systemd.
    let ran = |unit: &&str| unit.lines().all(|line| line != "InvocationID=");
    let of_timers = text.split("\n\n").filter(|unit| unit.lines().any(|line| line == "Type=oneshot")).filter(ran);
    Ok(of_timers.collect::<Vec<_>>().join("\n\n"))
}

/// Those that are in the middle of a run.
fn at_work(oneshots: &str) -> Vec<String> {
    let busy =
        |unit: &&str| unit.lines().any(|line| matches!(line, "ActiveState=activating" | "ActiveState=deactivating"));
    let id = |unit: &str| unit.lines().find_map(|line| line.strip_prefix("Id=")).unwrap_or("?").to_owned();
    oneshots.split("\n\n").filter(busy).map(id).collect()
}

/// How a suite is run.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Facts from the harness.
    pub surroundings: Surroundings,
    /// What need not be set up again.
    pub standing: Setup,
    /// Only scenarios whose name contains this.
    pub only: Option<String>,
    /// Where the JSON report goes; what is kept across a reboot lies beside it.
    pub report: PathBuf,
}

/// How far a run has come.
#[derive(Debug)]
pub(super) enum End {
    /// To its end.
    Done(Report),
    /// To a reboot; call again afterwards.
    Reboot(Reboot),
}

/// What survives a reboot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    results: Vec<ScenarioResult>,
    half_done: Option<HalfDone>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HalfDone {
    scenario: String,
    before: Inventory,
    seconds: f64,
    steps: Vec<Step>,
    measured: BTreeMap<String, String>,
}

/// Runs, or goes on after a reboot.
pub(super) fn run(suite: &Suite, options: &Options) -> Result<End> {
    let kept = options.report.with_extension("progress");
    let mut progress: Progress = match fs::read(&kept) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("read the progress of before the reboot")?,
        Err(_) => Progress::default(),
    };
    let resumed = progress.half_done.is_some();
    if !resumed {
        report::print_line(&format!("== {}: {} (VMM: {})", suite.name, suite.about, options.surroundings.vmm));
        if let Err(error) = product::prepare(suite.setup, options) {
            progress.results.push(failed("setup", format!("{error:#}")));
            return finish(suite, options, progress);
        }
    }
    // What one scenario has left is what the next finds: nothing can slip between two inventories.
    let mut left = None;
    let chosen = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    for scenario in (suite.scenarios)().into_iter().filter(|scenario| chosen(&scenario.name)) {
        if progress.results.iter().any(|result| result.scenario == scenario.name) {
            continue;
        }
        let half_done = progress.half_done.take_if(|half| half.scenario == scenario.name);
        if let Some((half_done, reboot)) = one(&scenario, half_done, &mut left, options, &mut progress)? {
            progress.half_done = Some(half_done);
            fs::write(&kept, serde_json::to_vec(&progress)?).with_context(|| format!("write {}", kept.display()))?;
            nix::unistd::sync();
            return Ok(End::Reboot(reboot));
        }
    }
    let _ = fs::remove_file(&kept);
    finish(suite, options, progress)
}

fn finish(suite: &Suite, options: &Options, progress: Progress) -> Result<End> {
    let report =
        Report { suite: suite.name.to_owned(), surroundings: options.surroundings.clone(), results: progress.results };
    write_report(&options.report, &report)?;
    Ok(End::Done(report))
}

fn write_report(path: &Path, report: &Report) -> Result<()> {
    fs::write(path, serde_json::to_vec_pretty(report)?).with_context(|| format!("write {}", path.display()))
}

fn one(
    scenario: &Scenario,
    half_done: Option<HalfDone>,
    left: &mut Option<Inventory>,
    options: &Options,
    progress: &mut Progress,
) -> Result<Option<(HalfDone, Reboot)>> {
    report::print_line(&format!("-- {}", scenario.name));
    let mut scene = Scene::new(options.surroundings.clone())?;
    let (before, earlier, part) = match half_done {
        None => {
            let before = left.take().map_or_else(|| settled(&scene), Ok)?;
            (before, 0.0, Some(&scenario.run))
        }
        Some(half) => {
            (scene.steps, scene.measured) = (half.steps, half.measured);
            (half.before, half.seconds, scenario.after_reboot.as_ref())
        }
    };
    let started = Instant::now();
    let outcome = match part {
        None => Err(anyhow::anyhow!("it asked for a reboot but has no second part")),
        Some(part) => catch_unwind(AssertUnwindSafe(|| part(&mut scene)))
            .unwrap_or_else(|panic| Err(anyhow::anyhow!("the scenario panicked: {}", panic_text(&*panic)))),
    };
    let seconds = earlier + started.elapsed().as_secs_f64();
    if let Ok(Outcome::Reboot(reboot)) = outcome {
        let (steps, measured) = (scene.steps, scene.measured);
        return Ok(Some((HalfDone { scenario: scenario.name.clone(), before, seconds, steps, measured }, reboot)));
    }
    let (difference, after) = settle(&before, &scene)?;
    report::print_line(&format!("  {}", difference.to_string().replace('\n', "\n  ")));
    let verdict = match outcome {
        Err(error) => Verdict::Failed(format!("{error:#}")),
        Ok(_) if !difference.leaks.is_empty() => Verdict::Failed(difference.to_string()),
        Ok(Outcome::Skipped(why)) => Verdict::Skipped(why),
        Ok(_) => Verdict::Passed,
    };
    if let Verdict::Failed(why) = &verdict {
        report::print_line(&format!("  FAILED: {why}"));
        product::clean_up();
    } else {
        *left = Some(after);
    }
    progress.results.push(ScenarioResult {
        scenario: scenario.name.clone(),
        verdict,
        seconds,
        leaks: difference.leaks.iter().map(ToString::to_string).collect(),
        steps: scene.steps,
        measured: scene.measured,
    });
    Ok(None)
}

/// The inventory before the first scenario, or after one that failed: two in a row that agree, or what is passing would be missed as gone afterwards.
fn settled(scene: &Scene) -> Result<Inventory> {
    let started = Instant::now();
    let mut last = at_rest()?;
    loop {
        let next = at_rest()?;
        if leaks(&last, &next, &[]).leaks.is_empty() || started.elapsed() > scene.limit(SETTLE) {
            return Ok(next);
        }
        last = next;
    }
}

fn settle(before: &Inventory, scene: &Scene) -> Result<(Difference, Inventory)> {
    let started = Instant::now();
    loop {
        let after = at_rest()?;
        let difference = leaks(before, &after, &scene.allowed);
        if difference.leaks.is_empty() || started.elapsed() > scene.limit(SETTLE) {
            return Ok((difference, after));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn failed(scenario: &str, why: String) -> ScenarioResult {
    report::print_line(&format!("  FAILED: {why}"));
    ScenarioResult {
        scenario: scenario.to_owned(),
        verdict: Verdict::Failed(why),
        seconds: 0.0,
        leaks: Vec::new(),
        steps: Vec::new(),
        measured: BTreeMap::new(),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_in_the_middle_of_its_run_is_seen() {
        let unit = |id: &str, state: &str| format!("Type=oneshot\nId={id}\nActiveState={state}\nInvocationID=1\n");
        let text =
            [unit("a.service", "inactive"), unit("b.service", "activating"), unit("c.service", "active")].join("\n");
        assert_eq!(at_work(&text), ["b.service"]);
        assert!(at_work("").is_empty());
    }
}
