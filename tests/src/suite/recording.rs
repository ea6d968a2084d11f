//! A terminal of which everything is kept that it shows, and when: a recording in the format of
//! asciinema, version 2. One JSON line with the size, then one for each piece of output.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

/// Size of the terminal.
const COLUMNS: u16 = 110;
const ROWS: u16 = 32;
/// Between two keys: what is typed is to be read.
const KEY: Duration = Duration::from_millis(40);
/// A player makes longer pauses as short as this, seconds.
const IDLE: f32 = 1.5;

/// What was shown.
#[derive(Debug, Default)]
struct Shown {
    /// Each piece, with its time in seconds.
    pieces: Vec<(f64, String)>,
    /// Bytes of a character whose rest has not come.
    rest: Vec<u8>,
}

impl Shown {
    fn add(&mut self, at: f64, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.rest) {
            Ok(text) => text.len(),
            // What can never become a character is shown as none.
            Err(error) if error.error_len().is_some() => self.rest.len(),
            Err(error) => error.valid_up_to(),
        };
        let piece: Vec<u8> = self.rest.drain(..whole).collect();
        if !piece.is_empty() {
            self.pieces.push((at, String::from_utf8_lossy(&piece).into_owned()));
        }
    }

    fn since(&self, piece: usize) -> String {
        self.pieces.iter().skip(piece).map(|(_, text)| text.as_str()).collect()
    }
}

/// A terminal, recorded. Dropped, its programs are ended.
#[derive(Debug)]
pub(super) struct Recording {
    child: Child,
    shown: Arc<Mutex<Shown>>,
    reader: Option<JoinHandle<()>>,
    /// How many pieces there were when something was typed last.
    typed_at: usize,
    started: Instant,
}

impl Recording {
    /// Starts a shell line on a terminal, as root.
    pub(super) fn start(line: &str) -> Result<Self> {
        let line = format!("stty cols {COLUMNS} rows {ROWS}; exec {line}");
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs([("LANG", "C.UTF-8"), ("TERM", "xterm-256color"), ("HOME", "/root"), ("SHELL", "/bin/bash")])
            .current_dir("/root")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start script")?;
        let mut output = child.stdout.take().context("script has no output")?;
        let (shown, started) = (Arc::new(Mutex::new(Shown::default())), Instant::now());
        let kept = Arc::clone(&shown);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                lock(&kept).add(started.elapsed().as_secs_f64(), bytes.get(..count).unwrap_or_default());
            }
        });
        Ok(Self { child, shown, reader: Some(reader), typed_at: 0, started })
    }

    /// Types a line, and Enter.
    pub(super) fn type_line(&mut self, line: &str) -> Result<()> {
        self.typed_at = lock(&self.shown).pieces.len();
        let keyboard = self.child.stdin.as_mut().context("script has no input")?;
        for key in line.chars().chain(['\r']) {
            keyboard.write_all(key.encode_utf8(&mut [0; 4]).as_bytes()).context("type")?;
            keyboard.flush().context("type")?;
            std::thread::sleep(KEY);
        }
        Ok(())
    }

    /// Waits until something is shown, since what was typed last. Gives all that was.
    pub(super) fn wait_for(&self, words: &str, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            let text = lock(&self.shown).since(self.typed_at);
            if text.contains(words) {
                return Ok(text);
            }
            if begun.elapsed() > limit {
                bail!("{words:?} was not shown within {} s, but {text:?}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How long it has been running.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The lines of the recording's file, when the program has ended.
    pub(super) fn end(mut self, title: &str) -> Result<Vec<String>> {
        drop(self.child.stdin.take());
        self.child.wait().context("wait for script")?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(lines(title, &lock(&self.shown).pieces))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // After `end` it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines(title: &str, pieces: &[(f64, String)]) -> Vec<String> {
    let head = json!({ "version": 2, "width": COLUMNS, "height": ROWS, "title": title, "idle_time_limit": IDLE });
    // Milliseconds are enough for whoever looks.
    let piece = |(at, text): &(f64, String)| json!([(at * 1000.0).round() / 1000.0, "o", text]).to_string();
    std::iter::once(head.to_string()).chain(pieces.iter().map(piece)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_comes_in_two_pieces_is_one() {
        let mut shown = Shown::default();
        for (at, bytes) in [(0.5, &b"a\xc3"[..]), (1.0, &b"\xa9b"[..]), (2.0, &b"\xff"[..])] {
            shown.add(at, bytes);
        }
        assert_eq!(shown.since(0), "aéb\u{fffd}");
        assert_eq!(shown.since(1), "éb\u{fffd}");
    }

    #[test]
    fn what_a_terminal_shows_is_recorded_with_its_times() -> Result<()> {
        let mut recording = Recording::start("env PS1='host# ' bash --norc --noprofile -i")?;
        recording.wait_for("host# ", Duration::from_secs(20))?;
        recording.type_line("stty size; exit")?;
        recording.wait_for("32 110", Duration::from_secs(20))?;
        let lines = recording.end("a title")?;
        let values: Vec<serde_json::Value> =
            lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
        assert_eq!((&values[0]["version"], &values[0]["title"]), (&json!(2), &json!("a title")));
        let times: Vec<f64> = values[1..].iter().map(|piece| piece[0].as_f64().unwrap()).collect();
        assert!(times.is_sorted() && values[1..].iter().all(|piece| piece[1] == "o"), "{values:?}");
        let text: String = values[1..].iter().map(|piece| piece[2].as_str().unwrap()).collect();
        assert!(text.contains("stty size; exit\r\n") && text.contains("32 110"), "{text:?}");
        Ok(())
    }
}
