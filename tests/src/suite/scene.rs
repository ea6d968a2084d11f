//! What a scenario sees: users to act as, time limits, waiting, steps that appear in the
//! transcript, and declared changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::command::{Finished, Run};
use super::list::Outcome;
use super::report::{self, Step};
use crate::inventory::{Allow, Kind};

/// Limit of a command that boots no guest, on a machine with KVM.
const SHORT: Duration = Duration::from_secs(15);
/// Limit of a command that boots a guest, or imports an image.
const LONG: Duration = Duration::from_secs(60);

/// Facts about this run that the harness on the build machine knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Surroundings {
    /// `firecracker` (a real one) or `stand-in`; in every report.
    pub vmm: String,
    /// Time limits are multiplied by this: emulation is slow.
    pub slowness: u32,
    /// The seed of a sample; `None`: everything.
    pub sample: Option<u64>,
}

/// Handed to each scenario.
#[derive(Debug)]
pub struct Scene {
    surroundings: Surroundings,
    pub(super) allowed: Vec<Allow>,
    pub(super) steps: Vec<Step>,
    pub(super) measured: BTreeMap<String, String>,
    started: Instant,
    /// systemd's idea of "since this scenario began", for the journal.
    since: String,
}

impl Scene {
    pub(super) fn new(surroundings: Surroundings) -> Result<Self> {
        let since = Run::start(None, &["date", "+%Y-%m-%d %H:%M:%S"])?.wait(SHORT)?.ok()?.stdout.trim().to_owned();
        Ok(Self {
            surroundings,
            allowed: Vec::new(),
            steps: Vec::new(),
            measured: BTreeMap::new(),
            started: Instant::now(),
            since,
        })
    }

    /// The usual last line of a scenario.
    pub fn passed(&self) -> Result<Outcome> {
        Ok(Outcome::Passed)
    }

    /// Which VMM boots guests: `firecracker` or `stand-in`.
    #[must_use]
    pub fn vmm(&self) -> &str {
        &self.surroundings.vmm
    }

    /// Whether guests run on emulated CPUs.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.surroundings.slowness > 1
    }

    /// The seed with which a long scenario draws a sample of itself; `None`: it is to be run whole.
    #[must_use]
    pub fn sample(&self) -> Option<u64> {
        self.surroundings.sample
    }

    /// A limit that is right under KVM, stretched for this machine.
    #[must_use]
    pub fn limit(&self, under_kvm: Duration) -> Duration {
        under_kvm * self.surroundings.slowness
    }

    /// Does something under a title that appears in the transcript with its time.
    pub fn step<T>(&mut self, title: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = work(self).with_context(|| title.to_owned());
        let step = Step { title: title.to_owned(), seconds: started.elapsed().as_secs_f64(), passed: result.is_ok() };
        report::print_step(&step);
        self.steps.push(step);
        result
    }

    /// A number for the report, such as resident memory: printed, kept, and read by `make budgets`.
    pub fn measured(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        report::print_line(&format!("  {name} = {value}"));
        self.measured.insert(name.to_owned(), value);
    }

    /// Declares a change as this scenario's purpose.
    pub fn allow(&mut self, allow: Allow) {
        report::print_line(&format!("  declared: {}", allow.reason()));
        self.allowed.push(allow);
    }

    /// Declares that the database may grow: SQLite's files change size and its log appears. Rows
    /// are not covered.
    pub fn allow_database_growth(&mut self) {
        self.allow(Allow::altered(
            Kind::File,
            "/var/lib/banger/banger.db*",
            "the database file grows with job history",
        ));
    }

    /// `banger ...` as a user, which must end in the time of a command that boots nothing.
    pub fn banger(&self, user: &str, words: &[&str]) -> Result<Finished> {
        self.start_banger(user, words)?.wait(self.limit(SHORT))
    }

    /// `banger ...` as a user, in the time of a boot or an import.
    pub fn banger_long(&self, user: &str, words: &[&str]) -> Result<Finished> {
        self.start_banger(user, words)?.wait(self.limit(LONG))
    }

    /// `banger ...` as a user, started only.
    pub fn start_banger(&self, user: &str, words: &[&str]) -> Result<Run> {
        let words: Vec<&str> = std::iter::once("banger").chain(words.iter().copied()).collect();
        Run::start(Some(user), &words)
    }

    /// A shell line as a user.
    pub fn user(&self, user: &str, line: &str) -> Result<Finished> {
        Run::start(Some(user), &["sh", "-c", line])?.wait(self.limit(LONG))
    }

    /// A shell line as a user, started only.
    pub fn start_user(&self, user: &str, line: &str) -> Result<Run> {
        Run::start(Some(user), &["sh", "-c", line])
    }

    /// A shell line as root that must succeed; what it prints.
    pub fn root(&self, line: &str) -> Result<String> {
        Ok(self.root_any(line)?.ok()?.stdout)
    }

    /// A shell line as root, started only.
    pub fn start_root(&self, line: &str) -> Result<Run> {
        Run::start(None, &["sh", "-c", line])
    }

    /// A shell line as root, however it ends.
    pub fn root_any(&self, line: &str) -> Result<Finished> {
        Run::start(None, &["sh", "-c", line])?.wait(self.limit(LONG))
    }

    /// Asks again and again until it is so; the error says what was waited for and what was seen
    /// last.
    pub fn wait_until(
        &self,
        what: &str,
        under_kvm: Duration,
        mut is_so: impl FnMut() -> Result<Option<String>>,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let Some(seen) = is_so()? else { return Ok(started.elapsed()) };
            if started.elapsed() > self.limit(under_kvm) {
                bail!("not within {} s: {what}; last seen: {seen}", self.limit(under_kvm).as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a unit has logged since this scenario began.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.root(&format!("journalctl --no-pager -o cat -u {unit} --since '{}'", self.since))
    }

    /// The main process of a unit.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let text = self.root(&format!("systemctl show -P MainPID {unit}"))?;
        let pid = text.trim().parse().with_context(|| format!("main pid of {unit}: {text:?}"))?;
        if pid == 0 {
            bail!("{unit} has no main process");
        }
        Ok(pid)
    }

    /// A file that the harness has put next to the suite; `None` when it has not.
    #[must_use]
    pub fn material(&self, name: &str) -> Option<String> {
        let path = format!("{}/{name}", crate::hostvm::payload::INSIDE);
        Path::new(&path).exists().then_some(path)
    }

    /// Seconds since the scenario began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
