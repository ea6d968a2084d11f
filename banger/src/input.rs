//! Standard input, read on a thread of its own, because a read of a terminal cannot be cancelled.

use crate::terminal::Escape;
use crate::wait::ready;
use banger_proto::command::PIECE;
use banger_proto::signal::status;
use nix::poll::PollFlags;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: u8 = status(2);

/// A piece of it.
#[derive(Debug)]
pub(crate) enum Chunk {
    Bytes(Vec<u8>),
    End,
    /// It cannot be read. This is not its end: what comes is not all of it.
    Failed(io::Error),
}

/// Standard input. With `hang_up`, which is for a terminal in raw mode, the user gets out by `~.`.
pub(crate) fn read(hang_up: Option<Sender<u8>>) -> Receiver<Chunk> {
    let (to, chunks) = channel(1);
    std::thread::spawn(move || {
        let mut escape = hang_up.as_ref().map(|_| Escape::new());
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let bytes = match piece(&mut stdin, &mut buffer) {
                Ok(0) => break,
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) => {
                    let _ = to.blocking_send(Chunk::Failed(error));
                    return;
                }
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

/// The next bytes; none at the end. Whoever shares the file may have made it non-blocking.
///
/// # Errors
/// What the system says.
pub(crate) fn piece(from: &mut (impl Read + AsFd), buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(from.as_fd(), PollFlags::POLLIN)?,
            other => return other,
        }
    }
}

/// The same input without its end, for a command whose input others may go on to write.
pub(crate) fn without_end(mut chunks: Receiver<Chunk>) -> Receiver<Chunk> {
    let (to, endless) = channel(1);
    tokio::spawn(async move {
        while let Some(chunk @ (Chunk::Bytes(_) | Chunk::Failed(_))) = chunks.recv().await {
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

/// Why what was read is not all.
pub(crate) fn failed(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("cannot read standard input")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_file_that_does_not_block_is_waited_for_and_an_error_is_no_end() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let writing = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            theirs.write_all(b"late").unwrap();
        });
        let mut buffer = [0; 8];
        assert_eq!(piece(&mut ours, &mut buffer).unwrap(), 4);
        assert_eq!(piece(&mut ours, &mut buffer).unwrap(), 0);
        writing.join().unwrap();
        let mut folder = std::fs::File::open("/").unwrap();
        assert_eq!(piece(&mut folder, &mut buffer).unwrap_err().kind(), ErrorKind::IsADirectory);
    }
}
