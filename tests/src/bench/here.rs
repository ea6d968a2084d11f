//! What `make bench` measures on this machine itself: no host VM, so no emulation.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::shown;

/// The daemon and its tests, built for speed.
const BUILD: Duration = Duration::from_secs(30 * 60);
/// A daemon over a thousand rows of dead VMs, with a simulated helper. It prints what it measures.
const THOUSAND: &str =
    "test --quiet --release --locked -p bangerd --lib a_thousand_dead_vms_are_listed -- --nocapture --test-threads 1";

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn reconcile() -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(THOUSAND.split(' ')).env("CARGO_TERM_COLOR", "never");
    eprintln!("bench: cargo {THOUSAND}");
    let shown = shown::captured(command, BUILD)?;
    ensure!(shown.status.success(), "{}", shown.text);
    let line = shown.text.lines().find(|line| line.contains(" rows: "));
    println!("simulated helper, {}", line.context("the test has measured nothing")?.trim());
    Ok(())
}
