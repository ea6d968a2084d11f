//! Asks the kernel whose a socket is, on threads that may block: the relays' own threads go on
//! meanwhile. The ports of one user ask one question at a time, and users take turns. Whoever makes
//! the ports of one user ask a lot delays the ports of that user, and of nobody else.

use super::share::Share;
use crate::net::caller::Callers;
use banger_policy::publish::rules::Caller;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

/// Questions about senders of datagrams in a second, of one user and of the host. The kernel walks
/// through all UDP sockets for each, twice: some 80 µs on an idle host.
const USER: u32 = 500;
const HOST: u32 = 2000;
/// For how long who has asked nothing may ask at once afterwards.
const CREDIT: Duration = Duration::from_millis(200);

/// Lets one question pass after the other, so many a second.
#[derive(Debug)]
struct Pace {
    every: Duration,
    next: Mutex<Instant>,
}

/// The questions of one user's ports.
#[derive(Debug)]
pub(super) struct Own {
    datagrams: Pace,
    /// A question about a connection is about four addresses that the kernel finds at once.
    connections: Mutex<()>,
}

/// The questions of all ports.
#[derive(Debug)]
pub(super) struct Looks {
    callers: Arc<dyn Callers>,
    datagrams: Pace,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { every: Duration::from_secs(1) / per_second, next: Mutex::new(Instant::now()) }
    }

    /// Waits for a turn, in the order of arrival. The turn ends when what is returned is dropped.
    async fn turn(&self) -> MutexGuard<'_, Instant> {
        let mut next = self.next.lock().await;
        // The timer would take up to a millisecond for a moment that has just passed.
        if *next > Instant::now() {
            sleep_until(*next).await;
        }
        let now = Instant::now();
        *next = (*next).max(now.checked_sub(CREDIT).unwrap_or(now)) + self.every;
        next
    }
}

impl Default for Own {
    fn default() -> Self {
        Self { datagrams: Pace::new(USER), connections: Mutex::default() }
    }
}

impl Looks {
    pub(super) fn new(callers: Arc<dyn Callers>) -> Self {
        Self { callers, datagrams: Pace::new(HOST) }
    }

    /// Who sends from an address of this host. `share`: that of the port's owner.
    pub(super) async fn udp(&self, share: &Share, peer: SocketAddr) -> Caller {
        // The own turn comes first: so each user stands in the host's queue once at the most.
        let _own = share.looks.datagrams.turn().await;
        let _host = self.datagrams.turn().await;
        self.ask(move |callers| callers.udp(peer)).await
    }

    /// Who is at the other end of a connection.
    pub(super) async fn tcp(&self, share: &Share, peer: SocketAddr, local: SocketAddr) -> Caller {
        let _own = share.looks.connections.lock().await;
        self.ask(move |callers| callers.tcp(peer, local)).await
    }

    async fn ask(&self, question: impl FnOnce(&dyn Callers) -> Caller + Send + 'static) -> Caller {
        let callers = Arc::clone(&self.callers);
        tokio::task::spawn_blocking(move || question(&*callers)).await.unwrap_or(Caller::Unknown)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::super::share::Shares;
    use super::*;
    use futures::FutureExt as _;
    use futures::future::join_all;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Remembers the ports that it was asked about, and how many questions have begun. Locked: the
    /// kernel does not answer.
    #[derive(Debug, Default)]
    struct Asked(std::sync::Mutex<Vec<u16>>, AtomicUsize);

    impl Callers for Asked {
        fn tcp(&self, peer: SocketAddr, _: SocketAddr) -> Caller {
            self.udp(peer)
        }

        fn udp(&self, peer: SocketAddr) -> Caller {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.lock().unwrap().push(peer.port());
            Caller::Unknown
        }
    }

    impl Asked {
        fn count(&self) -> usize {
            self.0.lock().unwrap().len()
        }

        /// How many questions are asked at the same time.
        fn at_once(&self) -> usize {
            std::thread::sleep(Duration::from_millis(300));
            self.1.load(Ordering::Relaxed)
        }
    }

    fn at(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[tokio::test]
    async fn a_flood_at_one_users_ports_delays_no_question_of_another_user() {
        let (asked, shares) = (Arc::new(Asked::default()), Shares::default());
        let looks = Looks::new(Arc::clone(&asked) as Arc<dyn Callers>);
        let (mallory, alice) = (shares.of(1), shares.of(2));
        let mut flood: Vec<_> = (1000..1100).map(|port| Box::pin(looks.udp(&mallory, at(port)))).collect();
        let mut hers = Box::pin(looks.udp(&alice, at(1)));
        {
            let _kernel = asked.0.lock().unwrap();
            assert!(flood.iter_mut().all(|question| question.now_or_never().is_none()));
            assert!((&mut hers).now_or_never().is_none());
            assert_eq!(asked.at_once(), 1);
        }
        tokio::join!(join_all(flood), hers);
        assert_eq!(asked.0.lock().unwrap()[..2], [1000, 1], "the first that was asked, and hers");
        assert_eq!(asked.count(), 101);
    }

    #[tokio::test]
    async fn one_user_asks_about_one_connection_at_a_time() {
        let (asked, shares) = (Arc::new(Asked::default()), Shares::default());
        let looks = Looks::new(Arc::clone(&asked) as Arc<dyn Callers>);
        let (mallory, alice) = (shares.of(1), shares.of(2));
        let mut flood: Vec<_> = (1000..1100).map(|port| Box::pin(looks.tcp(&mallory, at(port), at(1)))).collect();
        let mut hers = Box::pin(looks.tcp(&alice, at(1), at(1)));
        {
            let _kernel = asked.0.lock().unwrap();
            assert!(flood.iter_mut().all(|question| question.now_or_never().is_none()));
            assert!((&mut hers).now_or_never().is_none());
            assert!(asked.at_once() <= 2, "beside hers: {}", asked.at_once());
        }
        tokio::join!(join_all(flood), hers);
        assert_eq!(asked.count(), 101);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_is_asked_so_often_in_a_second_and_no_more() {
        // One user, and as many as ask for more than the host's share.
        for (users, per_second) in [(1, USER), (10, HOST)] {
            let (asked, shares) = (Arc::new(Asked::default()), Shares::default());
            let looks = Looks::new(Arc::clone(&asked) as Arc<dyn Callers>);
            let all: Vec<_> = (0..users).map(|uid| shares.of(uid)).collect();
            let questions = all.iter().flat_map(|share| (1..=1000).map(|port| looks.udp(share, at(port))));
            drop(tokio::time::timeout(Duration::from_millis(800), join_all(questions)).await);
            let second = usize::try_from(per_second).unwrap();
            let count = asked.count();
            assert!((second / 2..=second + 20).contains(&count), "{users} users: {count}");
        }
    }
}
