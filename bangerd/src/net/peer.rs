//! Whose a socket at the other end of a loopback connection is, by the kernel's tables in
//! `/proc/net` (proc(5)). The daemon's unit permits no netlink socket, so they are read as text.
//!
//! A table may show a socket that nobody holds any more (its number is 0, and so is its uid), and
//! two programs may share a port for datagrams. In both cases nobody is known: an answer that is
//! given for the wrong uid would be given to somebody else.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Which sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
}

impl Protocol {
    /// Sockets of IPv6 reach addresses of IPv4, too.
    fn tables(self) -> [&'static str; 2] {
        match self {
            Self::Udp => ["/proc/net/udp", "/proc/net/udp6"],
            Self::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        }
    }
}

/// The sockets of this host at one moment.
#[derive(Debug)]
pub(crate) struct Sockets {
    protocol: Protocol,
    tables: String,
}

/// A socket whose end is asked for.
struct Socket {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    uid: u32,
    inode: u64,
}

const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

impl Sockets {
    /// Reads the tables. Blocks for as long as the kernel walks through them.
    pub(crate) fn read(protocol: Protocol) -> Self {
        let tables = protocol.tables().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        Self { protocol, tables: tables.concat() }
    }

    /// The uid of the process that talks from `peer` to `own`, when exactly one can be it.
    pub(crate) fn uid(&self, peer: SocketAddrV4, own: SocketAddrV4) -> Option<u32> {
        let mut uids = self.tables.lines().filter_map(socket).filter(|socket| self.matches(socket, peer, own));
        let first = uids.next()?;
        let certain = |socket: &Socket| socket.inode != 0 && socket.uid == first.uid;
        (certain(&first) && uids.all(|other| certain(&other))).then_some(first.uid)
    }

    fn matches(&self, socket: &Socket, peer: SocketAddrV4, own: SocketAddrV4) -> bool {
        match self.protocol {
            Protocol::Tcp => socket.local == peer && socket.remote == own,
            Protocol::Udp => {
                let here = socket.local.ip().is_unspecified() || socket.local.ip() == peer.ip();
                here && socket.local.port() == peer.port() && (socket.remote == own || socket.remote == NOWHERE)
            }
        }
    }
}

/// A line: number, local and remote address, state, queues, timer, retransmissions, uid, timeout,
/// inode. The headings are no socket.
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let uid = fields.nth(4)?.parse().ok()?;
    Some(Socket { local, remote, uid, inode: fields.nth(1)?.parse().ok()? })
}

/// Hexadecimal; each 32 bits of an address in the byte order of the host, the port as a number.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let last = match address.len() {
        8 => word(0)?,
        // `::` and `::ffff:a.b.c.d` (RFC 4291); other addresses of IPv6 do not reach one of IPv4.
        32 if word(0)? == 0 && word(8)? == 0 && [0, 0xffff_u32.to_be()].contains(&word(16)?) => word(24)?,
        _ => return None,
    };
    Some(SocketAddrV4::new(Ipv4Addr::from(last.to_ne_bytes()), port))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;
    use nix::unistd::Uid;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(address) => panic!("{address}"),
        }
    }

    fn me() -> Option<u32> {
        Some(Uid::effective().as_raw())
    }

    #[test]
    fn datagrams_of_every_kind_of_socket_have_their_sender() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = v4(server.local_addr().unwrap());
        for (bound, connected) in [
            ("127.0.0.1:0", false),
            ("127.0.0.1:0", true),
            ("0.0.0.0:0", false),
            ("0.0.0.0:0", true),
            ("[::]:0", false),
        ] {
            let Ok(client) = UdpSocket::bind(bound) else { continue };
            let target =
                if bound.starts_with('[') { format!("[::ffff:127.0.0.1]:{}", own.port()) } else { own.to_string() };
            if connected {
                client.connect(&target).unwrap();
            }
            if client.send_to(b"x", &target).or_else(|_| client.send(b"x")).is_err() {
                // A host without IPv6.
                continue;
            }
            let (_, from) = server.recv_from(&mut [0]).unwrap();
            assert_eq!(Sockets::read(Protocol::Udp).uid(v4(from), own), me(), "{bound} {connected}");
            drop(client);
            assert_eq!(Sockets::read(Protocol::Udp).uid(v4(from), own), None, "it is closed");
        }
    }

    #[test]
    fn a_connection_has_its_other_end_as_long_as_somebody_holds_it() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = v4(server.local_addr().unwrap());
        let client = TcpStream::connect(own).unwrap();
        let (accepted, from) = server.accept().unwrap();
        assert_eq!(Sockets::read(Protocol::Tcp).uid(v4(from), own), me());
        // The kernel keeps it for a while, as uid 0's.
        drop(client);
        assert_eq!(Sockets::read(Protocol::Tcp).uid(v4(from), own), None);
        drop(accepted);
    }

    fn table(lines: &[(&str, &str, u32, u32)]) -> Sockets {
        let line = |(local, remote, uid, inode): &(&str, &str, u32, u32)| {
            format!("  77: {local} {remote} 07 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 2 0000 0\n")
        };
        let heading =
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        Sockets { protocol: Protocol::Udp, tables: heading.to_owned() + &lines.iter().map(line).collect::<String>() }
    }

    #[test]
    fn two_who_share_a_port_are_nobody() {
        let hex = |address: [u8; 4], port: u16| format!("{:08X}:{port:04X}", u32::from_ne_bytes(address));
        let (any, loopback, nowhere) = (hex([0; 4], 5000), hex([127, 0, 0, 1], 5000), hex([0; 4], 0));
        let peer = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000);
        let own = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 42069);
        let (ours, elsewhere) = (hex([127, 0, 0, 1], 42069), hex([127, 0, 0, 1], 53));
        for (lines, uid) in [
            (vec![(&*loopback, &*nowhere, 1001, 9)], Some(1001)),
            (vec![(&*any, &*nowhere, 1001, 9), (&*loopback, &*ours, 1001, 10)], Some(1001)),
            (vec![(&*any, &*nowhere, 1001, 9), (&*loopback, &*ours, 1002, 10)], None),
            (vec![(&*loopback, &*elsewhere, 1002, 10), (&*any, &*nowhere, 1001, 9)], Some(1001)),
            (vec![(&*loopback, &*nowhere, 0, 0)], None),
            (vec![], None),
        ] {
            assert_eq!(table(&lines).uid(peer, own), uid, "{lines:?}");
        }
    }
}
