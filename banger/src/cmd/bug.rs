//! `bug`: one file for whoever is asked for help. It holds what banger itself knows; nothing of
//! what is in a VM, and what looks like a secret is crossed out.

use super::{doctor, job, list};
use crate::cli::Bug;
use crate::client::{Client, answer, soon};
use crate::machine::{self, Address};
use crate::{output, programs};
use anyhow::Context as _;
use banger_proto::model::JobView;
use banger_proto::time::Timestamp;
use flate2::{Compression, GzBuilder};
use serde::Serialize;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of the journal.
const LINES: &str = "500";

/// Files of the host that say what it is, and hold no secret.
const HOST: [(&str, &str); 6] = [
    ("host/os-release", "/etc/os-release"),
    ("host/version", "/proc/version"),
    ("host/meminfo", "/proc/meminfo"),
    ("host/routes", "/proc/net/route"),
    ("host/modules", "/proc/modules"),
    ("host/banger.toml", "/etc/banger/banger.toml"),
];

const README: &str = "\
Written by `banger bug`. Look through it before you send it to anybody.

  doctor.json    what `banger doctor` found
  versions.json  what bangerd says of itself
  vms.json       your VMs as banger keeps them: names, addresses, sizes, paths
  jobs.json      what was done with them, and why something failed
  host/          distribution, kernel, memory, routes, modules, /etc/banger/banger.toml
  journal.txt    the last lines of bangerd and banger-priv, if you may read them

Not in it: what is in a VM, consoles, images, keys, environment variables, logins to registries.
Values behind words such as password or token, and logins in addresses, are crossed out.
";

pub(super) async fn run(asked: Bug) -> anyhow::Result<u8> {
    let now = Timestamp::now();
    let path = asked.output.unwrap_or_else(|| PathBuf::from(format!("banger-bug-{}.tar.gz", now.unix())));
    let mut files = vec![("README.txt".to_owned(), README.to_owned() + &of_which_machines(machine::chosen()))];
    files.push(("doctor.json".to_owned(), json(&doctor::all().await)?));
    files.extend(of_daemon().await);
    for (name, path) in HOST {
        files.push((
            name.to_owned(),
            std::fs::read_to_string(path).unwrap_or_else(|error| format!("{path}: {error}\n")),
        ));
    }
    files.push(("journal.txt".to_owned(), journal()));
    write(&path, &files, now).with_context(|| format!("cannot write {}", path.display()))?;
    output::line(&path.display().to_string())?;
    output::note("look through it before you send it: tar tzf, and the file README.txt in it says what is there");
    Ok(0)
}

/// With `--host` a bundle is about two machines.
fn of_which_machines(other: Option<&Address>) -> String {
    let Some(other) = other else { return String::new() };
    format!(
        "\nIt is about two machines. Of {other}: versions.json, vms.json, jobs.json, and what bangerd says in\n\
         doctor.json. Of the machine where it was written: host/, journal.txt, and the first checks of doctor.json\n\
         (before \"bangerd\").\n"
    )
}

/// What the daemon tells this user; why not, where it does not.
async fn of_daemon() -> Vec<(String, String)> {
    let client = match Client::connect().await {
        Ok(client) => client,
        Err(error) => return vec![("bangerd.txt".to_owned(), format!("{error:#}\n"))],
    };
    let versions = answer(client.rpc.info(soon())).await.and_then(|info| json(&info));
    let vms = list::records(&client, false).await.and_then(|mut vms| {
        // Where a repository came from is nobody's business here, and the names of sockets are
        // known to owner and daemon only.
        for vm in &mut vms {
            vm.workspace = None;
            vm.runtime.api_sock_path.clear();
            vm.runtime.vsock_path.clear();
        }
        json(&vms)
    });
    let jobs = own_jobs(&client).await.and_then(|jobs| json(&jobs));
    let named = [("versions.json", versions), ("vms.json", vms), ("jobs.json", jobs)];
    named.map(|(name, text)| (name.to_owned(), text.unwrap_or_else(|error| format!("{error:#}\n")))).into()
}

/// Root and administrators are given everybody's jobs.
async fn own_jobs(client: &Client) -> anyhow::Result<Vec<JobView>> {
    let all = job::views(client).await?;
    // On another machine the user has another number, which the daemon there knows.
    let page = answer(client.rpc.quotas(soon(), false, None)).await?;
    let me = page.quotas.first().context("bangerd does not say whose jobs are yours")?.owner;
    Ok(all.into_iter().filter(|job| job.owner == me).collect())
}

fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn journal() -> String {
    let said = programs::find("journalctl").and_then(|journalctl| {
        let units = ["--unit", "bangerd", "--unit", "banger-priv", "--unit", "banger-guests"];
        Ok(Command::new(journalctl)
            .args(units)
            .args(["--lines", LINES, "--no-pager", "--output", "short-iso"])
            .output()?)
    });
    match said {
        Ok(said) => String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned(),
        Err(error) => format!("{error:#}\n"),
    }
}

/// For the caller alone, and never over a file that is there.
fn write(path: &Path, files: &[(String, String)], now: Timestamp) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzBuilder::new().write(file, Compression::default()));
    for (name, text) in files {
        let text = crossed_out(text);
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_mtime(now.unix());
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        archive.append_data(&mut header, format!("banger-bug/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()?;
    Ok(())
}

/// Words whose value is not for others, as they stand before `=` or `:`.
const SECRET: [&str; 7] = ["password", "passwd", "secret", "token", "authorization", "api_key", "apikey"];

/// The text with `***` for the value behind such a word, and for a login in an address
/// (`https://user:word@host`).
fn crossed_out(text: &str) -> String {
    text.split_inclusive('\n').map(|line| without_login(&without_value(line))).collect()
}

fn without_value(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let found = SECRET.iter().flat_map(|word| lower.match_indices(word).map(|(at, word)| at + word.len()));
    let value = found.filter_map(|after| {
        let sign = lower.get(after..)?.find(['=', ':'])?;
        // Something else may stand between a word of a sentence and the next colon.
        let between = lower.get(after..after + sign)?;
        between.chars().all(|c| c == '"' || c == ' ' || c == '_').then_some(after + sign + 1)
    });
    match value.min().and_then(|from| line.get(..from)) {
        Some(kept) => format!("{kept} ***{}", if line.ends_with('\n') { "\n" } else { "" }),
        None => line.to_owned(),
    }
}

fn without_login(line: &str) -> String {
    let (mut kept, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once("://") {
        kept += before;
        kept += "://";
        // A password may have a slash in it.
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).unwrap_or(after.len());
        let (host, tail) = after.split_at(end);
        match host.rsplit_once('@') {
            Some((_, host)) => kept += &format!("***@{host}"),
            None => kept += host,
        }
        rest = tail;
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secrets_are_crossed_out_and_the_rest_stays() {
        for (text, shown) in [
            ("HTTPS_PROXY=http://alice:hunter2@proxy:3128/ x\n", "HTTPS_PROXY=http://***@proxy:3128/ x\n"),
            ("a https://token@host b https://plain/p\n", "a https://***@host b https://plain/p\n"),
            ("  \"Password\": \"hunter2\",\n", "  \"Password\": ***\n"),
            ("registry_token=abc", "registry_token= ***"),
            ("https://auth/token?scope=a&access_token=SECRET\n", "https://auth/token?scope=a&access_token= ***\n"),
            ("from https://u:pa/ss@host/x\n", "from https://***@host/x\n"),
            ("Authorization: Bearer abc\nnext\n", "Authorization: ***\nnext\n"),
            ("the token of the turn was taken by alice: fine\n", "the token of the turn was taken by alice: fine\n"),
            ("mail alice@example\n", "mail alice@example\n"),
        ] {
            assert_eq!(crossed_out(text), shown);
        }
    }

    #[test]
    fn a_bundle_of_two_machines_says_which_part_is_of_which() {
        assert_eq!(of_which_machines(None), "");
        let said = of_which_machines(Some(&"ssh://alice@lab".parse().unwrap()));
        assert!(said.contains("Of ssh://alice@lab: versions.json") && said.contains("host/, journal.txt"), "{said}");
    }

    #[test]
    fn the_bundle_is_for_its_owner_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bug.tar.gz");
        let files = [("a.txt".to_owned(), "secret: 1\n".to_owned()), ("b/c.txt".to_owned(), "plain\n".to_owned())];
        write(&path, &files, Timestamp::from_unix(1_700_000_000)).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let file = std::fs::File::open(&path).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let found: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [("banger-bug/a.txt", "secret: ***\n"), ("banger-bug/b/c.txt", "plain\n")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        assert!(write(&path, &files, Timestamp::now()).is_err(), "a file that is there is not replaced");
    }
}
