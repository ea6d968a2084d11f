//! A booted host VM with the product beside it, and the running of one suite in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::product::Product;
use super::tally::Tally;
use super::{interrupt, shown};
use crate::hostvm::accel::{self, Accel};
use crate::hostvm::image::{Image, ensure_image};
use crate::hostvm::machine::Machine;
use crate::hostvm::payload::INSIDE;
use crate::hostvm::{self, Kind};
use crate::suite::{REBOOT_STATUS, Report, Setup, Suite};

/// A suite that takes longer than this hangs.
const SUITE_LIMIT: Duration = Duration::from_secs(40 * 60);
/// The same when nothing is left to a sample.
const WHOLE_LIMIT: Duration = Duration::from_secs(5 * 60 * 60);

/// Runs and reports.
pub(super) fn cache() -> PathBuf {
    PathBuf::from("target/host-vm")
}

/// Where a suite's report, transcript and, after a failure, logs are.
pub(super) fn report_folder(suite: &str) -> PathBuf {
    cache().join("report").join(suite)
}

/// Exit status of ssh(1) when its connection ends.
const SSH_LOST: u8 = 255;

/// How often a suite is begun again after a fault of the emulator's: about one nested boot in
/// twenty stands still there.
const MORE_TRIES: u32 = 2;

/// Host VMs that this process has booted.
static BOOTED: AtomicU32 = AtomicU32::new(0);

/// What a suite's last run printed, all parts of it.
pub(super) fn transcript(suite: &str) -> String {
    let folder = report_folder(suite);
    let part = |number: u32| if number == 1 { "transcript.txt".to_owned() } else { format!("transcript-{number}.txt") };
    (1..).map_while(|number| std::fs::read_to_string(folder.join(part(number))).ok()).collect()
}

/// The host VM, up and with the payload unpacked.
#[derive(Debug)]
pub(super) struct Session {
    machine: Machine,
    accel: Accel,
    /// What the suites so far have left standing in it.
    standing: Setup,
}

impl Session {
    /// Boots. Under emulation once more when that fails: QEMU itself has been seen to crash while
    /// two CPUs come up in it.
    pub(super) fn open(product: &Product, kind: Kind) -> Result<Self> {
        let cache = cache();
        forget_dead_runs(&cache);
        let image = ensure_image(&hostvm::kept(), kind)?;
        let accel = accel::choose(&hostvm::kept(), &image)?;
        match Self::boot(product, &cache, &image, accel) {
            Err(error) if accel == Accel::Tcg => {
                eprintln!("bench: the host VM did not come up, and is started once more: {error:#}");
                Self::boot(product, &cache, &image, accel)
            }
            other => other,
        }
    }

    fn boot(product: &Product, cache: &Path, image: &Image, accel: Accel) -> Result<Self> {
        let number = BOOTED.fetch_add(1, Ordering::Relaxed);
        let folder = cache.join(format!("run-{}-{number}", std::process::id()));
        interrupt::doom(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        product.payload(&folder.join("payload.tar"))?;
        let started = Instant::now();
        let mut machine = Machine::boot(image, accel, &folder)?;
        interrupt::doom(machine.secrets());
        machine.wait_until_up()?;
        machine.shell(&format!("tar xf /dev/vdb -C {INSIDE}"))?;
        eprintln!("bench: host VM up in {:.0} s ({accel:?})", started.elapsed().as_secs_f64());
        Ok(Self { machine, accel, standing: Setup::Nothing })
    }

    /// Hands the terminal over to a root shell inside.
    pub(super) fn shell(&mut self) -> Result<bool> {
        eprintln!(
            "bench: {INSIDE} has the package, the suites (`{INSIDE}/banger-suite list`) and the VMM; leave with Ctrl-D"
        );
        let status = self.machine.ssh(&[]).arg("-t").status().context("run ssh")?;
        self.machine.shut_down()?;
        Ok(status.success())
    }

    fn run(&mut self, suite: &Suite, only: Option<&str>, product: &Product, folder: &Path, how: How) -> Result<Report> {
        let only = only.map(|only| format!(" --only '{only}'")).unwrap_or_default();
        let sample = how.sample.map(|seed| format!(" --sample {seed}")).unwrap_or_default();
        let limit = if how.sample.is_some() { SUITE_LIMIT } else { WHOLE_LIMIT };
        let line = format!(
            "{INSIDE}/banger-suite run {} --vmm {} --slowness {} --standing {}{only}{sample}",
            suite.name,
            product.vmm_name,
            self.accel.slowness(),
            self.standing.word()
        );
        let started = Instant::now();
        let mut part = 0_u32;
        loop {
            part += 1;
            let name = if part == 1 { "transcript.txt".to_owned() } else { format!("transcript-{part}.txt") };
            let left = limit.saturating_sub(started.elapsed());
            let lost = || self.machine.is_lost();
            let status = shown::run_on(self.machine.ssh(&[&line]), left, &folder.join(name), !how.quiet, &lost)?.status;
            match status.code().and_then(|code| u8::try_from(code).ok()) {
                Some(code) if code == REBOOT_STATUS.0 => self.machine.reboot()?,
                Some(code) if code == REBOOT_STATUS.1 => self.machine.reset()?,
                Some(0 | 1) => break,
                // ssh's own: the host VM no longer answers.
                Some(SSH_LOST) => return Err(shown::Lost.into()),
                _ => bail!("the suite runner ended with {status}\n{}", self.machine.last_words()),
            }
            self.machine.wait_until_up()?;
        }
        let text = self.machine.shell(&format!("cat {INSIDE}/report.json"))?;
        std::fs::write(folder.join("report.json"), &text).context("keep the report")?;
        serde_json::from_str(&text).context("read the suite's report")
    }

    /// Shuts the host VM down after a suite that has passed. A host that cannot shut down with
    /// banger on it is a failure of the suite.
    fn end(&mut self, suite: &Suite) -> Result<()> {
        let ended = self.machine.shut_down().context("shut the host VM down");
        if suite.setup == Setup::Nothing { Ok(()) } else { ended }
    }
}

/// How suites are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// Another suite runs at the same time: what this one prints goes to its transcript only.
    pub(super) quiet: bool,
    /// The seed of the sample that a suite takes of what is too much for every run; without one it
    /// takes all.
    pub(super) sample: Option<u64>,
}

