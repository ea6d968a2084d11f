//! A command in a guest: the command line's end of [`banger_proto::command`].
//!
//! Everything that arrives comes from the guest, whose root may be hostile: it reaches the outputs
//! that the user gave the command, and decides nothing else. One task writes the connection, one
//! thread reads standard input, and the caller's task reads the connection; a signal never waits
//! behind input or output.

use crate::client::Opened;
use crate::error::{Explained, explained};
use crate::input::{self, Chunk};
use crate::output::Streams;
use crate::signals;
use crate::terminal::{Raw, window};
use anyhow::Context as _;
use banger_proto::command::{FromGuest, Start, ToGuest, WINDOW};
use banger_proto::signal::status;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::signal::unix::SignalKind;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Interruptions that a command may ignore before we hang up.
const PATIENCE: u32 = 3;
/// How long the agent may take to say that a command has started, or why not: it looks users,
/// programs and folders up on disks that may be slow.
const START: Duration = Duration::from_secs(60);
/// What a shell reports for a program that SIGINT ended.
const INTERRUPTED: u8 = status(2);
/// Signals and sizes that wait for the connection, which is always read at the other end.
const URGENT: usize = 16;

/// Runs a command and talks with it until its end; gives its exit status. `input`: standard input
/// is the command's. `json`: what it writes and how it ends goes to standard output as JSON.
///
/// # Errors
/// A lost connection, or a reader of ours that went away.
pub(crate) async fn run(opened: Opened, start: Start, input: bool, json: bool) -> anyhow::Result<u8> {
    let Opened { mut guest, _daemon } = opened;
    let tty = start.terminal.is_some();
    ToGuest::Start(Box::new(start)).write(&mut guest).await.map_err(too_long_or_lost)?;
    match converse(guest, Terms { tty, input, attached: false, json }).await? {
        Left::Ended(status) | Left::HungUp(status) => Ok(status),
    }
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The command has ended with this status.
    Ended(u8),
    /// The user went before it did; the status for that.
    HungUp(u8),
}

/// What a conversation is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The command has a terminal.
    pub(crate) tty: bool,
    /// Standard input is the command's.
    pub(crate) input: bool,
    /// The command is a session, which goes on without us: its input is not closed at the end of
    /// ours, and signals are not for it.
    pub(crate) attached: bool,
    /// For a program that reads JSON.
    pub(crate) json: bool,
}

/// Talks with a command that has started, until its end or ours.
///
/// # Errors
/// As [`run`].
pub(crate) async fn converse(guest: UnixStream, terms: Terms) -> anyhow::Result<Left> {
    let Terms { tty, input, attached, json } = terms;
    let (mut from, to) = guest.into_split();
    let raw = if tty && input { Raw::enter() } else { None };
    let (urgent, hang_up) = (channel::<ToGuest>(URGENT), channel::<u8>(1));
    if tty {
        follow_window(&urgent.0, &hang_up.0)?
    } else if !attached {
        forward_signals(&urgent.0, &hang_up.0)?
    }
    let typed = match (input, attached) {
        (true, false) => input::read(raw.is_some().then(|| hang_up.0.clone())),
        (true, true) => input::without_end(input::read(raw.is_some().then(|| hang_up.0.clone()))),
        (false, false) => input::none(),
        (false, true) => input::without_end(input::none()),
    };
    let credit = Arc::new(Credit::default());
    let (broken, mut unreadable) = channel(1);
    let writer = tokio::spawn(write_frames(to, urgent.1, typed, Arc::clone(&credit), broken));
    let mut hung_up = hang_up.1;
    // Kept open, so that only a real request ends the wait below.
    let _keep = (hang_up.0, urgent.0);
    let streams = match (json, attached && !tty) {
        (true, _) => Streams::json(),
        (false, true) => Streams::text(),
        // A command that was given the terminal may steer it, and nothing else.
        (false, false) => Streams::as_written(),
    };
    // A session runs already.
    let begin = (!attached).then_some(START);
    let outcome = tokio::select! {
        outcome = show(&mut from, &credit, streams, begin) => outcome.map(Left::Ended),
        Some(status) = hung_up.recv() => Ok(Left::HungUp(status)),
        // Without a word to the guest: the end of the input would say that this was all.
        Some(error) = unreadable.recv() => Err(input::failed(error)),
    };
    writer.abort();
    drop(raw);
    outcome
}

