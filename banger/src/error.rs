//! How commands fail: `banger: what failed: why`, then what to do next, on standard error; status 1.
//!
//! What failed and why is the context chain of an [`anyhow::Error`]; what to do is carried by [`Explained`].

use crate::output::{self, ReaderGone};
use banger_proto::model::ApiError;
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
        Self { message: error.message, hint: error.hint }
    }
}

/// An error with advice.
pub(crate) fn explained(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Explained { message: message.into(), hint: hint.into() })
}

/// Says on standard error what went wrong.
pub(crate) fn say(error: &anyhow::Error) {
    let mut text = format!("banger: {error:#}");
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<Explained>()).map_or("", |e| e.hint.as_str());
    for line in hint.lines() {
        text.push_str("\n  ");
        text.push_str(line);
    }
    output::note(&text);
}

/// Says what went wrong and gives the process's status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<ReaderGone>()) {
        return ExitCode::from(PIPE_CLOSED);
    }
    say(error);
    ExitCode::from(FAILED)
}
