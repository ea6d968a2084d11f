//! Bytes on the wire: the hello and the frames. The only file that knows bincode.
//!
//! Both sides first send a [`Hello`] of fixed size, so that a half-upgraded host fails with a
//! sentence instead of a decoding error. After it come length-delimited frames (4 bytes big-endian
//! length, then that many bytes), each one bincode value with nothing before or after it.

use bincode::Options;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of everything in this crate. Peers of different versions do not talk.
pub const PROTOCOL_VERSION: u16 = 9;
/// Size of a [`Hello`], bytes.
pub const HELLO_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"BNGR";
const BUILD_BYTES: usize = HELLO_BYTES - 8;

/// What the rest of the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Calls and replies.
    Calls,
    /// Bytes, opened by a one-use ticket; see [`crate::stream`].
    Stream,
}

/// The first [`HELLO_BYTES`] in each direction: magic `BNGR`, version (u16, little endian), purpose
/// (0 calls, 1 stream), one zero byte, then the build as ASCII padded with zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's [`PROTOCOL_VERSION`].
    pub version: u16,
    /// What the sender wants, or grants.
    pub purpose: Purpose,
    /// The sender's release, for messages only.
    pub build: String,
}

/// Bytes that are not what they must be. The connection is closed; there is no way to
/// resynchronise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes are of another protocol.
    #[error("the other side does not speak banger's protocol")]
    NotBanger,
    /// A different protocol version.
    #[error(
        "protocol version {theirs} (build {build}) at the other side, {PROTOCOL_VERSION} here: restart the services of the older one after the upgrade"
    )]
    Version {
        /// The other side's.
        theirs: u16,
        /// The other side's release.
        build: String,
    },
    /// A frame that is not one whole value.
    #[error("malformed frame")]
    Malformed,
    /// A value too large for a frame.
    #[error("a message of {0} bytes does not fit a frame")]
    TooLarge(u64),
}

