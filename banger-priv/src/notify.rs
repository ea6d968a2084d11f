//! What systemd tells the helper and is told by it (sd_notify(3), sd_listen_fds(3)). The socket is
//! connected at start, so that nothing while serving needs a new one.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A line to systemd; nothing when it is not there.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that the helper lives.
    pub(crate) interval: Option<Duration>,
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many descriptors systemd passed to this process.
pub(crate) fn passed() -> u32 {
    if number("LISTEN_PID") == Some(std::process::id()) { number("LISTEN_FDS").unwrap_or(0) } else { 0 }
}

impl Notifier {
    /// Connects, before the environment is cleared.
    pub(crate) fn connect() -> io::Result<Self> {
        // Twice as often as asked for, as systemd advises.
        let interval = number("WATCHDOG_USEC").map(|us: u64| Duration::from_micros(us / 2));
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self { socket: None, interval }) };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), interval })
    }

    /// Says one thing; systemd not listening is no reason to stop.
    pub(crate) fn say(&self, text: &str) {
        drop(self.socket.as_ref().map(|socket| socket.send(text.as_bytes())));
    }
}
