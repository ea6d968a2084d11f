//! Programs run by scenarios: with a time limit always, output captured, and a terminal when asked
//! for.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::report::print_line;

/// How much of a program's output is quoted in an error.
const QUOTED: usize = 4000;

/// What takes longer is shown: nothing that a user waits for does, even under emulation.
const SLOW: Duration = Duration::from_secs(40);

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What was run, for messages.
    pub line: String,
    /// Its end.
    pub status: ExitStatus,
    /// Standard output; on a terminal both streams are here.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// The exit status must be zero.
    pub fn ok(self) -> Result<Self> {
        self.exits(0)
    }

    /// The exit status must be this one.
    pub fn exits(self, status: i32) -> Result<Self> {
        ensure!(self.status.code() == Some(status), "expected exit status {status}: {self}");
        Ok(self)
    }

    /// It must have failed by itself, without a signal, and have said all of these words on
    /// standard error.
    pub fn refused(self, words: &[&str]) -> Result<Self> {
        ensure!(self.status.code().is_some_and(|code| code != 0), "expected a refusal: {self}");
        for word in words {
            ensure!(self.stderr.contains(word), "expected {word:?} on standard error: {self}");
        }
        ensure!(!self.stderr.contains("panicked"), "it panicked: {self}");
        Ok(self)
    }

    /// Standard output must contain this.
    pub fn says(self, text: &str) -> Result<Self> {
        ensure!(self.stdout.contains(text), "expected {text:?} on standard output: {self}");
        Ok(self)
    }

    /// Standard output must not contain this.
    pub fn does_not_say(self, text: &str) -> Result<Self> {
        ensure!(!self.stdout.contains(text), "{text:?} must not be on standard output: {self}");
        Ok(self)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("expected JSON: {self}"))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {} after {:.1} s", self.line, self.status, self.took.as_secs_f64())?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                write!(f, "\n  {name}: {}", tail(text).trim_end().replace('\n', "\n  | "))?;
            }
        }
        Ok(())
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(QUOTED);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.get(start..).unwrap_or_default()
}

/// A program that is running, in a process group of its own. Dropped, it is killed with everything
/// in its group.
#[derive(Debug)]
pub struct Run {
    line: String,
    child: Child,
    started: Instant,
    stdout: Option<Heard>,
    stderr: Option<Heard>,
    ended: bool,
}

impl Run {
    /// Starts `words` as `user` (none: root), without sudo and with that user's own login
    /// environment.
    pub fn start(user: Option<&str>, words: &[&str]) -> Result<Self> {
        let mut command = as_user(user);
        command.args(words).stdin(Stdio::null());
        Self::spawn(command, format!("{}{}", prompt(user), words.join(" ")))
    }

    /// Starts a shell line on a terminal of its own; [`Run::type_in`] is its keyboard.
    pub fn start_on_terminal(user: Option<&str>, line: &str) -> Result<Self> {
        let mut command = as_user(user);
        command.args(["script", "--quiet", "--flush", "--return", "--command", line, "/dev/null"]);
        command.env("TERM", "xterm-256color").stdin(Stdio::piped());
        Self::spawn(command, format!("{}{line} (on a terminal)", prompt(user)))
    }

