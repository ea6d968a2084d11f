//! The command line of `banger-suite`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use super::list::{self, Reboot, Setup};
use super::peer;
use super::report::print_line;
use super::runner::{self, End, Options, REBOOT_STATUS};
use super::scene::Surroundings;
use crate::inventory::{Inventory, leaks};

/// Scenarios and inventory of the bench, inside the host VM.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a suite; status 0 when nothing failed, 75 or 76 when it asks for a clean or a hard
    /// reboot of the host.
    Run {
        suite: String,
        /// Which VMM lies beside this program.
        #[arg(long, default_value = "stand-in")]
        vmm: String,
        /// Factor for all time limits.
        #[arg(long, default_value_t = 1)]
        slowness: u32,
        /// What earlier suites have left standing in this host.
        #[arg(long, value_enum, default_value_t = Setup::Nothing)]
        standing: Setup,
        /// Only scenarios whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Only a sample of what is long, drawn with this seed.
        #[arg(long)]
        sample: Option<u64>,
        /// Where the JSON report goes.
        #[arg(long, default_value = "/srv/bench/report.json")]
        report: PathBuf,
    },
    /// Lists suites and scenarios.
    List,
    /// Prints the host's inventory as JSON, or its difference to an earlier one.
    Inventory {
        /// An inventory printed before; status 1 when there is a difference.
        #[arg(long)]
        since: Option<PathBuf>,
    },
    /// Plays a peer of the helper; started by suites.
    #[command(hide = true)]
    Peer { role: Vec<String> },
}

/// What `main` calls.
#[must_use]
pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("banger-suite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::List => {
            for suite in list::all().into_iter().chain(list::on_request()) {
                print_line(&format!("{}: {}", suite.name, suite.about));
                for scenario in (suite.scenarios)() {
                    print_line(&format!("  {}", scenario.name));
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Inventory { since } => inventory(since),
        Command::Peer { role } => peer::roles::play(&role).map(|()| ExitCode::SUCCESS),
        Command::Run { suite, vmm, slowness, standing, only, sample, report } => {
            ensure!(nix::unistd::geteuid().is_root(), "the suites run as root, inside the host VM");
            let options = Options { surroundings: Surroundings { vmm, slowness, sample }, standing, only, report };
            match runner::run(&list::find(&suite)?, &options)? {
                End::Reboot(Reboot::Clean) => Ok(REBOOT_STATUS.0.into()),
                End::Reboot(Reboot::Hard) => Ok(REBOOT_STATUS.1.into()),
                End::Done(report) => {
                    print_line(&report.to_string());
                    let (passed, failed, _) = report.counts();
                    // A run in which nothing ran has shown nothing.
                    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
                }
            }
        }
    }
}

fn inventory(since: Option<PathBuf>) -> Result<ExitCode> {
    let now = Inventory::take()?;
    let Some(path) = since else {
        print_line(&serde_json::to_string_pretty(&now)?);
        return Ok(ExitCode::SUCCESS);
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let before: Inventory =
        serde_json::from_str(&text).with_context(|| format!("read the inventory in {}", path.display()))?;
    let difference = leaks(&before, &now, &[]);
    print_line(&difference.to_string());
    Ok(if difference.leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
