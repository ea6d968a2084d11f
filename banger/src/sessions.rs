//! Sessions in a guest: the command line's end of [`banger_proto::session`].
//!
//! Everything that arrives comes from the guest, whose root may be hostile: it is bounded by the
//! protocol, shown clean, and decides nothing but what is shown.

use crate::client::{Client, Opened};
use crate::error::explained;
use crate::guest::{self, WHAT_TO_SEE, first_line, lost, too_long_or_lost};
use crate::output::Streams;
use banger_proto::command::{ToGuest, WINDOW};
use banger_proto::session::{Answer, Outputs, Record, Refusal, Request, Status};
use banger_proto::signal;
use banger_proto::stream::StreamRequest;
use banger_proto::time::Timestamp;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};

/// Bytes that are sent at once.
const CHUNK: usize = 32 * 1024;
/// How long a guest may take for what it does at once: to start a session is the longest, for which
/// the agent itself allows a minute.
pub(crate) const ANSWER: Duration = Duration::from_secs(75);

/// Asks a VM about its sessions. The answers follow on the connection.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(crate) async fn ask(client: &Client, vm: &str, request: &Request) -> anyhow::Result<Opened> {
    let reads = matches!(request, Request::List | Request::Show { .. } | Request::Logs { .. });
    let mut opened = client.guest(StreamRequest::Session { vm: vm.to_owned(), reads }).await?;
    request.write(&mut opened.guest).await.map_err(too_long_or_lost)?;
    Ok(opened)
}

/// The next answer, which comes soon.
///
/// # Errors
/// A guest that is silent, a lost connection, or the guest's refusal in the words for the user.
pub(crate) async fn answer(opened: &mut Opened, vm: &str, word: &str) -> anyhow::Result<Answer> {
    guest::in_time(ANSWER, answer_whenever(opened, vm, word)).await
}

/// The next answer, which comes when something happens in the guest.
///
/// # Errors
/// A lost connection, or the guest's refusal in the words for the user.
pub(crate) async fn answer_whenever(opened: &mut Opened, vm: &str, word: &str) -> anyhow::Result<Answer> {
    match Answer::read(&mut opened.guest).await.map_err(lost)? {
        Some(Answer::Refused(refusal)) => Err(refused(&refusal, vm, word)),
        Some(answer) => Ok(answer),
        None => Err(explained("the guest ended the connection without an answer", WHAT_TO_SEE)),
    }
}

/// An answer that does not belong here.
pub(crate) fn odd() -> anyhow::Error {
    explained("the guest sent something else than an answer", "restart the VM: banger vm restart VM")
}

/// What the user is told of a refusal. The texts of a guest are one line.
pub(crate) fn refused(refusal: &Refusal, vm: &str, word: &str) -> anyhow::Error {
    let (message, hint) = match refusal {
        Refusal::Unknown => (format!("{vm} has no session {word}"), format!("see: banger vm session list {vm}")),
        Refusal::NameTaken => (
            format!("a session {word} runs already"),
            format!("choose another --name, or stop it: banger vm session stop {vm} {word}"),
        ),
        Refusal::TooMany => (
            format!("{vm} runs as many sessions as a VM may have"),
            format!("stop one: banger vm session stop {vm} SESSION"),
        ),
        Refusal::Ended(status) => (
            format!("session {word} is not running: {}", words(*status)),
            format!("what it wrote: banger vm session logs {vm} {word}"),
        ),
        Refusal::Runs => {
            (format!("session {word} is running"), format!("stop it first: banger vm session stop {vm} {word}"))
        }
        Refusal::NoInput => (
            format!("session {word} was started without standard input"),
            format!("start it with a pipe: banger vm session start --stdin pipe {vm} -- COMMAND"),
        ),
        Refusal::InputClosed => (
            format!("the standard input of session {word} is closed"),
            "it was closed by send --eof, or by the command itself; start the session again".to_owned(),
        ),
        Refusal::NoEntrypoint => (
            "the image has neither Entrypoint nor Cmd".to_owned(),
            "name the command: banger vm run -- COMMAND".to_owned(),
        ),
        Refusal::Command(_, why) => (format!("the command cannot be started: {}", first_line(why)), String::new()),
        Refusal::Failed(why) => (
            format!("the guest could not do it: {}", first_line(why)),
            format!("see how the guest is: banger vm health {vm}, banger vm logs {vm}"),
        ),
    };
    explained(message, hint)
}

