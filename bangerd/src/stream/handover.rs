//! A connection to a guest, handed over to the user's own process.
//!
//! The daemon carries no byte of a command: it could be restarted under it, and what a guest says
//! never reaches it. The client keeps its stream open as long as it uses the connection.

use banger_proto::stream::OPENED_BYTES;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A client that waits for the descriptor reads it at once.
const TAKE: Duration = Duration::from_secs(5);

/// Hands over `guest`, and returns when the client has closed its stream.
///
/// # Errors
/// What the client's socket says.
pub async fn hand_over(mut client: UnixStream, guest: UnixStream) -> io::Result<()> {
    timeout(TAKE, send(&client, &guest)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // Ours would keep the connection open when the client is gone.
    drop(guest);
    // A client says nothing more; one that does is not ours, and not listened to.
    client.read(&mut [0]).await.map(drop)
}

async fn send(client: &UnixStream, guest: &UnixStream) -> io::Result<()> {
    let descriptors = [guest.as_fd().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    let sent = client.async_io(Interest::WRITABLE, || {
        let bytes = [IoSlice::new(&OPENED_BYTES)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(client.as_raw_fd(), &bytes, &message, flags, None).map_err(io::Error::from)
    });
    match sent.await? {
        length if length == OPENED_BYTES.len() => Ok(()),
        // Nothing was sent before, and a socket's buffer takes these few bytes as a whole.
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
