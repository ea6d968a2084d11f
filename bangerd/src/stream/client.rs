//! The client's end of a stream.

use banger_proto::stream::{Frame, MAX_PAYLOAD, read, write};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long a client may take to read the last frame.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) struct Client {
    pub(super) from: OwnedReadHalf,
    pub(super) to: Sender,
}

pub(super) struct Sender(OwnedWriteHalf);

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        Self { from, to: Sender(to) }
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
