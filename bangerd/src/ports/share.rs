//! How much of the daemon's descriptors and memory the connections of a port, of a user and of all
//! together may have, and a user's turns on the relays' threads.

use super::THREADS;
use super::looks;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Connections and flows of one port. Each takes two descriptors, of which the daemon has 65536
/// (`LimitNOFILE=`).
pub(super) const PER_PORT: usize = 1024;
/// Of one user.
const PER_USER: usize = 2048;
/// Of all users: half of the descriptors stay for everything else.
const ALL: usize = 16_384;
/// What is read at a time, bytes.
pub(super) const CHUNK: usize = 64 << 10;
/// What is read at a time of a user whose connections hold a lot that cannot be written yet, bytes.
const SMALL_CHUNK: usize = 4 << 10;
/// How much that is, bytes. With small pieces for all of the user's connections, both ways, it
/// becomes twice as much at most.
const MUCH: usize = 16 << 20;

/// Of all users.
#[derive(Debug)]
pub(super) struct Shares {
    all: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Weak<Share>>>,
}

/// Of one user.
#[derive(Debug)]
pub(super) struct Share {
    connections: Arc<Semaphore>,
    all: Arc<Semaphore>,
    /// As many as there are threads: one user alone can use them all.
    turns: Semaphore,
    pub(super) looks: looks::Own,
    /// Bytes that were read and not written yet.
    held: AtomicUsize,
}

/// A connection's place, as long as this is kept.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "kept, and counted")] [OwnedSemaphorePermit; 3]);

impl Default for Shares {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL)), users: Mutex::default() }
    }
}

impl Shares {
    pub(super) fn of(&self, uid: u32) -> Arc<Share> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = users.get(&uid).and_then(Weak::upgrade) {
            return share;
        }
        users.retain(|_, share| share.strong_count() > 0);
        let (connections, all) = (Arc::new(Semaphore::new(PER_USER)), Arc::clone(&self.all));
        let (turns, looks) = (Semaphore::new(THREADS), looks::Own::default());
        let share = Arc::new(Share { connections, all, turns, looks, held: AtomicUsize::new(0) });
        users.insert(uid, Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// Waits for a place: until then nothing is accepted.
    pub(super) async fn place(&self, port: &Arc<Semaphore>) -> Option<Place> {
        // The narrowest first: who waits for the own limit keeps nobody else's.
        let port = Arc::clone(port).acquire_owned().await.ok()?;
        let user = Arc::clone(&self.connections).acquire_owned().await.ok()?;
        Some(Place([port, user, Arc::clone(&self.all).acquire_owned().await.ok()?]))
    }

    /// A place, when one is free.
    pub(super) fn place_now(&self, port: &Arc<Semaphore>) -> Option<Place> {
        let port = Arc::clone(port).try_acquire_owned().ok()?;
        let user = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        Some(Place([port, user, Arc::clone(&self.all).try_acquire_owned().ok()?]))
    }

    /// Waits for a turn to pass something on. A user whose connections are all ready has a few of
    /// them in the threads' queue, and the others wait here: so the connections of the other users
    /// stand behind those few, and not behind them all.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.turns.acquire().await.ok()
    }

    /// How much may be read now, bytes.
    pub(super) fn chunk(&self) -> usize {
        if self.held.load(Ordering::Relaxed) > MUCH { SMALL_CHUNK } else { CHUNK }
    }

    /// A datagram that waits, unless much is waiting already.
    pub(super) fn hold_some(&self, bytes: &[u8]) -> Option<Held<'_>> {
        (self.held.load(Ordering::Relaxed) <= MUCH).then(|| self.hold(bytes))
    }

    /// Bytes that wait to be written.
    pub(super) fn hold(&self, bytes: &[u8]) -> Held<'_> {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        Held { bytes: bytes.into(), share: self }
    }
}

/// Bytes that wait to be written, and are counted.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub(super) bytes: Box<[u8]>,
    share: &'a Share,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.share.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_no_more_than_a_share_and_leaves_the_others_theirs() {
        let shares = Shares::default();
        let (alice, bob) = (shares.of(1001), shares.of(1002));
        let ports = [0; 3].map(|_| Arc::new(Semaphore::new(PER_PORT)));
        let mut taken = Vec::new();
        for port in &ports {
            taken.extend(std::iter::from_fn(|| alice.place_now(port)));
        }
        assert_eq!(taken.len(), PER_USER);
        assert!(shares.of(1001).place_now(&ports[2]).is_none());
        assert!(bob.place_now(&ports[2]).is_some());
        taken.pop();
        assert!(alice.place_now(&ports[2]).is_some());
    }

    #[test]
    fn who_holds_much_reads_little() {
        let share = Shares::default().of(1001);
        let held: Vec<_> = (0..=MUCH / CHUNK).map(|_| share.hold(&[0; CHUNK])).collect();
        assert_eq!(share.chunk(), SMALL_CHUNK);
        assert!(share.hold_some(&[0]).is_none());
        drop(held);
        assert_eq!(share.chunk(), CHUNK);
        assert!(share.hold_some(&[0]).is_some());
    }

    /// Counts the steps of connections that are always ready.
    #[tokio::test]
    async fn one_connection_has_its_turns_beside_a_thousand_of_another_user() {
        let shares = Shares::default();
        let counts = [1001, 1002].map(|uid| (shares.of(uid), Arc::new(AtomicUsize::new(0))));
        let mut tasks = tokio::task::JoinSet::new();
        for ((share, count), connections) in counts.iter().zip([1000, 1]) {
            for _ in 0..connections {
                let (share, count) = (Arc::clone(share), Arc::clone(count));
                tasks.spawn(async move {
                    loop {
                        let _turn = share.turn().await;
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                });
            }
        }
        let [mallory, alice] = counts.map(|(_, count)| count);
        while mallory.load(Ordering::Relaxed) < 5_000 {
            tokio::task::yield_now().await;
        }
        let alice = alice.load(Ordering::Relaxed);
        assert!(alice > 1_000, "{alice} of her turns beside 5000 of the other user's");
    }
}
