//! A command in a guest whose input and output are ours: how files go to and fro.
//!
//! Used by `workspace`, `vm cp` and file sync. Mostly the command is the agent's own
//! (`banger_files::COMMAND`), because an image need not have a program that packs files. What comes
//! back is a guest's: it is bounded here, and parsed as hostile elsewhere.

use crate::client::{Client, Opened};
use crate::error::explained;
use crate::guest::{self, Credit};
use crate::work;
use anyhow::Context as _;
use banger_files::COMMAND;
use banger_proto::command::{FromGuest, Start, ToGuest};
use banger_proto::stream::StreamRequest;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Pipe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Input is sent in pieces of this, bytes.
const CHUNK: usize = 32 * 1024;
/// How long a command may do nothing that is seen while it is not waiting for our input. At its end
/// it may sync a gigabyte to a slow disk.
const IDLE: Duration = Duration::from_secs(600);
/// What is kept of a command's standard error, bytes.
const MAX_ERRORS: usize = 4096;
/// What is kept of an answer that is about one path.
pub(crate) const MAX_LOOK: u64 = 64 * 1024;
/// What is kept of the list of a million changed files.
pub(crate) const MAX_CHANGES: u64 = 256 * 1024 * 1024;
/// What shells, and the agent, say of a command that is not there.
const NO_PROGRAM: u8 = 127;

/// A guest.
#[derive(Clone)]
pub(crate) enum Guest<'a> {
    /// One of the daemon's.
    Vm {
        client: &'a Client,
        /// Its id or name.
        vm: String,
        /// Who does it; the image's user when `None`.
        user: Option<&'static str>,
        /// Nothing is changed: it need not run for that.
        reads: bool,
    },
    /// A folder that plays the guest, as its root user's home.
    #[cfg(test)]
    Folder(std::path::PathBuf),
}

impl Guest<'_> {
    /// Whether both are the same VM, as far as their words say.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vm { vm, .. }, Self::Vm { vm: other, .. }) => vm == other,
            #[cfg(test)]
            (Self::Folder(home), Self::Folder(other)) => home == other,
            #[cfg(test)]
            _ => false,
        }
    }

    /// The same guest, and its root does it: the owner of the machine, who may read everything
    /// there.
    pub(crate) fn as_root(&self) -> Self {
        match self {
            Self::Vm { client, vm, reads, .. } => {
                Self::Vm { client, vm: vm.clone(), user: Some("root"), reads: *reads }
            }
            #[cfg(test)]
            Self::Folder(home) => Self::Folder(home.clone()),
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: u8,
    /// The beginning of its standard error.
    pub(crate) errors: String,
}

/// Runs words in a guest, in the named folder or else where commands start.
///
/// # Errors
/// Why they could not be run, a lost connection, or what `output` says.
pub(crate) async fn run(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> anyhow::Result<Ran> {
    match guest {
        Guest::Vm { client, vm, user, reads } => {
            let opened = client.guest(StreamRequest::Command { vm: vm.clone(), reads: *reads }).await?;
            // A whole path needs no folder. The image's may be missing on a disk that is only read.
            let is_whole = *reads && words.get(2).is_some_and(|path| path.starts_with(['/', '~']));
            let folder = folder.or(is_whole.then_some("/"));
            let start = Start {
                words: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
                working_dir: folder.map(|folder| folder.as_bytes().to_vec()),
                user: user.map(str::to_owned),
                ..Start::default()
            };
            // Large: buffers of both directions.
            Box::pin(talk(opened, start, input, output)).await
        }
        #[cfg(test)]
        Guest::Folder(home) => Box::pin(tests::run(home, words, folder, input, output)).await,
    }
}

async fn talk(
    opened: Opened,
    start: Start,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> anyhow::Result<Ran> {
    let Opened { guest, _daemon } = opened;
    let (from, mut to) = guest.into_split();
    ToGuest::Start(Box::new(start)).write(&mut to).await.map_err(guest::lost)?;
    let credit = Credit::default();
    // It is our input that is waited for.
    let ours = AtomicBool::new(false);
    let writing = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            ours.store(true, Ordering::Relaxed);
            let read = match input.read(&mut buffer).await {
                Ok(read) => read,
                // Without a word to the guest: the end of the input would say that this was all.
                Err(error) => return anyhow::Error::new(error).context("cannot read what is sent"),
            };
            ours.store(false, Ordering::Relaxed);
            credit.take(read).await;
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            let frame = if read == 0 { ToGuest::InputEnd } else { ToGuest::Input(bytes) };
            if frame.write(&mut to).await.is_err() || read == 0 {
                // The reader learns how the command ended.
                return std::future::pending().await;
            }
        }
    };
    let reading = async {
        let mut from = tokio::io::BufReader::with_capacity(2 * CHUNK, from);
        let mut errors = Vec::new();
        let status = loop {
            let frame = {
                let mut next = pin!(FromGuest::read(&mut from));
                loop {
                    match timeout(IDLE, &mut next).await {
                        Ok(frame) => break frame.map_err(guest::lost)?,
                        Err(_) if ours.load(Ordering::Relaxed) => {}
                        Err(_) => return Err(guest::silent(IDLE)),
                    }
                }
            };
            match frame {
                Some(FromGuest::Started) => {}
                Some(FromGuest::Credit(bytes)) => credit.give(bytes),
                Some(FromGuest::Output(bytes)) => output.write_all(&bytes).await?,
                Some(FromGuest::ErrorOutput(bytes)) => {
                    let room = MAX_ERRORS.saturating_sub(errors.len());
                    errors.extend(bytes.into_iter().take(room));
                }
                Some(FromGuest::Refused(status, why)) => {
                    errors = why.into_bytes();
                    errors.truncate(MAX_ERRORS);
                    break status;
                }
                Some(FromGuest::Exited(status)) => break status,
                Some(FromGuest::Killed(signal)) => break banger_proto::signal::status(signal),
                None => return Err(guest::ended_early()),
            }
        };
        output.shutdown().await?;
        Ok(Ran { status, errors: String::from_utf8_lossy(&errors).trim().to_owned() })
    };
    let (mut writing, mut reading) = (pin!(writing), pin!(reading));
    tokio::select! {
        ran = &mut reading => ran,
        error = &mut writing => Err(error),
    }
}

impl Ran {
    /// # Errors
    /// What the command said, when it failed.
    pub(crate) fn ok(self) -> anyhow::Result<()> {
        match self.status {
            0 => Ok(()),
            NO_PROGRAM => Err(explained(
                "the guest's agent does not know how to pack files",
                "it is of an earlier release: restart the VM with: banger vm restart VM",
            )),
            status if self.errors.is_empty() => Err(anyhow::anyhow!("the guest's agent ended with status {status}")),
            _ => Err(anyhow::anyhow!("in the guest: {}", self.errors)),
        }
    }
}

fn own<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&[COMMAND], words].concat()
}

