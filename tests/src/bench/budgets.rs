//! The helper's budgets and what is used of them. Sizes are counted here; what only a running host
//! can tell comes from the last run of the suite `install`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::session::report_folder;
use crate::suite::Report;

/// Lines of Rust of the helper without tests, blank lines and comments.
const LINES: usize = 3000;
/// The same with the rules that only the helper uses: whoever reads the helper reads them too.
const LINES_WITH_RULES: usize = 5000;
/// The module of `policy` that has those rules. [`misplaced`] checks that no other program uses it.
const RULES: &str = "helper";
/// The other programs that are shipped. (`banger-proto` may use the rules: it carries the helper's
/// own answers.)
const OTHERS: &[&str] = &[
    "bangerd/src",
    "banger/src",
    "banger-files/src",
    "banger-guest/src",
    "banger-image/src",
    "banger-vmm/src",
    "banger-link/src",
];
const POLICY: &str = "policy/src";
/// Crates that the helper is built from, itself and the workspace's own included.
const CRATES: usize = 85;

#[expect(clippy::print_stdout, reason = "the numbers are what was asked for")]
pub(super) fn print() -> Result<bool> {
    let (code, all) = lines(Path::new("banger-priv/src"))?;
    let with_rules = code + lines(&Path::new(POLICY).join(RULES))?.0;
    let misplaced = misplaced()?;
    let crates = crates("banger-priv")?;
    println!("banger-priv lines of code   {code:>6} of {LINES} (with comments and blanks {all})");
    println!("  with policy::{RULES} {with_rules:>19} of {LINES_WITH_RULES}");
    for line in &misplaced {
        println!("  WRONG: {line}");
    }
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
    Ok(code <= LINES && with_rules <= LINES_WITH_RULES && misplaced.is_empty() && crates.len() <= CRATES)
}

/// [`RULES`], when another program uses it, and modules that the helper alone uses and that are not
/// in it.
fn misplaced() -> Result<Vec<String>> {
    let (mut others, mut helper) = (String::new(), String::new());
    for folder in OTHERS {
        read_all(Path::new(folder), &mut others)?;
    }
    read_all(Path::new("banger-priv/src"), &mut helper)?;
    let library = fs::read_to_string(Path::new(POLICY).join("lib.rs")).context("read policy's lib.rs")?;
    let modules = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    // What the library gives out under its own name is everybody's.
    let shared = |module: &str| uses(&others, module) || library.contains(&format!("pub use {module}::"));
    let alone = modules.filter(|module| *module != RULES && uses(&helper, module) && !shared(module));
    let mut wrong: Vec<String> =
        alone.map(|module| format!("policy::{module} is the helper's alone: move it into policy::{RULES}")).collect();
    if shared(RULES) {
        wrong.push(format!("policy::{RULES} is not the helper's alone: move out what another program uses"));
    }
    Ok(wrong)
}

fn read_all(folder: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(())
}

/// Does this source name a module of `policy`, by itself or in a group of imports?
fn uses(source: &str, module: &str) -> bool {
    source.split("banger_policy::").skip(1).any(|rest| {
        let names = match rest.strip_prefix('{') {
            Some(group) => group.split(';').next().unwrap_or_default(),
            None => rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default(),
        };
        names.split(|c: char| !c.is_alphanumeric() && c != '_').any(|name| name == module)
    })
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

/// Tests stand in a file `*_tests.rs` or at the foot of one: everything from `#[cfg(test)]` before
/// a `mod` on is left out.
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
    fn a_module_is_found_in_each_way_to_name_it() {
        for source in ["use banger_policy::row::Row;", "use banger_policy::{VmId, row};", "x(banger_policy::row::a())"]
        {
            assert!(uses(source, "row"), "{source}");
        }
        for source in ["use banger_policy::rows::Row;", "use banger_policy::{VmId, net}; let row = 1;", "row::Row"] {
            assert!(!uses(source, "row"), "{source}");
        }
    }

    #[test]
    fn comments_blanks_and_tests_are_no_code() {
        let text = "//! doc\n\nfn a() {\n    // why\n    b();\n}\n\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n    fn c() {}\n}\n";
        assert_eq!(count(text), (3, 7));
        assert_eq!(count("#[cfg(test)]\nuse x;\nfn y() {}\n"), (3, 3));
    }
}
