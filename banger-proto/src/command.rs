//! A command in a guest: what the command line and the guest's agent say to each other, over vsock.
//!
//! One connection runs one command. The daemon connects to [`PORT`] of the guest, sends an
//! [`Opening`], reads the [`Answer`], and hands the connection's descriptor to the command line: a
//! restart of the daemon cuts no command, and what a guest sends is read by its user's own process.
//!
//! From then on both sides send frames: kind (1 byte), length (4 bytes, big endian), payload. The
//! command line begins with [`ToGuest::Start`]. It sends input only as far as the agent has given
//! credit: [`WINDOW`] bytes at first, then as many as the command has taken. So the agent always
//! reads, and a signal never waits behind input. Output needs no credit: a connection that is full
//! stops the command.
//!
//! [`FromGuest::Exited`], [`FromGuest::Killed`] and [`FromGuest::Refused`] are the last frame.
//! Nobody relies on a half-close, which Firecracker's vsock does not carry to the host; the command
//! line closes first, because a guest's full close drops what the host has not read (Firecracker,
//! `csm/connection.rs`).

use crate::frame::{self, malformed};
use crate::guest::BootToken;
use crate::wire;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The vsock port on which agents listen.
pub const PORT: u32 = 1022;
/// The version of this protocol. Guests that were started before an upgrade have the earlier one.
pub const VERSION: u8 = 1;
/// Input that may be on its way before the command has taken it, bytes.
pub const WINDOW: usize = 256 * 1024;
/// The longest payload, bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// What input and output are sent in, bytes: with its header, such a frame is one packet of vsock,
/// which has at most 64 KiB (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` in Linux).
pub const PIECE: usize = MAX_PAYLOAD - frame::HEADER;
/// The longest [`Start`], bytes: what the kernel takes as arguments and environment by default
/// (execve(2), a quarter of a stack of 8 MiB) fits.
pub const MAX_START: usize = 2 << 20;
/// The longest list of [`Purpose::Keys`] and [`Purpose::Names`], bytes.
pub const MAX_LIST: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"BGRC";
const OPENING_BYTES: usize = 6 + BootToken::LEN;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// One command.
    Command,
    /// The daemon replaces the users' SSH keys: length (4 bytes, big endian), then one public key a
    /// line. The agent's answer is one byte: 0, or 1 when a line is no key and nothing was changed.
    Keys,
    /// The agent says how the guest is, seen from inside ([`crate::inside`]).
    Inside,
    /// One request about sessions ([`crate::session`]).
    Session,
    /// The daemon replaces the names by which the guest finds the other VMs of its private network:
    /// length (4 bytes, big endian), then a line of `/etc/hosts` (hosts(5)) for each. The agent's
    /// answer is one byte: 0, or 1 when the list could not be taken and nothing was changed.
    /// Unknown to earlier agents.
    Names,
}

/// What the daemon sends first: magic `BGRC`, [`VERSION`], purpose (0 command, 1 keys, 2 session, 3
/// inside, 4 names), the boot's token.
#[derive(Clone, Debug)]
pub struct Opening {
    /// What follows.
    pub purpose: Purpose,
    /// Proves that it is the daemon: processes of a guest may reach its vsock ports, too.
    pub token: BootToken,
}

/// The agent's answer to an [`Opening`], two bytes: its [`VERSION`] and this. Whoever does not know
/// the token gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go on.
    Open,
    /// The agent speaks this other version.
    Version(u8),
    /// The agent serves as many connections as it can.
    Busy,
}

/// A terminal that a command gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// `TERM`.
    pub term: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Settings of the caller's terminal: number and value (RFC 4254 section 8).
    pub modes: Vec<(u8, u32)>,
}

