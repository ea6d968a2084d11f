//! Firecracker's vsock over the host's `AF_VSOCK`: the socket file that takes `CONNECT <port>`, and
//! guests' connections relayed to `<socket file>_<port>`. Called by `vmm`. Source: `docs/vsock.md`
//! and `devices/virtio/vsock/` of Firecracker v1.16.1.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, VsockAddr, accept4, bind, connect, getpeername,
    getsockname, listen, send, shutdown, socket,
};

use super::model;

/// How often socket files `<socket file>_<port>` are looked for: Firecracker looks when a guest
/// connects, here a listener must be there before. Short against the guest agent's own retries.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// Longest `CONNECT <port>\n` that Firecracker reads, in bytes.
const MAX_CONNECT: usize = 32;

/// How long a client may take to say where it wants to go.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The bound socket file, not yet served.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    cid: u32,
}

impl Listener {
    /// Binds the socket file, which must not exist yet.
    pub(super) fn bind(config: &model::Vsock) -> io::Result<Self> {
        let path = PathBuf::from(&config.uds_path);
        Ok(Self { socket: UnixListener::bind(&path)?, path, cid: config.guest_cid })
    }

    /// Serves both directions in the background for as long as the process lives.
    pub(super) fn serve(self) -> io::Result<()> {
        let Self { socket, path, cid } = self;
        thread::Builder::new().name("vsock-host".into()).spawn(move || {
            for stream in socket.incoming().flatten() {
                thread::spawn(move || {
                    if let Err(error) = connect_guest(stream, cid) {
                        eprintln!("stand-in: vsock to the guest: {error}");
                    }
                });
            }
        })?;
        thread::Builder::new().name("vsock-guest".into()).spawn(move || Relay::new(path, cid).run())?;
        Ok(())
    }
}

/// Host to guest: reads the port, connects, says `OK`, relays. Any failure just closes, as in
/// Firecracker.
fn connect_guest(mut stream: UnixStream, cid: u32) -> io::Result<()> {
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < MAX_CONNECT {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    let port = parse_connect(&line).ok_or(io::Error::new(io::ErrorKind::InvalidData, "no CONNECT line"))?;
    stream.set_read_timeout(None)?;

    let guest = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The kernel gives up after two seconds, Firecracker's `CONN_REQUEST_TIMEOUT_MS`.
    connect(guest.as_raw_fd(), &VsockAddr::new(cid, port))?;
    let local: VsockAddr = getsockname(guest.as_raw_fd())?;
    stream.write_all(format!("OK {}\n", local.port()).as_bytes())?;
    relay(stream, guest)
}

/// `CONNECT <port>` in any case, with anything after it, as Firecracker parses it.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    words.next().filter(|word| word.eq_ignore_ascii_case("connect"))?;
    words.next()?.parse().ok()
}

/// How long Firecracker keeps what a guest has sent before it closed, for a host that does not read
/// (`defs::CONN_SHUTDOWN_TIMEOUT_MS`).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is looked whether a guest has closed: nothing wakes up for that when it had shut
/// down its sending before.
const CLOSE_LOOK: Duration = Duration::from_millis(50);

/// Moves bytes until the connection closes, as Firecracker's `csm/connection.rs` closes it: the
/// host's end of stream closes both directions; a guest that only shuts down its sending changes
/// nothing for the host; one that closes takes with it what the host has not taken after two
/// seconds.
fn relay(host: UnixStream, guest: OwnedFd) -> io::Result<()> {
    let guest = Arc::new(File::from(guest));
    let host = Arc::new(host);
    // For writes only, so that a host that does not read does not hide that the guest has closed.
    host.set_write_timeout(Some(CLOSE_LOOK))?;
    let (from_guest, to_host) = (Arc::clone(&guest), Arc::clone(&host));
    let upward = thread::spawn(move || {
        pump_up(&from_guest, &to_host);
        let _ = to_host.shutdown(std::net::Shutdown::Both);
    });
    pump(&mut &*host, &mut &*guest);
    let _ = shutdown(guest.as_raw_fd(), Shutdown::Both);
    let _ = host.shutdown(std::net::Shutdown::Both);
    upward.join().map_err(|_| io::Error::other("a relay thread panicked"))
}

