//! What users' uploads take of the disk until something is made of them: files without a name,
//! which no row counts.

use banger_policy::quota::{self, Exceeded, Limited, UserLimits};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What an archive may have beside what becomes of it, bytes.
pub(super) const BESIDE: u64 = 1 << 30;

/// The most that an upload for `bytes` of the store may have: layers may replace each other's
/// files, and a tar has its own headers.
pub(super) fn most_for(bytes: u64) -> u64 {
    bytes.saturating_mul(2).saturating_add(BESIDE)
}

/// The least that becomes of an upload which has as much as it may.
fn least_of(upload: u64) -> u64 {
    upload.saturating_sub(BESIDE) / 2
}

/// Bytes of all uploads, by uid.
#[derive(Debug, Default)]
pub(super) struct Spooled(Mutex<HashMap<u32, u64>>);

/// What one upload takes, for as long as its file is there.
#[derive(Debug)]
pub(super) struct Spool {
    all: Arc<Spooled>,
    uid: u32,
    bytes: u64,
}

impl Spooled {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        // Every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>, uid: u32) -> Spool {
        Spool { all: Arc::clone(self), uid, bytes: 0 }
    }
}

impl Spool {
    /// It has so many bytes by now. May it, beside the user's other uploads, and `used` bytes that
    /// the user has stored?
    ///
    /// # Errors
    /// [`Exceeded`], when what becomes of them would not fit.
    pub(super) fn has(&mut self, bytes: u64, used: u64, limits: &UserLimits) -> Result<(), Exceeded> {
        let mut all = self.all.lock();
        let users = all.entry(self.uid).or_default();
        *users = users.saturating_sub(self.bytes).saturating_add(bytes);
        self.bytes = bytes;
        quota::fits(Limited::Store, limits, used, least_of(*users))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(users) = all.get_mut(&self.uid) {
            *users = users.saturating_sub(self.bytes);
        }
        all.retain(|_, bytes| *bytes > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_uploads_of_a_user_count_together_and_no_longer_than_they_are_there() {
        let all = Arc::new(Spooled::default());
        let limits = UserLimits { store: 100, ..UserLimits::BUILT_IN };
        let (mut one, mut two, mut other) = (all.begin(1), all.begin(1), all.begin(2));
        assert!(one.has(most_for(40), 60, &limits).is_ok());
        assert!(two.has(1, 60, &limits).is_ok());
        assert!(two.has(2, 60, &limits).is_err(), "40 become of the first, and 60 are stored");
        assert!(other.has(most_for(40), 60, &limits).is_ok());
        assert!(other.has(most_for(41), 60, &limits).is_err());
        drop(one);
        assert!(two.has(most_for(40), 60, &limits).is_ok());
        drop((two, other));
        assert!(all.lock().is_empty());
    }
}
