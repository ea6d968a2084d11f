//! Whose socket a connection comes from, as the kernel says by its socket diagnostics
//! (sock_diag(7), linux/inet_diag.h). `/proc/net/tcp` has the same, but is read whole for each
//! connection.
//!
//! What a sender can do: close the socket at once (the kernel then names root, and no inode: not
//! known), and, for UDP, send from an address of this host that another socket has. So a UDP caller
//! is known only when all sockets with that port that can send so are the same user's, whatever
//! their address. Where it is enough to know who gets an answer, the kernel says that exactly, and
//! no other socket makes a difference.

use banger_policy::publish::rules::Caller;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::cell::Cell;
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The kernel answers at once.
const ANSWER_SECONDS: i64 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// linux/sock_diag.h and linux/netlink.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `INET_DIAG_SKV6ONLY`.
const IPV6_ONLY: u16 = 11;
/// Sockets with one UDP port that are looked at. A user may have one at each address of loopback.
const MOST: usize = 64;
/// Pieces of an answer of the kernel's that are read, each of up to 32 KiB, of some 300 sockets.
const PIECES: u32 = 64;
/// `struct nlmsghdr` and `struct inet_diag_msg`, bytes.
const HEADER: usize = 16;
const MESSAGE: usize = 72;

/// Who is at the other end of a connection from this host.
pub(crate) trait Callers: Send + Sync + Debug {
    fn tcp(&self, peer: SocketAddr, local: SocketAddr) -> Caller;
    fn udp(&self, peer: SocketAddr) -> Caller;
}

/// The kernel's answers. Who asks about connections does not wait for what is asked about
/// datagrams.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    tcp: Diag,
    udp: Diag,
}

/// A socket to the kernel, and the number of the last question.
#[derive(Debug, Default)]
struct Diag(Mutex<Option<(OwnedFd, u32)>>);

/// A socket, as the kernel describes it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    local: SocketAddr,
    remote: SocketAddr,
    uid: u32,
    inode: u32,
    /// It sends nothing as IPv4. The kernel sets this for each socket that is bound to an address
    /// of IPv6, and says it of those that are not connected.
    ipv6_only: bool,
}

impl Callers for Kernel {
    fn tcp(&self, peer: SocketAddr, local: SocketAddr) -> Caller {
        let found = self.tcp.ask(TCP, REQUEST, family(peer.ip()), peer, local, |_| false).unwrap_or_default();
        // Where no connection is, the kernel looks for a socket that listens on the peer's port.
        let same = |socket: &&Found| socket.local == canonical(peer) && socket.remote == canonical(local);
        found.iter().find(same).map_or(Caller::Unknown, Found::caller)
    }

    fn udp(&self, peer: SocketAddr) -> Caller {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let port = SocketAddr::new(any.ip(), peer.port());
        let as_ipv4 = peer.ip().to_canonical().is_ipv4();
        // Two users, or too many sockets: more of them make no difference. Those that cannot have
        // sent do not count, for they keep nobody from having the same port; but not all of them
        // are read either, because everybody else's senders are looked for after this one.
        let pieces = Cell::new(0);
        let enough = |found: &mut Vec<Found>| {
            pieces.set(pieces.get() + 1);
            found.retain(|socket| !(as_ipv4 && socket.ipv6_only));
            pieces.get() > PIECES || found.len() > MOST || !Found::are_of_one(found)
        };
        let ask = |family| self.udp.ask(UDP, REQUEST | DUMP, family, port, any, enough);
        // A socket of IPv6 may send as IPv4, but not the other way.
        let of_ipv4 = if as_ipv4 { ask(AF_INET) } else { Ok(Vec::new()) };
        let (Ok(mut all), Ok(more)) = (of_ipv4, ask(AF_INET6)) else { return Caller::Unknown };
        all.extend(more);
        all.retain(|socket| socket.local.port() == peer.port());
        if enough(&mut all) {
            return Caller::Unknown;
        }
        let peer = peer.ip().to_canonical();
        let may_send = |socket: &Found| socket.local.ip() == peer || socket.local.ip().is_unspecified();
        all.iter().find(|socket| may_send(socket)).map_or(Caller::Unknown, Found::caller)
    }
}

