//! What `vm run --json` and `vm exec --json` say: one JSON object a line, with the names of
//! `docs/contract.md`. Programs read it as it comes.

use super::json_line;
use banger_proto::model::{ErrorCode, VmRecord};
use serde::Serialize;
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

/// Says it.
///
/// # Errors
/// As [`super::print()`].
pub(crate) fn tell(event: &Event<'_>) -> anyhow::Result<()> {
    json_line(event)
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
    pub(super) fn tell(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        let mut bytes = std::mem::take(&mut self.tail);
        bytes.extend_from_slice(piece);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            // The end of the last character is still to come.
            self.tail = bytes.split_off(error.valid_up_to());
        }
        self.write(&bytes)
    }

    /// What was held back for the end of a character that did not come.
    ///
    /// # Errors
    /// As [`tell`].
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let rest = std::mem::take(&mut self.tail);
        self.write(&rest)
    }

    fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let text = std::str::from_utf8(bytes).ok();
        let base64 = text.is_none().then(|| data_encoding::BASE64.encode(bytes));
        tell(&Event::Output { stream: self.stream, text, base64 })
    }
}
