//! How commands fail: `banger: what failed: why`, then what to do next, on standard error;
//! status 1.
//!
//! What failed and why is the context chain of an [`anyhow::Error`]; what to do is carried by
//! [`Explained`].

use crate::output::{self, Event, ReaderGone};
use banger_proto::model::{ApiError, ErrorCode};
use std::fmt;
use std::process::ExitCode;

/// The status of any failure of ours. A command in a guest has its own.
pub(crate) const FAILED: u8 = 1;
/// What a shell reports for a program whose reader went away.
const PIPE_CLOSED: u8 = banger_proto::signal::status(13);

/// A reason, and what to do about it.
#[derive(Clone, Debug)]
pub(crate) struct Explained {
    message: String,
    hint: String,
    /// Of the daemon's errors.
    code: Option<ErrorCode>,
}

impl Explained {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Explained {}

impl From<ApiError> for Explained {
    fn from(error: ApiError) -> Self {
        Self { message: error.message, hint: error.hint, code: Some(error.code) }
    }
}

/// An error with advice.
pub(crate) fn explained(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Explained { message: message.into(), hint: hint.into(), code: None })
}

/// What went wrong and, on lines of their own, what to do.
pub(crate) fn said(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    for line in advice(error).map_or("", Explained::hint).lines() {
        text.push('\n');
        text.push_str(line);
    }
    text
}

/// Says on standard error what went wrong.
pub(crate) fn say(error: &anyhow::Error) {
    let mut text = format!("banger: {error:#}");
    for line in advice(error).map_or("", Explained::hint).lines() {
        text.push_str("\n  ");
        text.push_str(line);
    }
    output::note(&text);
}

fn advice(error: &anyhow::Error) -> Option<&Explained> {
    error.chain().find_map(|cause| cause.downcast_ref::<Explained>())
}

/// Is it a refusal of the daemon's with this code?
pub(crate) fn is(error: &anyhow::Error, code: ErrorCode) -> bool {
    advice(error).is_some_and(|advice| advice.code == Some(code))
}

/// An error in JSON as well, where a program asked for that.
///
/// # Errors
/// The error itself.
pub(crate) async fn told(json: bool, outcome: anyhow::Result<u8>) -> anyhow::Result<u8> {
    if !json {
        return outcome;
    }
    // A reader that went away is what the error says, or does not want to know.
    drop(match &outcome {
        Ok(_) => output::flush_events().await,
        Err(error) => {
            let (advice, message) = (advice(error), format!("{error:#}"));
            let hint = advice.map_or("", Explained::hint);
            let code = advice.and_then(|advice| advice.code);
            output::tell_at_end(&Event::Error { code, message: &message, hint }).await
        }
    });
    outcome
}

/// Says what went wrong and gives the process's status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ReaderGone>()) {
        return ExitCode::from(PIPE_CLOSED);
    }
    say(error);
    ExitCode::from(FAILED)
}
