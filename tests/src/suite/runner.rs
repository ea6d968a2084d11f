//! Runs a suite: setup, then each scenario between two inventories. A scenario that asks for a
//! reboot is continued by a second call after it.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::list::{Outcome, Reboot, Scenario, Setup, Suite};
use super::product;
use super::report::{self, Report, Result as ScenarioResult, Step, Verdict};
use super::sample;
use super::scene::{Scene, Surroundings};
use crate::inventory::{Difference, Inventory, leaks};

/// Exit status that asks the harness for a reboot of the host VM: clean, and by power cut.
pub const REBOOT_STATUS: (u8, u8) = (75, 76);

/// What has ended may take this long to disappear (a cgroup, a udev event); what stays longer has
/// leaked.
const SETTLE: Duration = Duration::from_secs(3);

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
    // Who asks for one scenario wants no sample.
    let seed = options.surroundings.sample.filter(|_| options.only.is_none());
    for scenario in sample::scenarios(suite, seed).into_iter().filter(|scenario| chosen(&scenario.name)) {
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
        product::clean_up(&difference.leaks);
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

/// The inventory before the first scenario, or after one that failed: two in a row that agree, or
/// what is passing would be missed as gone afterwards.
fn settled(scene: &Scene) -> Result<Inventory> {
    let started = Instant::now();
    let mut last = Inventory::take()?;
    loop {
        let next = Inventory::take()?;
        if leaks(&last, &next, &[]).leaks.is_empty() || started.elapsed() > scene.limit(SETTLE) {
            return Ok(next);
        }
        last = next;
    }
}

fn settle(before: &Inventory, scene: &Scene) -> Result<(Difference, Inventory)> {
    let started = Instant::now();
    loop {
        let after = Inventory::take()?;
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
