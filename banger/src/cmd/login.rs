//! `vm ssh`, and what `ssh` runs below it and below `ssh VM.banger`: `vm proxy` and `vm host-key`.
//! The host key is the one that the daemon made: nothing is trusted on first use.

use crate::client::{Client, answer, soon};
use crate::machine;
use crate::output::line;
use crate::programs;
use crate::session;
use crate::ssh::{HOSTS, Places, Store, word};
use anyhow::Context as _;
use banger_proto::daemon::SshAccess;
use banger_proto::stream::StreamRequest;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

pub(super) async fn ssh(vm: String, arguments: &[String]) -> anyhow::Result<u8> {
    let what = format!("cannot log in to {vm}");
    let ssh = programs::find("ssh")?;
    let client = Client::connect().await?;
    let store = Store::locate()?;
    // Before `ssh` runs, because whatever is wrong is said better here.
    let access = access(&client, &store, word(&vm)).await.context(what)?;
    let key = store.private_key()?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let options = Places { program: &program, key: &key }.options()?;
    // `ssh` takes our place: its exit status, its signals and its terminal are the user's. It reads
    // no configuration: what a user has for all hosts, forwardings above all, is not meant for
    // sandboxes.
    let host = format!("{}{HOSTS}", access.vm);
    let (name, machine) = machine::variable();
    let mut command = Command::new(ssh);
    command.env(name, machine).args(["-F", "none"]).args(options).arg(host).args(arguments);
    let error = command.exec();
    Err(error).context("cannot run ssh")
}

/// Lets the user's key in.
async fn access(client: &Client, store: &Store, vm: String) -> anyhow::Result<SshAccess> {
    let key = store.private_key()?;
    let public = store.public_key(&key)?;
    answer(client.rpc.ssh_access(soon(), vm, public)).await
}

/// The bytes of a connection to a VM that `ssh` knows by the name of a host.
pub(super) async fn proxy(host: &str) -> anyhow::Result<u8> {
    let vm = word(host);
    let what = format!("cannot reach the ssh server of {vm}");
    let client = Client::connect().await?;
    let access = access(&client, &Store::locate()?, vm).await.context(what.clone())?;
    let opened = client.guest(StreamRequest::Ssh { vm: access.vm.to_string() }).await.context(what.clone())?;
    drop(client);
    session::bytes(opened).await.context(what)
}

/// The one host key that a VM may show, in the form of a known_hosts file.
pub(super) async fn host_key(host: &str) -> anyhow::Result<u8> {
    let vm = word(host);
    let what = format!("cannot get the host key of {vm}");
    let client = Client::connect().await?;
    let access = access(&client, &Store::locate()?, vm).await.context(what)?;
    // For every name: `ssh` asks for this host only, whatever the user's configuration calls it.
    line(&format!("* {}", access.host_key.lines().next().unwrap_or_default().trim()))?;
    Ok(0)
}
