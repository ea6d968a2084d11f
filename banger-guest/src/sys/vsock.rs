//! `AF_VSOCK` stream sockets (`vsock(7)`) as tokio streams.
//!
//! Used by the agent's SSH server and its control channel, and by init to say why a boot failed.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, getpeername, getsockopt, listen,
    socket, sockopt,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

use super::stream::{FdStream, register};

/// The host's side of every guest.
const HOST: u32 = libc::VMADDR_CID_HOST;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Connects to `port` of the host. The kernel gives up after two seconds.
pub(crate) async fn connect_host(port: u32) -> io::Result<FdStream> {
    let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
    let pending = match connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port)) {
        Ok(()) => false,
        Err(Errno::EINPROGRESS) => true,
        Err(error) => return Err(error.into()),
    };
    let stream = FdStream::new(fd)?;
    if pending {
        stream.writable().await?;
        let code = getsockopt(&stream, sockopt::SocketError)?;
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
    }
    Ok(stream)
}

/// Connects to `port` of the host and blocks meanwhile: for init, which has no runtime.
pub(crate) fn connect_host_blocking(port: u32) -> io::Result<OwnedFd> {
    let fd = new_socket(SockFlag::empty())?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(fd)
}

/// Accepts connections from the host.
#[derive(Debug)]
pub(crate) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self(register(fd)?))
    }

    pub(crate) async fn accept(&self) -> io::Result<FdStream> {
        loop {
            let mut guard = self.0.readable().await?;
            let accepted = guard.try_io(|fd| {
                accept4(fd.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC).map_err(io::Error::from)
            });
            if let Ok(result) = accepted {
                // SAFETY: accept4 has just made this descriptor and nobody else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(result?) };
                // Processes of the guest reach the port too, where its kernel has a loopback for
                // vsock.
                if getpeername::<VsockAddr>(fd.as_raw_fd())?.cid() == HOST {
                    return FdStream::new(fd);
                }
            }
        }
    }
}

fn new_socket(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?)
}
