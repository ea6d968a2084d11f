//! The memory that the trees of all imports and work disks in the making take together: a sum that
//! the host's owner can count on, whatever users import at the same time.

use super::error::ImageError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Together, bytes, estimated.
const TOGETHER: u64 = 1280 << 20;
/// One of them, bytes. A Debian desktop of 300,000 files takes 450 MiB. A user has one import and
/// one work disk in the making at a time: whoever makes the most of both leaves a quarter for
/// others.
pub(super) const ONE: u64 = 480 << 20;

/// What is taken now.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// What one tree has taken, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    pool: &'static AtomicU64,
    limit: u64,
    taken: u64,
}

impl Claim {
    /// Of nothing yet, and of `limit` bytes at most.
    pub(crate) fn new(limit: u64) -> Self {
        Self { pool: &TAKEN, limit, taken: 0 }
    }

    /// The tree takes so much now.
    ///
    /// # Errors
    /// [`ImageError::TooMuchMetadata`], and [`ImageError::MemoryInUse`] when others have too much
    /// of it.
    pub(crate) fn reach(&mut self, used: u64) -> Result<(), ImageError> {
        if used > self.limit {
            return Err(ImageError::TooMuchMetadata { limit: self.limit });
        }
        let more = used.saturating_sub(self.taken);
        let fits = |taken: u64| taken.checked_add(more).filter(|sum| *sum <= TOGETHER);
        self.pool
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .map_err(|_| ImageError::MemoryInUse { limit: TOGETHER })?;
        self.taken += more;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.pool.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn all_together_have_what_there_is_and_one_leaves_some_of_it() {
        static POOL: AtomicU64 = AtomicU64::new(0);
        let claim = || Claim { pool: &POOL, limit: ONE, taken: 0 };
        let mut large = claim();
        for used in [1, 4096, 100, ONE] {
            large.reach(used).unwrap();
        }
        assert!(matches!(large.reach(ONE + 1), Err(ImageError::TooMuchMetadata { .. })));
        let (mut same_users, mut other) = (claim(), claim());
        same_users.reach(ONE).unwrap();
        let rest = TOGETHER - 2 * ONE;
        assert!(rest >= TOGETHER / 4, "what one user leaves for the others");
        other.reach(rest).unwrap();
        assert!(matches!(other.reach(rest + 1), Err(ImageError::MemoryInUse { .. })));
        assert_eq!(POOL.load(Ordering::Relaxed), TOGETHER, "a refusal takes nothing");
        drop(large);
        other.reach(rest + 1).unwrap();
        drop((other, same_users));
        assert_eq!(POOL.load(Ordering::Relaxed), 0);
    }
}
