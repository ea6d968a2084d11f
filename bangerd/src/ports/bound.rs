//! Sockets that are bound and not yet served.

use banger_policy::publish::rules::Refused;
use banger_policy::publish::{Protocol, Published};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the host does not listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBound {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("another program of this host has the port")]
    InUse,
    #[error("this host does not have that address")]
    NoAddress,
    #[error("the host does not listen")]
    Kernel(#[source] Errno),
}

/// A socket that listens, and nobody serves yet.
#[derive(Debug)]
pub(crate) struct Bound(pub(super) OwnedFd);

pub(super) fn to(published: &Published) -> Result<Bound, NotBound> {
    let family = if published.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match published.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let made = || {
        let made = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        if family == AddressFamily::Inet6 {
            // IPv4 has its own addresses, and its own rules for them.
            setsockopt(&made, sockopt::Ipv6V6Only, &true)?;
        }
        if published.protocol == Protocol::Tcp {
            // Connections that linger after their end do not keep a VM's port from coming back.
            setsockopt(&made, sockopt::ReuseAddr, &true)?;
        }
        bind(made.as_raw_fd(), &SockaddrStorage::from(published.host()))?;
        if published.protocol == Protocol::Tcp {
            listen(&made, Backlog::new(BACKLOG)?)?;
        }
        Ok::<_, Errno>(made)
    };
    made().map(Bound).map_err(|error| match error {
        Errno::EADDRINUSE => NotBound::InUse,
        Errno::EADDRNOTAVAIL => NotBound::NoAddress,
        error => NotBound::Kernel(error),
    })
}
