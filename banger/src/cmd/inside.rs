//! `vm stats`, `vm ports` and `vm health`: a VM as the host sees it, and as its own agent does.

use crate::cli::Json;
use crate::client::{Client, answer, soon};
use crate::error::{FAILED, explained};
use crate::output::{self, amount, facts, table, took};
use anyhow::Context as _;
use banger_proto::inside::{Filled, Inside};
use banger_proto::model::VmRecord;
use banger_proto::stream::StreamRequest;
use serde::Serialize;
use std::time::Duration;

/// How long an agent may take to look around.
const LOOK: Duration = Duration::from_secs(20);
/// Between two looks with `--watch`; the daemon measures more rarely.
const WATCH: Duration = Duration::from_secs(2);
/// Less free than this share of a disk or of memory is worth a word, percent.
const LITTLE: u64 = 5;

/// Both views of a VM.
#[derive(Debug, Serialize)]
struct Stats {
    vm: VmRecord,
    inside: Inside,
}

async fn inside(client: &Client, vm: &str) -> anyhow::Result<Inside> {
    let mut opened = client.guest(StreamRequest::Inside { vm: vm.to_owned() }).await?;
    let read = tokio::time::timeout(LOOK, Inside::read(&mut opened.guest)).await;
    read.map_err(|_| explained(format!("the guest's agent did not look around within {} s", LOOK.as_secs()), BUSY))?
        .map_err(|error| explained(format!("the guest's agent did not answer: {error}"), BUSY))
}

const BUSY: &str = "the guest may be out of memory, or its disk stand still; see: banger vm logs VM";

async fn both(client: &Client, vm: &str) -> anyhow::Result<Stats> {
    let record = answer(client.rpc.show_vm(soon(), vm.to_owned())).await?;
    let inside = inside(client, vm).await?;
    Ok(Stats { vm: record, inside })
}

pub(super) async fn stats(vm: String, watch: bool, json: Json) -> anyhow::Result<u8> {
    let what = || format!("cannot show what {vm} uses");
    let client = Client::connect().await?;
    loop {
        let stats = both(&client, &vm).await.with_context(what)?;
        if json.json && watch {
            output::json_line(&stats)?;
        } else if json.json {
            output::json(&stats)?;
        } else {
            facts(&shown(&stats))?;
        }
        if !watch {
            return Ok(0);
        }
        tokio::time::sleep(WATCH).await;
        if !json.json {
            output::line("")?;
        }
    }
}

fn shown(stats: &Stats) -> Vec<(&'static str, String)> {
    let Stats { vm, inside } = stats;
    let of = |filled: Filled| format!("{} of {} free", amount(filled.free), amount(filled.total));
    let host = vm.stats.as_ref();
    let on_host = |text: &dyn Fn(&banger_proto::model::VmStats) -> String| host.map(text).unwrap_or_default();
    let [one, five, fifteen] = inside.load;
    vec![
        ("vm", vm.name.to_string()),
        ("cpu", on_host(&|stats| format!("{:.0}% of one, as the host sees it", stats.cpu_percent))),
        ("load", format!("{one:.2} {five:.2} {fifteen:.2}, {} processes", inside.processes)),
        ("memory", format!("{} of {} available", amount(inside.memory_available), amount(inside.memory_total))),
        ("on the host", on_host(&|stats| format!("{} of memory", amount(stats.rss_bytes)))),
        ("root disk", of(inside.root)),
        ("work disk", inside.work.map(of).unwrap_or_default()),
        ("up", took(Duration::from_secs(inside.uptime_seconds))),
        ("measured", on_host(&|stats| format!("{} on the host, just now in the guest", stats.collected_at))),
    ]
}

