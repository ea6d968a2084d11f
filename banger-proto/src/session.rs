//! Sessions of a guest: commands in the background that have a name, a log and a kept exit status.
//! What the command line and the guest say to each other about them, over vsock.
//!
//! The daemon opens the connection as for a command ([`crate::command`], purpose
//! [`crate::command::Purpose::Session`]) and hands it over. The command line sends one [`Request`]
//! and nothing else before the answer. The agent answers what can be read from the disk, and passes
//! the connection of all else on to the session's own process. So a session and those that are
//! attached to it outlive agent and daemon.
//!
//! | request | answers |
//! |---|---|
//! | `List`, `Show`, `Start` | [`Answer::Sessions`], of one or none |
//! | `Logs` | [`Answer::Record`] and [`Answer::Gap`], then [`Answer::Ended`] with the status of that moment |
//! | `Wait`, `Stop` | [`Answer::Ended`] |
//! | `Kill`, `Remove` | [`Answer::Done`] |
//! | `Send` | [`Answer::Opened`]; the client sends [`crate::command::ToGuest::Input`] within the credit, and `InputEnd` to close the input; [`Answer::Credit`] is what was written |
//! | `Attach` | [`Answer::Opened`]; then both sides speak as of a command that has started |
//!
//! Instead of each of them, [`Answer::Refused`].

use crate::command::{MAX_PAYLOAD, MAX_START, Start};
use crate::frame::{self, malformed};
use crate::wire;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest answer with sessions, bytes: as many as a guest keeps, with their commands cut.
pub const MAX_ANSWER: usize = 1 << 20;
/// Characters of a name.
const MAX_NAME: usize = 63;

const REQUEST: u8 = 32;
const SESSIONS: u8 = 33;
const REFUSED: u8 = 34;
const ENDED: u8 = 35;
const RECORD: u8 = 36;
const GAP: u8 = 37;
const OPENED: u8 = 38;
const CREDIT: u8 = 39;
const INPUT_CLOSED: u8 = 40;
const DONE: u8 = 41;
/// Bytes of a record's time and stream.
const RECORD_HEADER: usize = 9;

/// A session that is to be started. A guest may keep it as JSON, which a later version reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct New {
    /// Unique among the sessions that run; generated when `None`.
    pub name: Option<String>,
    /// What runs. With a terminal, output is one stream and input is the terminal's.
    pub start: Start,
    /// Its standard input is a pipe that `Send` and `Attach` write to; nothing otherwise.
    pub stdin: bool,
    /// The words come behind the image's Entrypoint; without words, the image's Cmd does.
    pub entrypoint: bool,
    /// Started again when it ends, and with the guest, until it is stopped or another takes its
    /// name.
    pub again: bool,
}

/// Which outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outputs {
    /// Both, in the order in which they were written.
    Both,
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Command line to guest, first. `session` is a name or an id; a name means the session that runs,
/// else the newest of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// All sessions.
    List,
    /// One.
    Show {
        /// Which.
        session: String,
    },
    /// A new one.
    Start(Box<New>),
    /// What it wrote.
    Logs {
        /// Which.
        session: String,
        /// Which of its outputs.
        outputs: Outputs,
        /// Only so many last lines; everything when `None`.
        tail: Option<u64>,
        /// Go on until it ends.
        follow: bool,
    },
    /// Bytes for its standard input.
    Send {
        /// Which.
        session: String,
    },
    /// Its input and output, until the client closes.
    Attach {
        /// Which.
        session: String,
        /// Columns and rows of the caller's terminal. The session's terminal gets them, and what it
        /// wrote last comes first.
        size: Option<(u16, u16)>,
    },
    /// Ask it to end, then end it.
    Stop {
        /// Which.
        session: String,
    },
    /// A signal for its process group, by its number.
    Kill {
        /// Which.
        session: String,
        /// The signal.
        signal: u8,
    },
    /// Wait for its end.
    Wait {
        /// Which.
        session: String,
    },
    /// Forget one that has ended, and its log.
    Remove {
        /// Which.
        session: String,
    },
}

/// How a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It runs.
    Running,
    /// Its command has ended with this status.
    Exited(u8),
    /// This signal has ended it.
    Killed(u8),
    /// The guest ended before it did: nobody knows more.
    LostGuest,
    /// Its own process was ended: nobody knows more.
    LostProcess,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Unique for ever in its VM: the name, a dot and a number.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The words of its command, for people: cut when they are long, with replacements for what is
    /// no text.
    pub command: Vec<String>,
    /// How it stands.
    pub status: Status,
    /// Its standard input takes bytes.
    pub stdin: bool,
    /// It has a terminal.
    pub tty: bool,
    /// By the guest's clock, seconds since 1970.
    pub started_at: u64,
    /// By the guest's clock, seconds since 1970; `None` while it runs, and when it was lost.
    pub ended_at: Option<u64>,
    /// The file of its log in the guest.
    pub log_path: String,
    /// It was started to be started again.
    pub again: bool,
}

