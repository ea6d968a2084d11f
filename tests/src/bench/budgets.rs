//! The helper's budgets (security.md section 3) and what is used of them. Sizes are counted here; what only a running host can tell comes from the last
//! run of the suite `install`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::session::report_folder;
use crate::suite::Report;

/// Lines of Rust of the helper without tests, blank lines and comments.
const LINES: usize = 2500;
/// Crates that the helper is built from, itself and the workspace's own included.
const CRATES: usize = 85;

#[expect(clippy::print_stdout, reason = "the numbers are what was asked for")]
pub(super) fn print() -> Result<bool> {
    let (code, all) = lines(Path::new("banger-priv/src"))?;
    // What the helper decides, without I/O; other crates use the rest of it. Shown, because it is read with the helper.
    let (decides, all_of_policy) = lines(Path::new("policy/src"))?;
    let crates = crates("banger-priv")?;
    println!("banger-priv lines of code   {code:>6} of {LINES} (with comments and blanks {all})");
    println!("policy lines of code        {decides:>6} no budget (with comments and blanks {all_of_policy})");
    println!("banger-priv crates          {:>6} of {CRATES}", crates.len());
    println!("  {}", crates.iter().map(String::as_str).collect::<Vec<_>>().join(" "));
    let report = report_folder("install").join("report.json");
    match fs::read(&report).ok().and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok()) {
        Some(report) => {
            for (name, value) in report.results.iter().flat_map(|result| &result.measured) {
                println!("{name:<27} {value:>6}");
            }
        }
        None => println!("resident memory and exposure: run `make host-test SUITE=install` first"),
    }
    Ok(code <= LINES && crates.len() <= CRATES)
}

/// Lines of code, and all lines, outside of test modules.
fn lines(folder: &Path) -> Result<(usize, usize)> {
    let mut sum = (0, 0);
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let (code, all) = if path.is_dir() {
            lines(&path)?
        } else if path.to_str().is_some_and(|name| name.ends_with(".rs") && !name.ends_with("_tests.rs")) {
            count(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)
        } else {
            (0, 0)
        };
        sum = (sum.0 + code, sum.1 + all);
    }
    Ok(sum)
}

/// Tests stand in a file `*_tests.rs` or at the foot of one: everything from `#[cfg(test)]` before a `mod` on is left out.
fn count(text: &str) -> (usize, usize) {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let end = lines
        .windows(3)
        .position(|window| {
            window.first() == Some(&"#[cfg(test)]")
                && window.iter().any(|line| line.starts_with("mod ") && line.ends_with('{'))
        })
        .unwrap_or(lines.len());
    let kept = lines.get(..end).unwrap_or_default();
    (kept.iter().filter(|line| !line.is_empty() && !line.starts_with("//")).count(), kept.len())
}

/// Names and versions of every crate in a package's normal and build dependencies, macros included.
fn crates(package: &str) -> Result<BTreeSet<String>> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--locked",
            "--offline",
            "-p",
            package,
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .output()
        .context("run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("cargo tree is not text")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some(format!("{} {}", words.next()?, words.next()?))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blanks_and_tests_are_no_code() {
        let text = "//! doc\n\nfn a() {\n    // why\n    b();\n}\n\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n    fn c() {}\n}\n";
        assert_eq!(count(text), (3, 7));
        assert_eq!(count("#[cfg(test)]\nuse x;\nfn y() {}\n"), (3, 3));
    }
}
