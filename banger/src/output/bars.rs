//! A moving line for each of several downloads, on a terminal only.

use super::{cell_text, remark};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

/// Bytes, speed, and time left; all of it ours or indicatif's own words.
const LINE: &str = "{prefix:16} {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}  {eta} left";

/// The lines.
#[derive(Clone, Debug)]
pub(crate) struct Transfers {
    lines: MultiProgress,
}

/// One of them; it goes with its end.
#[derive(Debug)]
pub(crate) struct Transfer {
    line: ProgressBar,
    all: Transfers,
}

impl Transfers {
    pub(crate) fn new() -> Self {
        let seen = std::io::stderr().is_terminal();
        let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { lines: MultiProgress::with_draw_target(target) }
    }

    /// One more download, of so many bytes.
    pub(crate) fn begin(&self, name: &str, bytes: u64) -> Transfer {
        let line = self.lines.add(ProgressBar::new(bytes));
        // A wrong template is a mistake of ours that falls back to the default one.
        if let Ok(style) = ProgressStyle::with_template(LINE) {
            line.set_style(style.progress_chars("=> "));
        }
        line.set_prefix(cell_text(name));
        line.enable_steady_tick(Duration::from_millis(250));
        Transfer { line, all: self.clone() }
    }

    /// A line above them.
    pub(crate) fn say(&self, text: &str) {
        self.lines.suspend(|| remark(text));
    }
}

impl Transfer {
    /// So many bytes have arrived.
    pub(crate) fn at(&self, bytes: u64) {
        self.line.set_position(bytes);
    }

    /// A line above all.
    pub(crate) fn say(&self, text: &str) {
        self.all.say(text);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.line.finish_and_clear();
    }
}
