//! What a command writes, on its way to the client: at the client's pace, and not waited for after
//! the command's end.

use banger_proto::command::{FromGuest, PIECE};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::exec::Output;
use crate::sys::unread::unread;

/// A terminal hands over what was written by a task of the kernel's own: nothing for so long is the
/// end.
const QUIET: Duration = Duration::from_millis(50);
/// The longest that a terminal is listened to after the command's end.
const LONGEST: Duration = Duration::from_secs(1);

/// A stream of a command, as it goes to the client.
pub(super) struct Stream {
    pub(super) say: mpsc::Sender<FromGuest>,
    pub(super) frame: fn(Vec<u8>) -> FromGuest,
    pub(super) terminal: bool,
}

impl Stream {
    /// Sends what the command writes until the stream ends, or the command has ended and all is
    /// sent that it wrote until then: a child of the command may hold the stream, and write on for
    /// ever.
    pub(super) async fn pump(self, mut from: Output, mut ended: watch::Receiver<bool>) {
        loop {
            // Nothing is read before there is room for it: so a client that does not read stops the
            // command.
            let Ok(room) = self.say.reserve().await else { return };
            let mut chunk = Vec::with_capacity(PIECE);
            tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => break,
                read = from.read_buf(&mut chunk) => match read {
                    Ok(1..) => room.send((self.frame)(chunk)),
                    // A terminal whose last user is gone ends with an error.
                    Ok(0) | Err(_) => return,
                },
            }
        }
        if self.terminal { self.rest_of_terminal(from).await } else { self.rest_of_pipe(from).await }
    }

    /// All that the command wrote lies in the pipe by now, and the kernel says how much that is.
    async fn rest_of_pipe(self, mut from: Output) {
        let mut left = unread(&from).unwrap_or(0);
        while left > 0 {
            let mut chunk = Vec::with_capacity(left.min(PIECE));
            let limit = u64::try_from(left.min(PIECE)).unwrap_or(0);
            match (&mut from).take(limit).read_buf(&mut chunk).await {
                Ok(count @ 1..) => left = left.saturating_sub(count),
                Ok(0) | Err(_) => return,
            }
            if self.say.send((self.frame)(chunk)).await.is_err() {
                return;
            }
        }
    }

    async fn rest_of_terminal(self, mut from: Output) {
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            let mut chunk = Vec::with_capacity(PIECE);
            match timeout_at(end.min(Instant::now() + QUIET), from.read_buf(&mut chunk)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) | Err(_) => return,
            }
            if self.say.send((self.frame)(chunk)).await.is_err() {
                return;
            }
        }
    }
}
