//! What clients write for a session's command: in the order in which it comes, and as fast as the
//! command takes it.

use banger_proto::command::{ToGuest, WINDOW};
use banger_proto::session::Refusal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::agent::exec::Input;

/// Clients at a time whose input waits for the command, those that have gone among them. Each has
/// at most [`WINDOW`] bytes.
const WRITERS: usize = 64;

/// The command's input, for those who write it.
pub(super) struct Feed {
    to: mpsc::UnboundedSender<Fed>,
    closed: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

/// Input of a client.
enum Fed {
    /// Bytes, and whose they are.
    Bytes(Vec<u8>, Owner),
    /// No more of them; a credit of nothing says that it was passed on.
    End(Owner),
}

/// Whose input it is.
#[derive(Clone)]
struct Owner {
    /// Where the credit for the bytes goes.
    credit: mpsc::UnboundedSender<u32>,
    /// Given back when the client has gone and its last bytes are written.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// A client that writes.
pub(super) struct Writer {
    /// None when the command has no input: nobody takes what the client sends.
    to: Option<mpsc::UnboundedSender<Fed>>,
    owner: Owner,
    /// Bytes that are not written yet.
    waiting: AtomicUsize,
}

impl Feed {
    /// `end`: the character by which a terminal knows the end of its input.
    pub(super) fn new(input: Input, end: Option<u8>) -> Self {
        let (to, from) = mpsc::unbounded_channel();
        let (close, closed) = watch::channel(false);
        tokio::spawn(feed(input, end, from, close));
        Self { to, closed, places: Arc::new(Semaphore::new(WRITERS)) }
    }

    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.clone()
    }
}

impl Writer {
    /// One that writes to `feed`, if there is one. The credit for its bytes comes with them.
    pub(super) fn new(feed: Option<&Feed>) -> Result<(Self, mpsc::UnboundedReceiver<u32>), Refusal> {
        let place = feed.map(|feed| Arc::clone(&feed.places).try_acquire_owned()).transpose().map_err(|_| {
            let why = format!("the command does not read its input, and that of {WRITERS} clients waits for it");
            Refusal::Failed(why)
        })?;
        let (credit, credits) = mpsc::unbounded_channel();
        let owner = Owner { credit, _place: place.map(Arc::new) };
        Ok((Self { to: feed.map(|feed| feed.to.clone()), owner, waiting: AtomicUsize::new(0) }, credits))
    }

    /// Takes what a client sends until it closes, or sends more than its credit.
    pub(super) async fn take(&self, mut from: impl AsyncRead + Unpin, mut other: impl FnMut(ToGuest)) {
        while let Ok(Some(frame)) = ToGuest::read(&mut from).await {
            let fed = match frame {
                ToGuest::Input(bytes) => {
                    if self.waiting.fetch_add(bytes.len(), Ordering::AcqRel).saturating_add(bytes.len()) > WINDOW {
                        return;
                    }
                    Fed::Bytes(bytes, self.owner.clone())
                }
                ToGuest::InputEnd => Fed::End(self.owner.clone()),
                frame => {
                    other(frame);
                    continue;
                }
            };
            if let Some(to) = &self.to {
                let _ = to.send(fed);
            }
        }
    }

    /// So many bytes were written, and as many more may be sent.
    pub(super) fn give_back(&self, bytes: u32) {
        self.waiting.fetch_sub(usize::try_from(bytes).unwrap_or(0), Ordering::AcqRel);
    }
}

async fn feed(mut input: Input, end: Option<u8>, mut from: mpsc::UnboundedReceiver<Fed>, close: watch::Sender<bool>) {
    let mut in_a_line = false;
    while let Some(fed) = from.recv().await {
        match fed {
            Fed::Bytes(bytes, owner) => {
                if input.write_all(&bytes).await.is_err() {
                    break;
                }
                in_a_line = bytes.last().is_some_and(|last| *last != b'\n' && *last != b'\r');
                // A client that is gone needs none.
                let _ = owner.credit.send(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            }
            Fed::End(owner) => {
                if let Some(character) = end {
                    // A terminal has no end, but a character for it (termios(3), VEOF).
                    let _ = input.write_all(&vec![character; 1 + usize::from(in_a_line)]).await;
                    in_a_line = false;
                    let _ = owner.credit.send(0);
                    continue;
                }
                let _ = input.shutdown().await;
                let _ = owner.credit.send(0);
                break;
            }
        }
    }
    drop(input);
    let _ = close.send(true);
    while from.recv().await.is_some() {}
}
