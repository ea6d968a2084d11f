//! The two outputs of something in a guest.

use super::events::{Event, Pieces, Stream, tell};
use super::outlet::Outlet;
use super::{is_terminal, on_write, plain};
use anyhow::Context as _;
use nix::errno::Errno;
use std::io::{self, ErrorKind, IsTerminal as _};

/// Where they go, and how.
#[derive(Debug)]
pub(crate) enum Streams {
    /// To our own two outputs; cleaned where there is something to clean with.
    Bytes { out: Option<PlainBytes>, err: Option<PlainBytes> },
    /// As JSON to standard output, an object for each piece.
    Json { out: Pieces, err: Pieces },
}

impl Streams {
    /// As the guest writes them: the user gave it the terminal, as every remote shell does.
    pub(crate) fn as_written() -> Self {
        Self::Bytes { out: None, err: None }
    }

    /// Text that the user only looks at: clean where it goes to a terminal.
    pub(crate) fn text() -> Self {
        let clean = |terminal: bool| terminal.then(PlainBytes::default);
        Self::Bytes { out: clean(is_terminal()), err: clean(io::stderr().is_terminal()) }
    }

    /// For a program that reads JSON.
    pub(crate) fn json() -> Self {
        Self::Json { out: Pieces::of(Stream::Stdout), err: Pieces::of(Stream::Stderr) }
    }

    /// # Errors
    /// [`super::ReaderGone`] when nobody reads any more.
    pub(crate) async fn output(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Bytes { out, .. } => Outlet::Out.pass(cleaned(out, bytes)).await.map_err(on_write),
            Self::Json { out, .. } => out.tell(bytes).await,
        }
    }

    /// A closed standard error is no reason to end somebody's command.
    ///
    /// # Errors
    /// As [`Self::output`], of JSON alone; what cannot be written for another reason than that.
    pub(crate) async fn error_output(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Bytes { err, .. } => match Outlet::Err.pass(cleaned(err, bytes)).await {
                Err(error) if !is_closed(&error) => Err(error).context("cannot write to standard error"),
                _ => Ok(()),
            },
            Self::Json { err, .. } => err.tell(bytes).await,
        }
    }

    /// Bytes are missing here.
    ///
    /// # Errors
    /// As [`Self::error_output`].
    pub(crate) async fn gap(&self, bytes: u64) -> anyhow::Result<()> {
        match self {
            Self::Bytes { .. } => {
                super::note(&format!("banger: {bytes} bytes of the log are missing here"));
                Ok(())
            }
            Self::Json { .. } => tell(&Event::Gap { bytes }).await,
        }
    }

    /// The command has ended: with this status, by this signal, or because it could not be started.
    ///
    /// # Errors
    /// As [`Self::error_output`].
    pub(crate) async fn ended(&mut self, status: u8, signal: Option<u8>, reason: Option<&str>) -> anyhow::Result<()> {
        match self {
            Self::Bytes { .. } => {
                if let Some(why) = reason {
                    super::note(&format!("banger: the command cannot be started: {why}"));
                }
                Ok(())
            }
            Self::Json { out, err } => {
                out.finish().await?;
                err.finish().await?;
                tell(&Event::Exit { status, signal, reason }).await
            }
        }
    }
}

fn cleaned(clean: &mut Option<PlainBytes>, bytes: &[u8]) -> Vec<u8> {
    match clean {
        None => bytes.to_vec(),
        Some(clean) => clean.next(bytes),
    }
}

/// Whether nobody can read what is written: the reader is gone, or its terminal.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || error.raw_os_error() == Some(Errno::EIO as i32)
}

/// [`plain`] for bytes that come in pieces, which may end inside a character.
#[derive(Debug, Default)]
pub(crate) struct PlainBytes {
    tail: Vec<u8>,
}

impl PlainBytes {
    fn next(&mut self, piece: &[u8]) -> Vec<u8> {
        self.tail.extend_from_slice(piece);
        let whole = match std::str::from_utf8(&self.tail) {
            // No length: the end is missing, not wrong.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.tail.len(),
        };
        let rest = self.tail.split_off(whole);
        let text = String::from_utf8_lossy(&std::mem::replace(&mut self.tail, rest)).into_owned();
        plain(&text).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_may_end_inside_a_character() {
        let mut pieces = PlainBytes::default();
        let ae = "ä".as_bytes();
        assert_eq!([pieces.next(&ae[..1]), pieces.next(&ae[1..])].concat(), ae);
        assert_eq!(pieces.next(b"\xff\x1bx\r\n"), "\u{fffd}\u{fffd}x\n".as_bytes());
    }
}
