//! Where packages come from: the machine's own apt configuration, with only the release name
//! replaced. Called by the image builder.
//!
//! Must not know a mirror by itself. A machine that is not Debian names one in
//! `BANGER_BENCH_MIRROR`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Lines of `sources.list` for the given release, and apt options (proxy and the like) that the
/// machine uses itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// Full `deb ...` lines.
    pub(super) lines: Vec<String>,
    /// Options in apt's own `Name "value";` form.
    pub(super) options: Vec<String>,
}

/// Options of the machine's apt that matter for reaching a mirror.
const CARRIED_OPTIONS: &[&str] =
    &["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// Derives the sources for `suite`.
pub(super) fn sources(suite: &str) -> Result<Sources> {
    let lines = match std::env::var("BANGER_BENCH_MIRROR") {
        Ok(mirror) if !mirror.is_empty() => vec![format!("deb {mirror} {suite} main")],
        _ => {
            let targets = output(Command::new("apt-get").args([
                "indextargets",
                "--format",
                "$(REPO_URI)|$(ORIGIN)|$(LABEL)",
                "Created-By: Packages",
            ]))?;
            from_targets(&targets, suite)
        }
    };
    ensure!(
        !lines.is_empty(),
        "apt on this machine has no Debian archive among its sources (run `apt-get update` once, or set BANGER_BENCH_MIRROR to one)"
    );
    let options = carried(&output(Command::new("apt-config").args(["dump", "Acquire"]))?);
    Ok(Sources { lines, options })
}

fn from_targets(targets: &str, suite: &str) -> Vec<String> {
    let mut lines: Vec<String> = targets
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('|');
            let (uri, origin, label) = (fields.next()?, fields.next()?, fields.next()?);
            match (origin, label) {
                ("Debian", "Debian") => Some(format!("deb {uri} {suite} main")),
                ("Debian", "Debian-Security") => Some(format!("deb {uri} {suite}-security main")),
                _ => None,
            }
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

fn carried(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            line.split_once(' ').is_some_and(|(name, value)| CARRIED_OPTIONS.contains(&name) && value != "\"\";")
        })
        .map(str::to_owned)
        .collect()
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{} ended with {}", command.get_program().display(), output.status);
    String::from_utf8(output.stdout).context("its output is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_release_of_debian_sources_is_replaced() {
        let targets = "http://one.example/debian/|Debian|Debian\nhttp://one.example/debian/|Debian|Debian\n\
                       http://one.example/sec/|Debian|Debian-Security\nhttps://other.example/|Elsewhere|Elsewhere\n";
        assert_eq!(
            from_targets(targets, "trixie"),
            ["deb http://one.example/debian/ trixie main", "deb http://one.example/sec/ trixie-security main"]
        );
    }

    #[test]
    fn a_proxy_is_carried_and_an_empty_one_is_not() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://p:1\";\nAcquire::https::Proxy \"\";\nAcquire::Languages \"none\";\n";
        assert_eq!(carried(dump), ["Acquire::http::Proxy \"http://p:1\";"]);
    }
}
