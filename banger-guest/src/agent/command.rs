//! A command over a connection of its own ([`banger_proto::command`]): `vm exec` and `vm run`.
//!
//! Called by the agent for each connection to the commands' port. Nothing here waits for the
//! command or for the client alone: one task reads the connection, one writes it, one writes the
//! command's input, and one for each stream reads its output. So a signal arrives while output
//! stands still, and output while input does.

use banger_proto::command::{Answer, FromGuest, Opening, Purpose, Start, ToGuest, VERSION, WINDOW};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::ending::{last_frame, linger};
use super::exec::{self, Asked, Request, StartError, Started};
use super::feed::{Feed, feed};
use super::output::Stream;
use super::pty::{self, Terminal};
use super::server::{Running, Shared};
use super::{inside, keys, names, sessions};

/// How long a connection may take to say what it is for. The daemon and the command line say it at
/// once, as far as a host under load lets them.
const BEGIN: Duration = Duration::from_secs(30);
/// Frames that wait for the connection. A command's output stops when they do.
const QUEUE: usize = 4;

/// Serves a connection until the host closes it.
pub(super) async fn serve<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    let (from, mut to) = tokio::io::split(stream);
    let mut from = BufReader::with_capacity(WINDOW / 4, from);
    let Ok(Ok((version, opening))) = timeout(BEGIN, Opening::read(&mut from)).await else { return };
    let opening = match opening {
        Some(opening) if version == VERSION => opening,
        _ => {
            let _ = Answer::Version(VERSION).write(&mut to).await;
            return linger(from).await;
        }
    };
    if !opening.token.proves(&shared.token) {
        return;
    }
    let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
        let _ = Answer::Busy.write(&mut to).await;
        return linger(from).await;
    };
    if Answer::Open.write(&mut to).await.is_err() {
        return;
    }
    match opening.purpose {
        Purpose::Keys => {
            let _ = keys::take(&mut from, &mut to, &shared.keys).await;
            linger(from).await;
        }
        Purpose::Names => {
            let _ = names::take(&mut from, &mut to).await;
            linger(from).await;
        }
        Purpose::Inside => {
            if let Ok(inside) = tokio::task::spawn_blocking(inside::look).await {
                let _ = inside.write(&mut to).await;
            }
            linger(from).await;
        }
        Purpose::Session => {
            let Ok(Ok(Some(request))) = timeout(BEGIN, sessions::Request::read(&mut from)).await else { return };
            // Who sends more before the answer would lose it.
            if !from.buffer().is_empty() {
                return;
            }
            let stream = from.into_inner().unsplit(to);
            if let Some(stream) = sessions::serve(stream, request, &shared.sessions).await {
                linger(stream).await;
            }
        }
        Purpose::Command => {
            let Ok(Ok(Some(ToGuest::Start(start)))) = timeout(BEGIN, ToGuest::read(&mut from)).await else { return };
            let is_terminal = start.terminal.is_some();
            match start_command(*start, &shared).await {
                Ok(started) => {
                    let running = running(&started, &shared, is_terminal);
                    if let Some(abandoned) = converse(from, to, started, running).await {
                        drop(place);
                        abandoned.end().await;
                    }
                }
                Err(error) => {
                    let refused = FromGuest::Refused(error.status(), error.to_string());
                    let _ = refused.write(&mut to).await;
                    linger(from).await;
                }
            }
        }
    }
}

/// Looking users up and executing programs wait for the disk, which must not silence the agent.
async fn start_command(start: Start, shared: &Shared) -> Result<Started, StartError> {
    let Start { words, env, working_dir, user, terminal } = start;
    let text = OsString::from_vec;
    let request = Request {
        asked: Asked::Command { words, user, folder: working_dir },
        terminal: terminal.as_ref().map(Terminal::of_command),
        environment: env.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
        tables: Arc::clone(&shared.tables),
    };
    let started = tokio::task::spawn_blocking(move || exec::start(&request)).await;
    started.unwrap_or(Err(StartError::Ended))
}

/// A child that is not reaped yet has a number, which is also its group's.
fn running(started: &Started, shared: &Arc<Shared>, terminal: bool) -> Option<Running> {
    started.child.id().map(|pid| shared.running(pid.cast_signed(), terminal))
}

