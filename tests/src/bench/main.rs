//! The command line of `banger-bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use super::product::{Needs, Product};
use super::session::{How, Session, Suites};
use super::{budgets, checks, fuzz, here, images, interrupt, layers, packages, product};
use crate::hostvm::Kind;
use crate::suite::{self, Setup};

/// Builds banger, boots the host VM and runs the suites in it.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the host VM's image when it is missing or its recipe has changed.
    Image,
    /// The demonstration, with a readable transcript.
    Demo,
    /// Records a newcomer's way from the package to a shell in a guest: docs/first-steps.cast.
    Record,
    /// Timings of the main path, of reconciling and of imports, in the host VM and on this machine.
    Bench {
        /// Only these.
        part: Option<Part>,
    },
    /// Every check and every suite.
    Test,
    /// Suites in the host VM; without a name all of them. A suite that `make test` takes a sample
    /// of is run whole when it is named.
    HostTest {
        suites: Vec<String>,
        /// Only scenarios whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// A sample with this seed, as printed by an earlier run.
        #[arg(long)]
        seed: Option<u64>,
        /// Take what was built last instead of building.
        #[arg(long)]
        as_built: bool,
    },
    /// A root shell in a host VM that has the package, the VMM and the suites beside it.
    Shell {
        /// Take what was built last instead of building.
        #[arg(long)]
        as_built: bool,
    },
    /// Builds the .deb and the .rpm, checks them, and says where they are.
    Packages,
    /// Fuzzes decoders, ledger parser and policy, each target for so many seconds.
    Fuzz {
        #[arg(long, default_value_t = 300)]
        seconds: u32,
        /// Only targets whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Prints the helper's budgets and what is used of them.
    Budgets,
    /// Which crate and which module may use which: prints what is against the rules.
    Layers,
}

/// A part of the timings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A daemon over a thousand rows, on this machine.
    Reconcile,
    /// Imports, on this machine.
    Images,
    /// The main path, in the host VM.
    Guests,
}

/// What `main` calls.
#[must_use]
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("banger-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace: all paths of the bench are below it.
fn workspace() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
    ensure!(folder.join("Cargo.toml").exists(), "{} is no workspace any more; build again", folder.display());
    Ok(folder.to_owned())
}

#[expect(clippy::print_stdout, reason = "the counts are what was asked for")]
fn run(command: Command) -> Result<bool> {
    let root = workspace()?;
    std::env::set_current_dir(&root).with_context(|| format!("go to {}", root.display()))?;
    interrupt::watch()?;
    match command {
        Command::Image => crate::hostvm::prepare().map(|()| true),
        Command::Demo => run_suites(&["demo".to_owned()], None, None, false),
        Command::Record => record(),
        Command::Bench { part } => {
            let wanted = |of: Part| part.is_none_or(|part| part == of);
            if wanted(Part::Reconcile) {
                here::reconcile()?;
            }
            if wanted(Part::Images) {
                images::run()?;
            }
            if wanted(Part::Guests) { run_suites(&["bench".to_owned()], None, None, false) } else { Ok(true) }
        }
        Command::Test => checks::run(),
        Command::HostTest { suites, only, seed, as_built } => run_suites(&suites, only.as_deref(), seed, as_built),
        Command::Shell { as_built } => {
            let product = product(Needs::Guests, as_built)?;
            Session::open(&product, Kind::Plain)?.shell()
        }
        Command::Packages => {
            let product = Product::build(Needs::Package)?;
            let tally = packages::check();
            product::say_packages(&product);
            Ok(tally.failed == 0)
        }
        Command::Fuzz { seconds, only } => fuzz::run(seconds, &only).map(|tally| {
            println!("{tally}");
            tally.failed == 0
        }),
        Command::Budgets => budgets::print(),
        Command::Layers => layers::check(&root),
    }
}

/// What the suite's terminal has shown, out of what the suite has printed.
fn record() -> Result<bool> {
    const SUITE: &str = "first-steps";
    const FILE: &str = "docs/first-steps.cast";
    if !run_suites(&[SUITE.to_owned()], None, None, false)? {
        return Ok(false);
    }
    let transcript = super::session::transcript(SUITE);
    let lines: Vec<&str> = transcript.lines().filter_map(|line| line.strip_prefix(suite::CAST)).collect();
    ensure!(lines.len() > 10, "the suite has printed no recording");
    std::fs::write(FILE, lines.join("\n") + "\n").with_context(|| format!("write {FILE}"))?;
    Ok(true)
}

fn run_suites(names: &[String], only: Option<&str>, seed: Option<u64>, as_built: bool) -> Result<bool> {
    let suites = if names.is_empty() {
        suite::all()
    } else {
        names.iter().map(|name| suite::find(name)).collect::<Result<Vec<_>>>()?
    };
    let needs = suites.iter().map(|suite| needs(suite.setup)).max().unwrap_or(Needs::Nothing);
    let product = product(needs, as_built)?;
    let mut good = true;
    let sample = seed.or_else(|| names.is_empty().then(How::draw));
    let mut runs = Suites::new(&product, How { quiet: false, sample });
    for (index, suite) in suites.iter().enumerate() {
        let tally = runs.run(suite, only, suites.get(index + 1))?;
        good &= tally.failed == 0 && tally.passed > 0;
    }
    Ok(good)
}

fn product(needs: Needs, as_built: bool) -> Result<Product> {
    if as_built { Ok(Product::as_built(needs)) } else { Product::build(needs) }
}

/// What has to be built for a suite.
pub(super) fn needs(setup: Setup) -> Needs {
    match setup {
        Setup::Nothing => Needs::Nothing,
        Setup::Package | Setup::Installed => Needs::Package,
        Setup::Vmm | Setup::Still | Setup::Guests | Setup::Neighbours => Needs::Guests,
    }
}
