//! How much a guest may say beside the output of its commands.
//!
//! SSH has many messages that cost whoever gets them, and nothing whoever sends them: key exchanges, channels
//! that are opened, global requests, messages to ignore. Our agent sends a few of them in a connection's life. So
//! what arrives is counted against what was output, and who goes over that loses the connection, whatever
//! kind of message it was.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use std::{fmt, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What may be ahead, bytes: banner, key exchange and login are some 4 KiB, and output is in flight that is
/// not counted as such yet.
const AHEAD: u64 = 1024 * 1024;
/// What comes back each second: acknowledgements of input at the highest rates are some 30 KiB.
const EACH_SECOND: u64 = 64 * 1024;
/// What a packet of output is, beside the output: lengths, padding, authentication.
const AROUND_OUTPUT: u64 = 128;

/// The account of one connection.
#[derive(Debug)]
pub(super) struct Meter(Mutex<Account>);

#[derive(Debug)]
struct Account {
    left: u64,
    at: Instant,
}

impl Default for Meter {
    fn default() -> Self {
        Self(Mutex::new(Account { left: AHEAD, at: Instant::now() }))
    }
}

impl Meter {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet of output of this length was among what has arrived. An empty one is none.
    pub(super) fn output(&self, bytes: usize) {
        if bytes > 0 {
            self.account().gain(u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(AROUND_OUTPUT));
        }
    }

    /// Bytes have arrived; false when they are too many.
    fn arrived(&self, bytes: usize, now: Instant) -> bool {
        let mut account = self.account();
        let passed = now.saturating_duration_since(account.at).as_millis();
        let back = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(EACH_SECOND) / 1000;
        if back > 0 {
            account.at = now;
            account.gain(back);
        }
        let left = account.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
        account.left = left.unwrap_or(0);
        left.is_some()
    }
}

impl Account {
    fn gain(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(AHEAD);
    }
}

/// A stream whose incoming bytes are metered.
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> fmt::Debug for Metered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("meter", &self.meter).finish_non_exhaustive()
    }
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) && !self.meter.arrived(buf.filled().len() - before, Instant::now()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the guest says too much")));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn output_is_free_and_all_else_is_bounded() {
        let meter = Meter::default();
        let begun = Instant::now();
        for _ in 0..100_000 {
            assert!(meter.arrived(32 * 1024 + 100, begun));
            meter.output(32 * 1024);
            assert!(meter.arrived(1 + 60, begun));
            meter.output(1);
        }
        // Messages to ignore; an empty packet of output is one of them.
        let count = (0..).take_while(|_| meter.arrived(100, begun) && (meter.output(0), true).1).count();
        assert!(count <= usize::try_from(AHEAD).unwrap_or(0) / 100, "{count}");
        let later = begun + Duration::from_secs(1);
        let count = (0..).take_while(|_| meter.arrived(1000, later)).count();
        assert_eq!(count, 65, "what a second brings back");
    }
}