impl Kernel {
    /// Who gets a datagram that is sent from `own` to `peer`: the kernel looks for the socket as it
    /// does for the datagram.
    pub(crate) fn receiver(&self, peer: SocketAddr, own: SocketAddr) -> Caller {
        let found = self.udp.ask(UDP, REQUEST, family(peer.ip()), own, peer, |_| false).unwrap_or_default();
        let here = |socket: &&Found| socket.local.port() == peer.port();
        found.iter().find(here).map_or(Caller::Unknown, Found::caller)
    }

    /// Whose sockets wait at an address of this host, for datagrams or connections.
    pub(crate) fn listeners(&self, address: SocketAddr) -> Vec<u32> {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let port = SocketAddr::new(any.ip(), address.port());
        let ask =
            |protocol, family| self.udp.ask(protocol, REQUEST | DUMP, family, port, any, |_| false).unwrap_or_default();
        let all = [(TCP, AF_INET), (TCP, AF_INET6), (UDP, AF_INET), (UDP, AF_INET6)];
        let all = all.into_iter().flat_map(|(protocol, family)| ask(protocol, family));
        let here = |socket: &Found| {
            let ip = socket.local.ip();
            let at = ip == address.ip() || ip.is_unspecified();
            at && socket.local.port() == address.port() && socket.remote.port() == 0 && socket.inode != 0
        };
        let mut uids: Vec<u32> = all.filter(here).map(|socket| socket.uid).collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }
}

impl Found {
    /// A socket that no process has any more has no inode, and root's number.
    fn caller(&self) -> Caller {
        if self.inode == 0 { Caller::Unknown } else { Caller::Uid(self.uid) }
    }

    fn are_of_one(all: &[Self]) -> bool {
        all.iter().all(|socket| all.first().is_some_and(|first| first.caller() == socket.caller()))
    }
}

impl Diag {
    /// `enough`, asked after each piece: the rest of the answer is not read. It may take out what
    /// does not count.
    fn ask(
        &self,
        protocol: u8,
        flags: u16,
        family: u8,
        local: SocketAddr,
        remote: SocketAddr,
        enough: impl Fn(&mut Vec<Found>) -> bool,
    ) -> io::Result<Vec<Found>> {
        // Nothing is left half done: a socket with an answer to come is not used again.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (diag, asked) = match held.take() {
            Some(known) => known,
            None => (open()?, 0),
        };
        let number = asked.wrapping_add(1);
        let fd = diag.as_raw_fd();
        send(fd, &request(protocol, flags, family, local, remote, number), MsgFlags::empty())?;
        let mut found = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let size = recv(fd, &mut buffer, MsgFlags::empty())?;
            let ended = read(buffer.get(..size).unwrap_or_default(), number, &mut found);
            let enough = enough(&mut found);
            if ended || flags & DUMP == 0 {
                break;
            }
            if enough {
                return Ok(found);
            }
        }
        *held = Some((diag, number));
        Ok(found)
    }
}

