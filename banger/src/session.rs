//! What is neither a call nor a command: a guest's console, and raw bytes for `ssh`.

use crate::client::{LOOK, Opened, lost};
use crate::error::explained;
use crate::input::{self, Chunk};
use crate::output::Streams;
use banger_proto::stream::{self, Frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Bytes that are relayed at once.
const CHUNK: usize = 64 * 1024;

/// Shows a guest's text, and nothing of it that steers a terminal, until the daemon ends the
/// stream.
///
/// # Errors
/// Why the daemon refused, a lost connection, or a reader of ours that went away.
pub(crate) async fn text(mut from: UnixStream) -> anyhow::Result<u8> {
    let mut streams = Streams::text();
    loop {
        match stream::read(&mut from).await.map_err(lost)? {
            Some(Frame::Output(bytes)) => streams.output(&bytes).await?,
            Some(Frame::ErrorOutput(bytes)) => streams.error_output(&bytes).await?,
            Some(Frame::Exit(status)) => return Ok(status),
            Some(Frame::Failed(why)) => return Err(explained(why, "")),
            Some(_) => return Err(anyhow::anyhow!("bangerd sent a frame that does not belong here")),
            None => {
                return Err(explained("the connection to bangerd ended", LOOK));
            }
        }
    }
}

/// A guest's text as one, for whoever shows it later; what is no UTF-8 is replaced.
///
/// # Errors
/// Why the daemon refused, or a lost connection.
pub(crate) async fn collect(mut from: UnixStream) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    loop {
        match stream::read(&mut from).await.map_err(lost)? {
            Some(Frame::Output(more)) => bytes.extend_from_slice(&more),
            Some(Frame::Failed(why)) => return Err(explained(why, "")),
            Some(Frame::Exit(_)) | None => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Some(_) => {}
        }
    }
}

/// Standard input to the guest and its bytes to standard output, until either side ends. Signals
/// end us.
///
/// # Errors
/// Standard input that cannot be read; a reader of ours that went away.
pub(crate) async fn bytes(opened: Opened) -> anyhow::Result<u8> {
    let Opened { guest, .. } = opened;
    let (mut from, mut to) = guest.into_split();
    let mut typed = input::read(None);
    let inward = async {
        loop {
            match typed.recv().await {
                Some(Chunk::Bytes(bytes)) => {
                    if to.write_all(&bytes).await.is_err() {
                        // The other direction says so.
                        std::future::pending::<()>().await;
                    }
                }
                Some(Chunk::Failed(error)) => return Err(input::failed(error)),
                Some(Chunk::End) | None => break,
            }
        }
        let _ = to.shutdown().await;
        std::future::pending().await
    };
    let outward = async {
        let mut streams = Streams::as_written();
        let mut chunk = vec![0; CHUNK];
        loop {
            match from.read(&mut chunk).await {
                // The guest's end, clean or not, is the end of its bytes.
                Ok(0) | Err(_) => return anyhow::Ok(0),
                Ok(count) => streams.output(chunk.get(..count).unwrap_or_default()).await?,
            }
        }
    };
    tokio::select! {
        end = outward => end,
        end = inward => end,
    }
}
