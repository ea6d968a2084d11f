//! Work that takes memory and a thread for long (an import, the making of a work disk): a few at once on the host, and one
//! of a user, so that users take turns however much one of them has ordered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A queue for one kind of work.
#[derive(Debug)]
pub(crate) struct Turns {
    host: Arc<Semaphore>,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// A turn, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _host: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl Turns {
    /// `at_once`: on the whole host.
    pub(crate) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { host: Arc::new(Semaphore::new(at_once)), users: Mutex::default() })
    }

    /// Waits for this user's turn. Dropping the wait gives up the place in the queue.
    ///
    /// The user's own place comes first: so each user stands in the host's queue once at the most, and that queue is
    /// served in the order of arrival.
    pub(crate) async fn take(&self, uid: u32) -> Option<Turn> {
        let own = {
            let mut users = self.lock();
            users.retain(|_, own| Arc::strong_count(own) > 1);
            Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        // Neither is ever closed.
        let _user = own.acquire_owned().await.ok()?;
        let _host = Arc::clone(&self.host).acquire_owned().await.ok()?;
        Some(Turn { _host, _user })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Semaphore>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn whoever_has_ordered_much_waits_behind_whoever_has_ordered_one() {
        let turns = Turns::new(1);
        let first = turns.take(1).await.unwrap();
        let mut more: Vec<_> = (0..20).map(|_| Box::pin(turns.take(1))).collect();
        for waiting in &mut more {
            assert!(waiting.now_or_never().is_none());
        }
        let mut other = Box::pin(turns.take(2));
        assert!((&mut other).now_or_never().is_none());
        drop(first);
        // One of the first user's may stand before it, never twenty.
        let turn = tokio::select! {
            turn = &mut other => turn.unwrap(),
            turn = &mut more[0] => { drop(turn); other.await.unwrap() }
        };
        drop(turn);
    }

    #[tokio::test]
    async fn no_more_at_once_than_the_host_may_have_and_nothing_is_kept() {
        let turns = Turns::new(2);
        let (one, two) = (turns.take(1).await.unwrap(), turns.take(2).await.unwrap());
        assert!(turns.take(3).now_or_never().is_none());
        drop((one, two));
        drop(turns.take(4).await.unwrap());
        assert_eq!(turns.lock().len(), 1, "only the last one's, until the next comes");
    }
}
