//! Datagrams: a flow is what one address sends, with a socket of its own to the guest, until
//! nothing has passed for a while.

use super::Port;
use super::share::{Held, Place};
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
/// New senders of one port that the kernel is being asked about; further ones are dropped. Who
/// floods the port delays the other ports of its owner by no more than these.
pub(super) const NEW: usize = 32;
/// Datagrams of one sender that wait for the kernel's answer.
const WAITING: usize = 16;

#[derive(Debug)]
struct Flow<'a> {
    /// None before the sender was allowed for the first time.
    guest: Option<Arc<UdpSocket>>,
    state: Arc<Known>,
    /// While the kernel is asked about the sender: what has come meanwhile.
    waiting: Option<Vec<Held<'a>>>,
    _place: Place,
}

/// What is known of a sender.
#[derive(Debug)]
struct Known {
    /// When something passed last.
    used: Mutex<Instant>,
    /// When the sender was known to be allowed. Locked while the kernel is asked.
    allowed: tokio::sync::Mutex<Option<Instant>>,
}

/// What a task of a port has come to.
#[derive(Debug)]
pub(super) enum Done {
    /// A flow has ended.
    Flow(SocketAddr),
    /// Whether the sender may use the port.
    Asked(SocketAddr, bool),
}

/// The flows of one port.
struct Flows<'a> {
    listener: Arc<UdpSocket>,
    port: &'a Arc<Port>,
    by_peer: HashMap<SocketAddr, Flow<'a>>,
    /// How many of them are new.
    new: usize,
}

pub(super) async fn serve(listener: UdpSocket, port: Arc<Port>, tasks: &mut JoinSet<Done>) {
    let mut flows = Flows { listener: Arc::new(listener), port: &port, by_peer: HashMap::new(), new: 0 };
    loop {
        tokio::select! {
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Flow(peer)) => flows.forget(peer),
                Ok(Done::Asked(peer, may)) => flows.asked(peer, may, tasks),
                Err(_) => {}
            },
            ready = flows.listener.readable() => {
                // An error of a datagram that was sent is no error of the port.
                drop(ready);
                let turn = port.share.turn().await;
                flows.one(tasks);
                drop(turn);
                tokio::task::consume_budget().await;
            }
        }
    }
}

impl Flows<'_> {
    /// Passes one datagram on, or drops it, as networks may.
    fn one(&mut self, tasks: &mut JoinSet<Done>) {
        SCRATCH.with_borrow_mut(|scratch| {
            let Ok((size, peer)) = self.listener.try_recv_from(scratch) else { return };
            let Some(datagram) = scratch.get(..size) else { return };
            let full = self.by_peer.len() >= FLOWS || (self.new >= NEW && !self.port.published.public);
            let flow = match self.by_peer.entry(peer) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(_) if full => return self.port.note_refused(),
                Entry::Vacant(new) => {
                    let Some(place) = self.port.share.place_now(&self.port.places) else { return };
                    self.new += 1;
                    let state =
                        Arc::new(Known { used: Mutex::new(Instant::now()), allowed: tokio::sync::Mutex::default() });
                    new.insert(Flow { guest: None, state, waiting: None, _place: place })
                }
            };
            if let (Some(guest), true) = (&flow.guest, flow.state.is_allowed(self.port)) {
                flow.state.use_now();
                drop(guest.try_send(datagram));
                return;
            }
            let asks = flow.waiting.is_none();
            let waiting = flow.waiting.get_or_insert_default();
            if waiting.len() < WAITING {
                waiting.extend(self.port.share.hold_some(datagram));
            }
            if self.port.published.public {
                self.asked(peer, true, tasks);
            } else if asks {
                let (port, state) = (Arc::clone(self.port), Arc::clone(&flow.state));
                tasks.spawn(async move { Done::Asked(peer, state.still_allowed(peer, &port).await) });
            }
        });
    }

    /// The kernel has answered.
    fn asked(&mut self, peer: SocketAddr, may: bool, tasks: &mut JoinSet<Done>) {
        let Some(flow) = self.by_peer.get_mut(&peer) else { return };
        let waiting = flow.waiting.take().unwrap_or_default();
        if !may {
            self.port.note_refused();
        }
        match &flow.guest {
            Some(guest) if may => waiting.iter().for_each(|datagram| drop(guest.try_send(&datagram.bytes))),
            // What the guest sends ends the flow, or silence.
            Some(_) => return,
            None if may => {
                let Ok(guest) = towards(self.port).and_then(|guest| {
                    // The runtime learns later that a new socket can be written to.
                    waiting.iter().for_each(|datagram| drop(guest.send(&datagram.bytes)));
                    UdpSocket::from_std(guest).map(Arc::new)
                }) else {
                    return self.forget(peer);
                };
                self.new -= 1;
                flow.guest = Some(Arc::clone(&guest));
                let (listener, state) = (Arc::clone(&self.listener), Arc::clone(&flow.state));
                tasks.spawn(answer(listener, guest, peer, state, Arc::clone(self.port)));
            }
            None => return self.forget(peer),
        }
        flow.state.use_now();
    }

    fn forget(&mut self, peer: SocketAddr) {
        if self.by_peer.remove(&peer).is_some_and(|flow| flow.guest.is_none()) {
            self.new -= 1;
        }
    }
}

impl Known {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_now(&self) {
        *self.used() = Instant::now();
    }

    /// Without asking.
    fn is_allowed(&self, port: &Port) -> bool {
        port.published.public || self.allowed.try_lock().is_ok_and(|allowed| is_fresh(*allowed))
    }

    /// The kernel is asked when its last answer is old. The sender's port may be another user's by
    /// now, who must neither send on the flow nor be sent what the guest says.
    async fn still_allowed(&self, peer: SocketAddr, port: &Port) -> bool {
        if port.published.public {
            return true;
        }
        let mut allowed = self.allowed.lock().await;
        if is_fresh(*allowed) {
            return true;
        }
        let may = may_use(port.owner, port.looks.udp(&port.share, peer).await).granted().is_ok();
        *allowed = may.then(Instant::now);
        may
    }
}

fn is_fresh(allowed: Option<Instant>) -> bool {
    allowed.is_some_and(|at| at.elapsed() < KNOWN)
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
    state: Arc<Known>,
    port: Arc<Port>,
) -> Done {
    loop {
        let until = *state.used() + IDLE;
        if until <= Instant::now() {
            return Done::Flow(peer);
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            ready = guest.readable() => {
                // "Connection refused" is the guest's answer to an earlier datagram.
                drop(ready);
                // What the guest says is asked for once a second at most, whatever it sends.
                if !state.still_allowed(peer, &port).await {
                    return Done::Flow(peer);
                }
                let turn = port.share.turn().await;
                SCRATCH.with_borrow_mut(|scratch| {
                    if let Ok(size) = guest.try_recv(scratch) {
                        state.use_now();
                        drop(listener.try_send_to(scratch.get(..size).unwrap_or_default(), peer));
                    }
                });
                drop(turn);
                tokio::task::consume_budget().await;
            }
        }
    }
}