pub(crate) fn too_long_or_lost(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::InvalidData {
        return explained(
            "the command and its variables are too long for a program to be started with",
            "send the data through standard input: banger vm exec VM -- sh -c 'cat > file' < file",
        );
    }
    lost(error)
}

/// The connection ended in the middle of something.
pub(crate) fn lost(error: io::Error) -> anyhow::Error {
    // So an end shows where something was still on its way there.
    if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) {
        return ended_early();
    }
    explained(format!("the connection to the guest was lost: {error}"), WHAT_TO_SEE)
}

/// The connection ended, and the command's end was not heard.
pub(crate) fn ended_early() -> anyhow::Error {
    explained("the connection to the guest ended before the command did", WHAT_TO_SEE)
}

/// The connection was lost because its VM has ended; why, as far as the daemon knows.
pub(crate) fn vm_ended(why: &str) -> anyhow::Error {
    let why = first_line(why);
    let because = if why.is_empty() { String::new() } else { format!(": {why}") };
    explained(format!("the VM ended before the command did{because}"), "see: banger vm list, banger vm logs VM")
}

/// Whether this says that a connection was lost, and not why.
pub(crate) fn is_loss(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<Explained>().is_some_and(|said| said.hint() == WHAT_TO_SEE))
}

pub(crate) const WHAT_TO_SEE: &str = "the VM may have ended; see: banger vm list, banger vm logs VM";

/// Bytes of input that may still be sent.
pub(crate) struct Credit(Semaphore);

impl Default for Credit {
    fn default() -> Self {
        Self(Semaphore::new(WINDOW))
    }
}

impl Credit {
    /// Waits until so many may be sent; not more than the window.
    pub(crate) async fn take(&self, bytes: usize) {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(taken) = self.0.acquire_many(count).await {
            taken.forget();
        }
    }

    /// More may be sent; never above the window, whatever the guest says.
    pub(crate) fn give(&self, bytes: u32) {
        let room = WINDOW.saturating_sub(self.0.available_permits());
        self.0.add_permits(room.min(usize::try_from(bytes).unwrap_or(usize::MAX)));
    }
}

/// What comes soon from a guest that lives.
///
/// # Errors
/// Those of the work, and that nothing came.
pub(crate) async fn in_time<T>(limit: Duration, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(silent(limit)))
}

/// An agent that took a request, and is silent since.
pub(crate) fn silent(limit: Duration) -> anyhow::Error {
    let message = format!("the guest's agent took the request, and was silent for {} s", limit.as_secs());
    explained(message, "the guest or its disk may stand still; see: banger vm health VM, banger vm logs VM")
}

/// Shows what the guest sends until the last frame. `begin`: how long the first may take.
async fn show(
    from: &mut (impl AsyncRead + Unpin),
    credit: &Credit,
    mut streams: Streams,
    mut begin: Option<Duration>,
) -> anyhow::Result<u8> {
    let mut from = tokio::io::BufReader::with_capacity(128 * 1024, from);
    loop {
        let next = async { FromGuest::read(&mut from).await.map_err(lost) };
        let frame = match begin.take() {
            Some(limit) => in_time(limit, next).await?,
            None => next.await?,
        };
        match frame {
            Some(FromGuest::Started) => {}
            Some(FromGuest::Output(bytes)) => streams.output(&bytes).await?,
            Some(FromGuest::ErrorOutput(bytes)) => streams.error_output(&bytes).await?,
            Some(FromGuest::Credit(bytes)) => credit.give(bytes),
            Some(FromGuest::Exited(status)) => return streams.ended(status, None, None).await.map(|()| status),
            Some(FromGuest::Killed(number)) => {
                return streams.ended(status(number), Some(number), None).await.map(|()| status(number));
            }
            Some(FromGuest::Refused(status, why)) => {
                return streams.ended(status, None, Some(&first_line(&why))).await.map(|()| status);
            }
            None => return Err(ended_early()),
        }
    }
}

/// The agent says one line. A guest may say more.
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(1000).collect()
}

