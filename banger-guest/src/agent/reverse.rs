//! What a client lets the guest connect to: ports and sockets that listen in the guest (`ssh -R`),
//! and the client's own agent (`ssh -A`). Each connection there becomes a channel to the client:
//! RFC 4254, section 7, and OpenSSH's PROTOCOL, "streamlocal" and "auth-agent".
//!
//! The handler of an SSH connection owns what listens for it; both end together.

use russh::server::{Handle, Msg};
use russh::{Channel, Error};
use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use super::duplex::Pressure;
use super::forward::relay;

/// What may listen for one client.
const MAX_LISTENERS: usize = 64;
/// Connections at once to one of them. Further ones wait in the kernel.
const MAX_OPEN: usize = 128;
/// After an accept that failed, which is for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// What listens for one client.
#[derive(Default)]
pub(super) struct Listeners(HashMap<Place, Listening>);

/// Where: as the client has asked, since it takes it back by the same words.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Place {
    Port(String, u32),
    Socket(String),
    Agent,
}

struct Listening {
    task: AbortHandle,
    /// A socket, and the folder that was made for it.
    files: Option<(PathBuf, Option<PathBuf>)>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some((socket, folder)) = &self.files {
            let _ = fs::remove_file(socket);
            let _ = folder.as_ref().map(fs::remove_dir);
        }
    }
}

impl Listeners {
    /// `port` becomes the one that the kernel chose when it is 0. On the loopback whatever the
    /// client asks for, as sshd does without `GatewayPorts`: other machines of the guest's network
    /// are not let through to the client.
    pub(super) async fn open_port(
        &mut self,
        address: &str,
        port: &mut u32,
        client: Handle,
        pressure: Pressure,
    ) -> io::Result<()> {
        let wanted = u16::try_from(*port).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.has_room()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await?;
        *port = listener.local_addr()?.port().into();
        let (address, port) = (address.to_owned(), *port);
        let place = Place::Port(address.clone(), port);
        let task = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(MAX_OPEN));
            while let Ok(permit) = room.clone().acquire_owned().await {
                let Ok((stream, peer)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (client, address) = (client.clone(), address.clone());
                let opened = async move {
                    let (from, number) = (peer.ip().to_string(), peer.port().into());
                    client.channel_open_forwarded_tcpip(address, port, from, number).await
                };
                tokio::spawn(carry(stream, opened, pressure.clone(), permit));
            }
        });
        self.keep(place, task.abort_handle(), None);
        Ok(())
    }

    /// A socket that only root may connect to. A path that exists stays as it is.
    pub(super) fn open_socket(&mut self, path: &str, client: Handle, pressure: Pressure) -> io::Result<()> {
        self.has_room()?;
        let listener = listen_as_root(Path::new(path))?;
        let asked = path.to_owned();
        let open = move || {
            let (client, path) = (client.clone(), asked.clone());
            async move { client.channel_open_forwarded_streamlocal(path).await }
        };
        let task = tokio::spawn(accept(listener, open, pressure));
        self.keep(Place::Socket(path.to_owned()), task.abort_handle(), Some((path.into(), None)));
        Ok(())
    }

    /// The socket of the client's agent, for `SSH_AUTH_SOCK`: one for all commands of a connection.
    pub(super) fn open_agent(&mut self, client: Handle, pressure: Pressure) -> io::Result<String> {
        let path = |socket: &Path| socket.to_str().map(str::to_owned).ok_or(io::ErrorKind::InvalidData.into());
        if let Some((socket, _)) = self.0.get(&Place::Agent).and_then(|listening| listening.files.as_ref()) {
            return path(socket);
        }
        self.has_room()?;
        let folder = own_folder()?;
        let socket = folder.join("agent");
        let listener = listen_as_root(&socket).inspect_err(|_| drop(fs::remove_dir(&folder)))?;
        let open = move || {
            let client = client.clone();
            async move { client.channel_open_agent().await }
        };
        let task = tokio::spawn(accept(listener, open, pressure));
        self.keep(Place::Agent, task.abort_handle(), Some((socket.clone(), Some(folder))));
        path(&socket)
    }

    /// False when nothing listens there for this client.
    pub(super) fn close(&mut self, place: &Place) -> bool {
        self.0.remove(place).is_some()
    }

    fn has_room(&self) -> io::Result<()> {
        if self.0.len() < MAX_LISTENERS { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }

    fn keep(&mut self, place: Place, task: AbortHandle, files: Option<(PathBuf, Option<PathBuf>)>) {
        self.0.insert(place, Listening { task, files });
    }
}

async fn accept<Open, Opened>(listener: UnixListener, open: Open, pressure: Pressure)
where
    Open: Fn() -> Opened,
    Opened: Future<Output = Result<Channel<Msg>, Error>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MAX_OPEN));
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(carry(stream, open(), pressure.clone(), permit))),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One connection, which ends at once when the client does not want it.
async fn carry(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    opened: impl Future<Output = Result<Channel<Msg>, Error>>,
    pressure: Pressure,
    _permit: OwnedSemaphorePermit,
) {
    if let Ok(channel) = opened.await {
        relay(channel, stream, pressure).await;
    }
}

fn listen_as_root(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // bind(2) gives the file the mode of the socket (`unix_bind_bsd` of the kernel), so nobody else
    // can connect in between.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(64)?)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// A folder for a socket, as sshd makes it: its name cannot be taken before.
fn own_folder() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let folder = PathBuf::from(format!("/tmp/ssh-{:016x}", u64::from_ne_bytes(random)));
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}
