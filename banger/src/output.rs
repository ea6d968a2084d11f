//! Everything that is shown: JSON, tables, times. This file alone writes to the two outputs
//! (`clippy.toml` refuses it elsewhere), and each text passes [`plain`] on its way: none of its
//! callers can forget that a guest, an image, another user or the daemon wrote part of it.
#![expect(clippy::disallowed_methods, reason = "this is the one place that writes to the outputs")]

mod bars;
mod events;
mod outlet;
mod screen;
mod streams;

pub(crate) use bars::{Transfer, Transfers};
pub(crate) use events::{Event, begin_events, flush_events, ms, remark, tell, tell_at_end};
pub(crate) use screen::Screen;
pub(crate) use streams::Streams;

use banger_policy::ByteSize;
use banger_policy::lifecycle::State;
use banger_proto::time::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use outlet::Outlet;
use serde::Serialize;
use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

/// What is clean already, or coloured by us.
fn write(text: &str) -> anyhow::Result<()> {
    Outlet::Out.write(text.as_bytes()).map_err(on_write)
}

/// Whoever reads our output went away: nothing is to be said to them.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for ReaderGone {}

/// Turns a failed write to standard output into [`ReaderGone`] or a sentence.
fn on_write(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        anyhow::Error::new(ReaderGone)
    } else {
        anyhow::Error::new(error).context("cannot write to standard output")
    }
}

/// Is there a person at standard output?
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes text of several lines to standard output.
///
/// # Errors
/// [`ReaderGone`] when nobody reads any more.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write(&plain(text))
}

/// Writes one line to standard output, whatever is in the text.
///
/// # Errors
/// As [`print()`].
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    write(&format!("{}\n", cell_text(text)))
}

/// Writes text to standard error: what is for the person and not for the pipe.
pub(crate) fn note(text: &str) {
    // Nobody is left to tell when standard error is closed.
    drop(Outlet::Err.write(format!("{}\n", plain(text)).as_bytes()));
}

/// Writes a question to standard error; the answer is typed behind it.
pub(crate) fn question(text: &str) {
    drop(Outlet::Err.write(format!("{} ", plain(text)).as_bytes()));
}

/// Writes a value as JSON, with the names of the model.
///
/// # Errors
/// As [`print()`].
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    write(&format!("{}\n", json_text(&serde_json::to_string_pretty(value)?)))
}

/// Writes a value as JSON on a line of its own, for programs that read line by line.
///
/// # Errors
/// As [`print()`].
pub(crate) fn json_line<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    write(&format!("{}\n", json_text(&serde_json::to_string(value)?)))
}

/// A value as JSON that no terminal obeys.
///
/// # Errors
/// When it has no form in JSON.
pub(crate) fn json_of<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(json_text(&serde_json::to_string_pretty(value)?))
}

/// Text for others who show it: without what would steer a terminal.
pub(crate) fn clean(text: &str) -> String {
    plain(text)
}

/// Standard output for a protocol, whose texts have passed [`clean`] or [`json_of`].
pub(crate) fn protocol() -> tokio::io::Stdout {
    tokio::io::stdout()
}

/// JSON that says the same without a character that steers a terminal. Only strings can hold one,
/// and there an escape is the character (RFC 8259 section 7).
fn json_text(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            code if steers(c) && c != '\n' => shown += &format!("\\u{code:04x}"),
            _ => shown.push(c),
        }
    }
    shown
}

