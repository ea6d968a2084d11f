//! What one user may ask in a second. A call costs its user a token before it looks anything up,
//! makes a process, asks the helper, writes the database or logs, so that no user's loop takes the
//! daemon from the others.

use crate::known::Who;
use banger_policy::rate::Bucket;
use banger_proto::model::{ApiError, ErrorCode};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Calls per second, and at once: fifty VMs that one script makes and watches at the same time are
/// below it.
const CALLS: (u32, u32) = (100, 1000);
/// Log lines per second, and at once, about connections that come to nothing.
const NOTES: (u32, u32) = (1, 10);
/// A bucket that nobody has touched for so long is full, and need not be kept.
const FULL: Duration = Duration::from_secs(60);

/// A bucket for each.
#[derive(Debug)]
pub(crate) struct Rates {
    limit: (u32, u32),
    buckets: Mutex<HashMap<Who, (Bucket, Instant)>>,
}

impl Rates {
    pub(super) fn calls() -> Self {
        Self::new(CALLS)
    }

    pub(super) fn notes() -> Self {
        Self::new(NOTES)
    }

    pub(crate) fn new(limit: (u32, u32)) -> Self {
        Self { limit, buckets: Mutex::default() }
    }

    /// Whether there is a token left, which is taken.
    pub(crate) fn take(&self, who: Who) -> bool {
        self.take_at(who, Instant::now())
    }

    fn take_at(&self, who: Who, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are users of group `banger` who were here in the last minute.
        if !buckets.contains_key(&who) {
            buckets.retain(|_, (_, seen)| now.saturating_duration_since(*seen) < FULL);
        }
        let (per_second, burst) = self.limit;
        let (bucket, seen) = buckets.entry(who).or_insert_with(|| (Bucket::new(per_second, burst), now));
        let passed = now.saturating_duration_since(*seen);
        *seen = now;
        bucket.take(passed)
    }
}

/// # Errors
/// `Limit`.
pub(super) fn refuse() -> ApiError {
    ApiError::new(ErrorCode::Limit, format!("too many calls: {} a second are answered to one user", CALLS.0))
        .hint("Wait a second, and ask less often.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_users_loop_costs_nobody_else_a_call() {
        let rates = Rates::new((2, 3));
        let start = Instant::now();
        assert_eq!([0; 4].map(|_| rates.take_at(Who::Uid(1), start)), [true, true, true, false]);
        assert!(rates.take_at(Who::Uid(2), start), "another user has a bucket of their own");
        assert!(rates.take_at(Who::Uid(1), start + Duration::from_secs(1)));
    }

    #[test]
    fn what_is_kept_of_users_who_are_gone_is_forgotten() {
        let rates = Rates::new((2, 3));
        let start = Instant::now();
        for uid in 0..1_000 {
            assert!(rates.take_at(Who::Uid(uid), start));
        }
        assert!(rates.take_at(Who::Uid(5_000), start + FULL));
        assert_eq!(rates.buckets.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }
}
