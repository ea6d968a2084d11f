//! A command that runs in a guest, on a channel of its own.

use super::SshError;
use super::connect::{Connection, accepted};
use crate::quote;
use banger_proto::signal;
use banger_proto::stream::Terminal;
use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::time::Duration;
use tokio::time::timeout;

/// SSH's number for standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;
/// Saying goodbye to a guest that may be dead.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// The words; none for a login shell.
    pub words: &'a [String],
    /// `LANG` and the like; the agent takes what it likes.
    pub env: &'a [(String, String)],
    /// The caller's terminal, when there is one.
    pub terminal: Option<&'a Terminal>,
}

/// What a command says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Standard output.
    Output(Bytes),
    /// Standard error.
    ErrorOutput(Bytes),
    /// It has ended: its status, or 128 + n for signal n.
    Exit(u8),
}

/// The guest's end of a running command's output. Read it to the end: [`Said::Exit`] or an error.
#[derive(Debug)]
pub struct Output {
    channel: ChannelReadHalf,
    status: Option<u8>,
}

/// The guest's end of its input.
#[derive(Debug)]
pub struct Input {
    channel: ChannelWriteHalf<Msg>,
}

/// A running command.
#[derive(Debug)]
pub struct Running {
    /// What it says.
    pub output: Output,
    /// What it is told.
    pub input: Input,
    pub(super) connection: Connection,
}

impl Running {
    pub(super) async fn start(
        connection: Connection,
        channel: Channel<Msg>,
        command: &Command<'_>,
    ) -> Result<Self, (SshError, Connection)> {
        match request(channel, command).await {
            Ok((output, input)) => Ok(Self { output, input, connection }),
            Err(error) => Err((error, connection)),
        }
    }

    /// Gives a command up: closes its channel and connection, at which the agent hangs it up.
    pub async fn hang_up(self) {
        let _ = timeout(CLOSE_WAIT, self.input.channel.close()).await;
        self.connection.close().await;
    }
}

async fn request(mut channel: Channel<Msg>, command: &Command<'_>) -> Result<(Output, Input), SshError> {
    for (name, value) in command.env {
        channel.set_env(false, name.as_str(), value.as_str()).await?;
    }
    if let Some(terminal) = command.terminal {
        let (cols, rows) = (u32::from(terminal.cols), u32::from(terminal.rows));
        channel.request_pty(true, &terminal.term, cols, rows, 0, 0, &[]).await?;
        accepted(&mut channel, "a terminal").await?;
    }
    if command.words.is_empty() {
        channel.request_shell(true).await?;
    } else {
        channel.exec(true, quote::line(command.words)).await?;
    }
    accepted(&mut channel, "the command").await?;
    let (read, write) = channel.split();
    Ok((Output { channel: read, status: None }, Input { channel: write }))
}

impl Output {
    /// What it says next. Cancel safe.
    ///
    /// # Errors
    /// [`SshError::Lost`] when the connection ends before the command.
    pub async fn next(&mut self) -> Result<Said, SshError> {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => return Ok(Said::Output(data)),
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => return Ok(Said::ErrorOutput(data)),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    // A status has eight bits (wait(2)); what does not fit is no success.
                    self.status = Some(u8::try_from(exit_status).unwrap_or(u8::MAX));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => self.status = Some(status_of(&signal_name)),
                Some(ChannelMsg::Close) | None => return self.status.take().map(Said::Exit).ok_or(SshError::Lost),
                Some(_) => {}
            }
        }
    }
}

impl Input {
    /// Gives it bytes, as fast as it takes them.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn send(&self, bytes: Bytes) -> Result<(), SshError> {
        Ok(self.channel.data_bytes(bytes).await?)
    }

    /// There is no more input.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn end(&self) -> Result<(), SshError> {
        Ok(self.channel.eof().await?)
    }

    /// The terminal's size.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn resize(&self, cols: u16, rows: u16) -> Result<(), SshError> {
        Ok(self.channel.window_change(cols.into(), rows.into(), 0, 0).await?)
    }

    /// A signal by its name, without `SIG`. Names that are none are left out.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn signal(&self, name: &str) -> Result<(), SshError> {
        match signal(name) {
            Some(signal) => Ok(self.channel.signal(signal).await?),
            None => Ok(()),
        }
    }
}

fn signal(name: &str) -> Option<Sig> {
    let known = signal::number(name).and_then(signal::name)?;
    Some(match known {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    })
}

/// 128 + n; what is no signal is no success either.
fn status_of(signal: &Sig) -> u8 {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    };
    signal::from_ssh(name).map_or(u8::MAX, signal::status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_becomes_its_status() {
        for number in 1..=signal::LAST {
            // As russh reads the agent's text: a name that it knows becomes that variant.
            let text = signal::to_ssh(number);
            let sig = signal(&text).unwrap_or(Sig::Custom(text));
            assert_eq!(status_of(&sig), 128 + number, "{sig:?}");
        }
        assert_eq!(status_of(&Sig::Custom("SYS@banger".into())), 159);
        for unknown in ["", "0@banger", "200@banger", "NONE"] {
            assert_eq!(status_of(&Sig::Custom(unknown.into())), u8::MAX, "{unknown}");
        }
    }

    #[test]
    fn only_signals_are_sent() {
        assert!(matches!(signal("INT"), Some(Sig::INT)) && matches!(signal("SIGINT"), Some(Sig::INT)));
        assert!(matches!(signal("WINCH"), Some(Sig::Custom(name)) if name == "WINCH"));
        assert!(signal("NONE").is_none() && signal("").is_none());
    }
}
