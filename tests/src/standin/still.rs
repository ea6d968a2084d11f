//! A VMM that boots nothing, for suites to which the guest does not matter and that start some
//! hundred VMs.
//!
//! To the daemon it is Firecracker with a guest whose agent is ready at once: the same command line
//! and API, disks, tap and sockets opened as told, and the agent's side of the control channel,
//! which reconnects after a restart of the daemon. It is one process with threads and needs nothing
//! that Firecracker does not, so it runs under the confinement of VMMs as it ships. Not there: SSH,
//! whose connections are closed.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use banger_proto::guest::{
    BootToken, CONFIG_PATH, GuestCommand, GuestConfig, GuestEvent, HEARTBEAT_MS, Hello, ShutdownKind,
};

use super::api::{self, Action};
use super::http::Response;
use super::model::Vsock;
use super::server::{self, Call};
use super::vmm::Event;
use super::{Command, EXIT_ARGUMENTS, tap};

/// As the agent does it.
const RECONNECT: Duration = Duration::from_millis(200);

/// What is in the guest that is not booted: whoever answers the host, and whoever connects to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inhabitant {
    /// A connection from the host, `CONNECT` not yet read.
    pub(crate) called: fn(&GuestConfig, UnixStream),
    /// The guest's own life; the path is the host's end of the control channel.
    pub(crate) lives: fn(&GuestConfig, &Path),
}

/// Nobody but an agent on the control channel.
pub(crate) const QUIET: Inhabitant = Inhabitant { called: |_, _| {}, lives: keep_talking };

/// Runs it as the process' command line says.
#[must_use]
pub fn main() -> ExitCode {
    main_with(QUIET)
}

