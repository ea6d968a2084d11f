//! The packages: one .deb and one .rpm with the same files, made from release programs that are
//! there already.
//!
//! `stage` writes what the tools take, `files` knows which files go where, and `check` says whether
//! the result is fit to be published.

mod check;
mod files;
#[cfg(test)]
mod scripts_tests;
mod stage;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub(super) use check::check;

use super::shown;

pub(super) const DEB: &str = "target/debian/banger.deb";
pub(super) const RPM: &str = "target/rpm/banger.rpm";

/// A tool compresses a few megabytes.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Writes both packages.
pub(super) fn make() -> Result<()> {
    stage::write()?;
    make_into(Path::new(DEB), Path::new(RPM))
}

fn make_into(deb: &Path, rpm: &Path) -> Result<()> {
    let deb_name = deb.to_str().context("name of the .deb")?;
    let rpm_name = rpm.to_str().context("name of the .rpm")?;
    for package in [deb, rpm] {
        let folder = package.parent().context("folder of a package")?;
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    // The programs are stripped when they are built (profile.release).
    tool(&["deb", "--quiet", "--locked", "-p", "banger", "--no-build", "--no-strip", "--output", deb_name])?;
    // Requirements by ldd and not by rpm's own scripts, which only some machines have.
    let metadata = ["--auto-req", "builtin", "--metadata-overwrite", stage::RPM_METADATA];
    tool(&[&["generate-rpm", "-p", "banger"], &metadata[..], &["--output", rpm_name]].concat())?;
    for package in [deb, rpm] {
        ensure!(package.is_file(), "{} was not written", package.display());
    }
    Ok(())
}

fn tool(words: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words);
    // All times in both packages are the commit's, so that the same commit makes the same bytes.
    if let Some(seconds) = commit_time() {
        command.env("SOURCE_DATE_EPOCH", seconds);
    }
    eprintln!("bench: cargo {}", words.join(" "));
    let ended = shown::captured(command, LIMIT)?;
    ensure!(ended.status.success(), "cargo {} failed:\n{}", words.join(" "), ended.text);
    Ok(())
}

/// Seconds since 1970 of the last commit; `None` outside of a repository, where `SOURCE_DATE_EPOCH`
/// of the caller counts.
fn commit_time() -> Option<String> {
    let ended = Command::new("git").args(["log", "-1", "--format=%ct"]).output().ok()?;
    let text = String::from_utf8(ended.stdout).ok()?.trim().to_owned();
    (ended.status.success() && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}