impl How {
    /// A seed that no other run has.
    pub(super) fn draw() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    }
}

/// Runs suites one after the other. One that has passed hands its host VM on to the next when their
/// setups allow it: booting and installing take longer than most scenarios.
#[derive(Debug)]
pub(super) struct Suites<'a> {
    product: &'a Product,
    how: How,
    session: Option<Session>,
    again: Option<&'static str>,
}

impl<'a> Suites<'a> {
    pub(super) fn new(product: &'a Product, how: How) -> Self {
        Self { product, how, session: None, again: None }
    }

    /// Why the last suite was begun again, if it was.
    pub(super) const fn again(&self) -> Option<&'static str> {
        self.again
    }

    /// Runs one suite. The host VM is shut down after it unless `next` can begin where it ended.
    /// After a failure everything that explains it is in the report folder.
    pub(super) fn run(&mut self, suite: &Suite, only: Option<&str>, next: Option<&Suite>) -> Result<Tally> {
        let folder = report_folder(suite.name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open(self.product, suite.setup.host())?,
        };
        let hands_on = next.is_some_and(|next| suite.setup.leads_to(next.setup));
        let once = |session: &mut Session| {
            let report = session.run(suite, only, self.product, &folder, self.how)?;
            if report.counts().1 == 0 && !hands_on {
                session.end(suite)?;
            }
            Ok(report)
        };
        let mut result = once(&mut session);
        self.again = None;
        for _ in 0..MORE_TRIES {
            let Some(why) = self.fault_of_the_emulator(&session, &result) else { break };
            self.again = Some(why);
            // Said aloud, and not for ever: what it comes to then is no accident. What the runs
            // before printed stays, the last of them.
            eprintln!(
                "bench: {why} (logs in {}/first); suite {} begins again in another host VM",
                folder.display(),
                suite.name
            );
            let first = folder.join("first");
            std::fs::create_dir_all(&first).with_context(|| format!("create {}", first.display()))?;
            if result.is_ok() {
                session.machine.collect(&first).unwrap_or_else(|error| eprintln!("bench: {error:#}"));
            }
            session.machine.keep_logs(&first);
            for name in ["transcript.txt", "report.json"] {
                let _ = std::fs::rename(folder.join(name), first.join(name));
            }
            drop(session);
            session = Session::open(self.product, suite.setup.host())?;
            result = once(&mut session);
        }
        let good = result.as_ref().is_ok_and(|report| report.counts().1 == 0);
        if !good {
            session.machine.collect(&folder).unwrap_or_else(|error| eprintln!("bench: {error:#}"));
            eprintln!("bench: journal, console and transcript are in {}", folder.display());
        }
        if good && hands_on {
            session.standing = suite.setup;
            self.session = Some(session);
        } else if !good {
            let _ = session.machine.shut_down();
        }
        let (passed, failed, skipped) = result?.counts();
        Ok(Tally { passed, failed, skipped })
    }

    /// What went wrong, if that is the emulator's: on real CPUs a kernel that panics or stands
    /// still is a finding.
    fn fault_of_the_emulator(&self, session: &Session, result: &Result<Report>) -> Option<&'static str> {
        match result {
            _ if session.accel != Accel::Tcg => None,
            // Also one that did not come to its end when it was to shut down or to reboot.
            Err(error) if error.is::<shown::Lost>() || session.machine.is_lost() => {
                Some("the host VM itself had stalled or panicked")
            }
            Ok(report) if self.how.sample.is_some() && report.only_silent_guests() => {
                Some("an emulated guest stood still")
            }
            _ => None,
        }
    }
}

/// Disks of benches that were killed.
fn forget_dead_runs(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(run) = name.to_str().and_then(|name| name.strip_prefix("run-")) else { continue };
        let pid = run.split('-').next().unwrap_or(run);
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
