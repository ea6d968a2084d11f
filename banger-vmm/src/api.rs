//! Firecracker's API: HTTP on a unix socket. Field names and values are those of its OpenAPI
//! document, `src/firecracker/swagger/firecracker.yaml` (1.16). Called once per boot, by the VM's
//! actor.

use super::VmmError;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

/// How long one request may take. The start reads kernel and initramfs from a disk that may be
/// busy.
const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// Firecracker's answers are a line.
const MAX_ANSWER: usize = 64 * 1024;
const VERSION_WAIT: Duration = Duration::from_secs(5);
const MAX_VERSION_LINE: usize = 200;
/// Of the version alone.
const MAX_VERSION: usize = 60;

/// What a VM is made of, for its VMM.
#[derive(Clone, Debug)]
pub struct VmmConfig {
    /// vCPUs.
    pub vcpu_count: u32,
    /// Memory, MiB.
    pub mem_size_mib: u32,
    /// The ELF image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub boot_args: String,
    /// In order: `/dev/vda`, `/dev/vdb`.
    pub drives: Vec<Drive>,
    /// `eth0`; a guest without it has no network.
    pub network: Option<Interface>,
    /// The guest's CID.
    pub vsock_cid: u32,
    /// The vsock device's socket, in the VMM's own folder; what lies there is removed.
    pub vsock_path: PathBuf,
    /// Where metrics go; emptied.
    pub metrics_path: Option<PathBuf>,
}

/// A network interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The tap's name.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: String,
}

/// A block device.
#[derive(Clone, Debug)]
pub struct Drive {
    /// Its name in the API.
    pub id: String,
    /// File or device.
    pub path: PathBuf,
    /// For the guest.
    pub read_only: bool,
}

