//! `doctor`: what this user and this host need. What only the daemon can see, the daemon checks.

use crate::cli::{Doctor, Json};
use crate::client::{Client, answer, soon, watching};
use crate::error::FAILED;
use crate::{output, programs};
use banger_proto::model::{Check, CheckStatus, Leak, Leaks};
use nix::sys::utsname::uname;
use std::path::Path;

/// Linux and systemd below these have no branches here: major and minor, and the version.
const LINUX_FLOOR: (u32, u32) = (6, 12);
const SYSTEMD_FLOOR: u32 = 254;
const FLOOR: &str = "banger needs Linux 6.12 and systemd 254 or newer (Debian 13, Ubuntu 26.04, RHEL 10, Fedora)";

pub(super) async fn run(asked: Doctor) -> anyhow::Result<u8> {
    if asked.leaks {
        return leaks(asked.fix, asked.json).await;
    }
    let json = asked.json;
    let mut checks = vec![systemd(), ssh()];
    let daemon = async { answer(Client::connect().await?.rpc.doctor(soon())).await };
    match daemon.await {
        Ok(more) => {
            checks.push(check("bangerd", CheckStatus::Pass, "answers"));
            checks.extend(more);
        }
        Err(error) => {
            // Nobody else says it when the daemon does not.
            checks.insert(0, linux());
            let hint = error.chain().find_map(|cause| cause.downcast_ref::<crate::error::Explained>());
            let hint = hint.map(|e| format!("; {}", e.hint())).unwrap_or_default();
            checks.push(check("bangerd", CheckStatus::Fail, &format!("{error:#}{hint}")));
        }
    }
    let failed = checks.iter().any(|check| check.status == CheckStatus::Fail);
    if json.json {
        output::json(&checks)?;
    } else {
        let rows: Vec<Vec<String>> =
            checks.iter().map(|c| vec![word(c.status).into(), c.name.clone(), c.detail.clone()]).collect();
        output::table(&["", "CHECK", "FOUND"], &rows, |column, cell| match (column, cell) {
            (0, "ok") => Some(32),
            (0, "FAIL") => Some(31),
            (0, "warn") => Some(33),
            _ => None,
        })?;
    }
    Ok(if failed { FAILED } else { 0 })
}

/// What belongs to no VM. Fails while something of it is left.
async fn leaks(fix: bool, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let Leaks { leaks, more } = answer(client.rpc.leaks(watching(), fix)).await?;
    let left = more > 0 || leaks.iter().any(|leak| leak.fixed != Some(true));
    if more > 0 {
        output::note(&format!("{more} more are not shown: the first have to be released before"));
    }
    if json.json {
        output::json(&leaks)?;
    } else if leaks.is_empty() {
        output::line("nothing is left behind")?;
    } else {
        let state = |leak: &Leak| match leak.fixed {
            None => "found",
            Some(true) => "released",
            Some(false) => "FAILED",
        };
        let rows: Vec<Vec<String>> = leaks
            .iter()
            .map(|leak| vec![state(leak).into(), leak.kind.to_string(), leak.name.clone(), leak.detail.clone()])
            .collect();
        output::table(&["", "KIND", "NAME", "WHAT"], &rows, |column, cell| match (column, cell) {
            (0, "released") => Some(32),
            (0, "FAILED") => Some(31),
            _ => None,
        })?;
        if leaks.iter().any(|leak| leak.fixed == Some(false)) {
            output::note("`journalctl -u bangerd -u banger-priv` says why something could not be released");
        } else if left {
            output::note("bangerd releases by itself, within two minutes, what has no data in it");
            output::note(
                "`banger doctor --leaks --fix` removes all of it at once, disks and images too: if the database is an older copy, bring the right one back first",
            );
        }
    }
    Ok(if left { FAILED } else { 0 })
}

fn word(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Pass => "ok",
        CheckStatus::Warn => "warn",
        CheckStatus::Fail => "FAIL",
    }
}

fn check(name: &str, status: CheckStatus, detail: &str) -> Check {
    Check { name: name.to_owned(), status, detail: detail.to_owned() }
}

fn linux() -> Check {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    match linux_version(&release) {
        Some(version) if version >= LINUX_FLOOR => check("linux", CheckStatus::Pass, &release),
        Some(_) => check("linux", CheckStatus::Fail, &format!("{release}: {FLOOR}")),
        None => check("linux", CheckStatus::Warn, &format!("cannot read the release {release:?}")),
    }
}

/// `6.12.41+deb13-amd64` is 6.12.
fn linux_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn systemd() -> Check {
    // sd_booted(3)
    if !Path::new("/run/systemd/system").is_dir() {
        return check(
            "systemd",
            CheckStatus::Warn,
            "this host was not booted by systemd: the packaged services do not run",
        );
    }
    let said = programs::find("systemctl")
        .ok()
        .and_then(|path| std::process::Command::new(path).arg("--version").output().ok());
    let text = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    let version: Option<u32> = text.split_whitespace().nth(1).and_then(|version| version.parse().ok());
    match version {
        Some(version) if version >= SYSTEMD_FLOOR => check("systemd", CheckStatus::Pass, &version.to_string()),
        Some(version) => check("systemd", CheckStatus::Fail, &format!("{version}: {FLOOR}")),
        None => check("systemd", CheckStatus::Warn, "cannot ask systemctl for its version"),
    }
}

fn ssh() -> Check {
    match programs::find("ssh").and_then(|ssh| Ok((ssh, programs::find("ssh-keygen")?))) {
        Ok((ssh, _)) => check("ssh", CheckStatus::Pass, &ssh.display().to_string()),
        Err(error) => check("ssh", CheckStatus::Warn, &format!("{error:#}; `banger vm ssh` needs OpenSSH's client")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(linux_version("6.12.41+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(linux_version("7.0-rc1"), Some((7, 0)));
        assert_eq!(linux_version("strange"), None);
        assert!((6, 9) < LINUX_FLOOR && (7, 0) > LINUX_FLOOR);
    }
}
