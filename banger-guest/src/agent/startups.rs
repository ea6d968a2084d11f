//! How many connections may be on their way to a login, as sshd's `MaxStartups` and
//! `PerSourceMaxStartups`.
//!
//! Any process in the guest, and any host that reaches it, may connect to the agent's port on the
//! network; the daemon and the user come by vsock. So each has places of its own: whoever fills
//! those of the network keeps nobody else out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// From the host, by vsock.
const FROM_HOST: usize = 32;
/// From the network, all sources together.
const FROM_NETWORK: usize = 16;
/// From the network, one address.
const FROM_ONE: usize = 4;

/// Who has a place.
#[derive(Debug, Default)]
pub(super) struct Startups(Mutex<HashMap<Option<IpAddr>, usize>>);

/// A place; given back when it is dropped, which is after the login.
#[derive(Debug)]
pub(super) struct Place {
    startups: Arc<Startups>,
    source: Option<IpAddr>,
}

impl Startups {
    /// For a connection from the host.
    pub(super) fn host(self: &Arc<Self>) -> Option<Place> {
        self.place(None)
    }

    /// For a connection from the network.
    pub(super) fn network(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        self.place(Some(source))
    }

    fn place(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Place> {
        let mut taken = self.taken();
        let own = taken.get(&source).copied().unwrap_or(0);
        let free = match source {
            None => own < FROM_HOST,
            Some(_) => {
                let all: usize = taken.iter().filter(|(source, _)| source.is_some()).map(|(_, count)| *count).sum();
                own < FROM_ONE && all < FROM_NETWORK
            }
        };
        free.then(|| {
            taken.insert(source, own + 1);
            Place { startups: Arc::clone(self), source }
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Option<IpAddr>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.startups.taken();
        if let Some(count) = taken.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    #[test]
    fn the_network_is_bounded_in_all_and_by_source_and_takes_nothing_from_the_host() {
        let startups = Arc::new(Startups::default());
        let from = |last| startups.network(Ipv4Addr::new(10, 0, 0, last).into());
        let mut held: Vec<Place> = (0..FROM_ONE).filter_map(|_| from(1)).collect();
        assert_eq!((held.len(), from(1).is_none()), (FROM_ONE, true));
        held.extend((2..200).flat_map(from));
        assert_eq!(held.len(), FROM_NETWORK);
        let host: Vec<Place> = (0..2 * FROM_HOST).filter_map(|_| startups.host()).collect();
        assert_eq!(host.len(), FROM_HOST);
        drop(held);
        assert!(from(1).is_some() && startups.host().is_none());
        drop(host);
        assert!(startups.taken().is_empty(), "sources that are gone are forgotten");
    }

    #[tokio::test]
    async fn one_source_of_the_network_has_a_few_connections_on_their_way() {
        let config = crate::agent::command::tests::config();
        let server = Arc::new(crate::agent::Server::with_passwd(&config, "/nonexistent".into()).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut answered = Vec::new();
        for _ in 0..FROM_ONE + 2 {
            let client = TcpStream::connect(listener.local_addr().unwrap());
            let (client, accepted) = tokio::join!(client, listener.accept());
            let accepted = accepted.map(|(stream, source)| (stream, source.ip()));
            crate::agent::serve_network(&server, accepted).await;
            let mut client = client.unwrap();
            let first = tokio::time::timeout(Duration::from_secs(20), client.read_u8()).await.unwrap();
            answered.push((first.ok(), client));
        }
        // The first letter of the version, or the end.
        let served: Vec<bool> = answered.iter().map(|(first, _)| *first == Some(b'S')).collect();
        assert_eq!(served, [[true; FROM_ONE].as_slice(), &[false; 2]].concat());
    }
}