/// The same with somebody in it.
pub(crate) fn main_with(inhabitant: Inhabitant) -> ExitCode {
    let done = match super::parse(std::env::args_os().skip(1)) {
        Ok(Command::Version) => {
            let text = format!("Firecracker v{} (a VMM of the banger bench that boots nothing)\n", super::VERSION);
            io::stdout().write_all(text.as_bytes())
        }
        Ok(Command::Serve { api_sock, .. }) => serve(&api_sock, inhabitant),
        Err(error) => {
            eprintln!("Error: {error}");
            return ExitCode::from(EXIT_ARGUMENTS);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers until it is killed.
fn serve(api_sock: &Path, inhabitant: Inhabitant) -> io::Result<()> {
    let (events, inbox) = mpsc::channel();
    server::spawn(api_sock, events)?;
    let mut vmm = Still { held: Vec::new(), guest: None, vsock: None, inhabitant };
    for event in inbox {
        let Event::Call(Call { action, reply }) = event else { continue };
        let answer = match action {
            Action::Version => Response { status: 200, body: Some(super::version().to_string()) },
            action => {
                vmm.act(action).map_or_else(|error| api::fault(&error), |()| Response { status: 204, body: None })
            }
        };
        // A client that has gone away does not undo what it asked for.
        let _ = reply.send(answer);
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}: {1}")]
    Open(String, #[source] io::Error),
    #[error("{0}: {1}")]
    Tap(String, String),
    #[error("no configuration in the initramfs: {0}")]
    Config(#[source] io::Error),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("a VMM that boots nothing does not do that")]
    Unsupported,
}

/// What it was told, and what it therefore holds.
#[derive(Debug)]
struct Still {
    held: Vec<File>,
    guest: Option<GuestConfig>,
    vsock: Option<(PathBuf, UnixListener)>,
    inhabitant: Inhabitant,
}

impl Still {
    fn act(&mut self, action: Action) -> Result<(), Refusal> {
        match action {
            Action::Logger(_) | Action::Serial(_) | Action::MachineConfig(_) => Ok(()),
            Action::Metrics(metrics) => self.hold(&metrics.metrics_path, OpenOptions::new().append(true)),
            Action::BootSource(boot) => {
                self.hold(&boot.kernel_image_path, OpenOptions::new().read(true))?;
                let path = boot.initrd_path.ok_or(Refusal::Missing("the initramfs"))?;
                let initramfs = File::open(&path).map_err(|error| Refusal::Open(path, error))?;
                self.guest = Some(configuration(&initramfs).map_err(Refusal::Config)?);
                Ok(())
            }
            Action::Drive(drive) => {
                let path = drive.path_on_host.ok_or(Refusal::Missing("the drive's path"))?;
                let writes = !drive.is_read_only.unwrap_or(false);
                self.hold(&path, OpenOptions::new().read(true).write(writes))
            }
            Action::NetworkInterface(interface) => {
                let name = interface.host_dev_name;
                self.held.push(tap::open(&name).map_err(|error| Refusal::Tap(name, error.to_string()))?);
                Ok(())
            }
            Action::Vsock(vsock) => self.offer(vsock),
            Action::InstanceStart => self.start(),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn hold(&mut self, path: &str, how: &OpenOptions) -> Result<(), Refusal> {
        self.held.push(how.open(path).map_err(|error| Refusal::Open(path.to_owned(), error))?);
        Ok(())
    }

    /// Connections from the host wait until there is a guest.
    fn offer(&mut self, vsock: Vsock) -> Result<(), Refusal> {
        let listener = UnixListener::bind(&vsock.uds_path).map_err(|e| Refusal::Open(vsock.uds_path.clone(), e))?;
        self.vsock = Some((vsock.uds_path.into(), listener));
        Ok(())
    }

    fn start(&mut self) -> Result<(), Refusal> {
        let guest = self.guest.clone().ok_or(Refusal::Missing("the boot source"))?;
        let (socket, listener) = self.vsock.take().ok_or(Refusal::Missing("vsock"))?;
        let mut socket = socket.into_os_string();
        socket.push(format!("_{}", guest.control_port));
        let Inhabitant { called, lives } = self.inhabitant;
        let host = guest.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let guest = host.clone();
                thread::spawn(move || called(&guest, stream));
            }
        });
        thread::spawn(move || lives(&guest, Path::new(&socket)));
        Ok(())
    }
}

/// The agent, for ever.
pub(crate) fn keep_talking(guest: &GuestConfig, control: &Path) {
    let boot_id = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    loop {
        // The daemon may be away: then again.
        let _ = UnixStream::connect(control).and_then(|stream| talk(&stream, &guest.token, &boot_id));
        thread::sleep(RECONNECT);
    }
}

/// The agent on one connection, until its end.
fn talk(stream: &UnixStream, token: &BootToken, boot_id: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(HEARTBEAT_MS)))?;
    send(stream, &Hello { token: token.clone() })?;
    let say = |event: GuestEvent| send(stream, &event);
    say(GuestEvent::Ready { boot_id: boot_id.to_owned() })?;
    let mut from = BufReader::new(stream);
    let mut line = String::new();
    loop {
        match from.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) if matches!(serde_json::from_str(&line), Ok(GuestCommand::Shutdown { .. })) => {
                say(GuestEvent::Shutdown { kind: ShutdownKind::Poweroff })?;
                // A guest that has powered off leaves a VMM that does not end by itself.
                io::stdout().write_all(b"[    9.000000] reboot: Power down\n")?;
                loop {
                    thread::park();
                }
            }
            Ok(_) => {
                if matches!(serde_json::from_str(&line), Ok(GuestCommand::Speak)) {
                    say(GuestEvent::Heartbeat)?;
                }
                line.clear();
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                say(GuestEvent::Heartbeat)?;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn send(mut to: &UnixStream, line: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The guest's configuration, found as its kernel would ("newc" of buffer-format.rst: headers of
/// 110 bytes in hexadecimal, everything padded to 4).
fn configuration(initramfs: &File) -> io::Result<GuestConfig> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let wanted = CONFIG_PATH.trim_start_matches('/').as_bytes();
    let mut at = 0_u64;
    loop {
        let mut header = [0; 110];
        initramfs.read_exact_at(&mut header, at)?;
        let field = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8).and_then(|digits| std::str::from_utf8(digits).ok());
            digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(broken)
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let mut name = vec![0; usize::try_from(name_size).map_err(|_| broken())?];
        initramfs.read_exact_at(&mut name, at + 110)?;
        let data = (at + 110 + u64::from(name_size)).next_multiple_of(4);
        if name.strip_suffix(b"\0") == Some(wanted) {
            let mut json = vec![0; usize::try_from(size).map_err(|_| broken())?];
            initramfs.read_exact_at(&mut json, data)?;
            return Ok(serde_json::from_slice(&json)?);
        }
        at = (data + u64::from(size)).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(archive: &mut Vec<u8>, name: &str, data: &[u8]) {
        let (size, name_size) = (data.len(), name.len() + 1);
        let zero = 0;
        let header = format!(
            "070701{zero:08x}{zero:08x}{zero:08x}{zero:08x}{zero:08x}{zero:08x}{size:08x}{zero:08x}{zero:08x}{zero:08x}{zero:08x}{name_size:08x}{zero:08x}"
        );
        archive.extend(header.bytes().chain(name.bytes()).chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    #[test]
    fn the_configuration_is_found_behind_other_files() -> anyhow::Result<()> {
        let config = serde_json::json!({
            "hostname": "h", "address": "172.16.0.2", "gateway": "172.16.0.1", "dns": "1.1.1.1", "authorized_keys": [],
            "host_key": "", "control_port": 10001, "token": "0", "root_device": "/dev/vda", "work_device": null,
        });
        let mut archive = Vec::new();
        entry(&mut archive, "init", b"seven b");
        entry(&mut archive, "config.json", config.to_string().as_bytes());
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &archive)?;
        assert_eq!(configuration(file.as_file())?.control_port, 10001);
        std::fs::write(file.path(), &archive[..120])?;
        assert!(configuration(file.as_file()).is_err());
        Ok(())
    }

    #[test]
    fn the_agent_is_ready_and_announces_its_end() -> anyhow::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        thread::spawn(move || talk(&theirs, &BootToken::new([1; 32]), "b"));
        let mut lines = BufReader::new(&ours).lines();
        assert_eq!(lines.next().transpose()?, Some(format!(r#"{{"token":"{}"}}"#, "01".repeat(32))));
        assert_eq!(lines.next().transpose()?.as_deref(), Some(r#"{"event":"ready","boot_id":"b"}"#));
        assert_eq!(lines.next().transpose()?.as_deref(), Some(r#"{"event":"heartbeat"}"#));
        (&ours).write_all(b"{\"command\":\"shutdown\"}\n")?;
        let end = lines.next().transpose()?;
        assert_eq!(end.as_deref(), Some(r#"{"event":"shutdown","kind":"poweroff"}"#));
        Ok(())
    }
}
