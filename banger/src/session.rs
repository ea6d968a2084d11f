//! The conversation over a stream: our standard input to the daemon, the daemon's answers to our outputs.
//!
//! Used by `exec`, `proxy` and `logs`. One task reads standard input, one listens for signals, one writes to
//! the socket, and the caller's reads from it; each waits for the next one, so nothing grows without bound.

use crate::client::lost;
use crate::error::explained;
use crate::output::Streams;
use crate::terminal::{Escape, Raw, window};
use banger_proto::signal::status;
use banger_proto::stream::{self, Frame};
use std::io::{IsTerminal as _, Read as _};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Sender, channel};

/// Input is sent in pieces of this, bytes.
const CHUNK: usize = 32 * 1024;
/// Interruptions that a command may ignore before we hang up.
const PATIENCE: u32 = 3;
/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: u8 = status(2);

/// What a terminal takes for the end of its input, at the beginning of a line (VEOF, termios(3)).
const END_OF_FILE: u8 = 4;

/// What the two sides are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A command: signals that we get are sent to it.
    Command {
        /// Send standard input.
        input: bool,
    },
    /// A command on a terminal of its own; ours is raw meanwhile.
    Terminal,
    /// Bytes and nothing else; signals end us.
    Bytes,
    /// Text of a guest: no input, and nothing that steers a terminal.
    Text,
}

/// Talks until the daemon ends the stream; gives the exit status.
///
/// # Errors
/// Why the daemon refused, a lost connection, or a reader of ours that went away.
pub(crate) async fn talk(stream: UnixStream, mode: Mode) -> anyhow::Result<u8> {
    let (mut from, to) = stream.into_split();
    let (frames, hang_up) = (channel::<Frame>(4), channel::<u8>(1));
    let raw = if mode == Mode::Terminal { Raw::enter() } else { None };
    match mode {
        Mode::Command { input } => {
            forward_signals(&frames.0, &hang_up.0)?;
            if input { read_input(frames.0, None) } else { end_input(frames.0) }
        }
        Mode::Terminal => {
            follow_window(&frames.0, &hang_up.0)?;
            read_input(frames.0, Some(hang_up.0.clone()));
        }
        Mode::Bytes => read_input(frames.0, None),
        Mode::Text => drop(frames.0),
    }
    let writer = tokio::spawn(write_frames(to, frames.1));
    let mut hung_up = hang_up.1;
    // Kept open, so that only a real request ends the wait below.
    let _keep = hang_up.0;
    let outcome = tokio::select! {
        outcome = show(&mut from, mode) => outcome,
        Some(status) = hung_up.recv() => Ok(status),
    };
    writer.abort();
    drop(raw);
    outcome
}

/// Shows the daemon's frames until the last one.
async fn show(from: &mut tokio::net::unix::OwnedReadHalf, mode: Mode) -> anyhow::Result<u8> {
    let mut streams = if mode == Mode::Text { Streams::text() } else { Streams::as_written() };
    loop {
        match stream::read(from).await.map_err(lost)? {
            Some(Frame::Output(bytes)) => streams.output(&bytes).await?,
            Some(Frame::ErrorOutput(bytes)) => streams.error_output(&bytes).await,
            Some(Frame::Exit(status)) => return Ok(status),
            Some(Frame::Failed(why)) => return Err(explained(why, "")),
            Some(_) => return Err(anyhow::anyhow!("bangerd sent a frame that only clients send")),
            None => {
                return Err(explained(
                    "the connection to bangerd ended before the command did",
                    "the VM or bangerd ended; see: banger vm list, journalctl -u bangerd",
                ));
            }
        }
    }
}

async fn write_frames(mut to: OwnedWriteHalf, mut frames: tokio::sync::mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if stream::write(&mut to, &frame).await.is_err() {
            // The reader learns why.
            return;
        }
    }
    // Dropping `to` would half-close the connection, which says that we went away.
    std::future::pending::<()>().await;
}

/// Reads standard input on a thread of its own, because a read of a terminal cannot be cancelled.
fn read_input(frames: Sender<Frame>, hang_up: Option<Sender<u8>>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        // Only who types wants out by `~.`: in a file or a pipe these are two bytes of many.
        let typed = stdin.is_terminal();
        let mut escape = hang_up.as_ref().filter(|_| typed).map(|_| Escape::new());
        let mut at_line_start = true;
        let mut buffer = vec![0; CHUNK];
        loop {
            let bytes = match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            at_line_start = matches!(bytes.last(), Some(b'\r' | b'\n'));
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
            if frames.blocking_send(Frame::Input(bytes)).is_err() {
                return;
            }
        }
        if hang_up.is_some() && !typed {
            // A terminal has no end of input but this byte; in the middle of a line, the first one ends the line.
            let ends = if at_line_start { vec![END_OF_FILE] } else { vec![END_OF_FILE; 2] };
            drop(frames.blocking_send(Frame::Input(ends)));
        }
        drop(frames.blocking_send(Frame::InputEnd));
    });
}

fn end_input(frames: Sender<Frame>) {
    tokio::spawn(async move { drop(frames.send(Frame::InputEnd).await) });
}

/// Sends the signals that we get to the command.
fn forward_signals(frames: &Sender<Frame>, hang_up: &Sender<u8>) -> anyhow::Result<()> {
    let kinds = [
        (SignalKind::interrupt(), "INT"),
        (SignalKind::terminate(), "TERM"),
        (SignalKind::hangup(), "HUP"),
        (SignalKind::quit(), "QUIT"),
        (SignalKind::user_defined1(), "USR1"),
        (SignalKind::user_defined2(), "USR2"),
    ];
    for (kind, name) in kinds {
        let mut signals = signal(kind)?;
        let (frames, hang_up) = (frames.clone(), hang_up.clone());
        tokio::spawn(async move {
            let mut count = 0_u32;
            while signals.recv().await.is_some() {
                count = count.saturating_add(1);
                if name == "INT" && count >= PATIENCE {
                    let _ = hang_up.send(INTERRUPTED).await;
                }
                // In a task of its own: input that the guest does not read must not keep the next signal waiting.
                let frames = frames.clone();
                tokio::spawn(async move { drop(frames.send(Frame::Signal(name.to_owned())).await) });
            }
        });
    }
    Ok(())
}

/// Tells the guest when the window changes, and hangs up when our terminal does.
fn follow_window(frames: &Sender<Frame>, hang_up: &Sender<u8>) -> anyhow::Result<()> {
    let mut changes = signal(SignalKind::window_change())?;
    let frames = frames.clone();
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some((cols, rows)) = window() {
                drop(frames.send(Frame::Resize(cols, rows)).await);
            }
        }
    });
    for (kind, end) in [
        (SignalKind::terminate(), status(15)),
        (SignalKind::hangup(), status(1)),
        (SignalKind::interrupt(), INTERRUPTED),
    ] {
        let mut signals = signal(kind)?;
        let hang_up = hang_up.clone();
        tokio::spawn(async move {
            signals.recv().await;
            let _ = hang_up.send(end).await;
        });
    }
    Ok(())
}