/// Input waits for credit; signals and sizes wait for nothing.
async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    mut urgent: Receiver<ToGuest>,
    mut typed: Receiver<Chunk>,
    credit: Arc<Credit>,
    broken: Sender<io::Error>,
) {
    let mut pending: Option<Vec<u8>> = None;
    let mut open = true;
    loop {
        let next_input = async {
            match &pending {
                None => typed.recv().await,
                Some(bytes) => {
                    credit.take(bytes.len()).await;
                    None
                }
            }
        };
        let frame = tokio::select! {
            biased;
            Some(frame) = urgent.recv() => Some(frame),
            chunk = next_input, if open => match (pending.take(), chunk) {
                (Some(bytes), _) => Some(ToGuest::Input(bytes)),
                (None, Some(Chunk::Bytes(bytes))) => {
                    pending = Some(bytes);
                    None
                }
                (None, Some(Chunk::End)) => {
                    open = false;
                    Some(ToGuest::InputEnd)
                }
                (None, Some(Chunk::Failed(error))) => {
                    open = false;
                    let _ = broken.send(error).await;
                    None
                }
                // Our own end: the user hangs up.
                (None, None) => {
                    open = false;
                    None
                }
            },
        };
        if let Some(frame) = frame
            && frame.write(&mut to).await.is_err()
        {
            // The reader learns why.
            std::future::pending::<()>().await;
        }
    }
}

/// Sends the signals that we get to the command. Those that are ignored are not for it either.
fn forward_signals(urgent: &Sender<ToGuest>, hang_up: &Sender<u8>) -> anyhow::Result<()> {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    for kind in kinds {
        let Some(mut signals) = signals::listen(kind)? else { continue };
        let number = u8::try_from(kind.as_raw_value()).context("a signal's number")?;
        let (urgent, hang_up) = (urgent.clone(), hang_up.clone());
        tokio::spawn(async move {
            let mut count = 0_u32;
            while signals.recv().await.is_some() {
                count = count.saturating_add(1);
                if kind == SignalKind::interrupt() && count >= PATIENCE {
                    let _ = hang_up.send(INTERRUPTED).await;
                }
                // A guest that takes no more has enough of them already.
                let _ = urgent.try_send(ToGuest::Signal(number));
            }
        });
    }
    Ok(())
}

/// Tells the guest when the window changes, and hangs up when our terminal does.
fn follow_window(urgent: &Sender<ToGuest>, hang_up: &Sender<u8>) -> anyhow::Result<()> {
    let mut changes = signals::take(SignalKind::window_change())?;
    let urgent = urgent.clone();
    tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some((cols, rows)) = window() {
                let _ = urgent.send(ToGuest::Resize(cols, rows)).await;
            }
        }
    });
    for (kind, end) in [
        (SignalKind::terminate(), status(15)),
        (SignalKind::hangup(), status(1)),
        (SignalKind::interrupt(), INTERRUPTED),
    ] {
        let Some(mut signals) = signals::listen(kind)? else { continue };
        let hang_up = hang_up.clone();
        tokio::spawn(async move {
            signals.recv().await;
            let _ = hang_up.send(end).await;
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_starts_nothing_is_given_up_and_a_command_that_is_quiet_is_not() {
        let (mut ours, mut guest) = tokio::io::duplex(4096);
        let credit = Credit::default();
        let silent = show(&mut ours, &credit, Streams::as_written(), Some(START)).await.unwrap_err();
        assert!(silent.to_string().contains("silent for 60 s"), "{silent:#}");
        FromGuest::Started.write(&mut guest).await.unwrap();
        let quiet = timeout(100 * START, show(&mut ours, &credit, Streams::as_written(), Some(START))).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn input_waits_for_credit_and_a_signal_does_not() {
        let (ours, mut guest) = tokio::io::duplex(4 * WINDOW);
        let (urgent, told) = channel(URGENT);
        let (chunks, typed) = channel(1);
        let credit = Arc::new(Credit::default());
        let writing = tokio::spawn(write_frames(ours, told, typed, Arc::clone(&credit), channel(1).0));
        let typing = tokio::spawn(async move {
            for _ in 0..WINDOW / 1024 + 8 {
                chunks.send(Chunk::Bytes(vec![7; 1024])).await.unwrap();
            }
            chunks.send(Chunk::End).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut next = async || timeout(SHORT, ToGuest::read(&mut guest)).await;
        for _ in 0..WINDOW / 1024 {
            assert_eq!(next().await.unwrap().unwrap(), Some(ToGuest::Input(vec![7; 1024])));
        }
        urgent.send(ToGuest::Signal(2)).await.unwrap();
        assert_eq!(next().await.unwrap().unwrap(), Some(ToGuest::Signal(2)));
        credit.give(8 * 1024);
        for _ in 0..8 {
            assert_eq!(next().await.unwrap().unwrap(), Some(ToGuest::Input(vec![7; 1024])));
        }
        assert_eq!(next().await.unwrap().unwrap(), Some(ToGuest::InputEnd));
        writing.abort();
        typing.abort();
    }
}
