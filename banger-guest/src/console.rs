//! Lines on the guest's console, which the daemon keeps as the VM's log.
//!
//! Used by init and agent for the few things that a user must be able to read when a VM does not
//! come up. Never for anything secret.

use std::fmt::Display;
use std::io::Write;

/// Writes one line, `banger-guest: ...`. A console that is gone is not an error of the caller.
pub(crate) fn say(message: impl Display) {
    // One write, so that lines of init and agent do not mix; the carriage return is for serial
    // terminals in raw mode.
    let line = format!("banger-guest: {message}\r\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// An error with its causes on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
