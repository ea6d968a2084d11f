//! Fuzzing with libFuzzer, in `fuzz/`: decoders of frames, the ledger's parser, the policy. `make
//! test` does a little of it, `make fuzz` more.
//!
//! The instrumentation is what cargo-fuzz asks of the compiler, without the tool and without the
//! address sanitizer: there is no unsafe code in what is fuzzed, and panics, overflows and the
//! targets' own assertions need none.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::shown;
use super::tally::Tally;

const BUILD: Duration = Duration::from_secs(20 * 60);
/// A single input that takes longer than this is a finding, seconds.
const INPUT_LIMIT: u32 = 10;
/// Memory that no input may need, MiB.
const MEMORY_LIMIT: u32 = 512;
/// With `--target`, so that these do not reach build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// Fuzzes every target for `seconds`, or those whose name contains `only`; a target is one test.
pub(super) fn run(seconds: u32, only: &str) -> Result<Tally> {
    build()?;
    let mut tally = Tally::default();
    for target in targets()?.into_iter().filter(|target| target.contains(only)) {
        let passed = one(&target, seconds).unwrap_or_else(|error| {
            eprintln!("bench: fuzz {target}: {error:#}");
            false
        });
        tally += if passed { Tally::PASS } else { Tally::FAIL };
    }
    ensure!(tally != Tally::default(), "no target in fuzz/fuzz_targets has {only:?} in its name");
    Ok(tally)
}

fn build() -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .args(["build", "--quiet", "--locked", "--release", "--bins", "--target", TARGET])
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target-dir", "fuzz/target"])
        .env("RUSTFLAGS", COVERAGE);
    shown::must(command, BUILD).map(drop)
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("fuzz/fuzz_targets").context("read fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Bytes of an input. The smallest archives have some thousands.
fn longest(target: &str) -> u32 {
    if matches!(target, "image" | "kernel" | "work_disk") { 20_000 } else { 4096 }
}

/// Inputs that count as a run, at least. A stack of layers becomes two file systems.
fn least(target: &str) -> u64 {
    if target == "stack" { 100 } else { 1000 }
}

fn one(target: &str, seconds: u32) -> Result<bool> {
    // New inputs are kept outside of the committed corpus; what is worth committing is chosen by
    // hand (`-merge=1`).
    let found = format!("fuzz/target/found/{target}");
    let artifacts = format!("fuzz/artifacts/{target}/");
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("create {folder}"))?;
    }
    let corpus = format!("fuzz/corpus/{target}");
    ensure!(Path::new(&corpus).is_dir(), "{corpus} is missing");
    let mut command = Command::new(format!("fuzz/target/{TARGET}/release/{target}"));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .arg(format!("-artifact_prefix={artifacts}"))
        .args([&format!("-max_len={}", longest(target)), "-verbosity=1", "-print_final_stats=1", &found, &corpus]);
    eprintln!("bench: fuzz {target} for {seconds} s");
    let shown = shown::captured(command, Duration::from_secs(u64::from(seconds) + 120))?;
    let last: Vec<&str> =
        shown.text.lines().filter(|line| line.contains("cov: ") || line.starts_with("stat::")).collect();
    let stat = |name: &str| {
        let line = last.iter().rev().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.map_or("?", str::trim)
    };
    let coverage = last.iter().rev().find_map(|line| line.split("cov: ").nth(1)?.split(' ').next()).unwrap_or("?");
    let executed = stat("number_of_executed_units");
    eprintln!(
        "bench: fuzz {target}: {executed} inputs, {coverage} edges, {} new, {} MiB at most",
        stat("new_units_added"),
        stat("peak_rss_mb")
    );
    let good = shown.status.success() && executed.parse::<u64>().is_ok_and(|count| count > least(target));
    if !good {
        eprintln!(
            "{}\nbench: the input is below {artifacts}; run the program with it as its only argument",
            shown.text
        );
    }
    Ok(good)
}