    fn spawn(mut command: Command, line: String) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start `{line}`"))?;
        let stdout = child.stdout.take().map(Heard::of);
        let stderr = child.stderr.take().map(Heard::of);
        Ok(Self { line, child, started: Instant::now(), stdout, stderr, ended: false })
    }

    /// The pid of what was started (runuser, which passes signals on).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `text` is on its standard output.
    pub fn until_it_says(&mut self, text: &str, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            // Asked first: whatever it has written is here when the reader has ended.
            let ended = self.has_ended()? && self.stdout.as_ref().is_none_or(|heard| heard.reader.is_finished());
            let said = self.stdout.as_ref().map(Heard::so_far).unwrap_or_default();
            if said.contains(text) {
                return Ok(());
            }
            let late = began.elapsed() > limit;
            ensure!(!ended && !late, "`{}` never says {text:?}: {said:?}", self.line);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types: `\x03` is Ctrl-C, `\x04` the end of input.
    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("this program has no terminal")?;
        keyboard
            .write_all(keys.as_bytes())
            .and_then(|()| keyboard.flush())
            .with_context(|| format!("type into `{}`", self.line))
    }

    /// Sends a signal to the whole group, as a terminal or a session's end would.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        killpg(self.group()?, signal).with_context(|| format!("send {signal} to `{}`", self.line))
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("watch `{}`", self.line))?.is_some())
    }

    /// Waits for its end; past the limit it is killed, and that is the error.
    pub fn wait(self, limit: Duration) -> Result<Finished> {
        let (finished, killed) = self.wait_or_kill(limit)?;
        ensure!(!killed, "no end within {} s: {finished}", limit.as_secs());
        Ok(finished)
    }

    /// The same where it may also go on: past the limit it is killed, and `None` is returned.
    pub fn wait_or_end(self, limit: Duration) -> Result<Option<Finished>> {
        let (finished, killed) = self.wait_or_kill(limit)?;
        Ok((!killed).then_some(finished))
    }

    fn wait_or_kill(mut self, limit: Duration) -> Result<(Finished, bool)> {
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("watch `{}`", self.line))? {
                return Ok((self.finish(status), false));
            }
            if self.started.elapsed() > limit {
                self.signal(Signal::SIGKILL)?;
                let status = self.child.wait().with_context(|| format!("wait for `{}`", self.line))?;
                return Ok((self.finish(status), true));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn finish(&mut self, status: ExitStatus) -> Finished {
        self.ended = true;
        let took = self.started.elapsed();
        // A descendant that was left behind may hold the pipe open for ever: it is looked for by
        // the inventory, not waited for here.
        let collect = |stream: Option<Heard>| {
            let Some(stream) = stream else { return String::new() };
            let waited = Instant::now();
            while !stream.reader.is_finished() && waited.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if stream.reader.is_finished() {
                stream.so_far()
            } else {
                "(output still held open by another process)".to_owned()
            }
        };
        let (stdout, stderr) = (collect(self.stdout.take()), collect(self.stderr.take()));
        if took > SLOW {
            print_line(&format!("  slow  {:>6.1} s  {}", took.as_secs_f64(), self.line));
        }
        Finished { line: self.line.clone(), status, stdout, stderr, took }
    }

    fn group(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id()).context("a pid beyond 31 bits")?))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

fn prompt(user: Option<&str>) -> String {
    user.map_or_else(|| "# ".to_owned(), |user| format!("{user}$ "))
}

/// The beginning of a command line that runs what follows as the user, with the groups of the user
/// data base as a new login would have.
fn as_user(user: Option<&str>) -> Command {
    let mut command = match user {
        None => Command::new("env"),
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args([
                "-u",
                user,
                "--",
                "env",
                &format!("HOME=/home/{user}"),
                &format!("USER={user}"),
                &format!("LOGNAME={user}"),
            ]);
            command
        }
    };
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command.current_dir("/");
    command
}

/// What a program has written to one of its streams.
#[derive(Debug)]
struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Heard {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 8192];
            loop {
                match stream.read(&mut piece) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                    Ok(length) => {
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        heard.extend(piece.get(..length).unwrap_or_default());
                    }
                }
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn status_and_both_streams_are_kept_apart() -> Result<()> {
        let finished = Run::start(None, &["sh", "-c", "echo out; echo err >&2; exit 42"])?.wait(LIMIT)?.exits(42)?;
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
        assert!(finished.clone().refused(&["err"]).is_ok());
        assert!(finished.clone().refused(&["something else"]).is_err());
        assert!(finished.ok().is_err());
        Ok(())
    }

    #[test]
    fn past_its_limit_the_whole_group_is_killed() -> Result<()> {
        let started = Instant::now();
        let result = Run::start(None, &["sh", "-c", "sleep 60 & sleep 60"])?.wait(Duration::from_millis(200));
        assert!(result.is_err_and(|error| error.to_string().contains("no end within")));
        assert!(started.elapsed() < Duration::from_secs(10));
        Ok(())
    }

    #[test]
    fn a_terminal_is_one_and_ctrl_c_reaches_it() -> Result<()> {
        let mut run = Run::start_on_terminal(None, "test -t 0 && echo terminal; sleep 60")?;
        run.until_it_says("terminal", LIMIT)?;
        run.type_in("\x03")?;
        let finished = run.wait(LIMIT)?;
        assert!(finished.stdout.contains("terminal"), "{finished}");
        assert!(finished.took < Duration::from_secs(15), "{finished}");
        Ok(())
    }

    #[test]
    fn what_is_never_said_is_waited_for_until_the_end_or_the_limit() -> Result<()> {
        for line in ["echo something; exit 3", "echo something; sleep 60"] {
            let mut run = Run::start(None, &["sh", "-c", line])?;
            run.until_it_says("some", LIMIT)?;
            let error = run.until_it_says("else", Duration::from_millis(200)).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("something")));
        }
        Ok(())
    }

    #[test]
    fn a_long_output_is_cut_at_a_character() {
        let text = format!("x{}", "é".repeat(QUOTED));
        assert!(tail(&text).len() <= QUOTED);
        assert!(tail(&text).starts_with('é'));
    }
}
