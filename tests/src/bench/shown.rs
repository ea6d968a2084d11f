//! Programs whose output the user sees while the bench reads along.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How often it is looked at what a program depends on.
const LOOK: Duration = Duration::from_secs(10);

/// How it ended and all that it printed, both streams in the order of reading.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) status: ExitStatus,
    pub(super) text: String,
}

/// Runs a program within a limit; what it prints appears here too, and in `copy` when there is one.
pub(super) fn run(command: Command, limit: Duration, copy: Option<&Path>) -> Result<Shown> {
    read_along(command, limit, copy, true, &|| false)
}

/// Runs a program within a limit whose output is of interest only when it fails.
pub(super) fn captured(command: Command, limit: Duration) -> Result<Shown> {
    read_along(command, limit, None, false, &|| false)
}

/// Runs a program within a limit, with or without its output appearing here, as long as what it
/// depends on is not lost.
pub(super) fn run_on(
    command: Command,
    limit: Duration,
    copy: &Path,
    echoed: bool,
    lost: &dyn Fn() -> bool,
) -> Result<Shown> {
    read_along(command, limit, Some(copy), echoed, lost)
}

/// What a program depended on has ended before it.
#[derive(Debug, thiserror::Error)]
#[error("what it runs on is lost")]
pub(super) struct Lost;

fn read_along(
    mut command: Command,
    limit: Duration,
    copy: Option<&Path>,
    echoed: bool,
    lost: &dyn Fn() -> bool,
) -> Result<Shown> {
    let name = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {name}"))?;
    let copy = copy
        .map(|path| std::fs::File::create(path).with_context(|| format!("create {}", path.display())))
        .transpose()?
        .map(|file| Arc::new(Mutex::new(file)));
    let (sender, receiver) = std::sync::mpsc::channel::<String>();
    let mut readers = Vec::new();
    if let Some(stream) = child.stdout.take() {
        readers.push(read(stream, sender.clone(), copy.clone(), echoed));
    }
    if let Some(stream) = child.stderr.take() {
        readers.push(read(stream, sender.clone(), copy.clone(), echoed));
    }
    drop(sender);
    let ended = wait(&mut child, limit, lost);
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    for reader in readers {
        let _ = reader.join();
    }
    let text: String = receiver.try_iter().collect();
    Ok(Shown { status: ended.with_context(|| name)?, text })
}

/// Runs a program that must end well.
pub(super) fn must(command: Command, limit: Duration) -> Result<String> {
    let name = format!("{command:?}");
    let shown = run(command, limit, None)?;
    ensure!(shown.status.success(), "{name} ended with {}", shown.status);
    Ok(shown.text)
}

fn wait(child: &mut Child, limit: Duration, lost: &dyn Fn() -> bool) -> Result<ExitStatus> {
    let started = Instant::now();
    let mut looked = started;
    loop {
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            if lost() {
                return Err(Lost.into());
            }
        }
        if let Some(status) = child.try_wait().context("watch it")? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            bail!("no end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read(
    stream: impl Read + Send + 'static,
    sender: std::sync::mpsc::Sender<String>,
    copy: Option<Arc<Mutex<std::fs::File>>>,
    echoed: bool,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if echoed {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
            if let Some(mut file) = copy.as_ref().and_then(|file| file.lock().ok()) {
                let _ = file.write_all(text.as_bytes());
            }
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn both_streams_are_read_and_the_status_kept() -> Result<()> {
        let shown = run(shell("echo one; echo two >&2; exit 3"), Duration::from_secs(10), None)?;
        assert!(shown.text.contains("one\n") && shown.text.contains("two\n"), "{shown:?}");
        assert_eq!(shown.status.code(), Some(3));
        assert!(must(shell("exit 3"), Duration::from_secs(10)).is_err());
        Ok(())
    }

    #[test]
    fn a_program_whose_ground_is_lost_is_ended_and_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let ended =
            run_on(shell("exec sleep 60"), Duration::from_secs(50), &folder.path().join("copy"), false, &|| true);
        assert!(ended.is_err_and(|error| error.is::<Lost>()));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let started = Instant::now();
        assert!(run(shell("exec sleep 60"), Duration::from_millis(200), None).is_err());
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