/// Ends at the end of the stream or the first error: a connection that is reset looks the same to
/// the other side.
fn pump(from: &mut impl io::Read, to: &mut impl io::Write) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let Some(bytes) = buffer.get(..count) else { return };
                if to.write_all(bytes).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The guest's bytes to the host, until the guest has closed.
fn pump_up(mut guest: &File, host: &UnixStream) {
    let mut buffer = vec![0; 64 * 1024];
    let mut closed_since = None;
    loop {
        match guest.read(&mut buffer) {
            // The end of its sending. The connection stands until it has closed, or the host ends
            // it.
            Ok(0) => {
                while !has_closed(guest) {
                    thread::sleep(CLOSE_LOOK);
                }
                return;
            }
            Ok(count) => {
                let Some(bytes) = buffer.get(..count) else { return };
                if !write_up(bytes, guest, host, &mut closed_since) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// False when there is nobody to write for any more.
fn write_up(mut bytes: &[u8], guest: &File, mut host: &UnixStream, closed_since: &mut Option<Instant>) -> bool {
    while !bytes.is_empty() {
        match host.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if has_closed(guest) && closed_since.get_or_insert_with(Instant::now).elapsed() >= CLOSE_TIMEOUT {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Has the other side closed in both directions? A unix socket says so by a hang-up; an `AF_VSOCK`
/// socket says it to whoever sends, and to a send of nothing too (`net/vmw_vsock/af_vsock.c`).
fn has_closed(socket: &File) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    let hung_up = poll(&mut polled, PollTimeout::ZERO).is_err()
        || polled.iter().any(|entry| entry.revents().is_none_or(|events| events.intersects(gone)));
    hung_up || send(socket.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) == Err(Errno::EPIPE)
}

/// Guest to host: one `AF_VSOCK` listener per socket file.
struct Relay {
    path: PathBuf,
    cid: u32,
    listeners: BTreeMap<u32, OwnedFd>,
    /// Ports whose failure has been said.
    failed: BTreeMap<u32, Errno>,
}

impl Relay {
    fn new(path: PathBuf, cid: u32) -> Self {
        Self { path, cid, listeners: BTreeMap::new(), failed: BTreeMap::new() }
    }

    fn run(mut self) {
        loop {
            self.scan();
            let next_scan = Instant::now() + SCAN_INTERVAL;
            while let Some(rest) = next_scan.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                self.accept_ready(rest);
            }
        }
    }

    /// Makes the listeners match the socket files.
    fn scan(&mut self) {
        let ports = ports_beside(&self.path);
        self.listeners.retain(|port, _| ports.contains(port));
        for port in ports {
            if self.listeners.contains_key(&port) {
                continue;
            }
            match listen_on(port) {
                Ok(listener) => {
                    self.listeners.insert(port, listener);
                    self.failed.remove(&port);
                }
                Err(errno) => {
                    if self.failed.insert(port, errno) != Some(errno) {
                        eprintln!("stand-in: listening on vsock port {port}: {errno}");
                    }
                }
            }
        }
    }

    fn accept_ready(&self, wait: Duration) {
        let mut polled: Vec<PollFd<'_>> =
            self.listeners.values().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        if poll(&mut polled, timeout).is_err() {
            return;
        }
        let ready: Vec<bool> = polled.iter().map(|entry| entry.any().unwrap_or(false)).collect();
        for ((&port, listener), _) in self.listeners.iter().zip(ready).filter(|(_, ready)| *ready) {
            let Ok(accepted) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { continue };
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
            let guest = unsafe { OwnedFd::from_raw_fd(accepted) };
            // The port is open to every guest of the host; only ours is let in.
            if getpeername::<VsockAddr>(guest.as_raw_fd()).is_ok_and(|peer| peer.cid() == self.cid) {
                let path = port_path(&self.path, port);
                thread::spawn(move || match UnixStream::connect(&path) {
                    Ok(host) => {
                        if let Err(error) = relay(host, guest) {
                            eprintln!("stand-in: vsock from the guest: {error}");
                        }
                    }
                    // Nobody listens: dropping the descriptor closes the guest's connection.
                    Err(_) => drop(guest),
                });
            }
        }
    }
}

fn listen_on(port: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// The ports of the sockets `<path>_<port>` that exist.
fn ports_beside(path: &Path) -> Vec<u32> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter_map(|entry| {
            let digits = entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('_')?.to_owned();
            let port: u32 = digits.parse().ok()?;
            (port.to_string() == digits).then_some(port)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_lines_are_read_as_firecracker_reads_them() {
        assert_eq!(parse_connect(b"CONNECT 22\n"), Some(22));
        assert_eq!(parse_connect(b"connect  4294967295 x\n"), Some(u32::MAX));
        for line in [&b"CONNECT\n"[..], b"CONNECT x\n", b"CONNECT 4294967296\n", b"HELLO 22\n", b"\xff 1\n", b""] {
            assert_eq!(parse_connect(line), None, "{line:?}");
        }
    }

    #[test]
    fn only_sockets_named_after_ours_and_a_port_are_listened_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let _sockets: Vec<UnixListener> = ["v.sock", "v.sock_10001", "v.sock_007", "v.sock_x", "w.sock_10002"]
            .map(|name| UnixListener::bind(folder.path().join(name)).unwrap())
            .into();
        std::fs::write(folder.path().join("v.sock_10003"), "").unwrap();
        assert_eq!(ports_beside(&path), [10001]);
        assert_eq!(port_path(&path, 10001), folder.path().join("v.sock_10001"));
    }

    #[test]
    fn an_unservable_connect_line_just_closes() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT nowhere\n").unwrap();
        assert!(connect_guest(ours, libc::VMADDR_CID_LOCAL).is_err());
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty());
    }

    /// The host's end and the guest's end of a relayed connection.
    fn relayed() -> (UnixStream, UnixStream) {
        let (host, near) = UnixStream::pair().unwrap();
        let (guest, far) = UnixStream::pair().unwrap();
        thread::spawn(move || relay(near, far.into()));
        for end in [&host, &guest] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (host, guest)
    }

    #[test]
    fn a_guest_that_shuts_down_its_sending_changes_nothing_for_the_host() {
        let (mut host, mut guest) = relayed();
        guest.write_all(b"last").unwrap();
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = [0; 4];
        host.read_exact(&mut got).unwrap();
        host.set_read_timeout(Some(4 * CLOSE_LOOK)).unwrap();
        assert_eq!(host.read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock, "no end of stream");
        host.write_all(b"back").unwrap();
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"back");
        drop(guest);
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(host.read(&mut got).unwrap(), 0, "a guest that closes is gone");
    }

    #[test]
    fn the_hosts_end_closes_both_directions() {
        let (host, mut guest) = relayed();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let mut end = Vec::new();
        guest.read_to_end(&mut end).unwrap();
        // The relay closes its end of the guest's socket right after.
        let closed = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            guest.write_all(b"x").is_err()
        });
        assert!(end.is_empty() && closed);
    }

    #[test]
    fn what_a_closed_guest_has_sent_is_kept_for_two_seconds() {
        let (mut host, mut guest) = relayed();
        let sent = thread::spawn(move || guest.write_all(&[7; 4_000_000]).is_ok());
        // Nobody reads; sockets and relay hold some of it.
        thread::sleep(Duration::from_millis(200));
        let mut first = [0; 1000];
        host.read_exact(&mut first).unwrap();
        let mut rest = Vec::new();
        host.read_to_end(&mut rest).unwrap();
        assert!(sent.join().unwrap());
        assert_eq!(rest.len() + first.len(), 4_000_000, "a host that reads loses nothing");

        let (mut host, mut guest) = relayed();
        guest.set_nonblocking(true).unwrap();
        let mut written = 0;
        for _ in 0..100 {
            written += guest.write(&[7; 64 * 1024]).unwrap_or(0);
            thread::sleep(Duration::from_millis(2));
        }
        drop(guest);
        thread::sleep(CLOSE_TIMEOUT + Duration::from_secs(1));
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        assert!(got.len() < written, "{} of {written} bytes", got.len());
    }
}