/// A request: its name for errors, its path, its body.
type Put = (&'static str, String, Value);

fn text(path: &Path) -> Result<&str, VmmError> {
    path.to_str().ok_or_else(|| VmmError::Path(path.to_owned()))
}

/// All requests in the order in which they are made.
fn requests(config: &VmmConfig) -> Result<Vec<Put>, VmmError> {
    // The console is the guest's: at its default level Firecracker writes every request there, boot
    // arguments included.
    let mut puts: Vec<Put> = vec![("logger", "/logger".into(), json!({ "level": "Error" }))];
    if let Some(path) = &config.metrics_path {
        puts.push(("metrics", "/metrics".into(), json!({ "metrics_path": text(path)? })));
    }
    puts.push((
        "machine-config",
        "/machine-config".into(),
        json!({ "vcpu_count": config.vcpu_count, "mem_size_mib": config.mem_size_mib }),
    ));
    puts.push((
        "boot-source",
        "/boot-source".into(),
        json!({
            "kernel_image_path": text(&config.kernel)?,
            "initrd_path": text(&config.initrd)?,
            "boot_args": config.boot_args,
        }),
    ));
    for drive in &config.drives {
        puts.push((
            "drive",
            format!("/drives/{}", drive.id),
            json!({
                "drive_id": drive.id,
                "path_on_host": text(&drive.path)?,
                // Our initramfs mounts it; Firecracker would write a `root=` of its own.
                "is_root_device": false,
                "is_read_only": drive.read_only,
                // A guest's fsync reaches the host's disk; `Unsafe` would answer and do nothing.
                "cache_type": "Writeback",
                "io_engine": "Sync",
            }),
        ));
    }
    if let Some(Interface { tap, mac }) = &config.network {
        puts.push((
            "network-interface",
            "/network-interfaces/eth0".into(),
            json!({ "iface_id": "eth0", "host_dev_name": tap, "guest_mac": mac }),
        ));
    }
    // From the folder in which the launcher has left it; `<this>_<port>` is found from there too.
    let vsock_name = config.vsock_path.file_name().map_or(config.vsock_path.as_path(), Path::new);
    let vsock = json!({ "guest_cid": config.vsock_cid, "uds_path": text(vsock_name)? });
    puts.push(("vsock", "/vsock".into(), vsock));
    puts.push(("the start", "/actions".into(), json!({ "action_type": "InstanceStart" })));
    Ok(puts)
}

/// Configures a fresh VMM and starts its guest.
///
/// # Errors
/// [`VmmError`] with the request that failed and Firecracker's own words.
pub async fn configure_and_start(api_socket: &Path, config: &VmmConfig) -> Result<(), VmmError> {
    let puts = requests(config)?;
    // Firecracker binds this one itself and refuses to bind over a socket that is left.
    remove_left(&config.vsock_path)?;
    if let Some(path) = &config.metrics_path {
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        made.map_err(|source| VmmError::File { path: path.clone(), source })?;
    }
    let unanswered = |why: String| VmmError::Unanswered { step: "the first request", why };
    let stream = UnixStream::connect(api_socket).await.map_err(|error| unanswered(error.to_string()))?;
    let (mut sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| unanswered(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let mut done = Ok(());
    for (step, path, body) in puts {
        done = match timeout(REQUEST_WAIT, put(&mut sender, step, &path, &body)).await {
            Ok(done) => done,
            Err(_) => Err(VmmError::Unanswered { step, why: format!("nothing for {} s", REQUEST_WAIT.as_secs()) }),
        };
        if done.is_err() {
            break;
        }
        crate::fail::point("vmm's api", step);
    }
    connection.abort();
    done
}

fn remove_left(path: &Path) -> Result<(), VmmError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(VmmError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

async fn put(
    sender: &mut SendRequest<Full<Bytes>>,
    step: &'static str,
    path: &str,
    body: &Value,
) -> Result<(), VmmError> {
    let unanswered = |why: String| VmmError::Unanswered { step, why };
    let request = Request::builder()
        .method(Method::PUT)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| unanswered(error.to_string()))?;
    sender.ready().await.map_err(|error| unanswered(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| unanswered(error.to_string()))?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    if status.is_success() {
        return Ok(());
    }
    let answer = answer.map(|body| body.to_bytes()).unwrap_or_default();
    let fault = serde_json::from_slice::<Value>(&answer).ok();
    let fault = fault.as_ref().and_then(|fault| fault.get("fault_message")?.as_str());
    Err(VmmError::Refused { step, fault: fault.map_or_else(|| format!("status {status}"), str::to_owned) })
}

/// The version that a VMM which runs says of itself, in the form of [`version`]. It is a claim:
/// nothing but what is shown may depend on it.
///
/// # Errors
/// [`VmmError::Unanswered`].
pub async fn version_of_running(api_socket: &Path) -> Result<String, VmmError> {
    let step = "the request for its version";
    let unanswered = |why: String| VmmError::Unanswered { step, why };
    let asked = async {
        let stream = UnixStream::connect(api_socket).await.map_err(|error| unanswered(error.to_string()))?;
        let (mut sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| unanswered(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let answer = get(&mut sender, "/version").await.map_err(unanswered);
        connection.abort();
        answer
    };
    let late = |_| unanswered(format!("nothing for {} s", VERSION_WAIT.as_secs()));
    let answer = timeout(VERSION_WAIT, asked).await.map_err(late)??;
    let said = serde_json::from_slice::<Value>(&answer).ok();
    let version = said.as_ref().and_then(|said| said.get("firecracker_version")?.as_str()).filter(|text| plain(text));
    version.map(|version| format!("Firecracker v{version}")).ok_or_else(|| unanswered("it says no version".to_owned()))
}

fn plain(version: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+-".contains(c);
    !version.is_empty() && version.len() <= MAX_VERSION && version.chars().all(plain)
}

async fn get(sender: &mut SendRequest<Full<Bytes>>, path: &str) -> Result<Bytes, String> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    sender.ready().await.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

/// The first line of `firecracker --version`, such as `Firecracker v1.16.0`.
///
/// # Errors
/// [`VmmError::Binary`] when it cannot be run, [`VmmError::Version`] when it does not answer.
pub async fn version(binary: &Path) -> Result<String, VmmError> {
    let wrong = |why: String| VmmError::Version { path: binary.to_owned(), why };
    let output = Command::new(binary)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(VERSION_WAIT, output)
        .await
        .map_err(|_| wrong(format!("no answer for {} s", VERSION_WAIT.as_secs())))?
        .map_err(|source| VmmError::Binary { path: binary.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next().map(str::trim) {
        Some(line) if output.status.success() && !line.is_empty() => Ok(line.chars().take(MAX_VERSION_LINE).collect()),
        _ => Err(wrong(format!("it does not say its version ({})", output.status))),
    }
}