/// What to run. Texts are bytes, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// The words of the command; none for a login shell.
    pub words: Vec<Vec<u8>>,
    /// Variables beside the image's own, whose values they replace; of two with one name the last
    /// counts.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Absolute path of the folder in which it starts; the image's, else the user's home, when
    /// `None`.
    pub working_dir: Option<Vec<u8>>,
    /// Who runs it: `user`, `uid`, `user:group` or `uid:gid`; the image's user, else root, when
    /// `None`.
    pub user: Option<String>,
    /// The command gets a terminal of its own.
    pub terminal: Option<Terminal>,
}

/// Command line to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// First, and once.
    Start(Box<Start>),
    /// Bytes for standard input.
    Input(Vec<u8>),
    /// No more of them.
    InputEnd,
    /// The terminal's size: columns, rows.
    Resize(u16, u16),
    /// A signal for the command's process group, by its number.
    Signal(u8),
}

/// Agent to command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// The command runs.
    Started,
    /// Last: it cannot be started; the status that a shell would give, and why.
    Refused(u8, String),
    /// So many bytes of input more may be sent.
    Credit(u32),
    /// Standard output.
    Output(Vec<u8>),
    /// Standard error.
    ErrorOutput(Vec<u8>),
    /// Last: it has ended with this status.
    Exited(u8),
    /// Last: this signal has ended it.
    Killed(u8),
}

impl Opening {
    /// As sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let purpose = match self.purpose {
            Purpose::Command => 0,
            Purpose::Keys => 1,
            Purpose::Inside => 3,
            Purpose::Session => 2,
            Purpose::Names => 4,
        };
        [&MAGIC[..], &[VERSION, purpose], self.token.reveal().as_bytes()].concat()
    }

    /// Reads one, for an agent. The version is the peer's; the rest of an opening of another
    /// version is unknown.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for anything but an opening.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<(u8, Option<Self>)> {
        let mut bytes = [0; OPENING_BYTES];
        from.read_exact(&mut bytes).await?;
        let [m0, m1, m2, m3, version, purpose, token @ ..] = &bytes;
        if [*m0, *m1, *m2, *m3] != MAGIC {
            return Err(malformed("this is no opening"));
        }
        let purpose = match purpose {
            0 => Some(Purpose::Command),
            1 => Some(Purpose::Keys),
            3 => Some(Purpose::Inside),
            2 => Some(Purpose::Session),
            4 => Some(Purpose::Names),
            _ => None,
        };
        let token = std::str::from_utf8(token).ok().and_then(BootToken::parse);
        let token = token.ok_or_else(|| malformed("this is no opening"))?;
        // The token stands at the same place in every version.
        Ok((*version, purpose.map(|purpose| Self { purpose, token })))
    }
}

impl Answer {
    /// Sends it.
    ///
    /// # Errors
    /// What the stream says.
    pub async fn write<W: AsyncWrite + Unpin>(self, to: &mut W) -> io::Result<()> {
        let code = match self {
            Self::Open => 0,
            Self::Version(_) => 1,
            Self::Busy => 2,
        };
        to.write_all(&[VERSION, code]).await
    }

    /// Reads one.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for anything but an answer.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Self> {
        let mut bytes = [0; 2];
        from.read_exact(&mut bytes).await?;
        match bytes {
            [_, 0] => Ok(Self::Open),
            [version, 1] => Ok(Self::Version(version)),
            [_, 2] => Ok(Self::Busy),
            _ => Err(malformed("this is no answer to an opening")),
        }
    }
}

const START: u8 = 0;

