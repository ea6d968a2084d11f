//! One connection to the helper, byte by byte: nothing here keeps the peer from sending what no
//! client would.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use banger_proto::helper::{HelperRequest, HelperResponse};
use banger_proto::transport::HELPER_LIMITS;
use banger_proto::wire::{HELLO_BYTES, Hello, Purpose, ToClient, ToServer, decode, encode};

/// The helper's socket.
pub(in crate::suite) const SOCKET: &str = "/run/banger/priv.sock";

/// An answer or the end of a connection comes within this, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A connection, that has said hello or nothing yet.
#[derive(Debug)]
pub(in crate::suite) struct Connection(UnixStream);

impl Connection {
    /// Connects and says nothing.
    pub(in crate::suite) fn silent() -> io::Result<Self> {
        let stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Connects and says hello as a client of this version does.
    pub(in crate::suite) fn open() -> io::Result<Self> {
        let mut connection = Self::silent()?;
        connection.write(&Hello::ours(Purpose::Calls).encode())?;
        let mut theirs = [0; HELLO_BYTES];
        connection.0.read_exact(&mut theirs)?;
        Hello::decode(&theirs)?;
        Ok(connection)
    }

    /// These bytes.
    pub(in crate::suite) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// A frame of these bytes.
    pub(in crate::suite) fn frame(&mut self, payload: &[u8]) -> io::Result<()> {
        self.write(&framed(payload))
    }

    /// A call as a client sends it.
    pub(in crate::suite) fn call(&mut self, id: u64, request: HelperRequest) -> io::Result<()> {
        self.frame(&body(id, 30_000, request)?)
    }

    /// The next reply; `None` when the helper has closed the connection.
    pub(in crate::suite) fn reply(&mut self) -> io::Result<Option<ToClient<HelperResponse>>> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length) {
            Err(error) if is_end(&error) => return Ok(None),
            other => other?,
        }
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        if length > HELPER_LIMITS.max_frame {
            return Err(io::Error::other(format!("the helper has sent a frame of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(Some(decode(&bytes, HELPER_LIMITS.max_frame)?))
    }

    /// Whatever comes until the helper closes; an error when it does not.
    pub(in crate::suite) fn until_closed(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(error) if !is_end(&error) => Err(error),
            _ => Ok(bytes),
        }
    }

    /// The socket itself.
    pub(in crate::suite) fn socket(&self) -> &UnixStream {
        &self.0
    }
}

/// Both ways in which a peer sees that the other side has closed: with everything read there, or
/// not.
pub(in crate::suite) fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// With the length that belongs to it.
pub(in crate::suite) fn framed(payload: &[u8]) -> Vec<u8> {
    [&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes(), payload].concat()
}

/// What a call's frame holds.
pub(in crate::suite) fn body(id: u64, timeout_ms: u32, body: HelperRequest) -> io::Result<Vec<u8>> {
    Ok(encode(&ToServer::Call { id, timeout_ms, body }, HELPER_LIMITS.max_frame)?)
}
