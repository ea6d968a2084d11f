//! `vm publish` and `vm unpublish`: ports of a VM on this host; and how they are shown.

use crate::cli::Publish;
use crate::client::{Client, answer, soon};
use crate::interrupt::Interrupts;
use crate::job::{self, Ended, OnInterrupt};
use crate::output::{self, line};
use crate::progress::{Detail, Progress};
use anyhow::Context as _;
use banger_policy::publish::{Mapping, PortName};
use banger_proto::model::{JobId, PublishRequest, PublishedPort, VmRecord};
use std::net::SocketAddr;

/// # Errors
/// A text that is no mapping.
pub(super) fn request(ports: &[String], public: bool, proxy_protocol: bool) -> anyhow::Result<PublishRequest> {
    for port in ports {
        port.parse::<Mapping>()?;
    }
    Ok(PublishRequest { ports: ports.to_vec(), public, proxy_protocol })
}

pub(super) async fn publish(options: Publish) -> anyhow::Result<u8> {
    let Publish { vm, ports, public, proxy_protocol, json } = options;
    let what = format!("cannot publish ports of {vm}");
    let request = request(&ports, public, proxy_protocol).with_context(|| what.clone())?;
    let client = Client::connect().await?;
    let job = answer(client.rpc.publish_ports(soon(), vm, request)).await.with_context(|| what.clone())?;
    let record = match ended(&client, job).await.context(what)? {
        Ok(record) => record,
        Err(status) => return Ok(status),
    };
    let all = record.published.unwrap_or_default();
    let new = all.get(all.len().saturating_sub(ports.len())..).unwrap_or_default();
    if json.json {
        output::json(&new)?;
        return Ok(0);
    }
    for port in new {
        line(&text(port))?;
    }
    Ok(0)
}

pub(super) async fn unpublish(vm: &str, ports: Vec<String>) -> anyhow::Result<u8> {
    let what = format!("cannot unpublish ports of {vm}");
    for port in &ports {
        port.parse::<PortName>().with_context(|| what.clone())?;
    }
    let client = Client::connect().await?;
    let job = answer(client.rpc.unpublish_ports(soon(), vm.to_owned(), ports)).await.with_context(|| what.clone())?;
    Ok(ended(&client, job).await.context(what)?.err().unwrap_or(0))
}

/// The VM, or the status of an interruption.
async fn ended(client: &Client, job: JobId) -> anyhow::Result<Result<VmRecord, u8>> {
    let mut interrupts = Interrupts::listen()?;
    let mut progress = Progress::new(Detail::Quiet);
    match job::follow(client, job, &mut progress, &mut interrupts, OnInterrupt::Leave).await? {
        Ended::Done(result) => Ok(Ok(job::vm(result)?)),
        Ended::Interrupted(status, _) => Ok(Err(status)),
    }
}

fn host(port: &PublishedPort) -> SocketAddr {
    SocketAddr::new(port.address, port.host_port)
}

fn text(port: &PublishedPort) -> String {
    format!("{} -> {}/{}", host(port), port.guest_port, port.protocol)
}

fn whose(port: &PublishedPort) -> &'static str {
    if port.public { "everybody" } else { "owner and root" }
}

/// As facts of a VM.
///
/// # Errors
/// When nobody reads our output any more.
pub(super) fn show(ports: &[PublishedPort]) -> anyhow::Result<()> {
    for port in ports {
        let problem = port.problem.as_ref().map(|why| format!("; NOT OPEN: {why}")).unwrap_or_default();
        let header = if port.proxy_protocol { ", PROXY protocol" } else { "" };
        line(&format!("published       {}, for {}{header}{problem}", text(port), whose(port)))?;
    }
    Ok(())
}

/// As a table; nothing when there are none.
///
/// # Errors
/// When nobody reads our output any more.
pub(super) fn table(ports: &[PublishedPort]) -> anyhow::Result<()> {
    if ports.is_empty() {
        return Ok(());
    }
    let row = |port: &PublishedPort| {
        let guest = format!("{}/{}", port.guest_port, port.protocol);
        vec![host(port).to_string(), guest, whose(port).to_owned(), port.problem.clone().unwrap_or_default()]
    };
    let rows: Vec<Vec<String>> = ports.iter().map(row).collect();
    output::table(&["PUBLISHED", "PORT", "FOR", "PROBLEM"], &rows, |_, _| None)
}
