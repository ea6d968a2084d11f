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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Senders that the kernel is asked about, of one port in a second: who floods it makes it ask no
/// more than that.
const LOOKS: u32 = 200;

#[derive(Debug)]
struct Flow {
    guest: Arc<UdpSocket>,
    state: Arc<Mutex<Times>>,
}

/// When something passed last, and when the peer was known to be allowed.
#[derive(Debug)]
struct Times {
    used: Instant,
    checked: Instant,
}

/// How often the kernel was asked in the second that began then.
struct Looks(Instant, u32);

impl Looks {
    fn one_more(&mut self) -> bool {
        if self.0.elapsed() >= KNOWN {
            *self = Self(Instant::now(), 0);
        }
        self.1 = self.1.saturating_add(1);
        self.1 <= LOOKS
    }
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn serve(listener: UdpSocket, port: Arc<Port>, answers: &mut JoinSet<SocketAddr>) {
    let listener = Arc::new(listener);
    let mut flows = HashMap::new();
    let mut looks = Looks(Instant::now(), 0);
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
                one(&listener, &port, &mut flows, answers, &mut looks);
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
    looks: &mut Looks,
) {
    SCRATCH.with_borrow_mut(|scratch| {
        let Ok((size, peer)) = listener.try_recv_from(scratch) else { return };
        let Some(datagram) = scratch.get(..size) else { return };
        let full = flows.len() >= FLOWS;
        let flow = match flows.entry(peer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full || !looks.one_more() || !welcome(peer, port) => return port.note_refused(),
            Entry::Vacant(new) => {
                let Some(place) = port.share.place_now(&port.places) else { return };
                let Ok(guest) = towards(port) else { return };
                // The runtime learns later that a new socket can be written to.
                drop(guest.send(datagram));
                let Ok(guest) = UdpSocket::from_std(guest).map(Arc::new) else { return };
                let now = Instant::now();
                let state = Arc::new(Mutex::new(Times { used: now, checked: now }));
                new.insert(Flow { guest: Arc::clone(&guest), state: Arc::clone(&state) });
                answers.spawn(answer(Arc::clone(listener), guest, peer, state, Arc::clone(port), place));
                return;
            }
        };
        if !still_welcome(peer, port, &flow.state, || looks.one_more()) {
            return port.note_refused();
        }
        lock(&flow.state).used = Instant::now();
        drop(flow.guest.try_send(datagram));
    });
}

fn welcome(peer: SocketAddr, port: &Port) -> bool {
    port.published.public || may_use(port.owner, port.callers.udp(peer)).granted().is_ok()
}

/// The same for a flow, asked again when the last answer is old. Its peer's port may be another
/// user's by now, who must neither send on the flow nor be sent what the guest says.
fn still_welcome(peer: SocketAddr, port: &Port, state: &Mutex<Times>, may_look: impl FnOnce() -> bool) -> bool {
    if lock(state).checked.elapsed() < KNOWN {
        return true;
    }
    let welcome = may_look() && welcome(peer, port);
    if welcome {
        lock(state).checked = Instant::now();
    }
    welcome
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
    state: Arc<Mutex<Times>>,
    port: Arc<Port>,
    _place: Place,
) -> SocketAddr {
    loop {
        let until = lock(&state).used + IDLE;
        if until <= Instant::now() {
            return peer;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            ready = guest.readable() => {
                // "Connection refused" is the guest's answer to an earlier datagram.
                drop(ready);
                // What the guest says is asked for once a second at most, whatever it sends.
                if !still_welcome(peer, &port, &state, || true) {
                    return peer;
                }
                SCRATCH.with_borrow_mut(|scratch| {
                    if let Ok(size) = guest.try_recv(scratch) {
                        lock(&state).used = Instant::now();
                        drop(listener.try_send_to(scratch.get(..size).unwrap_or_default(), peer));
                    }
                });
                tokio::task::consume_budget().await;
            }
        }
    }
}
