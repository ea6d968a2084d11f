//! Frames on a byte stream: kind (1 byte), length (4 bytes, big endian), payload.
//!
//! Used by [`crate::stream`] (command line and daemon), and by [`crate::command`] and
//! [`crate::session`] (command line and guest).

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Kind and length, bytes.
pub(crate) const HEADER: usize = 5;

/// What is wrong with the other side's bytes.
pub(crate) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed frame: {what}"))
}

/// Writes one frame, whose payload has at most `max` bytes.
pub(crate) async fn write<W: AsyncWrite + Unpin>(to: &mut W, kind: u8, payload: &[u8], max: usize) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= max);
    let length = length.ok_or_else(|| malformed("payload over the limit"))?;
    let mut bytes = Vec::with_capacity(payload.len().saturating_add(HEADER));
    bytes.push(kind);
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    to.write_all(&bytes).await
}

/// Reads one frame; `None` at the end of the stream. `max` says how long a payload of a kind may
/// be. Not cancel safe: a read that is dropped half-way loses what it has read.
pub(crate) async fn read<R: AsyncRead + Unpin>(
    from: &mut R,
    max: impl Fn(u8) -> usize,
) -> io::Result<Option<(u8, Vec<u8>)>> {
    let kind = match from.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = usize::try_from(from.read_u32().await?).map_err(|_| malformed("length"))?;
    if length > max(kind) {
        return Err(malformed("length over the limit"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Some((kind, payload)))
}
