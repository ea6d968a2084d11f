//! Jumps of the host's clock: somebody set it, or the host was suspended.
//!
//! The guests' agents are told the time then. The kernel says when (timerfd_create(2),
//! `TFD_TIMER_CANCEL_ON_SET`), so nobody polls; one thread waits for the whole daemon.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// No timer of ours ever expires: the year 2200.
const NEVER: Duration = Duration::from_secs(7_258_118_400);

/// Counts jumps. Changes with each.
pub(crate) fn jumps() -> watch::Receiver<u64> {
    static JUMPS: OnceLock<watch::Sender<u64>> = OnceLock::new();
    let begin = || {
        let (jumped, _) = watch::channel(0);
        let told = jumped.clone();
        std::thread::spawn(move || {
            if let Err(error) = wait(|| told.send_modify(|count| *count += 1)) {
                tracing::warn!(%error, "jumps of the clock are not seen");
            }
        });
        jumped
    };
    JUMPS.get_or_init(begin).subscribe()
}

fn wait(jumped: impl Fn()) -> Result<(), Errno> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    loop {
        timer.set(Expiration::OneShot(TimeSpec::from_duration(NEVER)), flags)?;
        match timer.wait() {
            Err(Errno::ECANCELED) => jumped(),
            Ok(()) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