/// A status in words.
pub(crate) fn words(status: Status) -> String {
    match status {
        Status::Running => "running".to_owned(),
        Status::Exited(code) => format!("exited ({code})"),
        Status::Killed(number) => match signal::name(number) {
            Some(name) => format!("killed ({name})"),
            None => format!("killed ({number})"),
        },
        Status::LostGuest => "lost: the guest ended".to_owned(),
        Status::LostProcess => "lost: its process was ended".to_owned(),
    }
}

/// The exit status of a command that ended so; `None` when nobody knows it.
pub(crate) fn exit_status(status: Status) -> Option<u8> {
    match status {
        Status::Exited(code) => Some(code),
        Status::Killed(number) => Some(signal::status(number)),
        Status::Running | Status::LostGuest | Status::LostProcess => None,
    }
}

/// How a log is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) outputs: Outputs,
    pub(crate) times: bool,
    /// For a program that reads JSON, the end included.
    pub(crate) json: bool,
    /// It goes on until the session's end.
    pub(crate) follow: bool,
}

/// Shows a log until the guest says how the session stands.
///
/// # Errors
/// As [`answer`], and a reader of ours that went away.
pub(crate) async fn logs(opened: &mut Opened, vm: &str, word: &str, shown: Shown) -> anyhow::Result<Status> {
    let mut streams = if shown.json { Streams::json() } else { Streams::text() };
    // Of standard output and standard error: does a line begin?
    let mut begins = [true, true];
    loop {
        let next =
            if shown.follow { answer_whenever(opened, vm, word).await? } else { answer(opened, vm, word).await? };
        match next {
            Answer::Record(Record { at, error, bytes }) => {
                let [out, err] = &mut begins;
                let bytes = if shown.times { stamped(at, &bytes, if error { err } else { out }) } else { bytes };
                if error && shown.outputs == Outputs::Both {
                    streams.error_output(&bytes).await?;
                } else {
                    streams.output(&bytes).await?;
                }
            }
            Answer::Gap(bytes) => streams.gap(bytes).await?,
            Answer::Ended(status) => {
                if let Some(code) = exit_status(status) {
                    let signal = if let Status::Killed(number) = status { Some(number) } else { None };
                    streams.ended(code, signal, None).await?;
                }
                return Ok(status);
            }
            _ => return Err(odd()),
        }
    }
}

/// With the time at the beginning of each line.
fn stamped(at: u64, bytes: &[u8], begins: &mut bool) -> Vec<u8> {
    let stamp = format!("{} ", Timestamp::from_unix(at / 1000));
    let mut out = Vec::with_capacity(bytes.len().saturating_add(stamp.len()));
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if *begins {
            out.extend(stamp.as_bytes());
        }
        out.extend(line);
        *begins = line.ends_with(b"\n");
    }
    out
}

/// What there is to send, in pieces as `next` reads them ([`crate::input::piece`]); on a thread of
/// its own, because a read cannot be cancelled.
pub(crate) fn pieces(
    mut next: impl FnMut(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
) -> Receiver<std::io::Result<Vec<u8>>> {
    let (to, pieces) = channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let piece = match next(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer.get(..length).unwrap_or_default().to_vec()),
                Err(error) => Err(error),
            };
            let failed = piece.is_err();
            if to.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    pieces
}