/// The answer to words of the agent's own, at most so many bytes of it.
///
/// # Errors
/// As [`run`], and what the agent says.
pub(crate) async fn ask(guest: &Guest<'_>, words: &[&str], most: u64) -> anyhow::Result<Vec<u8>> {
    let (ran, answer) = output_of(guest, &own(words), None, most).await?;
    ran.ok()?;
    Ok(answer)
}

/// Runs any words without input.
///
/// # Errors
/// As [`run`]; more output than `most` bytes.
pub(crate) async fn output_of(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    most: u64,
) -> anyhow::Result<(Ran, Vec<u8>)> {
    let (ran, answer) = receive(guest, words, folder, Vec::new(), move |from| {
        let mut answer = Vec::new();
        from.take(most + 1).read_to_end(&mut answer)?;
        anyhow::ensure!(answer.len() as u64 <= most, "the guest answers with more than {} KiB", most >> 10);
        Ok(answer)
    })
    .await?;
    Ok((ran, answer))
}

/// Sends what `work` writes to words of the agent's own; `sent` counts the bytes.
///
/// # Errors
/// What `work` says, else as [`ask`].
pub(crate) async fn send<T: Send + 'static>(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    sent: Arc<AtomicU64>,
    work: impl FnOnce(&mut dyn Write) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    send_to(guest, words, folder, sent, tokio::io::sink(), work).await
}

/// The same, and `output` gets what the words write.
///
/// # Errors
/// As [`send`].
pub(crate) async fn send_to<T: Send + 'static>(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    sent: Arc<AtomicU64>,
    output: impl AsyncWrite + Unpin,
    work: impl FnOnce(&mut dyn Write) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (theirs, ours) = Pipe::pair().context("cannot make a pipe")?;
    let mut working = work::begin(move || {
        let mut to = std::io::BufWriter::with_capacity(CHUNK, Counted { to: &theirs, count: sent });
        let done = work(&mut to).map(|done| (to.flush(), done));
        drop(to);
        match done {
            Ok((Ok(()), done)) => Ok(done),
            // Kept open: an end of the input would look like the end of the files.
            Ok((Err(error), _)) => Err((error.into(), theirs)),
            Err(error) => Err((error, theirs)),
        }
    });
    let (words, ours) = (own(words), from_std(ours)?);
    let mut running = pin!(run(guest, &words, folder, ours, output));
    let ran = tokio::select! {
        biased;
        ran = &mut running => ran?,
        done = &mut working => match done? {
            Ok(done) => {
                running.await?.ok()?;
                return Ok(done);
            }
            Err((error, pipe)) => {
                // A pipe that is closed at the other end is a guest that gave up, which says why.
                if !is_broken(&error) {
                    return Err(error);
                }
                drop(pipe);
                running.await?
            }
        },
    };
    ran.ok()?;
    working.await?.map_err(|(error, _)| error)
}

