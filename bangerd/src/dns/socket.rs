//! The two sockets: datagrams and connections. Every bound that keeps one client from the others
//! is here.

use super::Server;
use super::message::{self, Heard, LONGEST};
use crate::known::Who;
use banger_policy::dns::Asker;
use banger_policy::publish::Protocol;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener as StdTcp, UdpSocket as StdUdp};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

/// Datagrams whose senders are asked for at once.
const BATCH: usize = 64;
/// How long a connection may be silent, or not take its answer.
const SILENCE: Duration = Duration::from_secs(5);
/// Questions over one connection.
const QUESTIONS: usize = 100;
/// Connections at the same time, of one user and of all.
const CONNECTIONS: (usize, usize) = (16, 128);
/// Of these, left free for root and for the resolvers, which ask for everybody.
const LEFT_FREE: usize = 16;
/// How long is waited after a failed accept or receive.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Sockets {
    datagrams: Arc<UdpSocket>,
    connections: TcpListener,
    pub(super) own: SocketAddrV4,
}

/// # Errors
/// When one of the two ports is taken.
pub(super) async fn bind(address: SocketAddrV4) -> io::Result<Sockets> {
    let connections = TcpListener::bind(address).await?;
    // Port 0, of tests, is the same for both.
    let own = v4(connections.local_addr()?).unwrap_or(address);
    Ok(Sockets { datagrams: Arc::new(UdpSocket::bind(own).await?), connections, own })
}

/// Those of a former daemon.
pub(super) fn of((datagrams, connections): (StdUdp, StdTcp), own: SocketAddrV4) -> io::Result<Sockets> {
    let datagrams = Arc::new(UdpSocket::from_std(datagrams)?);
    Ok(Sockets { datagrams, connections: TcpListener::from_std(connections)?, own })
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

impl Sockets {
    pub(super) fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.datagrams.as_fd(), self.connections.as_fd()]
    }

    /// For ever.
    pub(super) async fn serve(self, server: Arc<Server>) {
        let datagrams = serve_datagrams(self.datagrams, self.own, Arc::clone(&server));
        tokio::join!(datagrams, serve_connections(self.connections, self.own, server));
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, own: SocketAddrV4, server: Arc<Server>) {
    // A longer message is cut by the kernel: one byte more shows it.
    let mut buffer = [0; LONGEST + 1];
    loop {
        let mut heard: Vec<(SocketAddrV4, Vec<u8>)> = Vec::new();
        let mut received = socket.recv_from(&mut buffer).await;
        while let Ok((length, from)) = received {
            heard.extend(v4(from).zip(buffer.get(..length).map(<[u8]>::to_vec)));
            if heard.len() >= BATCH {
                break;
            }
            received = socket.try_recv_from(&mut buffer);
        }
        if heard.is_empty() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let (peers, who) = (heard.iter().map(|(from, _)| *from).collect::<Vec<_>>(), server.who);
        let uids = tokio::task::spawn_blocking(move || who(Protocol::Udp, &peers, own)).await.unwrap_or_default();
        for ((from, bytes), uid) in heard.into_iter().zip(uids) {
            let Ok(turn) = Arc::clone(&server.at_once).try_acquire_owned() else { continue };
            let (socket, server) = (Arc::clone(&socket), Arc::clone(&server));
            tokio::spawn(async move {
                if let Some(asker) = server.askers.admit(uid).await
                    && let Some(reply) = server.answer(&bytes, true, &asker).await
                {
                    // Whoever asked may be gone.
                    drop(socket.send_to(&reply, from).await);
                }
                drop(turn);
            });
        }
    }
}

async fn serve_connections(listener: TcpListener, own: SocketAddrV4, server: Arc<Server>) {
    let places = Places::default();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (Some(from), who) = (v4(from), server.who) else { continue };
        let uid = tokio::task::spawn_blocking(move || who(Protocol::Tcp, &[from], own)).await;
        let uid = uid.ok().and_then(|uids| uids.first().copied().flatten());
        let (Some(place), server) = (places.take(server.askers.who(uid)), Arc::clone(&server)) else { continue };
        tokio::spawn(async move {
            let Some((counted, asks_for_all)) = server.askers.counted_as(uid).await else { return };
            let Some(place) = place.known_as(counted, asks_for_all) else { return };
            // How it ends says nothing to anybody.
            drop(converse(stream, uid, &server).await);
            drop(place);
        });
    }
}

