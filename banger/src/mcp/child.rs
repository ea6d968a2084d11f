//! A command of banger's own, started for a tool. So a tool does what the command line does, with
//! the same rights and the same undoing of what was begun.

use crate::error::explained;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::kept::Kept;

/// How long a command may take to end after an interruption, before the next one.
const PATIENCE: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(5), Duration::from_secs(30)];

/// What is run.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// The arguments of banger.
    pub(super) words: Vec<OsString>,
    /// Standard input; none when this is `None`.
    pub(super) stdin: Option<Vec<u8>>,
    /// How long it may take.
    pub(super) limit: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// The exit status; 128 and the signal's number when one ended it.
    pub(super) status: u8,
    /// What it said on standard error.
    pub(super) errors: Kept,
    /// It was ended before its own end, because of this.
    pub(super) cut: Option<Cut>,
}

/// Why a command was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It took too long.
    Late,
    /// The client no longer wants it, or is gone.
    Cancelled,
    /// It wrote more than anybody wants.
    TooMuch,
}

/// Takes what a command writes; false when that is enough.
pub(super) trait Sink {
    fn take(&mut self, bytes: &[u8]) -> bool;
}

/// Runs it to its end, or until `cancelled`.
///
/// # Errors
/// When it cannot be started.
pub(super) async fn run(
    program: &Path,
    call: Call,
    sink: &mut (impl Sink + ?Sized),
    cancelled: impl Future<Output = ()>,
) -> anyhow::Result<Ended> {
    let mut command = Command::new(program);
    let (name, machine) = crate::machine::variable();
    command.args(&call.words).env(name, machine).env("NO_COLOR", "1").kill_on_drop(true);
    // The client's Ctrl-C is for the client: this process passes on what is meant for the command.
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if call.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(|error| match error.raw_os_error() {
        // execve(2): one of 128 KiB, or all together.
        Some(number) if number == Errno::E2BIG as i32 => explained(
            "the values are too long for a program to be started with",
            "one value has 128 KiB at most: give what is longer as `stdin`, or write it with file_write",
        ),
        _ => anyhow::Error::new(error).context(format!("cannot start {}", program.display())),
    })?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut errors, mut cut) = (Kept::default(), None);
    if let (Some(bytes), Some(mut stdin)) = (call.stdin, child.stdin.take()) {
        // A command that does not read its input says itself how it ended.
        tokio::spawn(async move { drop(stdin.write_all(&bytes).await) });
    }
    let mut late = std::pin::pin!(sleep(call.limit));
    let mut cancelled = std::pin::pin!(cancelled);
    let (mut chunk, mut error_chunk) = (vec![0; 64 * 1024], vec![0; 4 * 1024]);
    while out.is_some() || err.is_some() {
        let reading = async {
            match &mut out {
                Some(from) => from.read(&mut chunk).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let reading_errors = async {
            match &mut err {
                Some(from) => from.read(&mut error_chunk).await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            read = reading => match read {
                0 => {
                    out = None;
                    continue;
                }
                read if sink.take(chunk.get(..read).unwrap_or_default()) => continue,
                _ => Cut::TooMuch,
            },
            read = reading_errors => {
                if read == 0 {
                    err = None;
                }
                errors.push(error_chunk.get(..read).unwrap_or_default());
                continue;
            }
            () = &mut late => Cut::Late,
            () = &mut cancelled => Cut::Cancelled,
        };
        cut = Some(reason);
        break;
    }
    // What it still writes is not read: an interrupted command does not wait for that.
    drop((out, err));
    let status = if cut.is_some() { interrupt(&mut child).await } else { end(&mut child).await };
    Ok(Ended { status: status.context("a command of banger has no status")?, errors, cut })
}

/// As Ctrl-C: what it began is undone. One that does not end is asked again, and ended at last.
async fn interrupt(child: &mut Child) -> std::io::Result<u8> {
    for patience in PATIENCE {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It is not reaped yet, so the number is its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        if let Ok(ended) = timeout(patience, end(child)).await {
            return ended;
        }
    }
    child.kill().await?;
    end(child).await
}

async fn end(child: &mut Child) -> std::io::Result<u8> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = child.wait().await?;
    let signal =
        || status.signal().and_then(|number| u8::try_from(number).ok()).map_or(1, banger_proto::signal::status);
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or_else(signal))
}

impl Cut {
    /// For the model that called the tool.
    pub(super) fn error(self, limit: Duration) -> anyhow::Error {
        match self {
            Self::Late => explained(
                format!("it was interrupted: it took longer than {} s", limit.as_secs()),
                "give more time with timeout_seconds, or start it in the background: session_start",
            ),
            Self::Cancelled => explained("it was cancelled", ""),
            Self::TooMuch => explained("it wrote more than a tool passes on", "use the command line: banger vm cp"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::time::Instant;

    impl Sink for Vec<u8> {
        fn take(&mut self, bytes: &[u8]) -> bool {
            self.extend_from_slice(bytes);
            self.len() < 1_000_000
        }
    }

    async fn sh(
        script: &str,
        stdin: Option<&str>,
        limit: Duration,
        cancelled: impl Future<Output = ()>,
    ) -> (Ended, Vec<u8>) {
        let mut out = Vec::new();
        let words = ["-c", script].map(OsString::from).to_vec();
        let call = Call { words, stdin: stdin.map(|text| text.as_bytes().to_vec()), limit };
        let ended = run(Path::new("/bin/sh"), call, &mut out, cancelled).await.unwrap();
        (ended, out)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_command_has_its_input_and_gives_both_outputs_and_its_status() {
        let never = std::future::pending();
        let (ended, out) = sh("cat; echo err >&2; exit 3", Some("typed"), LONG, never).await;
        assert_eq!((ended.status, ended.cut, ended.errors.text().as_str()), (3, None, "err\n"));
        assert_eq!(out, b"typed");
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_interrupted_and_may_undo() {
        let script = "trap 'exit 7' INT; echo begun; while :; do sleep 0.05; done";
        let (ended, out) = sh(script, None, Duration::from_millis(500), std::future::pending()).await;
        assert_eq!((ended.status, ended.cut), (7, Some(Cut::Late)));
        assert_eq!(out, b"begun\n");
        let began = Instant::now();
        let (ended, _) = sh("exec sleep 60", None, LONG, sleep(Duration::from_millis(200))).await;
        assert_eq!((ended.status, ended.cut), (130, Some(Cut::Cancelled)));
        assert!(began.elapsed() < LONG);
    }

    #[tokio::test]
    async fn a_value_that_is_too_long_for_a_program_is_explained() {
        let call = Call { words: vec!["x".repeat(200_000).into()], limit: LONG, ..Call::default() };
        let error = run(Path::new("/bin/true"), call, &mut Vec::new(), std::future::pending()).await.unwrap_err();
        let said = crate::error::said(&error);
        assert!(said.contains("too long") && said.contains("stdin"), "{said}");
    }

    #[tokio::test]
    async fn one_that_writes_without_end_is_ended() {
        let (ended, out) = sh("yes", None, LONG, std::future::pending()).await;
        assert_eq!(ended.cut, Some(Cut::TooMuch));
        assert!(out.len() < 2_000_000);
    }
}