/// Gives what words write to `work`, and `input` to the words.
///
/// # Errors
/// What `work` says, else as [`run`].
pub(crate) async fn receive<T: Send + 'static>(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    input: Vec<u8>,
    work: impl FnOnce(&mut dyn Read) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<(Ran, T)> {
    let (theirs, ours) = Pipe::pair().context("cannot make a pipe")?;
    let working = work::begin(move || {
        let mut from = std::io::BufReader::with_capacity(CHUNK, &theirs);
        work(&mut from)
    });
    let ran = run(guest, words, folder, input.as_slice(), from_std(ours)?).await;
    let done = working.await?;
    match (ran, done) {
        (Ok(ran), Ok(done)) => Ok((ran, done)),
        // What the guest says about itself explains an archive that ended too early.
        (Ok(ran), Err(error)) => {
            ran.ok()?;
            Err(error)
        }
        // We hung up on it because of our own error.
        (Err(hung_up), Err(error)) => Err(if is_broken(&hung_up) { error } else { hung_up }),
        (Err(error), Ok(_)) => Err(error),
    }
}

/// As [`receive`] with words of the agent's own.
///
/// # Errors
/// As [`receive`], and what the agent says.
pub(crate) async fn fetch<T: Send + 'static>(
    guest: &Guest<'_>,
    words: &[&str],
    folder: Option<&str>,
    input: Vec<u8>,
    work: impl FnOnce(&mut dyn Read) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (ran, done) = receive(guest, &own(words), folder, input, work).await?;
    ran.ok()?;
    Ok(done)
}

fn is_broken(error: &anyhow::Error) -> bool {
    use banger_files::Error;
    let kind = error.chain().find_map(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Stream(error)) => Some(error.kind()),
        _ => cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
    });
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

fn from_std(pipe: Pipe) -> anyhow::Result<UnixStream> {
    pipe.set_nonblocking(true).context("cannot make a pipe")?;
    UnixStream::from_std(pipe).context("cannot make a pipe")
}

struct Counted<'a> {
    to: &'a Pipe,
    count: Arc<AtomicU64>,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.count.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    //! The agent's program as a function, and everything else as programs of this machine.
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::path::Path;
    use std::process::{Command, Stdio};

    pub(super) async fn run(
        home: &Path,
        words: &[&str],
        folder: Option<&str>,
        mut input: impl AsyncRead + Unpin,
        mut output: impl AsyncWrite + Unpin,
    ) -> anyhow::Result<Ran> {
        let (in_theirs, in_ours) = Pipe::pair()?;
        let (out_theirs, out_ours) = Pipe::pair()?;
        let home = home.to_owned();
        let folder = folder.map_or_else(|| home.clone(), Into::into);
        let words: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        let working = tokio::task::spawn_blocking(move || {
            let (first, rest) = words.split_first().unwrap();
            if first == COMMAND {
                let (mut from, mut to) = (&in_theirs, std::io::BufWriter::new(&out_theirs));
                let ran = banger_files::program::run(rest, &home, &mut from, &mut to);
                let errors = ran.as_ref().map_or_else(ToString::to_string, |lines| lines.join("\n"));
                return Ran { status: u8::from(ran.is_err()), errors };
            }
            let ran = Command::new(first).args(rest).current_dir(folder).stdin(Stdio::null()).output();
            let Ok(ran) = ran else { return Ran { status: 127, errors: String::new() } };
            drop((&out_theirs).write_all(&ran.stdout));
            let status = ran.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            Ran { status, errors: String::from_utf8_lossy(&ran.stderr).into_owned() }
        });
        let (mut to, mut from) = (from_std(in_ours)?, from_std(out_ours)?);
        let feeding = async {
            drop(tokio::io::copy(&mut input, &mut to).await);
            drop(to);
        };
        let taking = async {
            let taken = tokio::io::copy(&mut from, &mut output).await;
            drop(from);
            taken?;
            output.shutdown().await
        };
        let ((), taken) = tokio::join!(feeding, taking);
        taken?;
        Ok(working.await?)
    }
}
