//! A token bucket: the only place where time enters a decision. The caller brings the clock.

use std::time::Duration;

/// Tokens that come back at a fixed rate, up to a burst.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second: f64::from(per_second), burst: f64::from(burst), tokens: f64::from(burst) }
    }

    /// Takes a token, if there is one. `passed`: since the last call.
    #[must_use]
    pub fn take(&mut self, passed: Duration) -> bool {
        let tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst);
        let enough = tokens >= 1.0;
        self.tokens = if enough { tokens - 1.0 } else { tokens };
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_empties_and_fills_again() {
        let mut bucket = Bucket::new(2, 3);
        assert_eq!([0; 4].map(|_| bucket.take(Duration::ZERO)), [true, true, true, false]);
        assert!(bucket.take(Duration::from_secs(1)));
        assert_eq!([0; 2].map(|_| bucket.take(Duration::ZERO)), [true, false]);
        assert!(bucket.take(Duration::from_secs(3_600)));
        assert_eq!([0; 3].map(|_| bucket.take(Duration::ZERO)), [true, true, false], "never more than the burst");
    }
}
