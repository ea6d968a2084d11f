//! What a run has found: a transcript on standard output while it goes, and JSON for the harness.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::scene::Surroundings;

/// A titled part of a scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub title: String,
    /// How long it took.
    pub seconds: f64,
    /// Whether it went well.
    pub passed: bool,
}

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Verdict {
    /// Right, and nothing left.
    Passed,
    /// Wrong, or something left.
    Failed(String),
    /// Not run.
    Skipped(String),
}

/// One scenario's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Result {
    /// Its name.
    pub scenario: String,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Its time, without the inventories.
    pub seconds: f64,
    /// Undeclared differences of the host, one per line.
    pub leaks: Vec<String>,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Numbers it noted.
    pub measured: BTreeMap<String, String>,
}

/// The daemon's words for a guest that stands still: in its boot, while it runs, while a command
/// runs in it. And for one that was reset although its kernel has said nothing, as a panic does: a
/// triple fault. The last one is a guest's kernel that refuses a module which the same initramfs
/// brought to other guests: the emulator has handed it wrong bytes, and a host that boots it again
/// sees no more of it.
const SILENT_GUEST: [&str; 5] = [
    "firecracker exited (status 0)",
    "the guest was not ready within",
    "no sign of life from the guest",
    "the connection to the guest ended before the command did",
    "EKEYREJECTED: Key was rejected by service",
];

/// Whether these words are of a guest that stood still or was reset.
pub(super) fn is_of_the_emulator(why: &str) -> bool {
    SILENT_GUEST.iter().any(|words| why.contains(words))
}

/// A suite's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Name of the suite.
    pub suite: String,
    /// Which VMM, how slow.
    pub surroundings: Surroundings,
    /// In the order of running.
    pub results: Vec<Result>,
}

impl Report {
    /// Passed, failed, skipped.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&Verdict) -> bool| self.results.iter().filter(|result| wanted(&result.verdict)).count();
        (
            count(|verdict| *verdict == Verdict::Passed),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        )
    }

    /// Whether the only failures are guests that stood still.
    #[must_use]
    pub fn only_silent_guests(&self) -> bool {
        let mut failures = self.results.iter().filter_map(|result| match &result.verdict {
            Verdict::Failed(why) => Some(why),
            _ => None,
        });
        self.counts().1 > 0 && failures.all(|why| is_of_the_emulator(why))
    }
}

impl fmt::Display for Report {
    /// The last line is `N passed, N failed, N skipped`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nsuite {} with {}", self.suite, self.surroundings.vmm)?;
        for result in &self.results {
            match &result.verdict {
                Verdict::Passed => writeln!(f, "  pass  {:<44} {:>6.1} s", result.scenario, result.seconds)?,
                Verdict::Skipped(why) => writeln!(f, "  skip  {:<44} skipped: {why}", result.scenario)?,
                Verdict::Failed(why) => {
                    writeln!(f, "  FAIL  {:<44} {:>6.1} s", result.scenario, result.seconds)?;
                    writeln!(f, "        {}", why.replace('\n', "\n        "))?;
                }
            }
        }
        let leaks: usize = self.results.iter().map(|result| result.leaks.len()).sum();
        writeln!(f, "leaks: {leaks}")?;
        let (passed, failed, skipped) = self.counts();
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[expect(clippy::print_stdout, reason = "the transcript is what this program is for")]
pub(super) fn print_line(line: &str) {
    println!("{line}");
}

pub(super) fn print_step(step: &Step) {
    let mark = if step.passed { "ok  " } else { "FAIL" };
    print_line(&format!("  {mark} {:>7.1} s  {}", step.seconds, step.title));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(scenario: &str, verdict: Verdict) -> Result {
        Result {
            scenario: scenario.to_owned(),
            verdict,
            seconds: 1.0,
            leaks: Vec::new(),
            steps: Vec::new(),
            measured: BTreeMap::new(),
        }
    }

    #[test]
    fn the_last_line_counts_and_the_json_comes_back() -> anyhow::Result<()> {
        let report = Report {
            suite: "x".to_owned(),
            surroundings: Surroundings { vmm: "stand-in".to_owned(), slowness: 4, sample: None },
            results: vec![
                result("a", Verdict::Passed),
                result("b", Verdict::Failed("it broke".to_owned())),
                result("c", Verdict::Skipped("no such device".to_owned())),
            ],
        };
        let text = report.to_string();
        assert!(text.ends_with("leaks: 0\n1 passed, 1 failed, 1 skipped"), "{text}");
        assert!(text.contains("skipped: no such device") && text.contains("it broke"), "{text}");
        let back: Report = serde_json::from_str(&serde_json::to_string(&report)?)?;
        assert_eq!(back.counts(), (1, 1, 1));
        Ok(())
    }

    #[test]
    fn a_guest_that_stood_still_excuses_nothing_else() {
        let of = |failures: &[&str]| Report {
            suite: "x".to_owned(),
            surroundings: Surroundings { vmm: "stand-in".to_owned(), slowness: 4, sample: None },
            results: failures.iter().map(|why| result("a", Verdict::Failed((*why).to_owned()))).collect(),
        };
        let silent = "one is error (the guest was not ready within 180 s";
        assert!(of(&[silent, silent]).only_silent_guests());
        assert!(!of(&[silent, "2 leaks"]).only_silent_guests() && !of(&[]).only_silent_guests());
    }
}