/// Writes to a session's input and waits until it is written; gives the bytes.
///
/// # Errors
/// As [`answer`]; input that ends in an error; an input that was closed, or a session that ended,
/// before all was written.
pub(crate) async fn send(
    opened: Opened,
    (vm, word): (&str, &str),
    first: Vec<u8>,
    mut more: Receiver<std::io::Result<Vec<u8>>>,
    close: bool,
) -> anyhow::Result<u64> {
    let Opened { guest, _daemon } = opened;
    let (mut from, mut to) = guest.into_split();
    let (heard, mut answers) = channel(4);
    // Half an answer must not be dropped.
    let reading = tokio::spawn(async move {
        loop {
            let answer = Answer::read(&mut from).await;
            let last = !matches!(answer, Ok(Some(_)));
            if heard.send(answer).await.is_err() || last {
                return;
            }
        }
    });
    let (mut credit, mut sent, mut written) = (WINDOW, 0_u64, 0_u64);
    let (mut pending, mut source_open) = (Some(first).filter(|first| !first.is_empty()), true);
    let (mut asked_to_close, mut closed) = (false, false);
    let cut = |how: &str, written: u64| {
        explained(
            format!("session {word} {how}; {written} bytes were written"),
            format!("see: banger vm session logs {vm} {word}"),
        )
    };
    let outcome = loop {
        if let Some(bytes) = pending.take_if(|bytes| bytes.len() <= credit) {
            credit = credit.saturating_sub(bytes.len());
            sent = sent.saturating_add(bytes.len() as u64);
            // A connection that is lost is told by the reader.
            let _ = ToGuest::Input(bytes).write(&mut to).await;
        }
        let all = pending.is_none() && !source_open;
        if all && close && !asked_to_close {
            asked_to_close = true;
            let _ = ToGuest::InputEnd.write(&mut to).await;
        }
        if all && written == sent && (closed || !close) {
            break Ok(written);
        }
        tokio::select! {
            piece = more.recv(), if pending.is_none() && source_open => match piece {
                Some(Ok(bytes)) => pending = Some(bytes),
                Some(Err(error)) => {
                    break Err(anyhow::Error::new(error).context(format!("cannot read what is to be sent, of which {written} bytes were written")));
                }
                None => source_open = false,
            },
            answer = answers.recv() => match answer {
                Some(Ok(Some(Answer::Credit(0)))) => closed = true,
                Some(Ok(Some(Answer::Credit(bytes)))) => {
                    // Never more than was sent, whatever the guest says.
                    let bytes = u64::from(bytes).min(sent.saturating_sub(written));
                    written = written.saturating_add(bytes);
                    credit = credit.saturating_add(usize::try_from(bytes).unwrap_or(0));
                }
                Some(Ok(Some(Answer::InputClosed))) if asked_to_close && written == sent => break Ok(written),
                Some(Ok(Some(Answer::InputClosed))) => break Err(cut("takes no more input", written)),
                Some(Ok(Some(Answer::Ended(status)))) => break Err(cut(&format!("has ended ({})", words(status)), written)),
                Some(Ok(Some(Answer::Refused(refusal)))) => break Err(refused(&refusal, vm, word)),
                Some(Ok(Some(_))) => break Err(odd()),
                Some(Err(error)) => break Err(lost(error)),
                Some(Ok(None)) | None => {
                    break Err(explained(format!("the guest ended the connection after {written} bytes"), WHAT_TO_SEE));
                }
            },
        }
    };
    reading.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_time_once() {
        let mut begins = true;
        let at = 1_763_632_800_999;
        assert_eq!(stamped(at, b"a\nb", &mut begins), b"2025-11-20T10:00:00Z a\n2025-11-20T10:00:00Z b");
        assert_eq!(stamped(at, b"c\n", &mut begins), b"c\n");
        assert!(begins);
        assert_eq!(stamped(at, b"\n", &mut begins), b"2025-11-20T10:00:00Z \n");
    }

    #[test]
    fn a_status_is_said_and_is_an_exit_status() {
        for (status, said, code) in [
            (Status::Running, "running", None),
            (Status::Exited(3), "exited (3)", Some(3)),
            (Status::Killed(15), "killed (TERM)", Some(143)),
            (Status::Killed(40), "killed (40)", Some(168)),
            (Status::LostGuest, "lost: the guest ended", None),
        ] {
            assert_eq!((words(status).as_str(), exit_status(status)), (said, code));
        }
    }
}
