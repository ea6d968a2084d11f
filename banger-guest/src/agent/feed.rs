//! A command's standard input: written as fast as the command reads it, and credit for what it has
//! taken.

use banger_proto::command::{FromGuest, MAX_PAYLOAD, WINDOW};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::exec::Input;

/// Credit is given for so many bytes at once: each frame of it costs as much as one of input. What
/// is left to the client is still enough for the longest frame.
const ENOUGH: usize = WINDOW / 4;
const _: () = assert!(WINDOW - ENOUGH >= MAX_PAYLOAD, "a client waits for credit that is not given");

/// What the client sends.
pub(super) enum Feed {
    /// Bytes.
    Bytes(Vec<u8>),
    /// No more of them.
    End,
    /// The same for a terminal, which has no end: its character for it, which ends a line that has
    /// begun, or, at the beginning of a line, a read (termios(3), VEOF).
    EndOfTerminal(u8),
}

/// Writes until the end, or until the command takes no more. Then there is no credit either: the
/// client waits for the command's end, as the writer of a pipe whose reader has other things to do.
pub(super) async fn feed(
    mut input: Input,
    mut from: mpsc::UnboundedReceiver<Feed>,
    say: mpsc::Sender<FromGuest>,
    waiting: Arc<AtomicUsize>,
) {
    let (mut in_a_line, mut taken) = (false, 0);
    while let Some(fed) = from.recv().await {
        let (bytes, credit) = match fed {
            Feed::Bytes(bytes) => {
                in_a_line = bytes.last().is_some_and(|last| *last != b'\n' && *last != b'\r');
                let credit = bytes.len();
                (bytes, credit)
            }
            Feed::EndOfTerminal(character) => (vec![character; 1 + usize::from(in_a_line)], 0),
            Feed::End => {
                let _ = input.shutdown().await;
                return;
            }
        };
        if input.write_all(&bytes).await.is_err() {
            break;
        }
        waiting.fetch_sub(credit, Ordering::AcqRel);
        taken += credit;
        if taken >= ENOUGH {
            let credit = u32::try_from(std::mem::take(&mut taken)).unwrap_or(u32::MAX);
            if say.send(FromGuest::Credit(credit)).await.is_err() {
                return;
            }
        }
    }
    // It has closed its input. What comes is dropped.
    drop(input);
    while from.recv().await.is_some() {}
}
