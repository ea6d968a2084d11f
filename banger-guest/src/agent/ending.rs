//! How a conversation with a client ends: what is said of the command, and the wait for the host.
//!
//! Used for commands and for sessions.

use banger_proto::command::FromGuest;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::io::{AsyncRead, AsyncReadExt};

/// For a command of which the kernel says neither status nor signal.
const UNKNOWN: u8 = 255;

/// The last frame of a command.
pub(super) fn last_frame(status: ExitStatus) -> FromGuest {
    let byte = |number: i32| u8::try_from(number).unwrap_or(UNKNOWN);
    match (status.signal(), status.code()) {
        (Some(signal), _) => FromGuest::Killed(byte(signal)),
        (None, Some(code)) => FromGuest::Exited(byte(code)),
        (None, None) => FromGuest::Exited(UNKNOWN),
    }
}

/// Waits until the host has closed: a guest's close drops what the host has not read.
pub(super) async fn linger(mut from: impl AsyncRead + Unpin) {
    let mut unread = [0; 1024];
    while let Ok(1..) = from.read(&mut unread).await {}
}
