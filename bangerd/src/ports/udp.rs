//! Datagrams: a flow is what one address sends, with a socket of its own to the guest, until
//! nothing has passed for a while.

use super::Port;
use super::share::Place;
use super::tcp::SCRATCH;
use banger_policy::publish::rules::may_use;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A flow in which nothing passes for so long is over.
const IDLE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(60) };
/// A sender's port may become another user's: it is asked again after this.
const KNOWN: Duration = Duration::from_secs(1);
/// Of one port. Who floods it from many addresses takes no more of its owner's connections.
const FLOWS: usize = 256;

#[derive(Debug)]
struct Flow {
    guest: Arc<UdpSocket>,
    used: Arc<Mutex<Instant>>,
    checked: Instant,
}

pub(super) async fn serve(listener: UdpSocket, port: Arc<Port>, answers: &mut JoinSet<SocketAddr>) {
    let listener = Arc::new(listener);
    let mut flows = HashMap::new();
    loop {
        tokio::select! {
            Some(ended) = answers.join_next() => {
                if let Ok(peer) = ended {
                    flows.remove(&peer);
                }
            }
            ready = listener.readable() => {
                // An error of a datagram that was sent is no error of the port.
                drop(ready);
                one(&listener, &port, &mut flows, answers);
                tokio::task::consume_budget().await;
            }
        }
    }
}

/// Passes one datagram on, or drops it, as networks may.
fn one(
    listener: &Arc<UdpSocket>,
    port: &Arc<Port>,
    flows: &mut HashMap<SocketAddr, Flow>,
    answers: &mut JoinSet<SocketAddr>,
) {
    SCRATCH.with_borrow_mut(|scratch| {
        let Ok((size, peer)) = listener.try_recv_from(scratch) else { return };
        let Some(datagram) = scratch.get(..size) else { return };
        let full = flows.len() >= FLOWS;
        let flow = match flows.entry(peer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full || !welcome(peer, port) => return port.note_refused(),
            Entry::Vacant(new) => {
                let Some(place) = port.share.place_now(&port.places) else { return };
                let Ok(guest) = towards(port) else { return };
                // The runtime learns later that a new socket can be written to.
                drop(guest.send(datagram));
                let Ok(guest) = UdpSocket::from_std(guest).map(Arc::new) else { return };
                let used = Arc::new(Mutex::new(Instant::now()));
                let flow = Flow { guest: Arc::clone(&guest), used: Arc::clone(&used), checked: Instant::now() };
                answers.spawn(answer(Arc::clone(listener), guest, peer, used, place));
                new.insert(flow);
                return;
            }
        };
        if flow.checked.elapsed() >= KNOWN {
            if !welcome(peer, port) {
                return port.note_refused();
            }
            flow.checked = Instant::now();
        }
        *flow.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        drop(flow.guest.try_send(datagram));
    });
}

fn welcome(peer: SocketAddr, port: &Port) -> bool {
    port.published.public || may_use(port.owner, port.callers.udp(peer)).granted().is_ok()
}

fn towards(port: &Port) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(IpAddr::V4(port.guest), port.published.guest_port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What the guest sends goes back to the peer, until the flow is idle.
async fn answer(
    listener: Arc<UdpSocket>,
    guest: Arc<UdpSocket>,
    peer: SocketAddr,
    used: Arc<Mutex<Instant>>,
    _place: Place,
) -> SocketAddr {
    loop {
        let until = *used.lock().unwrap_or_else(PoisonError::into_inner) + IDLE;
        if until <= Instant::now() {
            return peer;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            ready = guest.readable() => {
                // "Connection refused" is the guest's answer to an earlier datagram.
                drop(ready);
                SCRATCH.with_borrow_mut(|scratch| {
                    if let Ok(size) = guest.try_recv(scratch) {
                        *used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                        drop(listener.try_send_to(scratch.get(..size).unwrap_or_default(), peer));
                    }
                });
                tokio::task::consume_budget().await;
            }
        }
    }
}
