//! The first line of `banger relay`. What comes before it is the login shell's.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What the line begins with, and the version of the relay's ways.
const MAGIC: &str = "banger relay 1: ";
/// What is read of a login shell's own words before the line is given up, bytes.
const MAX_NOISE: usize = 64 << 10;
/// What is shown of them.
const SHOWN: usize = 200;

/// What the other machine said first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// From now on the bytes are the daemon's.
    Connected,
    /// The relay is there, and has no connection to the daemon.
    Refused { message: String, hint: String },
    /// It ended without the line; its last words.
    None(String),
}

impl Greeting {
    /// As the relay writes it.
    pub(crate) fn line(&self) -> String {
        let flat = |text: &str| text.replace(['\n', '\t', '\r'], " ");
        match self {
            Self::Connected => format!("{MAGIC}connected\n"),
            Self::Refused { message, hint } => format!("{MAGIC}refused\t{}\t{}\n", flat(message), flat(hint)),
            Self::None(_) => String::new(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let said = line.strip_prefix(MAGIC)?;
        if said == "connected" {
            return Some(Self::Connected);
        }
        let mut parts = said.strip_prefix("refused\t")?.splitn(2, '\t');
        // It comes from another machine, and goes to a terminal.
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(500).collect();
        Some(Self::Refused { message: clean(parts.next()?), hint: clean(parts.next().unwrap_or_default()) })
    }
}

/// Reads up to the line's end and no byte further: what follows is the daemon's.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Greeting> {
    let (mut line, mut last, mut read) = (Vec::new(), String::new(), 0);
    let mut byte = [0];
    while read < MAX_NOISE && from.read(&mut byte).await? == 1 {
        read += 1;
        let [byte] = byte;
        if byte != b'\n' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if let Some(greeting) = Greeting::parse(&text) {
            return Ok(greeting);
        }
        if !text.trim().is_empty() {
            last = text;
        }
        line.clear();
    }
    let rest = String::from_utf8_lossy(&line).into_owned();
    let words = if rest.trim().is_empty() { last } else { rest };
    Ok(Greeting::None(words.chars().filter(|c| !c.is_control()).take(SHOWN).collect()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[tokio::test]
    async fn a_login_shells_words_are_skipped_and_the_daemons_bytes_are_left() {
        let bytes = [b"welcome\n\n".as_slice(), Greeting::Connected.line().as_bytes(), b"DAEMON"].concat();
        let mut from = bytes.as_slice();
        assert_eq!(read(&mut from).await.unwrap(), Greeting::Connected);
        assert_eq!(from, b"DAEMON");
        let refused = Greeting::Refused { message: "you are not\nin it".into(), hint: "ask".into() };
        let line = refused.line();
        let back = read(&mut line.as_bytes()).await.unwrap();
        assert_eq!(back, Greeting::Refused { message: "you are not in it".into(), hint: "ask".into() });
    }

    #[tokio::test]
    async fn what_is_no_greeting_is_shown_without_what_steers_a_terminal() {
        let none = |text: &str| Greeting::None(text.to_owned());
        assert_eq!(read(&mut &b"\x1b[2Jno such\nshell\n"[..]).await.unwrap(), none("shell"));
        assert_eq!(read(&mut &b""[..]).await.unwrap(), none(""));
        let endless = vec![b'x'; 10 * MAX_NOISE];
        assert_eq!(read(&mut endless.as_slice()).await.unwrap(), none(&"x".repeat(SHOWN)));
        let evil = format!("{MAGIC}refused\tno\x1b[2J\t\n");
        let said = read(&mut evil.as_bytes()).await.unwrap();
        assert_eq!(said, Greeting::Refused { message: "no[2J".into(), hint: String::new() });
    }
}
