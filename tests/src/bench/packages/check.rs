//! Whether the packages are fit to be published. Each check says what it found; what cannot be
//! looked at here (a program is missing) is said and counts as skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{DEB, LIMIT, RPM, files, make_into};
use crate::bench::shown;
use crate::bench::tally::Tally;

/// The newest C library that a program may ask for: that of Ubuntu 24.04 and RHEL 10.
const GLIBC: (u32, u32) = (2, 39);
const PROGRAMS: [&str; 3] = ["target/release/banger", "target/release/bangerd", "target/helper/banger-priv"];
const STATIC: &str = "target/guest/x86_64-unknown-linux-gnu/release/banger-guest";

/// What a check found, or why it could not look.
enum Found {
    Good(String),
    Skipped(&'static str),
}

type Look = fn() -> Result<Found>;

/// All checks of what [`super::make`] has written.
#[expect(clippy::print_stdout, reason = "what was found is what was asked for")]
pub(in crate::bench) fn check() -> Tally {
    let checks: [(&str, Look); 5] = [
        ("the same files in both", same_files),
        ("made again: the same bytes", same_bytes),
        ("C library", c_library),
        ("lintian", lintian),
        ("rpmlint", rpmlint),
    ];
    let mut tally = Tally::default();
    for (name, look) in checks {
        match look() {
            Ok(Found::Good(found)) => {
                println!("{name}: {found}");
                tally.passed += 1;
            }
            Ok(Found::Skipped(why)) => {
                println!("skipped: {name}: {why}");
                tally.skipped += 1;
            }
            Err(error) => {
                println!("FAILED: {name}: {error:#}");
                tally.failed += 1;
            }
        }
    }
    tally
}

/// Path, and permissions.
type Listing = BTreeMap<String, u32>;

fn same_files() -> Result<Found> {
    let (Some(deb), Some(rpm)) = (deb_listing()?, rpm_listing()?) else {
        return Ok(Found::Skipped("needs dpkg-deb and rpm"));
    };
    let expected: Listing = deb.iter().map(|(path, mode)| (files::in_rpm(path), *mode)).collect();
    let of = |listing: &Listing, path: &str| listing.get(path).map_or("none".to_owned(), |mode| format!("{mode:o}"));
    let differ: Vec<String> = expected
        .keys()
        .chain(rpm.keys())
        .filter(|path| expected.get(*path) != rpm.get(*path))
        .map(|path| format!("{path}: .deb {}, .rpm {}", of(&expected, path), of(&rpm, path)))
        .collect();
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    Ok(Found::Good(format!("{} files", rpm.len())))
}

fn deb_listing() -> Result<Option<Listing>> {
    let Some(bytes) = output("dpkg-deb", &["--fsys-tarfile", DEB])? else { return Ok(None) };
    let mut listing = Listing::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().context("read the .deb")? {
        let entry = entry.context("read the .deb")?;
        if entry.header().entry_type().is_file() {
            let path = entry.path().context("a path of the .deb")?.display().to_string();
            listing.insert(
                format!("/{}", path.trim_start_matches("./").trim_start_matches('/')),
                entry.header().mode()? & 0o7777,
            );
        }
    }
    Ok(Some(listing))
}

fn rpm_listing() -> Result<Option<Listing>> {
    let format = "[%{FILEMODES:octal} %{FILENAMES}\\n]";
    let Some(bytes) = output("rpm", &["--query", "--package", "--queryformat", format, RPM])? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).context("what rpm prints")?;
    let mut listing = Listing::new();
    for line in text.lines() {
        let (mode, path) = line.split_once(' ').with_context(|| format!("what rpm prints: {line}"))?;
        let mode = u32::from_str_radix(mode, 8).with_context(|| format!("a mode that rpm prints: {line}"))?;
        // Folders have a bit of their own.
        if mode & 0o170_000 == 0o100_000 {
            listing.insert(path.to_owned(), mode & 0o7777);
        }
    }
    Ok(Some(listing))
}

fn same_bytes() -> Result<Found> {
    let folder = Path::new("target/package/again");
    let pairs = [(DEB, folder.join("banger.deb")), (RPM, folder.join("banger.rpm"))];
    make_into(&pairs[0].1, &pairs[1].1)?;
    for (first, second) in &pairs {
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let (first_bytes, second_bytes) = (read(Path::new(first))?, read(second)?);
        ensure!(first_bytes == second_bytes, "{first} and {} differ", second.display());
    }
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    Ok(Found::Good("yes".to_owned()))
}

fn c_library() -> Result<Found> {
    let mut newest = (0, 0);
    for program in PROGRAMS {
        let Some(bytes) = output("objdump", &["--dynamic-syms", program])? else {
            return Ok(Found::Skipped("needs objdump"));
        };
        let needs = wanted_glibc(&String::from_utf8_lossy(&bytes))
            .with_context(|| format!("{program} names no version of the C library"))?;
        ensure!(needs <= GLIBC, "{program} needs glibc {}.{}, newer than {}.{}", needs.0, needs.1, GLIBC.0, GLIBC.1);
        newest = newest.max(needs);
    }
    let Some(headers) = output("objdump", &["--private-headers", STATIC])? else {
        return Ok(Found::Skipped("needs objdump"));
    };
    let headers = String::from_utf8_lossy(&headers).into_owned();
    ensure!(!headers.contains("NEEDED"), "{STATIC} needs shared libraries, which the images of guests may not have");
    Ok(Found::Good(format!("the programs need glibc {}.{}, the guest's none", newest.0, newest.1)))
}

/// The newest `GLIBC_2.34` in a list of symbols.
fn wanted_glibc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let mut numbers = rest.get(..end)?.split('.').map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max()
}

fn lintian() -> Result<Found> {
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--fail-on", "error", "--tag-display-limit", "0", DEB]);
    lint(command, "needs lintian (Debian package lintian)")
}

fn rpmlint() -> Result<Found> {
    let mut command = Command::new("rpmlint");
    command.args(["--config", "packaging/rpm/rpmlint.toml", RPM]);
    lint(command, "needs rpmlint (Debian package rpmlint)")
}

fn lint(command: Command, missing: &'static str) -> Result<Found> {
    if !there(&command.get_program().display().to_string()) {
        return Ok(Found::Skipped(missing));
    }
    let ended = shown::captured(command, LIMIT)?;
    ensure!(ended.status.success(), "\n{}", ended.text);
    let lines = ended.text.lines().filter(|line| line.contains("W: ") || line.contains(": W:"));
    let warnings: Vec<String> = lines.map(|line| format!("\n  {line}")).collect();
    Ok(Found::Good(format!("no errors, {} warnings{}", warnings.len(), warnings.concat())))
}

/// What a program prints; `None` when it is not installed.
fn output(program: &str, words: &[&str]) -> Result<Option<Vec<u8>>> {
    if !there(program) {
        return Ok(None);
    }
    let ended = Command::new(program).args(words).output().with_context(|| format!("run {program}"))?;
    if !ended.status.success() {
        bail!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(Some(ended.stdout))
}

fn there(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_and_not_the_last() {
        let symbols = "0000 DF *UND* 0000 (GLIBC_2.2.5) read\n0000 DF *UND* (GLIBC_2.34) pthread\n (GLIBC_2.9) x\n";
        assert_eq!(wanted_glibc(symbols), Some((2, 34)));
        assert!(wanted_glibc("0000 DF *UND* 0000 GLIBC_2.41 x\n").is_some_and(|wanted| wanted > GLIBC));
        assert_eq!(wanted_glibc("no symbols"), None);
    }
}
