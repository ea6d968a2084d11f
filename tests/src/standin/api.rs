//! Firecracker's API, the part that banger uses: requests become [`Action`]s here, strictly. Pure;
//! `vmm` carries them out.
//!
//! Source: `src/firecracker/swagger/firecracker.yaml` and `api_server/` of Firecracker v1.16.1.
//! Every field that Firecracker knows is known here; one that this stand-in cannot honour is
//! refused rather than ignored.

use super::http::{Request, Response};
use super::model::{
    ActionBody, ActionType, BootSource, Drive, HugePages, Logger, MachineConfig, Metrics, NetworkInterface, Serial,
    VmBody, VmState, Vsock,
};

/// A request that has been understood.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    InstanceInfo,
    Version,
    GetMachineConfig,
    MachineConfig(MachineConfig),
    BootSource(BootSource),
    Drive(Drive),
    NetworkInterface(NetworkInterface),
    Vsock(Vsock),
    Logger(Logger),
    Metrics(Metrics),
    Serial(Serial),
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
    Pause,
    Resume,
}

/// Why a request is refused; the texts are Firecracker's.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("The ID cannot be empty.")]
    EmptyId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    #[error("The id from the path [{0}] does not match the id from the body [{1}]!")]
    InterfaceIdMismatch(String, String),
    #[error("Empty {0} request.")]
    Empty(String),
    #[error("GET request cannot have a body.")]
    GetWithBody,
    #[error("Invalid request method and/or path: {0} {1}.")]
    InvalidPathMethod(String, String),
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    #[error("the bench stand-in for Firecracker does not support {0}")]
    Unsupported(&'static str),
}

/// The answer to a request that is refused.
pub(super) fn fault(error: &impl ToString) -> Response {
    let body = serde_json::json!({ "fault_message": error.to_string() }).to_string();
    Response { status: 400, body: Some(body) }
}

/// Understands one request.
pub(super) fn parse(request: &Request) -> Result<Action, RequestError> {
    let mut parts = request.path.trim_start_matches('/').split_terminator('/');
    let resource = parts.next().unwrap_or_default();
    let id = parts.next();
    let body = (!request.body.is_empty()).then_some(request.body.as_slice());
    match (request.method.as_str(), resource, body) {
        ("GET", "", None) => Ok(Action::InstanceInfo),
        ("GET", "version", None) => Ok(Action::Version),
        ("GET", "machine-config", None) => Ok(Action::GetMachineConfig),
        ("GET", _, Some(_)) => Err(RequestError::GetWithBody),
        ("PUT", "actions", Some(body)) => Ok(match serde_json::from_slice::<ActionBody>(body)?.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::InstanceStart,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        }),
        ("PUT", "boot-source", Some(body)) => Ok(Action::BootSource(serde_json::from_slice(body)?)),
        ("PUT", "drives", Some(body)) => parse_drive(body, checked_id(id)?),
        ("PUT", "logger", Some(body)) => Ok(Action::Logger(serde_json::from_slice(body)?)),
        ("PUT", "machine-config", Some(body)) => parse_machine_config(body),
        ("PUT", "metrics", Some(body)) => Ok(Action::Metrics(serde_json::from_slice(body)?)),
        ("PUT", "network-interfaces", Some(body)) => parse_interface(body, checked_id(id)?),
        ("PUT", "serial", Some(body)) => {
            let serial: Serial = serde_json::from_slice(body)?;
            supported(serial.rate_limiter.is_none(), "rate_limiter")?;
            Ok(Action::Serial(serial))
        }
        ("PUT", "vsock", Some(body)) => Ok(Action::Vsock(serde_json::from_slice(body)?)),
        ("PATCH", "vm", Some(body)) => Ok(match serde_json::from_slice::<VmBody>(body)?.state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        }),
        (method @ ("PUT" | "PATCH"), _, None) => Err(RequestError::Empty(method.to_owned())),
        (method, resource, _) => Err(RequestError::InvalidPathMethod(method.to_owned(), resource.to_owned())),
    }
}

