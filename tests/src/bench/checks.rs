//! `make test`: every check in order, a time for each, all of them run whatever fails before. The
//! last line adds everything up.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::product::{Needs, Product};
use super::tally::{self, Tally};
use super::{budgets, fuzz, lanes, packages, shown};
use crate::{hostvm, suite};

/// The longest single check is a cold build for clippy or the tests.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Of fuzzing, per target.
const FUZZ_SECONDS: u32 = 6;

/// No suite begins later than this after the start: on a slow machine `make test` stays below an
/// hour, whatever is added.
const SUITES_BEGIN: Duration = Duration::from_secs(50 * 60);

/// A stage that was run.
struct Done {
    name: String,
    tally: Tally,
    took: Duration,
    again: Option<&'static str>,
    /// What failed in it, as far as it can be named.
    failures: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "progress and result are what this program is for")]
pub(super) fn run() -> Result<bool> {
    let begun = Instant::now();
    let mut done = Vec::new();
    let mut units = Vec::new();
    let mut stage = |name: &str, work: &mut dyn FnMut() -> Result<Tally>| {
        println!("\n=== {name}");
        let started = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Tally::FAIL
        });
        let stage = Done { name: name.to_owned(), tally, took: started.elapsed(), again: None, failures: Vec::new() };
        println!("=== {name}: {} in {:.0} s", stage.tally, stage.took.as_secs_f64());
        done.push(stage);
    };

    // Beside the builds: most of its time it waits for packages. The first suite waits for it, or
    // makes it again and shows what was wrong.
    std::thread::spawn(hostvm::prepare);
    stage("format", &mut || check("cargo fmt --all --check", &[]));
    stage("clippy", &mut || check("cargo clippy --workspace --all-targets --locked -- -D warnings", &[]));
    stage("licences and sources", &mut || check("cargo deny --offline --locked check bans licenses sources", &[]));
    stage("tests", &mut || tests(&mut units));
    stage("documentation tests", &mut || {
        let shown = output("cargo test --workspace --locked --doc --no-fail-fast", &[])?;
        let mut tally = tally::doctests(&shown.text);
        // A crate whose doctests do not even build prints no result line.
        if !shown.status.success() && tally.failed == 0 {
            tally.failed = 1;
        }
        Ok(tally)
    });
    stage("documentation", &mut || {
        check(
            "cargo doc --workspace --no-deps --locked --document-private-items",
            &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")],
        )
    });

    let mut product = None;
    stage("packages", &mut || {
        product = Some(Product::build_tested(Needs::Guests)?);
        Ok(packages::check())
    });
    stage("fuzz", &mut || fuzz::run(FUZZ_SECONDS, ""));
    // The bench's own control runs even when the package does not build.
    let built = product.is_some();
    let product = product.unwrap_or_else(|| Product::as_built(Needs::Nothing));
    lanes::run(suite::all(), &product, built, begun + SUITES_BEGIN, |ended| {
        println!("\n{}", ended.text.trim_end());
        let mut failures = tally::failures(&ended.text);
        let tally = ended.tally.unwrap_or_else(|error| {
            println!("{}: {error:#}", ended.name);
            failures.push(format!("{error:#}"));
            Tally::FAIL
        });
        println!("=== suite {}: {tally} in {:.0} s", ended.name, ended.took.as_secs_f64());
        done.push(Done {
            name: format!("suite {}", ended.name),
            tally,
            took: ended.took,
            again: ended.again,
            failures,
        });
    });

    // Last: resident memory and exposure are what the suite `install` has measured.
    let tally = budgets::print().map_or(Tally::FAIL, |kept| if kept { Tally::PASS } else { Tally::FAIL });
    done.push(Done { name: "budgets".to_owned(), tally, took: Duration::ZERO, again: None, failures: Vec::new() });

    if let Some(tests) = done.iter_mut().find(|stage| stage.name == "tests") {
        tests.failures = units;
    }
    let mut total = Tally::default();
    println!("\n=== summary");
    for stage in &done {
        let again = stage.again.map(|why| format!(" (begun again: {why})")).unwrap_or_default();
        println!("{:<28} {:>6.0} s  {}{again}", stage.name, stage.took.as_secs_f64(), stage.tally);
        total += stage.tally;
    }
    println!("{:<28} {:>6.0} s, suites side by side", "all", begun.elapsed().as_secs_f64());
    say_failures(&done);
    println!("{total}");
    Ok(total.failed == 0)
}

/// Once more, as the last thing: of a long output often only the end is kept.
#[expect(clippy::print_stdout, reason = "progress and result are what this program is for")]
fn say_failures(done: &[Done]) {
    let failed: Vec<&Done> = done.iter().filter(|stage| stage.tally.failed > 0).collect();
    if !failed.is_empty() {
        println!("\n=== what failed");
    }
    for stage in failed {
        println!("{}: {}", stage.name, stage.tally);
        for failure in &stage.failures {
            println!("  {failure}");
        }
    }
}

/// Where nextest's configuration (`.config/nextest.toml`) puts what each test has said.
const JUNIT: &str = "target/nextest/default/junit.xml";

/// The unit tests. One that comes back early because something is missing here has said so, and
/// counts as skipped.
#[expect(clippy::print_stdout, reason = "progress and result are what this program is for")]
fn tests(failures: &mut Vec<String>) -> Result<Tally> {
    // Of an earlier run, perhaps of one with more to skip.
    let _ = std::fs::remove_file(JUNIT);
    let shown = output("cargo nextest run --workspace --locked --no-fail-fast", &[])?;
    *failures = tally::failures(&shown.text);
    let mut tally = tally::nextest(&shown.text)?;
    let junit = std::fs::read_to_string(JUNIT).with_context(|| format!("read {JUNIT}"))?;
    for skip in tally::skips(&junit) {
        println!("skipped: {}: {}", skip.test, skip.why);
        tally.passed = tally.passed.saturating_sub(1);
        // Root has what such a test waits for: there it must run.
        if skip.why.starts_with("not root") && nix::unistd::geteuid().is_root() {
            tally.failed += 1;
        } else {
            tally.skipped += 1;
        }
    }
    Ok(tally)
}

fn output(line: &str, environment: &[(&str, &str)]) -> Result<shown::Shown> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).env("CARGO_TERM_COLOR", "never").envs(environment.iter().copied());
    shown::run(command, LIMIT, None)
}

fn check(line: &str, environment: &[(&str, &str)]) -> Result<Tally> {
    Ok(if output(line, environment)?.status.success() { Tally::PASS } else { Tally::FAIL })
}
