//! Byte streams beside the calls: consoles and uploads, and connections to guests, which the daemon
//! hands over.
//!
//! A call gives a one-use [`Ticket`]; the client opens a second connection to the same socket with
//! [`crate::wire::Purpose::Stream`], sends the ticket's 32 bytes, and from then on both sides send
//! frames: kind (1 byte), length (4 bytes, big endian), payload. The ticket is bound to the uid
//! that got it and is void after [`TICKET_SECONDS`].

use crate::frame::{self, malformed};
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest payload, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// The kind of [`Frame::Opened`].
const OPENED: u8 = 6;
/// [`Frame::Opened`] as it is on the wire, for the system call that sends a descriptor with it.
pub const OPENED_BYTES: [u8; 5] = [OPENED, 0, 0, 0, 0];
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

/// What a stream carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamRequest {
    /// A connection to the guest's agent on which one command runs ([`crate::command`]). The daemon
    /// answers `Opened`, with the connection's descriptor beside it, or `Failed`. The client keeps
    /// this stream open for as long as it uses the connection: meanwhile the VM counts as used.
    Command {
        /// The VM, as the user named it.
        vm: String,
        /// The command only reads what is below `/root`: of a VM that does not run, a guest that
        /// has nothing but its work disk answers.
        reads: bool,
    },
    /// As [`StreamRequest::Command`]; a connection on which the agent says how the guest is
    /// ([`crate::inside`]).
    Inside {
        /// The VM, as the user named it.
        vm: String,
    },
    /// As [`StreamRequest::Command`]; a connection to the guest's SSH server.
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
    /// An upload for the job that `open_stream` answers: `Input`, `InputEnd`; the daemon answers
    /// `Exit` when it has all bytes, `Failed` as soon as it does not want more. The result is the
    /// job's.
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
    /// As [`StreamRequest::ImportImage`]; a file that begins with an ext4 file system.
    RegisterImage {
        /// Name of the new image.
        name: String,
        /// Where it comes from, for people.
        source: String,
        /// The kernel of its VMs, one that the caller may use; the default when `None`.
        kernel: Option<String>,
    },
    /// As [`StreamRequest::Command`]; a connection on which the guest answers one request about its
    /// sessions ([`crate::session`]).
    Session {
        /// The VM, as the user named it.
        vm: String,
        /// The request only reads, as in [`StreamRequest::Command`].
        reads: bool,
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
    /// Daemon to client, last: there is no more; 0.
    Exit(u8),
    /// Daemon to client, last: why not.
    Failed(String),
    /// Daemon to client, last: the descriptor of a connection to the guest comes with this frame
    /// (unix(7), `SCM_RIGHTS`).
    Opened,
}

impl Frame {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Frame::Input(bytes) => (0, bytes.clone()),
            Frame::InputEnd => (1, Vec::new()),
            Frame::Output(bytes) => (2, bytes.clone()),
            Frame::ErrorOutput(bytes) => (3, bytes.clone()),
            Frame::Exit(status) => (4, vec![*status]),
            Frame::Failed(why) => (5, why.clone().into_bytes()),
            Frame::Opened => (OPENED, Vec::new()),
        }
    }

    fn from_parts(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        let text = |payload| String::from_utf8(payload).map_err(|_| malformed("text that is not UTF-8"));
        Ok(match (kind, payload.as_slice()) {
            (0, _) => Frame::Input(payload),
            (1, []) => Frame::InputEnd,
            (2, _) => Frame::Output(payload),
            (3, _) => Frame::ErrorOutput(payload),
            (4, &[status]) => Frame::Exit(status),
            (5, _) => Frame::Failed(text(payload)?),
            (OPENED, []) => Frame::Opened,
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
    frame::write(to, kind, &payload, MAX_PAYLOAD).await
}

/// Reads one frame; `None` at the end of the stream. Not cancel safe: keep one reader per stream
/// and do not race it in a `select!` that drops it.
///
/// # Errors
/// What the stream says; `InvalidData` when the bytes are not a frame.
pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Frame>> {
    match frame::read(from, |_| MAX_PAYLOAD).await? {
        Some((kind, payload)) => Frame::from_parts(kind, payload).map(Some),
        None => Ok(None),
    }
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
            Frame::Exit(42),
            Frame::Failed("why".into()),
            Frame::Opened,
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
        assert_eq!(read(&mut &OPENED_BYTES[..]).await.unwrap(), Some(Frame::Opened));
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for bad in [
            &[9, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 1, 0],
            &[6, 0, 0, 0, 1, 0],
            &[0, 255, 255, 255, 255],
            &[0, 0, 0, 0, 9, 1],
        ] {
            assert!(read(&mut &*bad).await.is_err(), "{bad:?}");
        }
        assert!(write(&mut Vec::new(), &Frame::Input(vec![0; MAX_PAYLOAD + 1])).await.is_err());
    }
}
