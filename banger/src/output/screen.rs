//! A picture that is drawn again and again, on the terminal's second screen: what stood on the
//! first one is there again afterwards (xterm's control sequences, "The Alternate Screen Buffer").

use super::{plain, write};

/// The second screen, until this is dropped.
#[derive(Debug)]
pub(crate) struct Screen;

impl Screen {
    /// # Errors
    /// When standard output cannot be written to.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }

    /// Draws lines, as far as they fit: each over what stood there, so that nothing flickers.
    ///
    /// # Errors
    /// When standard output cannot be written to.
    pub(crate) fn draw(&self, lines: &[String], window: (u16, u16)) -> anyhow::Result<()> {
        write(&drawn(lines, window))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has no screen to give back.
        let _ = write("\x1b[?25h\x1b[?1049l");
    }
}

fn drawn(lines: &[String], (columns, rows): (u16, u16)) -> String {
    let mut text = "\x1b[H".to_owned();
    for (line, row) in lines.iter().take(usize::from(rows)).zip(1..) {
        let line: String = plain(line).replace(['\n', '\t'], " ").chars().take(usize::from(columns)).collect();
        text += &line;
        text += "\x1b[K";
        if row < usize::from(rows) {
            text += "\r\n";
        }
    }
    text + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_no_line_steers_the_terminal() {
        let lines = ["one line".to_owned(), "\x1b[2Jtwo\nlines".to_owned(), "three".to_owned()];
        assert_eq!(drawn(&lines, (3, 2)), "\x1b[Hone\x1b[K\r\n\u{fffd}[2\x1b[K\x1b[J");
        assert_eq!(drawn(&lines[..1], (80, 24)), "\x1b[Hone line\x1b[K\r\n\x1b[J");
    }
}
