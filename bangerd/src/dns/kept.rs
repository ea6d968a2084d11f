//! The two sockets outlive the daemon: systemd keeps copies of them in its store of descriptors
//! (sd_notify(3), `FDSTORE=1`), over restarts and stops, and hands them to the next daemon. So no
//! other program can take the port meanwhile and answer in the daemon's place.

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use rustix::io::{FdFlags, fcntl_setfd};
use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;

/// Their name in the store.
const NAME: &str = "names";

/// What systemd has handed back.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    datagrams: Option<UdpSocket>,
    connections: Option<TcpListener>,
}

impl Kept {
    /// Takes the descriptor that systemd passed as this number, when it is one of the two.
    pub(crate) fn take(&mut self, inherited: &mut listenfd::ListenFd, index: usize) -> io::Result<bool> {
        if let Ok(Some(fd)) = inherited.take_custom::<OwnedFd>(index, libc::AF_INET, libc::SOCK_DGRAM, "UDP") {
            // systemd passes it open over execve, and a VMM must not get it.
            fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            self.datagrams = Some(fd.into());
        } else if let Ok(Some(fd)) = inherited.take_custom::<OwnedFd>(index, libc::AF_INET, libc::SOCK_STREAM, "TCP") {
            fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
            self.connections = Some(fd.into());
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    #[cfg(test)]
    pub(crate) fn has_both(&self) -> bool {
        self.datagrams.is_some() && self.connections.is_some()
    }

    /// Both, when they are of this address. Else systemd is told to forget what it has.
    pub(super) fn at(self, address: Option<SocketAddrV4>) -> Option<(UdpSocket, TcpListener)> {
        let Self { datagrams: Some(datagrams), connections: Some(connections) } = self else {
            forget(self.datagrams.is_some() || self.connections.is_some());
            return None;
        };
        let places = [datagrams.local_addr(), connections.local_addr()];
        let same = address.is_some_and(|wanted| {
            places.iter().all(|place| place.as_ref().is_ok_and(|place| *place == SocketAddr::V4(wanted)))
        });
        let ready = same && datagrams.set_nonblocking(true).is_ok() && connections.set_nonblocking(true).is_ok();
        forget(!ready);
        ready.then_some((datagrams, connections))
    }
}

fn forget(needed: bool) {
    if needed {
        said(tell(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[]));
    }
}

/// Gives systemd copies. It is not to look at them (`FDPOLL=0`): it would drop one with an error.
pub(super) fn keep(sockets: [BorrowedFd<'_>; 2]) {
    said(tell(&format!("FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0"), &sockets));
}

fn said(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!("cannot tell systemd of the sockets for names: {error}");
    }
}

fn tell(words: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(place) = std::env::var_os(crate::NOTIFY_SOCKET) else { return Ok(()) };
    let address = match place.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(place.as_bytes())?,
    };
    let numbers: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    let socket = UnixDatagram::unbound()?;
    let words = [IoSlice::new(words.as_bytes())];
    sendmsg(socket.as_raw_fd(), &words, rights, MsgFlags::empty(), Some(&address))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::Ipv4Addr;
    use std::os::fd::AsFd as _;
    use std::process::Command;

    fn two() -> (UdpSocket, TcpListener, SocketAddrV4) {
        let connections = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, connections.local_addr().unwrap().port());
        (UdpSocket::bind(address).unwrap(), connections, address)
    }

    fn kept(datagrams: UdpSocket, connections: TcpListener) -> Kept {
        Kept { datagrams: Some(datagrams), connections: Some(connections) }
    }

    #[test]
    fn what_was_kept_is_used_at_its_own_address_only() {
        for change in [false, true] {
            let (datagrams, connections, address) = two();
            let wanted = if change { SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1) } else { address };
            assert_eq!(kept(datagrams, connections).at(Some(wanted)).is_some(), !change);
            // What is not used is closed: the port is free again.
            assert!(UdpSocket::bind(address).is_ok());
        }
        let (datagrams, connections, _) = two();
        assert!(kept(datagrams, connections).at(None).is_none(), "names are switched off");
        let (datagrams, _connections, address) = two();
        assert!(Kept { datagrams: Some(datagrams), connections: None }.at(Some(address)).is_none(), "one of two");
    }

    /// The test starts itself: where systemd listens is said by a variable of the process.
    #[test]
    fn systemd_is_given_both_and_told_when_they_are_of_no_use() {
        let (datagrams, connections, address) = two();
        if std::env::var_os(crate::NOTIFY_SOCKET).is_some() {
            keep([datagrams.as_fd(), connections.as_fd()]);
            assert!(kept(datagrams, connections).at(Some(address)).is_some(), "says nothing");
            let (datagrams, connections, _) = two();
            assert!(kept(datagrams, connections).at(None).is_none());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let systemd = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        systemd.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let test = "dns::kept::tests::systemd_is_given_both_and_told_when_they_are_of_no_use";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let ended = again.args(["--exact", test]).env(crate::NOTIFY_SOCKET, dir.path().join("notify")).output();
        let ended = ended.unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        let mut buffer = [0; 256];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut received = || {
            let mut parts = [io::IoSliceMut::new(&mut buffer)];
            let fd = systemd.as_raw_fd();
            let flags = MsgFlags::empty();
            let message = nix::sys::socket::recvmsg::<()>(fd, &mut parts, Some(&mut space), flags).unwrap();
            let fds: usize = message
                .cmsgs()
                .unwrap()
                .map(|part| match part {
                    nix::sys::socket::ControlMessageOwned::ScmRights(fds) => fds.len(),
                    _ => 0,
                })
                .sum();
            let text: Vec<u8> = message.iovs().flatten().copied().collect();
            (String::from_utf8(text).unwrap(), fds)
        };
        assert_eq!(received(), ("FDSTORE=1\nFDNAME=names\nFDPOLL=0".to_owned(), 2));
        assert_eq!(received(), ("FDSTOREREMOVE=1\nFDNAME=names".to_owned(), 0));
    }
}
