//! The client's end of a stream.

use banger_proto::stream::{Frame, MAX_PAYLOAD, read, write};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

/// How often [`Client::gone`] looks.
const LOOK: Duration = Duration::from_millis(300);
/// How long a client may take to read the last frame.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) struct Client {
    pub(super) from: OwnedReadHalf,
    pub(super) to: Sender,
    pub(super) gone: Gone,
}

pub(super) struct Sender(OwnedWriteHalf);

/// Sees the client close its socket while nobody reads from it.
pub(super) struct Gone(OwnedFd);

impl Client {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let gone = Gone(stream.as_fd().try_clone_to_owned()?);
        let (from, to) = stream.into_split();
        Ok(Self { from, to: Sender(to), gone })
    }
}

impl Gone {
    /// Returns when the client has closed its socket. Input that it does not let us take is why the end of
    /// the stream alone does not tell; the kernel reports a hang-up whatever is unread (unix(7), POLLHUP).
    pub(super) async fn wait(&self) {
        loop {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
            match nix::poll::poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) | Err(nix::Error::EINTR) => sleep(LOOK).await,
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl Sender {
    pub(super) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        write(&mut self.0, frame).await
    }

    /// Bytes of any length as frames.
    pub(super) async fn bytes(&mut self, bytes: &[u8], frame: impl Fn(Vec<u8>) -> Frame) -> io::Result<()> {
        for part in bytes.chunks(MAX_PAYLOAD) {
            self.send(&frame(part.to_vec())).await?;
        }
        Ok(())
    }

    /// The last frame, to a client that may have stopped reading.
    pub(super) async fn last(&mut self, frame: &Frame) -> io::Result<()> {
        let said = async {
            self.send(frame).await?;
            self.0.shutdown().await
        };
        timeout(FAREWELL, said).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Why not, as the last frame. A sentence longer than a frame is cut.
    pub(super) async fn failed(&mut self, why: &impl std::fmt::Display) -> io::Result<()> {
        self.last(&Frame::Failed(why.to_string().chars().take(2000).collect())).await
    }
}

/// Reads and forgets frames until the client is gone.
pub(super) async fn until_gone(from: &mut OwnedReadHalf) {
    while let Ok(Some(_)) = read(from).await {}
}
