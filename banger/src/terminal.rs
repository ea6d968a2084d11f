//! The user's terminal: raw while a guest has it, its size, and the way out of a guest that hangs.

use crate::output;
use banger_proto::command::Terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::IsTerminal as _;

/// Both ends of the conversation are a person's.
pub(crate) fn interactive() -> bool {
    std::io::stdin().is_terminal() && output::is_terminal()
}

/// Columns and rows, when there is a terminal that knows them.
#[expect(clippy::disallowed_methods, reason = "it is asked for its size and not written to")]
pub(crate) fn window() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// What the guest is told of our terminal; what a terminal had by default when there is none.
pub(crate) fn describe() -> Terminal {
    let (cols, rows) = window().unwrap_or((80, 24));
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm".to_owned());
    let modes = tcgetattr(std::io::stdin()).map(|settings| modes(&settings)).unwrap_or_default();
    Terminal { term, cols, rows, modes }
}

/// The user's settings that a terminal in the guest should have, too: the keys that erase and
/// interrupt, and whether a character may have several bytes. Numbers of RFC 4254 section 8, and of
/// RFC 8160 for the last.
fn modes(settings: &Termios) -> Vec<(u8, u32)> {
    use rustix::termios::{InputModes, SpecialCodeIndex as Key};
    let keys = [
        (1, Key::VINTR),
        (2, Key::VQUIT),
        (3, Key::VERASE),
        (4, Key::VKILL),
        (5, Key::VEOF),
        (8, Key::VSTART),
        (9, Key::VSTOP),
        (10, Key::VSUSP),
        (12, Key::VREPRINT),
        (13, Key::VWERASE),
        (14, Key::VLNEXT),
    ];
    // A character that is switched off is 255 there, and 0 here.
    let value = |key| match settings.special_codes[key] {
        0 => 255,
        byte => u32::from(byte),
    };
    let keys = keys.into_iter().map(|(number, key)| (number, value(key)));
    let flags = [(38, InputModes::IXON), (42, InputModes::IUTF8)];
    let flags = flags.into_iter().map(|(number, flag)| (number, u32::from(settings.input_modes.contains(flag))));
    keys.chain(flags).collect()
}

/// The terminal in raw mode until this is dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Finds `~.` at the beginning of a line, as in ssh(1): in raw mode Ctrl-C belongs to the guest,
/// and one that hangs must not keep the terminal.
#[derive(Debug)]
pub(crate) struct Escape {
    at_line_start: bool,
    tilde: bool,
}

impl Escape {
    pub(crate) fn new() -> Self {
        Self { at_line_start: true, tilde: false }
    }

    /// What of the input goes to the guest; `None` when the user wants out.
    pub(crate) fn filter(&mut self, input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(input.len() + 1);
        for byte in input {
            match (std::mem::take(&mut self.tilde), byte) {
                (true, b'.') => return None,
                // `~~` is one tilde.
                (true, b'~') => out.push(b'~'),
                (true, _) => out.extend([b'~', *byte]),
                (false, b'~') if self.at_line_start => self.tilde = true,
                (false, _) => out.push(*byte),
            }
            self.at_line_start = matches!(byte, b'\r' | b'\n') && !self.tilde;
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(parts: &[&[u8]]) -> Option<Vec<u8>> {
        let mut escape = Escape::new();
        let mut all = Vec::new();
        for part in parts {
            all.extend(escape.filter(part)?);
        }
        Some(all)
    }

    #[test]
    fn the_way_out_works_at_the_beginning_of_a_line_only() {
        assert_eq!(filter(&[b"~."]), None);
        assert_eq!(filter(&[b"ls\r", b"~", b"."]), None);
        for (input, output) in [(&b"a~."[..], &b"a~."[..]), (b"~~.", b"~."), (b"~a\r", b"~a\r"), (b"cd ~\r", b"cd ~\r")]
        {
            assert_eq!(filter(&[input]).as_deref(), Some(output));
        }
    }
}