pub(super) async fn ports(vm: String, json: Json) -> anyhow::Result<u8> {
    let what = format!("cannot show the ports of {vm}");
    let client = Client::connect().await?;
    let record = answer(client.rpc.show_vm(soon(), vm.clone())).await.with_context(|| what.clone())?;
    let published = record.published.as_deref().unwrap_or_default();
    if record.state != banger_policy::lifecycle::State::Running && !published.is_empty() && !json.json {
        return super::publish::table(published).map(|()| 0);
    }
    let inside = inside(&client, &vm).await.context(what)?;
    if json.json {
        output::json(&inside.listeners)?;
        return Ok(0);
    }
    if inside.listeners.is_empty() {
        output::note(&format!("nothing listens in {vm}"));
        return super::publish::table(published).map(|()| 0);
    }
    let row = |listener: &banger_proto::inside::Listener| {
        let pid = listener.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let (protocol, address) = (listener.protocol.clone(), listener.address.clone());
        vec![listener.port.to_string(), protocol, address, pid, listener.program.clone()]
    };
    let rows: Vec<Vec<String>> = inside.listeners.iter().map(row).collect();
    table(&["PORT", "PROTOCOL", "ADDRESS", "PID", "PROGRAM"], &rows, |_, _| None)?;
    if !published.is_empty() {
        output::line("")?;
    }
    super::publish::table(published).map(|()| 0)
}

/// A layer of a VM, and how it is.
#[derive(Debug, Serialize)]
struct Layer {
    layer: &'static str,
    healthy: bool,
    detail: String,
}

/// Layer by layer, from the host inwards; the first one that is silent is where to look.
pub(super) async fn health(vm: String, json: Json) -> anyhow::Result<u8> {
    let what = format!("cannot look after {vm}");
    let client = Client::connect().await?;
    let record = answer(client.rpc.show_vm(soon(), vm.clone())).await.context(what)?;
    let running = record.state == banger_policy::lifecycle::State::Running;
    let reason = record.runtime.last_error.lines().next().unwrap_or_default().to_owned();
    let state = if reason.is_empty() { record.state.to_string() } else { format!("{}: {reason}", record.state) };
    let mut layers = vec![Layer { layer: "vm", healthy: running, detail: state }];
    if running {
        match inside(&client, &vm).await {
            Ok(inside) => {
                layers.push(Layer { layer: "agent", healthy: true, detail: "answers".to_owned() });
                layers.extend(guest_layers(&inside));
            }
            Err(error) => layers.push(Layer { layer: "agent", healthy: false, detail: format!("{error:#}") }),
        }
    }
    let healthy = layers.iter().all(|layer| layer.healthy);
    if json.json {
        output::json(&layers)?;
    } else {
        let rows: Vec<Vec<String>> = layers
            .iter()
            .map(|layer| {
                let how = if layer.healthy { "ok" } else { "FAIL" };
                vec![layer.layer.to_owned(), how.to_owned(), layer.detail.clone()]
            })
            .collect();
        table(&["LAYER", "HEALTH", "DETAIL"], &rows, |_, cell| match cell {
            "ok" => Some(32),
            "FAIL" => Some(31),
            _ => None,
        })?;
    }
    Ok(if healthy { 0 } else { FAILED })
}

fn guest_layers(inside: &Inside) -> Vec<Layer> {
    let enough = |free: u64, total: u64| total == 0 || free.saturating_mul(100) / total >= LITTLE;
    let layer = |layer, free, total| Layer {
        layer,
        healthy: enough(free, total),
        detail: format!("{} of {} free", amount(free), amount(total)),
    };
    let mut layers = vec![
        layer("memory", inside.memory_available, inside.memory_total),
        layer("root disk", inside.root.free, inside.root.total),
    ];
    layers.extend(inside.work.map(|work| layer("work disk", work.free, work.total)));
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_without_room_is_not_healthy() {
        let full = Filled { total: 1 << 30, free: 1 << 20 };
        let half = Filled { total: 1 << 30, free: 1 << 29 };
        let inside = Inside {
            memory_total: 1 << 30,
            memory_available: 1 << 29,
            root: full,
            work: Some(half),
            ..Inside::default()
        };
        let layers: Vec<(&str, bool)> =
            guest_layers(&inside).iter().map(|layer| (layer.layer, layer.healthy)).collect();
        assert_eq!(layers, [("memory", true), ("root disk", false), ("work disk", true)]);
        // An agent that says nothing about it.
        assert!(guest_layers(&Inside::default()).iter().all(|layer| layer.healthy));
    }
}