impl From<WireError> for std::io::Error {
    fn from(error: WireError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

impl Hello {
    /// This build's hello.
    #[must_use]
    pub fn ours(purpose: Purpose) -> Self {
        Self { version: PROTOCOL_VERSION, purpose, build: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// As sent.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.version.to_le_bytes());
        bytes[6] = match self.purpose {
            Purpose::Calls => 0,
            Purpose::Stream => 1,
        };
        for (to, from) in bytes[8..].iter_mut().zip(self.build.bytes()) {
            *to = from;
        }
        bytes
    }

    /// # Errors
    /// [`WireError::NotBanger`] for another protocol, [`WireError::Version`] for another version of
    /// ours, [`WireError::Malformed`] for anything else.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, WireError> {
        let [m0, m1, m2, m3, v0, v1, purpose, zero, build @ ..] = bytes;
        if [*m0, *m1, *m2, *m3] != MAGIC {
            return Err(WireError::NotBanger);
        }
        let version = u16::from_le_bytes([*v0, *v1]);
        let build = build_text(build).ok_or(WireError::Malformed)?;
        if version != PROTOCOL_VERSION {
            return Err(WireError::Version { theirs: version, build });
        }
        let purpose = match (purpose, zero) {
            (0, 0) => Purpose::Calls,
            (1, 0) => Purpose::Stream,
            _ => return Err(WireError::Malformed),
        };
        Ok(Self { version, purpose, build })
    }
}

/// Printable ASCII, then zeros to the end; it is quoted in messages.
fn build_text(bytes: &[u8; BUILD_BYTES]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(BUILD_BYTES);
    let (text, padding) = bytes.split_at(end);
    let clean = text.iter().all(u8::is_ascii_graphic) && padding.iter().all(|byte| *byte == 0);
    if clean { String::from_utf8(text.to_vec()).ok() } else { None }
}

/// What a client sends after the hello. The deadline is a bounded number of milliseconds: tarpc's
/// own context, whose deadline can make a server panic, never crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer<T> {
    /// A request.
    Call {
        /// Chosen by the client, unique among its calls in flight.
        id: u64,
        /// How long the client will wait, milliseconds; the server clamps it.
        timeout_ms: u32,
        /// The request.
        body: T,
    },
    /// The client no longer waits.
    Cancel {
        /// Of the call.
        id: u64,
    },
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToClient<T> {
    /// Of the call.
    pub id: u64,
    /// The answer.
    pub body: Result<T, NotServed>,
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotServed {
    /// It was not taken up: too many in flight, or past its deadline. The same call may be made
    /// again.
    #[error("the call was not taken up")]
    Busy,
    /// It was served, and the answer does not fit a frame. Made again it comes to the same.
    #[error("the answer is too long to be sent")]
    TooLong,
}

fn options(max: usize) -> impl Options {
    // For what is encoded. Decoding ends with the slice, and serde allocates for no length beyond
    // what was read (its `size_hint::cautious`); bincode applies no limit to slices.
    bincode::DefaultOptions::new().with_limit(max as u64).reject_trailing_bytes()
}

/// # Errors
/// [`WireError::TooLarge`] when the value does not fit `max` bytes.
pub fn encode<T: Serialize>(value: &T, max: usize) -> Result<Vec<u8>, WireError> {
    options(max)
        .serialize(value)
        .map_err(|_| WireError::TooLarge(bincode::DefaultOptions::new().serialized_size(value).unwrap_or(u64::MAX)))
}

/// How long a value is on the wire, bytes. For lists, which are cut into pages that fit.
pub fn encoded_bytes<T: Serialize>(value: &T) -> usize {
    let bytes = bincode::DefaultOptions::new().serialized_size(value).unwrap_or(u64::MAX);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// # Errors
/// [`WireError::Malformed`] when the bytes are not exactly one value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, WireError> {
    options(max).deserialize(bytes).map_err(|_| WireError::Malformed)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_round_trip_and_refusals() {
        let ours = Hello::ours(Purpose::Stream);
        assert_eq!(Hello::decode(&ours.encode()), Ok(ours.clone()));
        let older = Hello { version: 0, ..ours.clone() };
        assert!(matches!(Hello::decode(&older.encode()), Err(WireError::Version { theirs: 0, .. })));
        assert_eq!(Hello::decode(b"GET / HTTP/1.1\r\nHost: localhost\r"), Err(WireError::NotBanger));
        for (at, value) in [(6, 2), (7, 1), (31, b'x'), (8, b'\n')] {
            let mut bytes = ours.encode();
            bytes[at] = value;
            assert_eq!(Hello::decode(&bytes), Err(WireError::Malformed), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn a_value_comes_back_and_nothing_else_is_accepted(id: u64, timeout_ms: u32, body: Vec<u8>, extra in 1_usize..9) {
            let call = ToServer::Call { id, timeout_ms, body };
            let bytes = encode(&call, 65_536).unwrap();
            prop_assert_eq!(decode::<ToServer<Vec<u8>>>(&bytes, 65_536).unwrap(), call);
            for cut in 0..bytes.len() {
                prop_assert!(decode::<ToServer<Vec<u8>>>(&bytes[..cut], 65_536).is_err());
            }
            let mut longer = bytes;
            longer.extend(std::iter::repeat_n(0, extra));
            prop_assert!(decode::<ToServer<Vec<u8>>>(&longer, 65_536).is_err());
        }

        #[test]
        fn any_bytes_give_an_answer(bytes: Vec<u8>) {
            drop(decode::<ToServer<Vec<String>>>(&bytes, 1024));
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // Variant 0, id 0, timeout 0, then a vector that claims 2^62 elements.
        let mut bytes = vec![0, 0, 0, 253];
        bytes.extend((1_u64 << 62).to_le_bytes());
        assert_eq!(decode::<ToServer<Vec<u64>>>(&bytes, 1024), Err(WireError::Malformed));
    }
}