fn open() -> io::Result<OwnedFd> {
    let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    let diag = socket(AddressFamily::Netlink, kind, flags, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&diag, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
    Ok(diag)
}

fn family(address: IpAddr) -> u8 {
    if address.to_canonical().is_ipv4() { AF_INET } else { AF_INET6 }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(protocol: u8, flags: u16, family: u8, local: SocketAddr, remote: SocketAddr, number: u32) -> Vec<u8> {
    let mut text = Vec::with_capacity(HEADER + 56);
    text.extend((72_u32).to_ne_bytes());
    text.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    text.extend(flags.to_ne_bytes());
    text.extend(number.to_ne_bytes());
    text.extend(0_u32.to_ne_bytes());
    text.extend([family, protocol, 0, 0]);
    text.extend(u32::MAX.to_ne_bytes()); // in whatever state
    text.extend(local.port().to_be_bytes());
    text.extend(remote.port().to_be_bytes());
    for address in [local.ip().to_canonical(), remote.ip().to_canonical()] {
        match address {
            IpAddr::V4(address) => {
                text.extend(address.octets());
                text.extend([0; 12]);
            }
            IpAddr::V6(address) => text.extend(address.octets()),
        }
    }
    text.extend(0_u32.to_ne_bytes()); // whatever device
    text.extend([0xff; 8]); // no cookie
    text
}

/// Reads what one answer has. True at the end.
fn read(mut answer: &[u8], number: u32, found: &mut Vec<Found>) -> bool {
    while let Some(size) = u32_at(answer, 0).and_then(|size| usize::try_from(size).ok()) {
        let Some(message) = answer.get(HEADER..size) else { return true };
        let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
        if u32_at(answer, 8) == Some(number) {
            match kind {
                Some(SOCK_DIAG_BY_FAMILY) => found.extend(socket_of(message)),
                Some(ERROR | DONE) => return true,
                _ => {}
            }
        }
        answer = answer.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn socket_of(message: &[u8]) -> Option<Found> {
    let (message, attributes) = message.split_at_checked(MESSAGE)?;
    let port = |at: usize| message.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let address = |at: usize| -> Option<IpAddr> {
        if message.first() == Some(&AF_INET) {
            return Some(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?.into());
        }
        let address: IpAddr = <[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?.into();
        Some(address.to_canonical())
    };
    Some(Found {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        uid: u32_at(message, 64)?,
        inode: u32_at(message, 68)?,
        ipv6_only: attribute(attributes, IPV6_ONLY).is_some_and(|value| value.first() == Some(&1)),
    })
}

/// `struct rtattr` (rtnetlink(7)): the value of the first of this type.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    let two = |bytes: &[u8], at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    loop {
        let size = usize::from(two(rest, 0)?);
        let value = rest.get(4..size)?;
        if two(rest, 2)? == wanted {
            return Some(value);
        }
        rest = rest.get(size.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn me() -> Caller {
        Caller::Uid(nix::unistd::geteuid().as_raw())
    }

    #[test]
    fn the_kernel_names_who_is_connected_and_nobody_who_has_closed() {
        let kernel = Kernel::default();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(kernel.tcp(peer, local), me());
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(kernel.tcp(peer, local), me(), "half closed, and still somebody's");
            drop(client);
            // The kernel shows it as root's.
            assert_eq!(kernel.tcp(peer, local), Caller::Unknown);
            // Nobody is connected from a port on which somebody listens.
            let other = TcpListener::bind(address).unwrap();
            assert_eq!(kernel.tcp(other.local_addr().unwrap(), local), Caller::Unknown);
        }
    }

    #[test]
    fn who_may_have_sent_a_datagram() {
        let kernel = Kernel::default();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), port);
        assert_eq!(kernel.udp(at("127.0.0.1")), me());
        assert_eq!(kernel.udp(at("127.0.0.2")), Caller::Unknown);
        drop(socket);
        assert_eq!(kernel.udp(at("127.0.0.1")), Caller::Unknown);
        let both = UdpSocket::bind("[::]:0").unwrap();
        let peer = SocketAddr::new("127.0.0.1".parse().unwrap(), both.local_addr().unwrap().port());
        assert_eq!(kernel.udp(peer), me(), "a socket of IPv6 sends as IPv4");
    }

    #[test]
    fn who_waits_at_an_address() {
        let kernel = Kernel::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        assert_eq!(kernel.listeners(address), [uid]);
        assert_eq!(kernel.listeners(SocketAddr::new("127.0.0.2".parse().unwrap(), address.port())), Vec::<u32>::new());
        // Who is connected there does not wait there.
        let client = TcpStream::connect(address).unwrap();
        let from = client.local_addr().unwrap();
        assert_eq!(kernel.listeners(from), Vec::<u32>::new());
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(kernel.listeners(datagrams.local_addr().unwrap()), [uid]);
    }

    #[test]
    fn two_users_who_share_a_port_are_nobody() {
        let root = nix::unistd::geteuid().is_root();
        let kernel = Kernel::default();
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = first.local_addr().unwrap();
        let second = SocketAddr::new("127.0.0.2".parse().unwrap(), peer.port());
        let other = of_another(second);
        // Only root can be two users; the same user twice is one.
        assert_eq!(kernel.udp(peer), if root { Caller::Unknown } else { me() });
        drop(other);
        assert_eq!(kernel.udp(peer), me());
    }

    /// As another user, where the test is root's.
    fn of_another(address: SocketAddr) -> UdpSocket {
        let root = nix::unistd::geteuid().is_root();
        let make = move || {
            // Of this thread alone.
            if root {
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(12_345));
            }
            UdpSocket::bind(address).unwrap()
        };
        std::thread::spawn(make).join().unwrap()
    }

    /// Nobody's port is excluded by a socket of IPv6 at the same number: who has them all would
    /// make all senders unknown.
    #[test]
    fn a_socket_that_sends_no_ipv4_makes_no_sender_of_it_unknown() {
        let kernel = Kernel::default();
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = first.local_addr().unwrap();
        let _other = of_another(SocketAddr::new("::1".parse().unwrap(), peer.port()));
        assert_eq!(kernel.udp(peer), me());
        let first = UdpSocket::bind("[::1]:0").unwrap();
        let peer = first.local_addr().unwrap();
        let _other = of_another(SocketAddr::new("127.0.0.1".parse().unwrap(), peer.port()));
        assert_eq!(kernel.udp(peer), me());
    }

    #[test]
    fn who_gets_an_answer_is_known_whoever_has_the_same_port_elsewhere() {
        let kernel = Kernel::default();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = server.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(own).unwrap();
        let peer = client.local_addr().unwrap();
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), peer.port());
        let _others = [of_another(at("127.77.0.1")), of_another(at("::1"))];
        assert_eq!(kernel.receiver(peer, own), me());
        // Whoever is connected to another address gets nothing from this one.
        assert_eq!(kernel.receiver(peer, SocketAddr::new(own.ip(), own.port() ^ 1)), Caller::Unknown);
        drop(client);
        assert_eq!(kernel.receiver(peer, own), Caller::Unknown);
        let anywhere = UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(kernel.receiver(SocketAddr::new(own.ip(), anywhere.local_addr().unwrap().port()), own), me());
    }

    #[test]
    fn of_a_port_with_very_many_sockets_a_few_are_looked_at() {
        let kernel = Kernel::default();
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = first.local_addr().unwrap();
        let address = |n: u8| SocketAddr::new(std::net::Ipv4Addr::new(127, 0, 1, n).into(), peer.port());
        let many: Vec<UdpSocket> = (1..=250).filter_map(|n| UdpSocket::bind(address(n)).ok()).collect();
        assert!(many.len() > 2 * MOST);
        assert_eq!(kernel.udp(peer), Caller::Unknown);
        drop(many);
        // What was still to come of that answer is part of no other.
        assert_eq!(kernel.udp(peer), me());
    }

    #[test]
    fn who_asks_about_a_connection_waits_for_no_question_about_datagrams() {
        let kernel = Kernel::default();
        let _asked = kernel.udp.0.lock().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(kernel.tcp(client.local_addr().unwrap(), listener.local_addr().unwrap()), me());
    }

    #[test]
    fn an_answer_of_any_form_is_read_without_harm() {
        let mut found = Vec::new();
        for size in 0..200_u8 {
            let mut answer = vec![size; usize::from(size)];
            read(&answer, 1, &mut found);
            if let Some(length) = answer.get_mut(..4) {
                length.copy_from_slice(&u32::from(size).to_ne_bytes());
                read(&answer, u32::from_ne_bytes([size; 4]), &mut found);
            }
            assert_eq!(found.len(), 0, "{size}: a message of another kind names nobody");
            let header = [u32::from(size).to_ne_bytes(), [0; 4], 1_u32.to_ne_bytes()].concat();
            let mut answer = [&header[..], &[1; 200]].concat();
            answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            answer.truncate(usize::from(size));
            read(&answer, 1, &mut found);
            let whole = usize::from(size) >= HEADER + MESSAGE;
            assert_eq!(found.drain(..).count(), usize::from(whole), "{size}: half a message names nobody");
        }
    }
}
