//! Lines for the journal, on standard error with syslog's level in front (sd-daemon(3)). Only fixed
//! words, numbers and ids in hexadecimal: nothing that a peer wrote.

use std::io::Write;

/// Syslog's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// An administrator must look.
    Critical = 2,
    /// It did not work.
    Error = 3,
    /// Refused.
    Warning = 4,
    /// Done.
    Info = 6,
    /// Asked and answered, nothing changed.
    Debug = 7,
}

/// Writes one line. A journal that does not take it must not stop the helper, so a failure is
/// ignored (`eprintln!` would panic).
pub(crate) fn record(level: Level, text: &str) {
    let line = format!("<{}>{text}\n", level as u8);
    drop(std::io::stderr().write_all(line.as_bytes()));
}