/// Would a terminal act on this instead of showing it? Control characters of ASCII and Latin-1,
/// what turns the direction of the text around it (Unicode Annex 9), and two more ends of a line.
fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Text without what would steer the terminal. A carriage return, which consoles write and which
/// hides what was printed before, is left out.
fn plain(text: &str) -> String {
    let kept = text.chars().filter(|c| *c != '\r');
    kept.map(|c| if steers(c) && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// One moving line on standard error.
#[derive(Debug)]
pub(crate) struct Spinner(ProgressBar);

impl Spinner {
    /// Seen on a terminal only, and when it is `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        if !wanted || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        // A wrong template is a mistake of ours that falls back to the default one.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// What the line says from now on.
    pub(crate) fn show(&self, text: &str) {
        self.0.set_message(cell_text(text));
    }

    /// A line above it.
    pub(crate) fn note(&self, text: &str) {
        self.0.suspend(|| note(text));
    }

    /// A [`remark`] above it.
    pub(crate) fn remark(&self, text: &str) {
        self.0.suspend(|| remark(text));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// May this be coloured? (<https://no-color.org>)
fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && is_terminal()
}

/// Columns, aligned; the last one is not padded. `colour` gives the SGR code of a cell, if any.
pub(crate) fn table(
    header: &[&str],
    rows: &[Vec<String>],
    colour: impl Fn(usize, &str) -> Option<u8>,
) -> anyhow::Result<()> {
    write(&table_text(header, rows, colour, coloured()))
}

/// The same as lines, without colour.
pub(crate) fn table_lines(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    table_text(header, rows, |_, _| None, false).lines().map(str::to_owned).collect()
}

fn table_text(
    header: &[&str],
    rows: &[Vec<String>],
    colour: impl Fn(usize, &str) -> Option<u8>,
    coloured: bool,
) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| cell_text(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|title| title.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let render = |cells: &mut dyn Iterator<Item = (String, Option<u8>)>| {
        let mut text = String::new();
        for ((cell, colour), width) in cells.zip(&widths) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()) + 2);
            text += &colour.map_or_else(|| cell.clone(), |code| format!("\x1b[{code}m{cell}\x1b[0m"));
            text += &padding;
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = render(&mut header.iter().map(|title| ((*title).to_owned(), coloured.then_some(1))));
    for row in &rows {
        let cells = row.iter().enumerate();
        text += &render(&mut cells.map(|(column, cell)| (cell.clone(), colour(column, cell).filter(|_| coloured))));
    }
    text
}

/// One line, whatever was in it.
fn cell_text(cell: &str) -> String {
    plain(cell).replace(['\n', '\t'], " ")
}

/// Facts about one thing, one a line.
///
/// # Errors
/// As [`print()`].
pub(crate) fn facts(facts: &[(&str, String)]) -> anyhow::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let rows = facts.iter().filter(|(_, value)| !value.is_empty());
    write(&rows.map(|(name, value)| format!("{name:width$}  {}\n", cell_text(value))).collect::<String>())
}

/// The colour of a state: green runs, red needs somebody.
pub(crate) fn state_colour(state: &str) -> Option<u8> {
    match state {
        _ if state == State::Running.as_str() => Some(32),
        _ if state == State::Error.as_str() => Some(31),
        _ => None,
    }
}

/// How long ago, in one unit.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.unix().saturating_sub(then.unix());
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration as people say it: `12 ms`, `6.21 s`, `2 min 5 s`.
pub(crate) fn took(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.2} s", time.as_secs_f64()),
        _ => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// Bytes, exactly, as users write sizes.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).map_or_else(|_| format!("{bytes}B"), |size| size.to_string())
}

/// Bytes, roughly, for amounts that are no round number.
pub(crate) fn amount(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{}.{} GiB", bytes >> 30, ((bytes >> 20) & 1023) * 10 / 1024),
    }
}

/// The beginning of an id, as much as people need.
pub(crate) fn short(id: &impl ToString) -> String {
    id.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_amounts_read_well() {
        assert_eq!(took(Duration::from_millis(12)), "12 ms");
        assert_eq!(took(Duration::from_millis(6_214)), "6.21 s");
        assert_eq!(took(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(amount(1_610_612_736), "1.5 GiB");
        assert_eq!(amount(0), "0 B");
        assert_eq!(size(8 << 30), "8G");
        let at = Timestamp::from_unix;
        assert_eq!(age(at(0), at(59)), "59s");
        assert_eq!(age(at(0), at(7_200)), "2h");
        assert_eq!(age(at(10), at(0)), "0s");
    }

    #[test]
    fn what_a_guest_wrote_cannot_steer_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\rd\te\n"), "a\u{fffd}[2Jb\u{fffd}cd\te\n");
        assert_eq!(plain("a\u{202e}b\u{2069}c\u{2028}d\u{7f}"), "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}");
        assert_eq!(plain("ä \u{5d0} \u{1f9ea}"), "ä \u{5d0} \u{1f9ea}");
        assert_eq!(cell_text("a\nb"), "a b");
    }

    #[test]
    fn json_says_the_same_without_what_steers() {
        let value = "a\u{1b}\u{7f}\u{80}\u{9b}\u{9f}\u{202e}\u{2028}ä\n";
        let text = json_text(&serde_json::to_string_pretty(&[value]).unwrap_or_default());
        assert!(!text.chars().any(|c| steers(c) && c != '\n'), "{text:?}");
        assert!(text.contains(r"\u009b") && text.contains(r"\u202e") && text.contains('ä'), "{text}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&text).ok(), Some([value.to_owned()]));
    }
}
