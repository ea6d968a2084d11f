//! Work that takes memory and a thread for long (an import, the making of a work disk, a start
//! after a reboot): a few at once on the host, and one or two of a user, so that users take turns
//! however much one of them has ordered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Each user's own places, as many for one as for another.
#[derive(Debug)]
pub(crate) struct Places {
    each: usize,
    users: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

impl Places {
    pub(crate) fn new(each: usize) -> Self {
        Self { each, users: Mutex::default() }
    }

    /// Those of one user. Nothing is kept of users who have none in use.
    pub(crate) fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, own| Arc::strong_count(own) > 1);
        Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

/// A queue for one kind of work.
#[derive(Debug)]
pub(crate) struct Turns {
    host: Arc<Semaphore>,
    users: Places,
}

/// A turn, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _host: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl Turns {
    /// `at_once`: on the whole host; `each`: of a user.
    pub(crate) fn new(at_once: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { host: Arc::new(Semaphore::new(at_once)), users: Places::new(each) })
    }

    /// Waits for this user's turn. Dropping the wait gives up the place in the queue.
    ///
    /// The user's own place comes first: so each user stands in the host's queue as often as they
    /// may have a turn at once, and that queue is served in the order of arrival.
    pub(crate) async fn take(&self, uid: u32) -> Option<Turn> {
        // Neither is ever closed.
        let _user = self.users.of(uid).acquire_owned().await.ok()?;
        let _host = Arc::clone(&self.host).acquire_owned().await.ok()?;
        Some(Turn { _host, _user })
    }
}

#[cfg(test)]
impl Turns {
    /// Nobody has a turn or waits for one.
    pub(crate) fn are_over(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.host) == 1
    }

    /// How many turns a user has or waits for: each holds the user's semaphore, as the map does.
    pub(crate) fn wanted_by(&self, uid: u32) -> usize {
        Arc::strong_count(&self.users.of(uid)).saturating_sub(2)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn whoever_has_ordered_much_waits_behind_whoever_has_ordered_one() {
        let turns = Turns::new(1, 1);
        let first = turns.take(1).await.unwrap();
        let mut more: Vec<_> = (0..20).map(|_| Box::pin(turns.take(1))).collect();
        for waiting in &mut more {
            assert!(waiting.now_or_never().is_none());
        }
        let mut other = Box::pin(turns.take(2));
        assert!((&mut other).now_or_never().is_none());
        drop(first);
        // One of the first user's may stand before it, never twenty.
        if (&mut other).now_or_never().is_none() {
            drop(more.remove(0).now_or_never().unwrap());
            drop(other.now_or_never().unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn one_user_leaves_turns_to_others() {
        let turns = Turns::new(4, 2);
        let his = (turns.take(1).await.unwrap(), turns.take(1).await.unwrap());
        assert!(turns.take(1).now_or_never().is_none());
        let hers = (turns.take(2).now_or_never().unwrap(), turns.take(2).now_or_never().unwrap());
        assert!(turns.take(3).now_or_never().is_none());
        drop((his, hers));
        assert!(turns.are_over());
    }

    #[tokio::test]
    async fn no_more_at_once_than_the_host_may_have_and_nothing_is_kept() {
        let turns = Turns::new(2, 1);
        let (one, two) = (turns.take(1).await.unwrap(), turns.take(2).await.unwrap());
        assert!(turns.take(3).now_or_never().is_none());
        drop((one, two));
        drop(turns.take(4).await.unwrap());
        assert_eq!(turns.users.users.lock().unwrap().len(), 1, "only the last one's, until the next comes");
    }
}