fn parse_machine_config(body: &[u8]) -> Result<Action, RequestError> {
    let config: MachineConfig = serde_json::from_slice(body)?;
    supported(!config.smt, "smt")?;
    supported(config.cpu_template.is_none(), "cpu_template")?;
    supported(!config.track_dirty_pages, "track_dirty_pages")?;
    supported(config.huge_pages == HugePages::None, "huge_pages")?;
    Ok(Action::MachineConfig(config))
}

fn parse_drive(body: &[u8], id: &str) -> Result<Action, RequestError> {
    let drive: Drive = serde_json::from_slice(body)?;
    if drive.drive_id != id {
        return Err(RequestError::IdMismatch);
    }
    supported(drive.partuuid.is_none(), "partuuid")?;
    supported(drive.rate_limiter.is_none(), "rate_limiter")?;
    supported(drive.socket.is_none(), "vhost-user drives")?;
    Ok(Action::Drive(drive))
}

fn parse_interface(body: &[u8], id: &str) -> Result<Action, RequestError> {
    let interface: NetworkInterface = serde_json::from_slice(body)?;
    if interface.iface_id != id {
        return Err(RequestError::InterfaceIdMismatch(id.to_owned(), interface.iface_id));
    }
    supported(interface.rx_rate_limiter.is_none(), "rx_rate_limiter")?;
    supported(interface.tx_rate_limiter.is_none(), "tx_rate_limiter")?;
    Ok(Action::NetworkInterface(interface))
}

fn supported(yes: bool, what: &'static str) -> Result<(), RequestError> {
    if yes { Ok(()) } else { Err(RequestError::Unsupported(what)) }
}

fn checked_id(id: Option<&str>) -> Result<&str, RequestError> {
    let id = id.filter(|id| !id.is_empty()).ok_or(RequestError::EmptyId)?;
    let valid = id.chars().all(|c| c == '_' || c.is_alphanumeric());
    if valid { Ok(id) } else { Err(RequestError::InvalidId) }
}

#[cfg(test)]
mod tests {
    use super::super::model::CacheType;
    use super::*;

    fn ask(method: &str, path: &str, body: &str) -> Result<Action, String> {
        let request = Request { method: method.into(), path: path.into(), body: body.into() };
        parse(&request).map_err(|error| error.to_string())
    }

