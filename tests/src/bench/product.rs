//! Builds what goes into the host VM: release binaries, the static guest program, the package, the
//! VMM and the suite runner.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{packages, shown};
use crate::hostvm::payload::Payload;

/// Cold builds on two slow cores end well within this.
const BUILD: Duration = Duration::from_secs(30 * 60);
/// Target of the guest program; with `crt-static` it is one file that needs nothing of the image.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

const SUITE: &str = "target/debug/banger-suite";
/// Not a release build: it would compile the dependencies of the bench a second time, for a program
/// that mostly waits.
const STAND_IN: &str = "target/debug/firecracker-standin";
const HOSTILE: &str = "target/debug/hostile-vmm";
const HOSTILE_AGENT: &str = "target/debug/hostile-agent";
const STILL: &str = "target/debug/still-vmm";
const BARE: &str = "target/guest/x86_64-unknown-linux-gnu/release/banger-bare-vsock";
/// Helper and daemon with fail points, for the suites that kill them at each.
const KILLABLE_HELPER: &str = "target/helper/banger-priv-failpoints";
const KILLABLE_DAEMON: &str = "target/release/bangerd-failpoints";

/// How much has to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// The suite runner alone.
    Nothing,
    /// And the package.
    Package,
    /// And a VMM.
    Guests,
}

/// What was built.
#[derive(Debug)]
pub(super) struct Product {
    suite: PathBuf,
    package: Option<PathBuf>,
    vmm: Option<PathBuf>,
    /// `firecracker` or `stand-in`.
    pub(super) vmm_name: &'static str,
}

impl Product {
    /// Builds; what is fresh is not built again.
    pub(super) fn build(needs: Needs) -> Result<Self> {
        Self::build_with(needs, &["-p", "banger-tests", "--bins"])
    }

    /// The same where the unit tests are built too: with their features, or all dependencies of the
    /// bench are built twice.
    pub(super) fn build_tested(needs: Needs) -> Result<Self> {
        Self::build_with(needs, &["--workspace", "--bins", "--tests"])
    }

    fn build_with(needs: Needs, bench: &[&str]) -> Result<Self> {
        let started = Instant::now();
        cargo(&[&["build", "--quiet", "--locked"], bench].concat(), None)?;
        if needs >= Needs::Guests {
            killable()?;
            guest("banger-bare-vsock")?;
        }
        if needs >= Needs::Package {
            package()?;
        }
        eprintln!("bench: built in {:.0} s", started.elapsed().as_secs_f64());
        Ok(Self::as_built(needs))
    }

    /// What the last build has left, for trying a changed scenario again quickly.
    pub(super) fn as_built(needs: Needs) -> Self {
        let given = given_firecracker();
        let vmm_name = if given.is_some() { "firecracker" } else { "stand-in" };
        Self {
            suite: PathBuf::from(SUITE),
            package: (needs >= Needs::Package).then(|| PathBuf::from(packages::DEB)),
            vmm: (needs >= Needs::Guests).then(|| given.unwrap_or_else(|| PathBuf::from(STAND_IN))),
            vmm_name,
        }
    }

    /// The tar that goes into the host VM.
    pub(super) fn payload(&self, target: &Path) -> Result<()> {
        let mut payload = Payload::default().program(&self.suite, "banger-suite");
        if let Some(package) = &self.package {
            payload = payload.file(package, "banger.deb").file(Path::new(packages::RPM), "banger.rpm");
        }
        if let Some(vmm) = &self.vmm {
            payload = payload
                .program(vmm, "firecracker")
                .program(Path::new(KILLABLE_HELPER), "banger-priv-failpoints")
                .program(Path::new(KILLABLE_DAEMON), "bangerd-failpoints")
                .program(Path::new(STILL), "still-vmm")
                .program(Path::new(HOSTILE), "hostile-vmm")
                .program(Path::new(HOSTILE_AGENT), "hostile-agent")
                .program(Path::new(BARE), "bare-vsock");
        }
        payload.write(target)
    }
}

#[expect(clippy::print_stdout, reason = "the paths are what was asked for")]
pub(super) fn say_packages(product: &Product) {
    if let Some(package) = &product.package {
        println!("{}\n{}", package.display(), packages::RPM);
    }
}

/// A real Firecracker: named by `FIRECRACKER`, or on the search path.
fn given_firecracker() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FIRECRACKER").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join("firecracker"))
        .find(|path| path.is_file())
}

/// Programs of guests have their own target folder: its flags would make every other crate be built
/// again.
fn guest(name: &str) -> Result<()> {
    cargo(
        &[
            "build",
            "--quiet",
            "--locked",
            "--release",
            "-p",
            name,
            "--target",
            GUEST_TARGET,
            "--target-dir",
            "target/guest",
        ],
        Some("-C target-feature=+crt-static"),
    )
}

/// Before the package: both end as the same file of the target folder.
fn killable() -> Result<()> {
    helper(&["--features", "failpoints"])?;
    keep("target/helper/banger-priv", KILLABLE_HELPER)?;
    // Together with the command line, as in the package: by itself it would want its dependencies
    // built once more.
    let words = ["build", "--quiet", "--locked", "--release", "-p", "banger", "-p", "bangerd"];
    cargo(&[&words[..], &["--features", "bangerd/failpoints"]].concat(), None)?;
    keep("target/release/bangerd", KILLABLE_DAEMON)
}

fn keep(built: &str, name: &str) -> Result<()> {
    std::fs::copy(built, name).map(drop).with_context(|| format!("keep {name}"))
}

fn package() -> Result<()> {
    cargo(&["build", "--quiet", "--locked", "--release", "-p", "banger", "-p", "bangerd"], None)?;
    helper(&[])?;
    guest("banger-guest")?;
    packages::make()
}

/// By itself, and with a profile of its own: built together with the daemon, it would carry every
/// feature of a shared dependency that only the daemon wants.
fn helper(more: &[&str]) -> Result<()> {
    let words = ["build", "--quiet", "--locked", "--profile", "helper", "-p", "banger-priv"];
    cargo(&[&words[..], more].concat(), None)
}

fn cargo(words: &[&str], flags: Option<&str>) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words);
    if let Some(flags) = flags {
        command.env("RUSTFLAGS", flags);
    }
    eprintln!("bench: cargo {}", words.join(" "));
    shown::must(command, BUILD).map(drop)
}
