//! As whom a number counts at the doors. Whoever has numbers of their own in a user namespace
//! (subuid(5)) can come as each of them, and keeps the group that the socket's mode asks for. None
//! of these numbers has a login name, but to learn that costs a question to the user database. So a
//! number counts by itself only while it is known to have had a name lately. Before that it shares
//! the allowance of one user with its neighbours: ranges of a user namespace have 65,536 numbers,
//! and begin above those of login names.

use banger_policy::Peer;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long a number counts by itself after it was seen with a name.
const LASTS: Duration = Duration::from_secs(3600);
/// Numbers that are kept.
const KEPT: usize = 4096;

/// As whom a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// A user, or root.
    Uid(u32),
    /// All numbers that have no name.
    Nameless,
    /// Numbers of which it is not known yet, by their upper 16 bits.
    Strangers(u16),
}

impl Who {
    pub(crate) const ROOT: Self = Self::Uid(0);

    /// Somebody about whom the user database was asked. Root is root by its number.
    pub(crate) fn of(peer: &Peer) -> Self {
        if peer.name.is_empty() && peer.uid != 0 { Self::Nameless } else { Self::Uid(peer.uid) }
    }
}

/// Numbers that had a name when they were last asked about.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<u32, Instant>>);

impl Known {
    pub(crate) fn who(&self, uid: u32) -> Who {
        self.who_at(uid, Instant::now())
    }

    fn who_at(&self, uid: u32, now: Instant) -> Who {
        let is_fresh = |seen: &Instant| now.saturating_duration_since(*seen) < LASTS;
        if uid == 0 || self.lock().get(&uid).is_some_and(is_fresh) {
            return Who::Uid(uid);
        }
        Who::Strangers(u16::try_from(uid >> 16).unwrap_or(u16::MAX))
    }

    /// What the user database has answered.
    pub(crate) fn learned(&self, uid: u32, has_name: bool) {
        self.learned_at(uid, has_name, Instant::now());
    }

    fn learned_at(&self, uid: u32, has_name: bool, now: Instant) {
        let mut known = self.lock();
        if !has_name {
            known.remove(&uid);
            return;
        }
        if known.len() >= KEPT && !known.contains_key(&uid) {
            known.retain(|_, seen| now.saturating_duration_since(*seen) < LASTS);
        }
        // Of more users than that, some count together.
        if known.len() < KEPT || known.contains_key(&uid) {
            known.insert(uid, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Instant>> {
        // Every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_by_itself_as_long_as_it_has_a_name() {
        let (known, now) = (Known::default(), Instant::now());
        assert_eq!(known.who_at(0, now), Who::ROOT);
        assert_eq!([1001, 65_535, 65_536].map(|uid| known.who_at(uid, now)), [0, 0, 1].map(Who::Strangers));
        known.learned_at(1001, true, now);
        assert_eq!(known.who_at(1001, now), Who::Uid(1001));
        assert_eq!(known.who_at(1001, now + LASTS), Who::Strangers(0));
        known.learned_at(1001, false, now);
        assert_eq!(known.who_at(1001, now), Who::Strangers(0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest_are_kept_again_when_the_oldest_have_gone() {
        let (known, now) = (Known::default(), Instant::now());
        let kept = u32::try_from(KEPT).unwrap_or(u32::MAX);
        (1..=kept + 10).for_each(|uid| known.learned_at(uid, true, now));
        assert_eq!(known.lock().len(), KEPT);
        assert_eq!(known.who_at(kept + 10, now), Who::Strangers(0));
        known.learned_at(kept + 10, true, now + LASTS);
        assert_eq!(known.lock().len(), 1);
    }
}
