//! Standard input, read on a thread of its own, because a read of a terminal cannot be cancelled.

use crate::terminal::Escape;
use banger_proto::signal::status;
use std::io::Read as _;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Input is sent in pieces of this, bytes.
const CHUNK: usize = 32 * 1024;
/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: u8 = status(2);

/// A piece of it.
#[derive(Debug)]
pub(crate) enum Chunk {
    Bytes(Vec<u8>),
    End,
}

/// Standard input. With `hang_up`, which is for a terminal in raw mode, the user gets out by `~.`.
pub(crate) fn read(hang_up: Option<Sender<u8>>) -> Receiver<Chunk> {
    let (to, chunks) = channel(1);
    std::thread::spawn(move || {
        let mut escape = hang_up.as_ref().map(|_| Escape::new());
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            let bytes = match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let bytes = match &mut escape {
                None => bytes.to_vec(),
                Some(escape) => match escape.filter(bytes) {
                    Some(bytes) => bytes,
                    None => {
                        if let Some(hang_up) = &hang_up {
                            let _ = hang_up.blocking_send(INTERRUPTED);
                        }
                        return;
                    }
                },
            };
            if to.blocking_send(Chunk::Bytes(bytes)).is_err() {
                return;
            }
        }
        let _ = to.blocking_send(Chunk::End);
    });
    chunks
}

/// The same input without its end, for a command whose input others may go on to write.
pub(crate) fn without_end(mut chunks: Receiver<Chunk>) -> Receiver<Chunk> {
    let (to, endless) = channel(1);
    tokio::spawn(async move {
        while let Some(chunk @ Chunk::Bytes(_)) = chunks.recv().await {
            if to.send(chunk).await.is_err() {
                return;
            }
        }
        // A channel without a sender is the user's own end.
        to.closed().await;
    });
    endless
}

/// No input at all: its end.
pub(crate) fn none() -> Receiver<Chunk> {
    let (to, chunks) = channel(1);
    // There is room for one.
    let _ = to.try_send(Chunk::End);
    chunks
}