    #[test]
    fn what_bangerd_sends_is_understood() {
        let boot = ask("PUT", "/boot-source", r#"{"kernel_image_path":"k","initrd_path":"i","boot_args":"a b"}"#);
        assert!(matches!(boot, Ok(Action::BootSource(boot)) if boot.initrd_path.as_deref() == Some("i")));
        let machine = ask("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":512,"smt":false}"#);
        assert!(matches!(machine, Ok(Action::MachineConfig(machine)) if machine.mem_size_mib == 512));
        let drive = r#"{"drive_id":"root","path_on_host":"/dev/dm-0","is_root_device":true,"is_read_only":false,
            "cache_type":"Writeback","io_engine":"Sync"}"#;
        assert!(
            matches!(ask("PUT", "/drives/root", drive), Ok(Action::Drive(d)) if d.cache_type == CacheType::Writeback)
        );
        let net = r#"{"iface_id":"eth0","host_dev_name":"bgr-0","guest_mac":"06:00:AC:10:00:02"}"#;
        assert!(matches!(ask("PUT", "/network-interfaces/eth0", net), Ok(Action::NetworkInterface(_))));
        assert!(
            matches!(ask("PUT", "/vsock", r#"{"guest_cid":4,"uds_path":"v"}"#), Ok(Action::Vsock(v)) if v.guest_cid == 4)
        );
        let logger = r#"{"log_path":"l","level":"Warning","show_level":true,"show_log_origin":false}"#;
        assert!(matches!(ask("PUT", "/logger", logger), Ok(Action::Logger(_))));
        assert!(matches!(ask("PUT", "/metrics", r#"{"metrics_path":"m"}"#), Ok(Action::Metrics(_))));
        assert!(matches!(ask("PUT", "/serial", r#"{"serial_out_path":"s"}"#), Ok(Action::Serial(_))));
        assert_eq!(ask("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#), Ok(Action::InstanceStart));
        assert_eq!(ask("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#), Ok(Action::SendCtrlAltDel));
        assert_eq!(ask("PATCH", "/vm", r#"{"state":"Paused"}"#), Ok(Action::Pause));
        assert_eq!(ask("PATCH", "/vm", r#"{"state":"Resumed"}"#), Ok(Action::Resume));
        assert_eq!(ask("GET", "/", ""), Ok(Action::InstanceInfo));
        assert_eq!(ask("GET", "/version", ""), Ok(Action::Version));
        assert_eq!(ask("GET", "/machine-config", ""), Ok(Action::GetMachineConfig));
    }

    /// The right-hand sides were answered by Firecracker v1.16.1.
    #[test]
    fn refusals_read_as_those_of_firecracker() {
        let json = "An error occurred when deserializing the json body of a request: ";
        for (method, path, body, text) in [
            ("GET", "/nope", "", "Invalid request method and/or path: GET nope.".to_owned()),
            ("GET", "/", "{}", "GET request cannot have a body.".into()),
            ("PUT", "/machine-config", "", "Empty PUT request.".into()),
            (
                "PUT",
                "/machine-config",
                r#"{"vcpu_count": 1}"#,
                format!("{json}missing field `mem_size_mib` at line 1 column 17."),
            ),
            (
                "PUT",
                "/machine-config",
                r#"{"vcpu_count": 1, "mem_size_mib": 256, "x": 1}"#,
                format!(
                    "{json}unknown field `x`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, \
                     `track_dirty_pages`, `huge_pages` at line 1 column 42."
                ),
            ),
            (
                "PUT",
                "/actions",
                r#"{"action_type": "Foo"}"#,
                format!(
                    "{json}unknown variant `Foo`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` \
                     at line 1 column 21."
                ),
            ),
            (
                "PUT",
                "/drives/a",
                r#"{"drive_id": "b", "is_root_device": true, "path_on_host": "/nope"}"#,
                "The id from the path does not match the id from the body!".into(),
            ),
            (
                "PUT",
                "/drives/a-b",
                "{}",
                "API Resource IDs can only contain alphanumeric characters and underscores.".into(),
            ),
            ("PUT", "/drives", "{}", "The ID cannot be empty.".into()),
            (
                "PUT",
                "/network-interfaces/e",
                r#"{"iface_id": "e", "host_dev_name": "bgr-t", "guest_mac": "zz:00:00:00:00:01"}"#,
                format!("{json}The provided MAC address is invalid. at line 1 column 77."),
            ),
            (
                "PUT",
                "/network-interfaces/e",
                r#"{"iface_id": "x", "host_dev_name": "bgr-t"}"#,
                "The id from the path [e] does not match the id from the body [x]!".into(),
            ),
            (
                "PUT",
                "/serial",
                r#"{"serial_out_path": "/run/v/ser", "y": 1}"#,
                format!("{json}unknown field `y`, expected `serial_out_path` or `rate_limiter` at line 1 column 37."),
            ),
        ] {
            assert_eq!(ask(method, path, body), Err(text), "{method} {path} {body}");
        }
    }

    #[test]
    fn what_this_vmm_cannot_do_is_refused_and_not_ignored() {
        for (path, body) in [
            ("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":1,"smt":true}"#),
            ("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":2,"huge_pages":"2M"}"#),
            ("/drives/a", r#"{"drive_id":"a","is_root_device":true,"socket":"s"}"#),
            ("/drives/a", r#"{"drive_id":"a","is_root_device":true,"path_on_host":"p","rate_limiter":{}}"#),
            ("/network-interfaces/a", r#"{"iface_id":"a","host_dev_name":"t","tx_rate_limiter":{}}"#),
        ] {
            assert!(ask("PUT", path, body).unwrap_err().contains("does not support"), "{body}");
        }
    }
}