impl ToGuest {
    /// Sends it.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for a payload over its limit.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> io::Result<()> {
        match self {
            Self::Start(start) => {
                let payload = wire::encode(start.as_ref(), MAX_START)?;
                frame::write(to, START, &payload, MAX_START).await
            }
            Self::Input(bytes) => frame::write(to, 1, bytes, MAX_PAYLOAD).await,
            Self::InputEnd => frame::write(to, 2, &[], 0).await,
            Self::Resize(cols, rows) => {
                frame::write(to, 3, &[cols.to_be_bytes(), rows.to_be_bytes()].concat(), MAX_PAYLOAD).await
            }
            Self::Signal(number) => frame::write(to, 4, &[*number], MAX_PAYLOAD).await,
        }
    }

    /// Reads the next one; `None` at the end. Not cancel safe.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` when the bytes are not a frame.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Self>> {
        let max = |kind| if kind == START { MAX_START } else { MAX_PAYLOAD };
        let Some((kind, payload)) = frame::read(from, max).await? else { return Ok(None) };
        Ok(Some(match (kind, payload.as_slice()) {
            (START, bytes) => Self::Start(wire::decode(bytes, MAX_START)?),
            (1, _) => Self::Input(payload),
            (2, []) => Self::InputEnd,
            (3, &[c0, c1, r0, r1]) => Self::Resize(u16::from_be_bytes([c0, c1]), u16::from_be_bytes([r0, r1])),
            (4, &[number]) => Self::Signal(number),
            _ => return Err(malformed("unknown kind or length")),
        }))
    }
}