/// Each message has its length before it (RFC 1035, 4.2.2).
async fn converse(mut stream: TcpStream, uid: Option<u32>, server: &Server) -> io::Result<()> {
    for _ in 0..QUESTIONS {
        let length = usize::from(timeout(SILENCE, stream.read_u16()).await??);
        if length > LONGEST {
            break;
        }
        let mut bytes = vec![0; length];
        timeout(SILENCE, stream.read_exact(&mut bytes)).await??;
        let Some(asker) = server.askers.admit(uid).await else { break };
        let Some(reply) = server.answer(&bytes, false, &asker).await else { break };
        let Ok(length) = u16::try_from(reply.len()) else { break };
        let whole = [&length.to_be_bytes()[..], &reply].concat();
        timeout(SILENCE, stream.write_all(&whole)).await??;
    }
    Ok(())
}

impl Server {
    async fn answer(&self, bytes: &[u8], datagram: bool, asker: &Asker) -> Option<Vec<u8>> {
        match message::read(bytes, datagram) {
            Heard::Nothing => None,
            Heard::Reply(reply) => Some(reply),
            Heard::Query(query) => {
                let verdict = match query.about() {
                    // Over TCP the kernel knows whose the connection is. That there is no such name
                    // would be the last word.
                    Ok(_) if datagram && *asker == Asker::Unknown => return query.over_tcp(),
                    Ok(about) => self.zone.answer(about, asker, &self.askers).await,
                    Err(verdict) => verdict,
                };
                query.reply(&verdict)
            }
        }
    }
}

/// Places for connections.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<HashMap<Who, usize>>>);

struct Place {
    places: Places,
    who: Who,
}

impl Places {
    fn take(&self, who: Who) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&who).copied().unwrap_or(0);
        // A resolver that asks for the first time finds room among those that are not known.
        let most = if let Who::Strangers(_) = who { CONNECTIONS.1 - LEFT_FREE } else { CONNECTIONS.1 };
        if own >= CONNECTIONS.0 || taken.values().sum::<usize>() >= most {
            return None;
        }
        taken.insert(who, own + 1);
        Some(Place { places: self.clone(), who })
    }

    fn all(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl Place {
    /// Now it is known for whom it asks.
    fn known_as(self, who: Who, asks_for_all: bool) -> Option<Self> {
        if !asks_for_all && self.places.all() > CONNECTIONS.1 - LEFT_FREE {
            return None;
        }
        if who == self.who { Some(self) } else { self.places.take(who) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.who) {
            *own = own.saturating_sub(1);
        }
        taken.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_who_take_all_places_leave_some_to_those_who_ask_for_everybody() {
        let places = Places::default();
        let enter = |uid, asks_for_all| places.take(Who::Uid(uid))?.known_as(Who::Uid(uid), asks_for_all);
        let held: Vec<Place> =
            (1..=20).flat_map(|uid| [uid; CONNECTIONS.0]).filter_map(|uid| enter(uid, false)).collect();
        assert_eq!(held.len(), CONNECTIONS.1 - LEFT_FREE);
        let resolvers: Vec<Place> = (0..LEFT_FREE).filter_map(|_| enter(101, true)).collect();
        assert_eq!(resolvers.len(), LEFT_FREE);
    }

    /// One user may have thousands of numbers, in a user namespace.
    #[test]
    fn numbers_without_a_name_have_one_share() {
        let places = Places::default();
        let nobody = |number: u16| places.take(Who::Strangers(number))?.known_as(Who::Nameless, false);
        let held: Vec<Place> = (0..100).filter_map(nobody).collect();
        assert_eq!(held.len(), CONNECTIONS.0);
        assert!(places.take(Who::Uid(1)).is_some());
    }

    #[test]
    fn numbers_that_are_not_known_yet_leave_room_for_those_that_are() {
        let (places, askers) = (Places::default(), super::super::asker::tests::nobody());
        let held: Vec<Place> = (100_000..165_536).filter_map(|uid| places.take(askers.who(Some(uid)))).collect();
        assert_eq!(held.len(), 2 * CONNECTIONS.0, "in two ranges");
        // Of many who have such numbers.
        let more: Vec<Place> = (10..200).filter_map(|range| places.take(Who::Strangers(range))).collect();
        assert_eq!(held.len() + more.len(), CONNECTIONS.1 - LEFT_FREE);
        assert!(places.take(Who::ROOT).is_some_and(|place| place.known_as(Who::ROOT, true).is_some()));
    }
}
