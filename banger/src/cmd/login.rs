//! `vm ssh` and the `vm proxy` under it. The host key is the one that the daemon made: nothing is trusted on
//! first use.

use crate::client::{Client, answer, soon};
use crate::programs;
use crate::session;
use crate::ssh::{Store, alias, proxy_word};
use anyhow::Context as _;
use banger_proto::daemon::SshAccess;
use banger_proto::stream::StreamRequest;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

pub(super) async fn ssh(vm: String, arguments: &[String]) -> anyhow::Result<u8> {
    let what = format!("cannot log in to {vm}");
    let ssh = programs::find("ssh")?;
    let client = Client::connect().await?;
    let store = Store::locate()?;
    let key = store.private_key()?;
    let public = store.public_key(&key)?;
    let access = answer(client.rpc.ssh_access(soon(), vm, public)).await.context(what.clone())?;
    let known_hosts = store.pin(access.vm, &access.host_key)?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let options = options(&access, &program, &key, &known_hosts)?;
    // `ssh` takes our place: its exit status, its signals and its terminal are the user's.
    let error = Command::new(ssh).args(options).arg(alias(access.vm)).args(arguments).exec();
    Err(error).context("cannot run ssh")
}

/// What comes before the user's own arguments, and, in `ssh`, wins over the user's configuration.
fn options(access: &SshAccess, program: &Path, key: &Path, known_hosts: &Path) -> anyhow::Result<Vec<OsString>> {
    let path = |path: &Path| {
        let text = path.to_str().filter(|text| !text.contains(['"', '\n'])).map(|text| text.replace('%', "%%"));
        text.with_context(|| format!("ssh cannot be given the path {}", path.display()))
    };
    let settings = [
        format!("ProxyCommand={} vm proxy {}", proxy_word(program)?, access.vm),
        format!("HostKeyAlias={}", alias(access.vm)),
        format!("UserKnownHostsFile=\"{}\"", path(known_hosts)?),
        "GlobalKnownHostsFile=/dev/null".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        // A guest must not add keys to what is trusted.
        "UpdateHostKeys=no".to_owned(),
        "VerifyHostKeyDNS=no".to_owned(),
        "CheckHostIP=no".to_owned(),
        format!("IdentityFile=\"{}\"", path(key)?),
        "IdentitiesOnly=yes".to_owned(),
        // Our key and nothing else. A hostile guest would otherwise ask for "your password", and get it.
        "PreferredAuthentications=publickey".to_owned(),
        "PubkeyAuthentication=yes".to_owned(),
        "PasswordAuthentication=no".to_owned(),
        "KbdInteractiveAuthentication=no".to_owned(),
        "HostbasedAuthentication=no".to_owned(),
        "NumberOfPasswordPrompts=0".to_owned(),
        "User=root".to_owned(),
        // A sandbox gets the user's agent and display only when asked for (`-A`, `-X`), never by `Host *`.
        "ForwardAgent=no".to_owned(),
        "ForwardX11=no".to_owned(),
        "ControlPath=none".to_owned(),
    ];
    Ok(settings.into_iter().flat_map(|setting| [OsString::from("-o"), OsString::from(setting)]).collect())
}

pub(super) async fn proxy(vm: String) -> anyhow::Result<u8> {
    let what = format!("cannot reach the ssh server of {vm}");
    let client = Client::connect().await?;
    let opened = client.guest(StreamRequest::Ssh { vm }).await.context(what.clone())?;
    session::bytes(opened).await.context(what)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::VmId;

    #[test]
    fn the_real_ssh_understands_what_it_is_given() {
        let Ok(ssh) = programs::find("ssh") else {
            eprintln!("skipped: there is no ssh");
            return;
        };
        let vm = VmId::from_bytes([7; 32]).unwrap();
        let access = SshAccess { vm, host_key: "ssh-ed25519 AAAA".into() };
        let options = options(&access, Path::new("/a b/banger"), Path::new("/k e/y%"), Path::new("/known")).unwrap();
        // The user's configuration may ask for all of it.
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        let wants = "Host *\n PasswordAuthentication yes\n KbdInteractiveAuthentication yes\n ForwardAgent yes\n\
                     PreferredAuthentications password,keyboard-interactive\n NumberOfPasswordPrompts 3\n User bob\n";
        std::fs::write(&config, wants).unwrap();
        // `-G` prints the configuration that would be used.
        let mut command = Command::new(ssh);
        command.arg("-G").arg("-F").arg(&config).args(options).arg(alias(vm));
        // Nor does what stands after the VM's name.
        let shown = command.args(["-o", "PasswordAuthentication=yes"]).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        for line in [
            format!("hostkeyalias banger-{vm}"),
            format!("proxycommand '/a b/banger' vm proxy {vm}"),
            "user root".into(),
            "userknownhostsfile /known".into(),
            "stricthostkeychecking true".into(),
            "updatehostkeys false".into(),
            "identitiesonly yes".into(),
            "forwardagent no".into(),
            "preferredauthentications publickey".into(),
            "passwordauthentication no".into(),
            "kbdinteractiveauthentication no".into(),
            "hostbasedauthentication no".into(),
            "numberofpasswordprompts 0".into(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("identityfile /k e/y%"), "{text}");
    }
}
