//! Connections: accepted when the caller may use the port, and passed on both ways.

use super::Port;
use super::share::{CHUNK, Place, Share};
use banger_policy::publish::rules::{is_guests, may_use};
use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How long a guest may take to answer; then the caller's connection is reset.
const CONNECT: Duration = Duration::from_secs(5);
/// After a failed accept: mostly the limit on descriptors, which needs others to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A peer that is gone without a word is noticed after this and a few unanswered probes, seconds.
const KEEPALIVE: u32 = 300;

thread_local! {
    /// One for all connections of a thread: those that are idle hold no memory.
    pub(super) static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

pub(super) async fn serve(listener: TcpListener, port: Arc<Port>, relays: &mut JoinSet<()>) {
    loop {
        while relays.try_join_next().is_some() {}
        let Ok((client, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // The next one is accepted in another turn.
        drop(port.share.turn().await);
        if !welcome(&client, peer, &port).await {
            port.note_refused();
            reset(&client);
            continue;
        }
        // Whoever has as many as he may have is not accepted until one ends.
        let Some(place) = port.share.place(&port.places).await else { return };
        relays.spawn(relay(client, peer, Arc::clone(&port), place));
    }
}

async fn welcome(client: &TcpStream, peer: SocketAddr, port: &Port) -> bool {
    let Ok(local) = client.local_addr() else { return false };
    // Who listens everywhere listens on the VMs' side as well.
    if is_guests(local.ip(), port.guests) {
        return false;
    }
    port.published.public || may_use(port.owner, port.looks.tcp(&port.share, peer, local).await).granted().is_ok()
}

async fn relay(client: TcpStream, peer: SocketAddr, port: Arc<Port>, _place: Place) {
    let address = SocketAddr::new(IpAddr::V4(port.guest), port.published.guest_port);
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let Ok(Ok(guest)) = connected else { return reset(&client) };
    for stream in [&client, &guest] {
        drop(stream.set_nodelay(true));
        // Without them the connection is passed on all the same.
        setsockopt(stream, sockopt::KeepAlive, &true).unwrap_or_default();
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE).unwrap_or_default();
    }
    let header = match client.local_addr() {
        Ok(local) if port.published.proxy_protocol => proxy_header(peer, local),
        _ => Vec::new(),
    };
    let share = &port.share;
    let passed = async {
        write_all(&guest, &header, share).await?;
        tokio::try_join!(pass(&client, &guest, share), pass(&guest, &client, share))
    };
    if passed.await.is_err() {
        // One side broke off: so the other one learns of it.
        reset(&client);
        reset(&guest);
    }
}

enum Step<'a> {
    Again,
    Wait(super::share::Held<'a>),
    End,
}

/// Passes on what one side sends, up to its end, which is passed on, too.
async fn pass(from: &TcpStream, to: &TcpStream, share: &Share) -> io::Result<()> {
    loop {
        from.readable().await?;
        // Read is only what can be written: what comes meanwhile waits in the kernel.
        to.writable().await?;
        let turn = share.turn().await;
        let stepped = step(from, to, share)?;
        drop(turn);
        match stepped {
            Step::Again => {}
            Step::Wait(held) => write_all(to, &held.bytes, share).await?,
            Step::End => return Ok(shutdown(to.as_raw_fd(), Shutdown::Write)?),
        }
        tokio::task::consume_budget().await;
    }
}

fn step<'a>(from: &TcpStream, to: &TcpStream, share: &'a Share) -> io::Result<Step<'a>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let chunk = scratch.get_mut(..share.chunk()).unwrap_or_default();
        let read = match from.try_read(chunk) {
            Ok(0) => return Ok(Step::End),
            Ok(size) => chunk.get(..size).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Step::Again),
            Err(error) => return Err(error),
        };
        let written = match to.try_write(read) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        match read.get(written..).unwrap_or_default() {
            [] => Ok(Step::Again),
            rest => Ok(Step::Wait(share.hold(rest))),
        }
    })
}

async fn write_all(to: &TcpStream, mut bytes: &[u8], share: &Share) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        let _turn = share.turn().await;
        match to.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The end of this connection says that something went wrong (RFC 9293, 3.10.4).
fn reset(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap_or_default();
}

/// The header of the PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt, section 2.2).
fn proxy_header(peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (peer.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(peer), IpAddr::V4(local)) => {
            header.extend([0x11, 0, 12]);
            header.extend(peer.octets());
            header.extend(local.octets());
        }
        (peer, local) => {
            header.extend([0x21, 0, 36]);
            for address in [peer, local] {
                header.extend(match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                });
            }
        }
    }
    header.extend(peer.port().to_be_bytes());
    header.extend(local.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_header_is_that_of_the_protocol() {
        let header = proxy_header("192.0.2.1:4660".parse().unwrap(), "127.0.0.1:22136".parse().unwrap());
        let want = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\xc0\x00\x02\x01\x7f\x00\x00\x01\x12\x34\x56\x78";
        assert_eq!(header, want);
        let header = proxy_header("[2001:db8::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        assert_eq!((header.len(), header[13], &header[14..16]), (16 + 36, 0x21, &[0, 36][..]));
    }
}
