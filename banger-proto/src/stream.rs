//! Byte streams beside the calls: `exec`, `ssh`, `logs -f` and uploads.
//!
//! A call gives a one-use [`Ticket`]; the client opens a second connection to the same socket with
//! [`crate::wire::Purpose::Stream`], sends the ticket's 32 bytes, and from then on both sides send frames:
//! kind (1 byte), length (4 bytes, big endian), payload. The ticket is bound to the uid that got it and
//! is void after [`TICKET_SECONDS`].

use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest payload, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// How long a ticket may wait, seconds.
pub const TICKET_SECONDS: u64 = 60;

/// The right to open one stream, once.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket(pub [u8; 32]);

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(..)")
    }
}

/// The caller's terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// `TERM`.
    pub term: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamRequest {
    /// A command in the guest. The client sends `Input`, `InputEnd`, `Resize`, `Signal`; the daemon sends
    /// `Output`, `ErrorOutput` and at last `Exit` or `Failed`.
    Exec {
        /// The VM, as the user named it.
        vm: String,
        /// The words of the command; none for a login shell.
        command: Vec<String>,
        /// Variables beside the image's own, whose values they replace; of two with one name the last counts.
        env: Vec<(String, String)>,
        /// Absolute path of the folder in which it starts; the image's, else the user's home, when `None`.
        working_dir: Option<String>,
        /// Who runs it: `user`, `uid`, `user:group` or `uid:gid`; the image's user, else root, when `None`.
        user: Option<String>,
        /// The caller's terminal, when there is one.
        terminal: Option<Terminal>,
    },
    /// Raw bytes to and from the guest's SSH server: `Input`, `InputEnd`; `Output`, then `Exit`.
    Ssh {
        /// The VM, as the user named it.
        vm: String,
    },
    /// The console: `Output`, then `Exit`; with `follow` until the client goes.
    Logs {
        /// The VM, as the user named it.
        vm: String,
        /// Go on with what is written from now on.
        follow: bool,
        /// Begin this many lines before the end; all when `None`.
        tail: Option<u32>,
    },
    /// An upload for the job that `open_stream` answers: `Input`, `InputEnd`; the daemon answers `Exit` when
    /// it has all bytes, `Failed` as soon as it does not want more. The result is the job's.
    ImportImage {
        /// Name of the new image.
        name: String,
        /// Where it comes from, for people.
        source: String,
        /// Size of the root file system, bytes; the default when `None`.
        build_size: Option<u64>,
        /// Everybody may use it; for administrators.
        shared: bool,
        /// Which image, when the archive holds several: its name or tag there, or its digest.
        reference: Option<String>,
        /// `source` is a registry's reference, and a name that was pulled from there before changes
        /// its meaning.
        pulled: bool,
    },
    /// As [`StreamRequest::ImportImage`]; a tar with `vmlinuz` and `modules/...`.
    ImportKernel {
        /// Name of the new kernel; its version when `None`.
        name: Option<String>,
        /// Everybody may use it; for administrators.
        shared: bool,
    },
}

/// A frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client to daemon: bytes.
    Input(Vec<u8>),
    /// Client to daemon: no more bytes.
    InputEnd,
    /// Daemon to client: standard output.
    Output(Vec<u8>),
    /// Daemon to client: standard error.
    ErrorOutput(Vec<u8>),
    /// Client to daemon: the terminal's size, columns and rows.
    Resize(u16, u16),
    /// Client to daemon: a signal's name without `SIG`, such as `INT` (RFC 4254 section 6.9).
    Signal(String),
    /// Daemon to client, last: the exit status; 128 + n for signal n.
    Exit(u8),
    /// Daemon to client, last: why not.
    Failed(String),
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed stream frame: {what}"))
}

impl Frame {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Frame::Input(bytes) => (0, bytes.clone()),
            Frame::InputEnd => (1, Vec::new()),
            Frame::Output(bytes) => (2, bytes.clone()),
            Frame::ErrorOutput(bytes) => (3, bytes.clone()),
            Frame::Resize(cols, rows) => (4, [cols.to_be_bytes(), rows.to_be_bytes()].concat()),
            Frame::Signal(name) => (5, name.clone().into_bytes()),
            Frame::Exit(status) => (6, vec![*status]),
            Frame::Failed(why) => (7, why.clone().into_bytes()),
        }
    }

    fn from_parts(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        let text = |payload| String::from_utf8(payload).map_err(|_| malformed("text that is not UTF-8"));
        Ok(match (kind, payload.as_slice()) {
            (0, _) => Frame::Input(payload),
            (1, []) => Frame::InputEnd,
            (2, _) => Frame::Output(payload),
            (3, _) => Frame::ErrorOutput(payload),
            (4, &[c0, c1, r0, r1]) => Frame::Resize(u16::from_be_bytes([c0, c1]), u16::from_be_bytes([r0, r1])),
            (5, name) if name.len() <= 16 => Frame::Signal(text(payload)?),
            (6, &[status]) => Frame::Exit(status),
            (7, _) => Frame::Failed(text(payload)?),
            _ => return Err(malformed("unknown kind or length")),
        })
    }
}

/// Writes one frame.
///
/// # Errors
/// What the stream says; a payload over [`MAX_PAYLOAD`] is `InvalidData`.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, frame: &Frame) -> io::Result<()> {
    let (kind, payload) = frame.parts();
    if payload.len() > MAX_PAYLOAD {
        return Err(malformed("payload over the limit"));
    }
    let length = u32::try_from(payload.len()).map_err(|_| malformed("payload over the limit"))?;
    let mut bytes = Vec::with_capacity(payload.len() + 5);
    bytes.push(kind);
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    to.write_all(&bytes).await
}

/// Reads one frame; `None` at the end of the stream. Not cancel safe: keep one reader per stream and do not
/// race it in a `select!` that drops it.
///
/// # Errors
/// What the stream says; `InvalidData` when the bytes are not a frame.
pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Frame>> {
    let kind = match from.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = usize::try_from(from.read_u32().await?).map_err(|_| malformed("length"))?;
    if length > MAX_PAYLOAD {
        return Err(malformed("length over the limit"));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Frame::from_parts(kind, payload).map(Some)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn every_frame_comes_back() {
        let frames = [
            Frame::Input(vec![1, 2]),
            Frame::InputEnd,
            Frame::Output(vec![0; MAX_PAYLOAD]),
            Frame::ErrorOutput(Vec::new()),
            Frame::Resize(80, 24),
            Frame::Signal("INT".into()),
            Frame::Exit(42),
            Frame::Failed("why".into()),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            write(&mut bytes, frame).await.unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(read(&mut from).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut from).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for bad in [
            &[9, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 1, 0],
            &[4, 0, 0, 0, 1, 0],
            &[0, 255, 255, 255, 255],
            &[0, 0, 0, 0, 9, 1],
        ] {
            assert!(read(&mut &*bad).await.is_err(), "{bad:?}");
        }
        assert!(write(&mut Vec::new(), &Frame::Input(vec![0; MAX_PAYLOAD + 1])).await.is_err());
    }
}
