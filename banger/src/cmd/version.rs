//! `version`: ours, the daemon's and Firecracker's. A daemon that is not there is no failure of
//! this command.

use crate::cli::Json;
use crate::client::{Client, answer, soon};
use crate::output::{self, line};
use banger_proto::model::DaemonInfo;
use banger_proto::wire::PROTOCOL_VERSION;
use serde::Serialize;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    protocol: u16,
    daemon: Option<DaemonInfo>,
}

pub(super) async fn run(json: Json) -> anyhow::Result<u8> {
    let asked = async { answer(Client::connect().await?.rpc.info(soon())).await };
    let daemon: anyhow::Result<DaemonInfo> = asked.await;
    if json.json {
        output::json(&Versions { version: VERSION, protocol: PROTOCOL_VERSION, daemon: daemon.ok() })?;
        return Ok(0);
    }
    line(&format!("banger {VERSION} (protocol {PROTOCOL_VERSION})"))?;
    match daemon {
        Ok(info) => {
            line(&format!("bangerd {} (protocol {}), since {}", info.version, info.protocol, info.started_at))?;
            line(&of_daemon(&info).unwrap_or_else(|| "Firecracker: not found".to_owned()))?;
        }
        Err(error) => line(&format!("bangerd: {error:#}"))?,
    }
    Ok(0)
}

/// What the next VM is started with.
pub(super) fn of_daemon(info: &DaemonInfo) -> Option<String> {
    (!info.vmm_version.is_empty()).then(|| vmm(Some(&info.vmm_version), Some(&info.vmm_sha256)))
}

/// Version and sum of a Firecracker, as far as they are known.
pub(super) fn vmm(version: Option<&str>, sha256: Option<&str>) -> String {
    let version = version.unwrap_or_default();
    match sha256.filter(|sum| !sum.is_empty()) {
        Some(sum) => format!("{version} (SHA-256 {sum})"),
        None => version.to_owned(),
    }
}
