//! How a VMM ended, as far as the daemon could learn it.

use std::fmt;

/// How a VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmEnd {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was not our child, so nobody told us.
    Unknown,
}

impl fmt::Display for VmmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("signal or exit status unknown"),
        }
    }
}
