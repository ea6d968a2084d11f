//! `ssh-config`: the file for the user's own `ssh`, `scp`, `git` and editors, which then know each
//! VM as `VM.banger`.

use crate::cli::SshConfig;
use crate::output::{line, note, print};
use crate::programs;
use crate::ssh::{Places, Store, user_config};
use anyhow::Context as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// A VM that nobody has, to ask `ssh` for what it would do with any.
const ANY: &str = "any.banger";

pub(super) fn run(options: &SshConfig) -> anyhow::Result<u8> {
    if options.uninstall {
        return uninstall().context("cannot take banger out of your ssh configuration");
    }
    let what = if options.install { "cannot set up ssh" } else { "cannot make a configuration for ssh" };
    let store = Store::locate().context(what)?;
    let key = store.private_key().context(what)?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let fragment = Places { program: &program, key: &key }.fragment().context(what)?;
    if !options.install {
        print(&fragment)?;
        return Ok(0);
    }
    install(&store, &fragment).context(what)
}

fn install(store: &Store, fragment: &str) -> anyhow::Result<u8> {
    let ours = store.write_config(fragment)?;
    let config = user_config::locate()?;
    if user_config::install(&config, &ours)? {
        line(&format!("{} includes {} now", config.display(), ours.display()))?;
    } else {
        line(&format!("{} includes {} already", config.display(), ours.display()))?;
    }
    line("your VMs are known to ssh, scp, sftp, rsync and git: ssh VM.banger")?;
    warn(&config);
    Ok(0)
}

fn uninstall() -> anyhow::Result<u8> {
    let config = user_config::locate()?;
    let changed = user_config::uninstall(&config)?;
    Store::locate()?.remove_config()?;
    if changed {
        line(&format!("{} is as it was before", config.display()))?;
    } else {
        line(&format!("{} does not name banger", config.display()))?;
    }
    Ok(0)
}

/// What is forwarded for all hosts adds up in `ssh`, and our settings cannot take it back.
fn warn(config: &Path) {
    let Ok(ssh) = programs::find("ssh") else { return };
    let Ok(shown) = Command::new(ssh).args(["-G", ANY]).stdin(Stdio::null()).output() else { return };
    if !shown.status.success() {
        let why = String::from_utf8_lossy(&shown.stderr).trim().to_owned();
        note(&format!("warning: ssh does not understand {}: {why}", config.display()));
        return;
    }
    for forwarding in forwardings(&String::from_utf8_lossy(&shown.stdout)) {
        note(&format!(
            "warning: {} has a forwarding for all hosts, so for VMs too: {forwarding}\n  \
             exclude them there: Host * !*.banger",
            config.display()
        ));
    }
}

fn forwardings(shown: &str) -> impl Iterator<Item = &str> {
    let kinds = ["localforward ", "remoteforward ", "dynamicforward "];
    shown.lines().filter(move |line| kinds.iter().any(|kind| line.starts_with(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_of_forwardings() {
        let shown = "user root\nremoteforward 8080 [localhost]:80\nforwardagent no\nlocalforward 1 [x]:2\n";
        let found: Vec<&str> = forwardings(shown).collect();
        assert_eq!(found, ["remoteforward 8080 [localhost]:80", "localforward 1 [x]:2"]);
    }
}
