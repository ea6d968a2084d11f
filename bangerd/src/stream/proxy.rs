//! The user's own `ssh`: raw bytes between it and the guest's SSH server.

use super::client::Client;
use banger_link::ssh::Session;
use banger_proto::stream::{Frame, read};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const CHUNK: usize = 32 * 1024;

/// Relays until either side ends.
///
/// # Errors
/// What the client's socket says.
pub async fn ssh_proxy(stream: UnixStream, session: &Session) -> io::Result<()> {
    let Client { mut from, mut to, gone } = Client::new(stream)?;
    let (mut guest_out, mut guest_in) = match session.raw().await {
        Ok(guest) => guest.into_split(),
        Err(error) => return to.failed(&error).await,
    };
    let outward = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match guest_out.read(&mut chunk).await {
                // The guest's end, clean or not, is the end of its bytes.
                Ok(0) | Err(_) => return to.last(&Frame::Exit(0)).await,
                Ok(read) => to.bytes(chunk.get(..read).unwrap_or_default(), Frame::Output).await?,
            }
        }
    };
    let inward = async {
        loop {
            match read(&mut from).await? {
                Some(Frame::Input(bytes)) => {
                    if guest_in.write_all(&bytes).await.is_err() {
                        // The other direction says so.
                        std::future::pending::<()>().await;
                    }
                }
                Some(Frame::InputEnd) => {
                    let _ = guest_in.shutdown().await;
                }
                Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of a client")),
                None => return Ok(()),
            }
        }
    };
    tokio::select! {
        end = outward => end,
        end = inward => end,
        () = gone.wait() => Ok(()),
    }
}
