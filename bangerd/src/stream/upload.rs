//! A file from a client, spooled for an import.

use super::client::{Client, until_gone};
use banger_proto::stream::{Frame, read};
use std::fs::File;
use std::io::{self, SeekFrom};
use std::time::Duration;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A client that sends nothing for so long is gone, or keeps room for nothing. What it sends may be
/// made meanwhile, by `docker save` say.
const IDLE: Duration = Duration::from_secs(600);
/// How long an upload may take in all, however slow its source is: its bytes lie on the host's disk
/// meanwhile.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// A client that is told to stop may still be writing.
const LINGER: Duration = Duration::from_secs(2);
/// The least that becomes a hole, bytes: a block of the host's file systems.
const HOLE: usize = 4096;

/// Why an upload did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client went away, or does not speak the protocol.
    #[error("the upload ended before its end: {0}")]
    Client(#[source] io::Error),
    /// More than is allowed.
    #[error("the upload is larger than {0} bytes")]
    TooLarge(u64),
    /// The client has forgotten about it.
    #[error("nothing came for {} s", IDLE.as_secs())]
    Idle,
    /// It never comes to an end.
    #[error("it was not whole after {} hours", LONGEST.as_secs() / 3600)]
    TooLong,
    /// The host's disk; `StorageFull` when it has no room.
    #[error("cannot keep the upload: {0}")]
    File(#[source] io::Error),
}

/// Writes `Input` frames to `file` until `InputEnd` and answers `Exit` or `Failed`. `progress`
/// hears the bytes so far, and may refuse more. Dropping it closes the connection. What is in the
/// file after an error is for the caller to remove.
///
/// # Errors
/// [`UploadError`].
pub async fn upload(
    stream: UnixStream,
    file: File,
    cap: u64,
    mut progress: impl FnMut(u64) -> io::Result<()> + Send,
) -> Result<u64, UploadError> {
    let Client { mut from, mut to, .. } = Client::new(stream);
    let mut file = tokio::fs::File::from_std(file);
    let spooled = async {
        let mut total = 0_u64;
        loop {
            let frame = timeout(IDLE, read(&mut from)).await.map_err(|_| UploadError::Idle)?;
            match frame.map_err(UploadError::Client)? {
                // One without bytes would renew the time, and bring nothing.
                Some(Frame::Input(bytes)) if !bytes.is_empty() => {
                    total = total.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                    if total > cap {
                        return Err(UploadError::TooLarge(cap));
                    }
                    // Of a disk, most is zeros, which a sparse file has for nothing.
                    if bytes.len() >= HOLE && bytes.iter().all(|byte| *byte == 0) {
                        file.seek(SeekFrom::Start(total)).await.map_err(UploadError::File)?;
                    } else {
                        file.write_all(&bytes).await.map_err(UploadError::File)?;
                    }
                    progress(total).map_err(UploadError::File)?;
                }
                Some(Frame::InputEnd) => {
                    // A full disk may show only now.
                    file.flush().await.map_err(UploadError::File)?;
                    // Zeros at its end are no more than a length.
                    file.set_len(total).await.map_err(UploadError::File)?;
                    return Ok(total);
                }
                Some(_) => return Err(UploadError::Client(io::ErrorKind::InvalidData.into())),
                None => return Err(UploadError::Client(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    };
    let spooled = timeout(LONGEST, spooled).await.unwrap_or(Err(UploadError::TooLong));
    match &spooled {
        Ok(_) => to.last(&Frame::Exit(0)).await.map_err(UploadError::Client)?,
        Err(error) => {
            // The error is what counts, whether the client still hears it or not.
            if to.failed(error).await.is_ok() {
                let _ = timeout(LINGER, until_gone(&mut from)).await;
            }
        }
    }
    spooled
}