/// Why not. The command line knows the words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No session is called so.
    Unknown,
    /// A session of this name runs.
    NameTaken,
    /// So many run as a guest may have.
    TooMany,
    /// It has ended.
    Ended(Status),
    /// It runs, so it cannot be removed.
    Runs,
    /// It was started without standard input.
    NoInput,
    /// Its standard input was closed, by a client or by itself.
    InputClosed,
    /// The image has neither Entrypoint nor Cmd.
    NoEntrypoint,
    /// The command cannot be started; the status that a shell would give, and why.
    Command(u8, String),
    /// The guest cannot do it; why.
    Failed(String),
}

/// Guest to command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Oldest first.
    Sessions(Vec<Session>),
    /// Last.
    Refused(Refusal),
    /// Last: how it stands now.
    Ended(Status),
    /// Of a log.
    Record(Record),
    /// So many bytes of the log are missing here.
    Gap(u64),
    /// What follows is of the conversation that was asked for.
    Opened,
    /// So many bytes of input were written, and as many more may be sent.
    Credit(u32),
    /// Last: the command takes no more input.
    InputClosed,
    /// Last.
    Done,
}

/// What a command wrote at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// By the guest's clock, milliseconds since 1970.
    pub at: u64,
    /// To standard error.
    pub error: bool,
    /// What.
    pub bytes: Vec<u8>,
}

/// Whether a session may be called so: 1 to 63 of `a-z`, `0-9` and `-`, no `-` at either end.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let known = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(known) && !text.starts_with('-') && !text.ends_with('-')
}

impl Request {
    /// The session that is meant.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        match self {
            Self::List | Self::Start(_) => None,
            Self::Show { session }
            | Self::Logs { session, .. }
            | Self::Send { session }
            | Self::Attach { session, .. }
            | Self::Stop { session }
            | Self::Kill { session, .. }
            | Self::Wait { session }
            | Self::Remove { session } => Some(session),
        }
    }

    /// Sends it.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for a command that is too long.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> io::Result<()> {
        let payload = wire::encode(self, MAX_START)?;
        frame::write(to, REQUEST, &payload, MAX_START).await
    }

    /// Reads one; `None` at the end. Not cancel safe.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` when the bytes are no request.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Self>> {
        match frame::read(from, |_| MAX_START).await? {
            None => Ok(None),
            Some((REQUEST, payload)) => Ok(Some(wire::decode(&payload, MAX_START)?)),
            Some(_) => Err(malformed("this is no request")),
        }
    }
}

impl Answer {
    /// Sends it.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` for a payload over its limit.
    pub async fn write<W: AsyncWrite + Unpin>(&self, to: &mut W) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Sessions(sessions) => (SESSIONS, wire::encode(sessions, MAX_ANSWER)?),
            Self::Refused(refusal) => (REFUSED, wire::encode(refusal, MAX_PAYLOAD)?),
            Self::Ended(status) => (ENDED, wire::encode(status, MAX_PAYLOAD)?),
            Self::Record(record) => {
                let header = [&record.at.to_be_bytes()[..], &[u8::from(record.error)]].concat();
                (RECORD, [header, record.bytes.clone()].concat())
            }
            Self::Gap(bytes) => (GAP, bytes.to_be_bytes().to_vec()),
            Self::Opened => (OPENED, Vec::new()),
            Self::Credit(bytes) => (CREDIT, bytes.to_be_bytes().to_vec()),
            Self::InputClosed => (INPUT_CLOSED, Vec::new()),
            Self::Done => (DONE, Vec::new()),
        };
        frame::write(to, kind, &payload, longest(kind)).await
    }

    /// Reads the next one; `None` at the end. Not cancel safe.
    ///
    /// # Errors
    /// What the stream says; `InvalidData` when the bytes are no answer.
    pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Option<Self>> {
        let Some((kind, payload)) = frame::read(from, longest).await? else { return Ok(None) };
        Ok(Some(match (kind, payload.as_slice()) {
            (SESSIONS, bytes) => Self::Sessions(wire::decode(bytes, MAX_ANSWER)?),
            (REFUSED, bytes) => Self::Refused(wire::decode(bytes, MAX_PAYLOAD)?),
            (ENDED, bytes) => Self::Ended(wire::decode(bytes, MAX_PAYLOAD)?),
            (RECORD, &[t0, t1, t2, t3, t4, t5, t6, t7, error @ (0 | 1), ref bytes @ ..]) => Self::Record(Record {
                at: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
                error: error == 1,
                bytes: bytes.to_vec(),
            }),
            (GAP, &[b0, b1, b2, b3, b4, b5, b6, b7]) => Self::Gap(u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7])),
            (OPENED, []) => Self::Opened,
            (CREDIT, &[b0, b1, b2, b3]) => Self::Credit(u32::from_be_bytes([b0, b1, b2, b3])),
            (INPUT_CLOSED, []) => Self::InputClosed,
            (DONE, []) => Self::Done,
            _ => return Err(malformed("unknown kind or length")),
        }))
    }
}

fn longest(kind: u8) -> usize {
    match kind {
        SESSIONS => MAX_ANSWER,
        RECORD => MAX_PAYLOAD + RECORD_HEADER,
        _ => MAX_PAYLOAD,
    }
}

#[cfg(test)]
mod tests;