impl FromGuest {
    /// Sends it.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for a payload over its limit.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> io::Result<()> {
        match self {
            Self::Started => frame::write(to, 16, &[], 0).await,
            Self::Refused(status, why) => {
                let text = why.as_bytes();
                let payload = [&[*status], text.get(..MAX_PAYLOAD / 2).unwrap_or(text)].concat();
                frame::write(to, 17, &payload, MAX_PAYLOAD).await
            }
            Self::Credit(bytes) => frame::write(to, 18, &bytes.to_be_bytes(), MAX_PAYLOAD).await,
            Self::Output(bytes) => frame::write(to, 19, bytes, MAX_PAYLOAD).await,
            Self::ErrorOutput(bytes) => frame::write(to, 20, bytes, MAX_PAYLOAD).await,
            Self::Exited(status) => frame::write(to, 21, &[*status], MAX_PAYLOAD).await,
            Self::Killed(signal) => frame::write(to, 22, &[*signal], MAX_PAYLOAD).await,
        }
    }

    /// Reads the next one; `None` at the end. Not cancel safe. Text that is not UTF-8 is read with
    /// replacements.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` when the bytes are not a frame.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Self>> {
        let Some((kind, payload)) = frame::read(from, |_| MAX_PAYLOAD).await? else { return Ok(None) };
        Ok(Some(match (kind, payload.as_slice()) {
            (16, []) => Self::Started,
            (17, [status, why @ ..]) => Self::Refused(*status, String::from_utf8_lossy(why).into_owned()),
            (18, &[b0, b1, b2, b3]) => Self::Credit(u32::from_be_bytes([b0, b1, b2, b3])),
            (19, _) => Self::Output(payload),
            (20, _) => Self::ErrorOutput(payload),
            (21, &[status]) => Self::Exited(status),
            (22, &[signal]) => Self::Killed(signal),
            _ => return Err(malformed("unknown kind or length")),
        }))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn every_frame_comes_back() {
        let start = Start {
            words: vec![b"echo".to_vec(), vec![0xff, b' ', 0x80]],
            env: vec![(b"LC_ALL".to_vec(), vec![0xfe])],
            working_dir: Some(b"/srv/\xff".to_vec()),
            user: Some("app:users".into()),
            terminal: Some(Terminal { term: "xterm".into(), cols: 80, rows: 24, modes: vec![(53, 1)] }),
        };
        let told = [
            ToGuest::Start(Box::new(start)),
            ToGuest::Start(Box::new(Start { words: vec![vec![b'x'; MAX_START - 100]], ..Start::default() })),
            ToGuest::Input(vec![7; MAX_PAYLOAD]),
            ToGuest::InputEnd,
            ToGuest::Resize(132, 43),
            ToGuest::Signal(34),
        ];
        let mut bytes = Vec::new();
        for frame in &told {
            frame.write(&mut bytes).await.unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in told {
            assert_eq!(ToGuest::read(&mut from).await.unwrap(), Some(frame));
        }
        assert_eq!(ToGuest::read(&mut from).await.unwrap(), None);
        let said = [
            FromGuest::Started,
            FromGuest::Refused(127, "why".into()),
            FromGuest::Credit(70_000),
            FromGuest::Output(vec![1; MAX_PAYLOAD]),
            FromGuest::ErrorOutput(Vec::new()),
            FromGuest::Exited(42),
            FromGuest::Killed(9),
        ];
        let mut bytes = Vec::new();
        for frame in &said {
            frame.write(&mut bytes).await.unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in said {
            assert_eq!(FromGuest::read(&mut from).await.unwrap(), Some(frame));
        }
        assert_eq!(FromGuest::read(&mut from).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_sent() {
        let start = Start { words: vec![vec![b'x'; MAX_START]], ..Start::default() };
        assert!(ToGuest::Start(Box::new(start)).write(&mut Vec::new()).await.is_err());
        assert!(ToGuest::Input(vec![0; MAX_PAYLOAD + 1]).write(&mut Vec::new()).await.is_err());
        assert!(FromGuest::Output(vec![0; MAX_PAYLOAD + 1]).write(&mut Vec::new()).await.is_err());
        let mut bytes = Vec::new();
        FromGuest::Refused(126, "x".repeat(1 << 20)).write(&mut bytes).await.unwrap();
        assert!(bytes.len() <= MAX_PAYLOAD);
    }

    /// The length is the other side's word: no memory is made ready for more than a kind may have.
    #[tokio::test]
    async fn what_is_too_long_is_refused_by_its_length_alone() {
        let frame = |kind: u8, length: usize| [&[kind][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
        let kind = |error: io::Error| error.kind();
        for (bytes, refused) in [
            (frame(START, MAX_START), io::ErrorKind::UnexpectedEof),
            (frame(START, MAX_START + 1), io::ErrorKind::InvalidData),
            (frame(1, MAX_PAYLOAD), io::ErrorKind::UnexpectedEof),
            (frame(1, MAX_PAYLOAD + 1), io::ErrorKind::InvalidData),
        ] {
            assert_eq!(ToGuest::read(&mut bytes.as_slice()).await.map_err(kind), Err(refused), "{bytes:?}");
        }
        for (length, refused) in
            [(MAX_PAYLOAD, io::ErrorKind::UnexpectedEof), (MAX_PAYLOAD + 1, io::ErrorKind::InvalidData)]
        {
            let bytes = frame(19, length);
            assert_eq!(FromGuest::read(&mut bytes.as_slice()).await.map_err(kind), Err(refused), "{length}");
        }
    }

    #[tokio::test]
    async fn an_opening_and_its_answers_come_back() {
        let token = BootToken::new([9; 32]);
        for purpose in [Purpose::Command, Purpose::Keys, Purpose::Session, Purpose::Inside, Purpose::Names] {
            let bytes = Opening { purpose, token: token.clone() }.encode();
            let (version, opening) = Opening::read(&mut bytes.as_slice()).await.unwrap();
            let opening = opening.unwrap();
            assert!(version == VERSION && opening.purpose == purpose && opening.token.proves(&token));
        }
        let mut odd = Opening { purpose: Purpose::Keys, token }.encode();
        odd[5] = 9;
        assert!(Opening::read(&mut odd.as_slice()).await.unwrap().1.is_none());
        odd[0] = b'X';
        assert!(Opening::read(&mut odd.as_slice()).await.is_err());
        for answer in [Answer::Open, Answer::Version(VERSION), Answer::Busy] {
            let mut bytes = Vec::new();
            answer.write(&mut bytes).await.unwrap();
            assert_eq!(Answer::read(&mut bytes.as_slice()).await.unwrap(), answer);
        }
        assert!(Answer::read(&mut &[1, 3][..]).await.is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut from = bytes.as_slice();
                while let Ok(Some(_)) = ToGuest::read(&mut from).await {}
                let mut from = bytes.as_slice();
                while let Ok(Some(_)) = FromGuest::read(&mut from).await {}
                drop(Opening::read(&mut bytes.as_slice()).await);
            });
        }
    }
}
