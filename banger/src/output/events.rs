//! What `vm run --json` and `vm exec --json` say: one JSON object a line, with the names of
//! `docs/contract.md`. Programs read it as it comes.

use super::outlet::Outlet;
use super::{json_text, note, on_write};
use crate::interrupt::Interrupts;
use banger_proto::model::{ErrorCode, VmRecord};
use serde::Serialize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// The image is not here and is fetched from its registry.
    Pulling { image: &'a str, reference: &'a str },
    /// The image is here now.
    Pulled { image: &'a str, took_ms: u64 },
    /// A step of the daemon's job is done.
    Stage { job: u64, name: &'a str, took_ms: u64, detail: &'a str },
    /// Something that did not go well and stops nothing.
    Warning { message: &'a str },
    /// The repository is in the VM.
    Workspace { guest_path: &'a str, took_ms: u64 },
    /// The VM can be used.
    Ready { vm: &'a VmRecord, took_ms: u64 },
    /// The command has begun as a session, which is shown as `vm session show` does.
    Session { session: serde_json::Value },
    /// The command wrote this. `text`, or `base64` when the bytes are not UTF-8.
    Output { stream: Stream, text: Option<&'a str>, base64: Option<String> },
    /// So many bytes that a session wrote are no longer in its log.
    Gap { bytes: u64 },
    /// The command has ended.
    Exit {
        /// As the process's own exit status.
        status: u8,
        /// What ended it, when it was a signal.
        signal: Option<u8>,
        /// Why it could not be started.
        reason: Option<&'a str>,
    },
    /// The VM is gone, as `--rm` wants it.
    Deleted { vm: &'a str },
    /// What was asked for failed.
    Error {
        /// The daemon's word for it; `null` where the daemon was not the one to fail.
        code: Option<ErrorCode>,
        message: &'a str,
        hint: &'a str,
    },
}

/// Which output of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Remarks that are still to be told as events; `None` when nobody reads events.
static REMARKS: Mutex<Option<Vec<String>>> = Mutex::new(None);

fn with_remarks<T>(work: impl FnOnce(&mut Option<Vec<String>>) -> T) -> T {
    // Every change is one assignment.
    work(&mut REMARKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// From now on a program reads events on standard output.
pub(crate) fn begin_events() {
    with_remarks(|remarks| {
        remarks.get_or_insert_default();
    });
}

/// Says on standard error what the user should know and what stops nothing; a program that reads
/// events gets it as a warning.
pub(crate) fn remark(text: &str) {
    note(text);
    let message = ["warning: ", "note: "].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    with_remarks(|remarks| remarks.iter_mut().for_each(|remarks| remarks.push(message.to_owned())));
}

/// Says it, and before it the warnings that came meanwhile.
///
/// # Errors
/// As [`super::print()`].
pub(crate) async fn tell(event: &Event<'_>) -> anyhow::Result<()> {
    let line = line_of(event)?;
    pass(line).await
}

/// Says it as the last or the last but one event. It is left out where an interruption has ended
/// the wait for a reader, or ends it here.
///
/// # Errors
/// As [`tell`].
pub(crate) async fn tell_at_end(event: &Event<'_>) -> anyhow::Result<()> {
    let line = line_of(event)?;
    at_end(line).await
}

/// Says what is still to be said.
///
/// # Errors
/// As [`tell`].
pub(crate) async fn flush_events() -> anyhow::Result<()> {
    at_end(String::new()).await
}

async fn at_end(line: String) -> anyhow::Result<()> {
    if Outlet::Out.is_stuck() {
        return Ok(());
    }
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        passed = pass(line) => passed,
        _ = interrupts.next() => Ok(()),
    }
}

fn line_of(event: &Event<'_>) -> anyhow::Result<String> {
    Ok(format!("{}\n", json_text(&serde_json::to_string(event)?)))
}

async fn pass(line: String) -> anyhow::Result<()> {
    let remarks = with_remarks(|remarks| remarks.as_mut().map(std::mem::take).unwrap_or_default());
    let warnings = remarks.iter().map(|message| line_of(&Event::Warning { message }));
    let lines = warnings.chain([Ok(line)]).collect::<anyhow::Result<String>>()?;
    Outlet::Out.pass(lines.into_bytes()).await.map_err(on_write)
}

/// A duration in JSON.
pub(crate) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The bytes of one output, which come in pieces that may end inside a character.
#[derive(Debug)]
pub(crate) struct Pieces {
    stream: Stream,
    tail: Vec<u8>,
}

impl Pieces {
    pub(super) fn of(stream: Stream) -> Self {
        Self { stream, tail: Vec::new() }
    }

    /// # Errors
    /// As [`tell`].
    pub(super) async fn tell(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        let mut bytes = std::mem::take(&mut self.tail);
        bytes.extend_from_slice(piece);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            // The end of the last character is still to come.
            self.tail = bytes.split_off(error.valid_up_to());
        }
        self.write(&bytes).await
    }

    /// What was held back for the end of a character that did not come.
    ///
    /// # Errors
    /// As [`tell`].
    pub(super) async fn finish(&mut self) -> anyhow::Result<()> {
        let rest = std::mem::take(&mut self.tail);
        self.write(&rest).await
    }

    async fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let text = std::str::from_utf8(bytes).ok();
        let base64 = text.is_none().then(|| data_encoding::BASE64.encode(bytes));
        tell(&Event::Output { stream: self.stream, text, base64 }).await
    }
}