/// A command whose client has gone before its end.
pub(super) struct Abandoned {
    pub(super) child: tokio::process::Child,
    pub(super) running: Option<Running>,
}

impl Abandoned {
    /// Hangs it up, as the loss of a terminal does: `nohup` and services that ignore SIGHUP live
    /// on, without anybody who reads their output.
    pub(super) async fn end(mut self) {
        if let Some(running) = &self.running {
            running.signal(libc::SIGHUP);
            running.signal(libc::SIGCONT);
        }
        let _ = self.child.wait().await;
    }
}

/// Carries bytes and signals until the command has ended and the host has closed. Gives the command
/// back when the host closes first.
async fn converse<R, W>(from: R, to: W, started: Started, mut running: Option<Running>) -> Option<Abandoned>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let Started { mut child, input, output, errors, terminal } = started;
    let (say, said) = mpsc::channel(QUEUE);
    let mut tasks = Tasks::default();
    let writer = tokio::spawn(write_frames(to, said));
    tasks.end_with_us(writer.abort_handle());
    let (ended, has_ended) = watch::channel(false);
    let is_terminal = terminal.is_some();
    let mut outputs = JoinSet::new();
    let stream = |frame: fn(Vec<u8>) -> FromGuest| Stream { say: say.clone(), frame, terminal: is_terminal };
    outputs.spawn(stream(FromGuest::Output).pump(output, has_ended.clone()));
    if let Some(errors) = errors {
        outputs.spawn(stream(FromGuest::ErrorOutput).pump(errors, has_ended));
    }
    let waiting = Arc::new(AtomicUsize::new(0));
    let (input_for, fed) = mpsc::unbounded_channel();
    let feeding = tokio::spawn(feed(input, fed, say.clone(), Arc::clone(&waiting)));
    tasks.end_with_us(feeding.abort_handle());
    let (frame, mut frames) = mpsc::channel(QUEUE);
    tasks.end_with_us(tokio::spawn(read_frames(from, frame)).abort_handle());
    let _ = say.send(FromGuest::Started).await;

    let status = loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(ToGuest::Input(bytes)) => {
                    // More than the credit is no client of ours.
                    if waiting.fetch_add(bytes.len(), Ordering::AcqRel).saturating_add(bytes.len()) > WINDOW {
                        return Some(Abandoned { child, running });
                    }
                    let _ = input_for.send(Feed::Bytes(bytes));
                }
                Some(ToGuest::InputEnd) => {
                    let end = terminal.as_ref().map_or(Feed::End, |terminal| Feed::EndOfTerminal(pty::end_of_file(terminal)));
                    let _ = input_for.send(end);
                }
                Some(ToGuest::Resize(cols, rows)) => {
                    if let Some(terminal) = &terminal {
                        pty::set_size(terminal, (cols.into(), rows.into(), 0, 0));
                    }
                }
                Some(ToGuest::Signal(number)) => {
                    if let Some(running) = &running {
                        running.signal(number.into());
                    }
                }
                Some(ToGuest::Start(_)) | None => return Some(Abandoned { child, running }),
            },
            status = child.wait() => {
                drop(running.take());
                break status.unwrap_or_default();
            }
        }
    };
    // What it wrote until now is sent; a child of it that holds the streams may go on without them.
    let _ = ended.send(true);
    feeding.abort();
    let last = async {
        while outputs.join_next().await.is_some() {}
        let _ = say.send(last_frame(status)).await;
        drop(say);
        let _ = writer.await;
    };
    let closed = async { while frames.recv().await.is_some() {} };
    tokio::pin!(closed);
    tokio::select! {
        () = last => closed.await,
        () = &mut closed => {}
    }
    None
}

/// Tasks that end with the conversation.
#[derive(Default)]
struct Tasks(Vec<AbortHandle>);

impl Tasks {
    fn end_with_us(&mut self, task: AbortHandle) {
        self.0.push(task);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn read_frames(mut from: impl AsyncRead + Unpin, frames: mpsc::Sender<ToGuest>) {
    while let Ok(Some(frame)) = ToGuest::read(&mut from).await {
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

async fn write_frames(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<FromGuest>) {
    while let Some(frame) = frames.recv().await {
        if frame.write(&mut to).await.is_err() {
            return;
        }
    }
    let _ = to.flush().await;
}

#[cfg(test)]
pub(super) mod tests;
