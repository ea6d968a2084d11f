//! The guest's clock follows the host's: it stands still while the host is suspended.

use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::time::{ClockId, clock_settime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::console::say;

/// Less than this is what a line takes to arrive, or what somebody in the guest keeps better than
/// we do (NTP).
const TOLERANCE: Duration = Duration::from_secs(1);

/// Sets the clock when it is off.
pub(super) fn follow(unix_ms: u64) {
    let Some(off) = off(SystemTime::now(), unix_ms) else { return };
    // The last day of the 64-bit clock is far away.
    let Ok(ms) = i64::try_from(unix_ms) else { return };
    match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::milliseconds(ms)) {
        Ok(()) => say(format_args!("the clock was {:.1} s off and is set", off.as_secs_f64())),
        Err(error) => say(format_args!("the clock is {:.1} s off and cannot be set: {error}", off.as_secs_f64())),
    }
}

/// By how much, when it matters.
fn off(now: SystemTime, unix_ms: u64) -> Option<Duration> {
    let wanted = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms))?;
    let off = now.duration_since(wanted).or_else(|_| wanted.duration_since(now)).ok()?;
    (off >= TOLERANCE).then_some(off)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_mended() {
        let now = UNIX_EPOCH + Duration::from_secs(1_764_398_000);
        assert_eq!(off(now, 1_764_398_000_900), None);
        assert_eq!(off(now, 1_764_397_999_100), None);
        assert_eq!(off(now, 1_764_398_060_000), Some(Duration::from_secs(60)));
        assert_eq!(off(now, 1_764_394_400_000), Some(Duration::from_secs(3600)));
    }
}
