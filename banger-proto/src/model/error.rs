//! What is said when something does not work.

use serde::{Deserialize, Serialize};

/// Stable words for what went wrong; `message` and `hint` are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A value in the request is not possible.
    BadRequest,
    /// No such VM, image, kernel or job for this user.
    NotFound,
    /// A unique prefix or default was asked for, and several fit.
    Ambiguous,
    /// The name is taken.
    AlreadyExists,
    /// The VM is not running.
    NotRunning,
    /// The VM is running.
    AlreadyRunning,
    /// A VM uses it.
    InUse,
    /// Not allowed.
    Denied,
    /// A quota or a host's limit.
    Limit,
    /// The host's disk is full.
    NoSpace,
    /// The helper, KVM or Firecracker is not there.
    HostNotReady,
    /// The guest did not get ready in time.
    GuestNotReady,
    /// Cancelled by the user.
    Cancelled,
    /// A step failed; the message says which.
    OperationFailed,
    /// The daemon could not keep its own records.
    Internal,
}

/// The longest message of an error, bytes. It is kept with its job, written to the journal and sent
/// in one frame.
pub const MAX_ERROR: usize = 4096;

/// The text in at most `max` bytes (and three for an ellipsis), with control characters other than
/// line breaks and tabs replaced. For whatever somebody else had a hand in, before it is stored,
/// logged or sent.
#[must_use]
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(obeyed) { text.replace(obeyed, "\u{fffd}") } else { text }
}

/// An error for a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// What failed and why: lower case, no full stop.
    pub message: String,
    /// What to do next, a sentence; may be empty.
    pub hint: String,
}

impl ApiError {
    /// An error without a hint. The message may quote what an image, a guest or another program has
    /// said: it is cut to [`MAX_ERROR`] bytes, and what a terminal would obey is replaced.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into(), MAX_ERROR), hint: String::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = cut(hint.into(), MAX_ERROR);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_is_as_long_as_somebody_else_wants() {
        for text in ["x".repeat(1 << 20), "\u{fc}".repeat(1 << 20), format!("x{}", "\u{1f600}".repeat(1 << 18))] {
            let error = ApiError::new(ErrorCode::Internal, text.clone()).hint(text);
            assert!(error.message.len() <= MAX_ERROR + 3 && error.message.ends_with("..."));
            assert!(error.hint.len() <= MAX_ERROR + 3);
        }
        assert_eq!(ApiError::new(ErrorCode::Internal, "a\n\tb\u{1b}[2J\u{9b}").message, "a\n\tb\u{fffd}[2J\u{fffd}");
        assert_eq!(cut("whole".to_owned(), 5), "whole");
    }
}
