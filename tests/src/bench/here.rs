//! What `make bench` measures on this machine itself: no host VM, so no emulation.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::shown;

/// The daemon and its tests, built for speed.
const BUILD: Duration = Duration::from_secs(30 * 60);
/// A daemon over many rows of dead VMs, with a simulated helper. Each test prints what it measures.
const MANY: &str = "test --quiet --release --locked -p bangerd --lib vm::tests::many:: -- --include-ignored --nocapture --test-threads 1";

#[expect(clippy::print_stdout, reason = "the result is what was asked for")]
pub(super) fn reconcile() -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(MANY.split(' ')).env("CARGO_TERM_COLOR", "never");
    eprintln!("bench: cargo {MANY}");
    let shown = shown::captured(command, BUILD)?;
    ensure!(shown.status.success(), "{}", shown.text);
    let lines: Vec<&str> = shown.text.lines().filter(|line| line.contains(" rows: ")).collect();
    ensure!(lines.len() == 2, "the tests have not measured what they should: {lines:?}");
    lines.iter().for_each(|line| println!("simulated helper, {}", line.trim()));
    Ok(())
}
