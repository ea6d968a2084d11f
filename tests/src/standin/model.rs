//! The bodies of Firecracker's API, the part that banger uses, field for field as in its
//! `vmm_config`: what is not named here is refused. Fields that mean nothing to this VMM are named
//! all the same; `api` says which of them it refuses.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: usize,
    #[serde(default)]
    pub(super) smt: bool,
    #[serde(default, skip_serializing)]
    pub(super) cpu_template: Option<Value>,
    #[serde(default)]
    pub(super) track_dirty_pages: bool,
    #[serde(default)]
    pub(super) huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        let huge_pages = HugePages::None;
        Self { vcpu_count: 1, mem_size_mib: 128, smt: false, cpu_template: None, track_dirty_pages: false, huge_pages }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum HugePages {
    #[default]
    None,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: String,
    pub(super) initrd_path: Option<String>,
    pub(super) boot_args: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum CacheType {
    /// Flushes of the guest are not passed on.
    #[default]
    Unsafe,
    Writeback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum IoEngine {
    Async,
    Sync,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) partuuid: Option<String>,
    pub(super) is_root_device: bool,
    #[serde(default)]
    pub(super) cache_type: CacheType,
    pub(super) is_read_only: Option<bool>,
    pub(super) path_on_host: Option<String>,
    pub(super) rate_limiter: Option<Value>,
    /// Both engines are QEMU's threads here: the guest cannot tell.
    #[serde(rename = "io_engine")]
    _io_engine: Option<IoEngine>,
    pub(super) socket: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: String,
    pub(super) host_dev_name: String,
    #[serde(default, deserialize_with = "mac_address")]
    pub(super) guest_mac: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) rx_rate_limiter: Option<Value>,
    pub(super) tx_rate_limiter: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vsock {
    #[serde(rename = "vsock_id")]
    _vsock_id: Option<String>,
    pub(super) guest_cid: u32,
    pub(super) uds_path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Level {
    #[serde(alias = "OFF")]
    Off,
    #[serde(alias = "TRACE")]
    Trace,
    #[serde(alias = "DEBUG")]
    Debug,
    #[serde(alias = "INFO")]
    Info,
    #[serde(alias = "WARN", alias = "Warning", alias = "WARNING")]
    Warn,
    #[serde(alias = "ERROR")]
    Error,
}

/// Where the VMM's own lines go; what to leave out of the few that there are is accepted and not
/// acted on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Logger {
    pub(super) log_path: Option<String>,
    #[serde(rename = "level")]
    _level: Option<Level>,
    #[serde(rename = "show_level")]
    _show_level: Option<bool>,
    #[serde(rename = "show_log_origin")]
    _show_log_origin: Option<bool>,
    #[serde(rename = "module")]
    _module: Option<String>,
}

/// Firecracker ignores unknown fields here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Metrics {
    pub(super) metrics_path: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Serial {
    pub(super) serial_out_path: Option<String>,
    pub(super) rate_limiter: Option<Value>,
}

#[derive(Debug, Deserialize)]
pub(super) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ActionBody {
    pub(super) action_type: ActionType,
}

#[derive(Debug, Deserialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmBody {
    pub(super) state: VmState,
}

fn mac_address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let octet = |part: &str| part.len() == 2 && u8::from_str_radix(part, 16).is_ok();
    if text.split(':').count() == 6 && text.split(':').all(octet) {
        Ok(Some(text))
    } else {
        Err(serde::de::Error::custom("The provided MAC address is invalid."))
    }
}
