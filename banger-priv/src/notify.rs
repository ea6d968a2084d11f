//! What systemd tells the helper and is told by it (sd_notify(3), sd_listen_fds(3)). The socket is connected
//! at start, so that nothing while serving needs a new one.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// systemd's variables.
#[derive(Debug)]
pub(crate) struct Manager {
    /// How many descriptors it passed.
    pub(crate) descriptors: u32,
    notify: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

/// A line to systemd; nothing when it is not there.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that the helper lives.
    pub(crate) interval: Option<Duration>,
}

impl Manager {
    /// Reads the variables.
    pub(crate) fn read() -> io::Result<Self> {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let mine = number("LISTEN_PID") == Some(u64::from(std::process::id()));
        let descriptors =
            if mine { number("LISTEN_FDS").and_then(|count| u32::try_from(count).ok()).unwrap_or(0) } else { 0 };
        let notify = match std::env::var_os("NOTIFY_SOCKET") {
            None => None,
            Some(path) => Some(match path.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(path)?,
            }),
        };
        Ok(Self { descriptors, notify, watchdog: number("WATCHDOG_USEC").map(Duration::from_micros) })
    }

    /// Connects to it.
    pub(crate) fn connect(self) -> io::Result<Notifier> {
        let socket = match self.notify {
            None => None,
            Some(address) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect_addr(&address)?;
                socket.set_nonblocking(true)?;
                Some(socket)
            }
        };
        // Twice as often as asked for, as systemd advises.
        Ok(Notifier { socket, interval: self.watchdog.and_then(|interval| interval.checked_div(2)) })
    }
}

impl Notifier {
    /// Says one thing; systemd not listening is no reason to stop.
    pub(crate) fn say(&self, text: &str) {
        if let Some(socket) = &self.socket {
            drop(socket.send(text.as_bytes()));
        }
    }
}
