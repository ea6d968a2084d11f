//! A connection whose two directions never wait for each other.
//!
//! russh does not read while it writes. Two such peers, or one and a relay of the same kind, stop
//! for ever once both have more to write than the sockets hold. So writing never waits here: what
//! the socket does not take is kept and written on with the next read. SSH's own windows bound how
//! much that can be. Reading in turn slows down when the connection's commands leave much of their
//! input unread (see [`super::input`]); it must not stop, because what opens the windows comes the
//! same way.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Unwritten bytes above which writing waits after all: a client that opens windows and reads
/// nothing.
const MAX_UNWRITTEN: usize = 64 * 1024 * 1024;
/// Unread input of a connection above which its reading is slowed down, bytes.
const SLOW_FROM: u64 = 64 * 1024 * 1024;
/// Bytes that are still read in each [`SLOW_STEP`], and the rest of the packet that they end in.
const SLOW_BYTES: usize = 128 * 1024;
const SLOW_STEP: Duration = Duration::from_millis(100);

/// How much input of one connection waits in files.
#[derive(Clone, Debug, Default)]
pub(super) struct Pressure(Arc<AtomicU64>);

impl Pressure {
    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed) > SLOW_FROM
    }
}

/// The connection.
pub(super) struct Duplex<S> {
    stream: S,
    unwritten: Vec<u8>,
    /// Bytes at the front of `unwritten` that are written already.
    written: usize,
    pressure: Pressure,
    allowance: usize,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex<S> {
    pub(super) fn new(stream: S, pressure: Pressure) -> Self {
        Self { stream, unwritten: Vec::new(), written: 0, pressure, allowance: SLOW_BYTES, pause: None }
    }

    /// Writes what was kept, as far as the socket takes it.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.unwritten.get(self.written..)
            && !rest.is_empty()
        {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.unwritten.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn keep(&mut self, data: &[u8]) {
        // Moves the rest to the front when that is cheap, so that the buffer does not grow for
        // ever.
        if self.written > self.unwritten.len() / 2 {
            self.unwritten.drain(..self.written);
            self.written = 0;
        }
        self.unwritten.extend_from_slice(data);
    }

    /// Whether a read may be made now; otherwise the task is woken in time.
    fn poll_allowance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.pressure.is_high() {
            self.pause = None;
            return Poll::Ready(());
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.allowance = SLOW_BYTES;
        }
        if self.allowance == 0 {
            // The first poll is what asks to be woken.
            ready!(self.pause.insert(Box::pin(sleep(SLOW_STEP))).as_mut().poll(cx));
            self.pause = None;
            self.allowance = SLOW_BYTES;
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Duplex<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(Err(error)) = this.poll_unwritten(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_allowance(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.allowance = this.allowance.saturating_sub(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Duplex<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.poll_unwritten(cx) {
            Poll::Ready(Ok(())) => match Pin::new(&mut this.stream).poll_write(cx, data) {
                Poll::Pending => {}
                ready => return ready,
            },
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending if this.unwritten.len() - this.written > MAX_UNWRITTEN => return Poll::Pending,
            Poll::Pending => {}
        }
        this.keep(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not waiting is the point; only an error counts.
        match self.get_mut().poll_unwritten(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unwritten(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    #[tokio::test]
    async fn writing_does_not_wait_and_reading_writes_on() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let mut ours = Duplex::new(ours, Pressure::default());
        let sent: Vec<u8> = (0..251).cycle().take(100_000).collect();
        for part in sent.chunks(777) {
            ours.write_all(part).await.unwrap();
        }
        ours.flush().await.unwrap();
        let peer = tokio::spawn(async move {
            let mut received = vec![0; 100_000];
            theirs.read_exact(&mut received).await.unwrap();
            theirs.write_all(b"done").await.unwrap();
            received
        });
        let mut answer = [0; 4];
        ours.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"done");
        assert!(peer.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn shutdown_comes_after_the_last_byte() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut ours = Duplex::new(ours, Pressure::default());
        ours.write_all(&[7; 1000]).await.unwrap();
        let peer = tokio::spawn(async move {
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).await.unwrap();
            received.len()
        });
        ours.shutdown().await.unwrap();
        assert_eq!(peer.await.unwrap(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_slows_reading_and_does_not_stop_it() {
        let (ours, mut theirs) = tokio::io::duplex(4 * SLOW_BYTES);
        let pressure = Pressure::default();
        let mut ours = Duplex::new(ours, pressure.clone());
        theirs.write_all(&vec![1; 3 * SLOW_BYTES]).await.unwrap();
        pressure.add(SLOW_FROM + 1);
        let begin = Instant::now();
        let mut packet = vec![0; SLOW_BYTES / 4];
        for _ in 0..12 {
            ours.read_exact(&mut packet).await.unwrap();
        }
        assert!(begin.elapsed() >= 2 * SLOW_STEP, "{:?}", begin.elapsed());
        pressure.remove(SLOW_FROM);
        theirs.write_all(&vec![1; 3 * SLOW_BYTES]).await.unwrap();
        let begin = Instant::now();
        for _ in 0..12 {
            ours.read_exact(&mut packet).await.unwrap();
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
