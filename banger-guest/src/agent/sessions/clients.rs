//! Those who are connected to a session's process: they follow its log, write its input, or wait
//! for its end.
//!
//! The agent connects to the process's socket, sends a client's connection and what the client
//! asked for, and is told that both have arrived.

use banger_proto::command::{FromGuest, ToGuest};
use banger_proto::session::{Answer, Outputs, Refusal, Request, Status};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{timeout, timeout_at};

use super::group::Group;
use super::input::{Feed, Writer};
use super::read::{Begin, Selection};
use crate::agent::ending::linger;
use crate::agent::exec::Input;
use crate::agent::pty;
use crate::sys::stream::FdStream;
use crate::sys::{pass, signals};
use std::os::fd::OwnedFd;

/// Frames that wait for a client. The log waits for none.
const QUEUE: usize = 4;
/// How long the agent may take to pass a connection on.
const PASS: Duration = Duration::from_secs(10);
/// Clients at a time that stay: who reads, writes or waits. One who ends the command is always
/// heard.
const CLIENTS: usize = 64;
/// What a terminal wrote last, for one who attaches, bytes.
const SCROLLBACK: u64 = 64 << 10;

/// What a session's clients share.
pub(super) struct Hub {
    folder: PathBuf,
    input: Option<Feed>,
    terminal: Option<OwnedFd>,
    pub(super) group: Group,
    written: watch::Receiver<u64>,
    ended: watch::Receiver<Option<Status>>,
    places: Semaphore,
}

impl Hub {
    pub(super) fn new(
        folder: &Path,
        input: Option<Input>,
        terminal: Option<OwnedFd>,
        pid: Option<u32>,
        written: watch::Receiver<u64>,
        ended: watch::Receiver<Option<Status>>,
    ) -> Self {
        let end = terminal.as_ref().map(pty::end_of_file);
        let input = input.map(|input| Feed::new(input, end));
        let group = Group::new(pid);
        let places = Semaphore::new(CLIENTS);
        Self { folder: folder.to_owned(), input, terminal, group, written, ended, places }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Asks the command to end: as the loss of a terminal does, or by SIGTERM, since a service
    /// reloads on SIGHUP.
    pub(super) fn end(&self) {
        self.group.signal(if self.is_terminal() { libc::SIGHUP } else { libc::SIGTERM });
        self.group.signal(libc::SIGCONT);
    }

    async fn ended(&self) -> Status {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            _ => Status::LostProcess,
        }
    }

    async fn stop(&self) -> Status {
        let killed_at = self.group.stopped();
        self.end();
        match timeout_at(killed_at, self.ended()).await {
            Ok(status) => status,
            Err(_) => {
                self.group.signal(libc::SIGKILL);
                self.ended().await
            }
        }
    }

    /// Gives a terminal its client's size, and tells its program to draw itself anew.
    fn resize(&self, (cols, rows): (u16, u16)) {
        let Some(terminal) = &self.terminal else { return };
        pty::set_size(terminal, (cols.into(), rows.into(), 0, 0));
        // The kernel tells it only of another size.
        if let Ok(group) = nix::unistd::tcgetpgrp(terminal)
            && group.as_raw() > 1
        {
            let _ = signals::send(-group.as_raw(), libc::SIGWINCH);
        }
    }
}

/// Serves what the agent passes on by this connection.
pub(super) async fn serve(mut agent: UnixStream, hub: Arc<Hub>) {
    let root_or_we = |uid: u32| uid == 0 || uid == nix::unistd::geteuid().as_raw();
    if !agent.peer_cred().is_ok_and(|peer| root_or_we(peer.uid())) {
        return;
    }
    let passed = async {
        let descriptor = pass::receive(&agent).await?;
        let request = Request::read(&mut agent).await?;
        agent.write_u8(0).await?;
        io::Result::Ok(descriptor.zip(request))
    };
    let Ok(Ok(Some((descriptor, request)))) = timeout(PASS, passed).await else { return };
    match descriptor {
        // The agent itself, at the machine's end: how long that waits is not decided here.
        None if matches!(request, Request::Stop { .. }) => {
            hub.end();
            let _ = Answer::Ended(hub.ended().await).write(&mut agent).await;
        }
        // And while it watches what is started again.
        None => drop(answer(agent, request, &hub).await),
        Some(descriptor) => {
            drop(agent);
            let Ok(client) = FdStream::new(descriptor) else { return };
            match stays(&request).then(|| hub.places.try_acquire()) {
                Some(Err(_)) => {
                    let busy = Refusal::Failed(format!("{CLIENTS} clients are connected to it"));
                    let (from, to) = tokio::io::split(client);
                    let _ = timeout(PASS, refuse(from, to, busy)).await;
                }
                _place => drop(answer(client, request, &hub).await),
            }
        }
    }
}

fn stays(request: &Request) -> bool {
    matches!(request, Request::Logs { .. } | Request::Attach { .. } | Request::Send { .. } | Request::Wait { .. })
}

async fn refuse(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, why: Refusal) -> io::Result<()> {
    Answer::Refused(why).write(&mut to).await?;
    linger(from).await;
    Ok(())
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, request: Request, hub: &Hub) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    match request {
        Request::Logs { outputs, tail, follow, .. } => {
            let begin = tail.map_or(Begin::Oldest, Begin::Lines);
            let following = async {
                if follow {
                    let status = logs(hub, outputs, begin, async |answer| answer.write(&mut to).await).await?;
                    Answer::Ended(status).write(&mut to).await?;
                }
                io::Result::Ok(())
            };
            until_closed(&mut from, following).await?;
        }
        Request::Wait { .. } => {
            let waiting = async { Answer::Ended(hub.ended().await).write(&mut to).await };
            until_closed(&mut from, waiting).await?;
        }
        // A client that goes away does not take it back.
        Request::Stop { .. } => Answer::Ended(hub.stop().await).write(&mut to).await?,
        Request::Kill { signal, .. } => {
            hub.group.signal(signal.into());
            Answer::Done.write(&mut to).await?;
        }
        Request::Send { .. } => return send(from, to, hub).await,
        Request::Attach { size, .. } => return attach(from, to, size, hub).await,
        // The agent's own to answer.
        Request::List | Request::Show { .. } | Request::Start(_) | Request::Remove { .. } => return Ok(()),
    }
    linger(from).await;
    Ok(())
}

/// Does the work, and nothing more when the client has closed.
async fn until_closed(
    from: &mut (impl AsyncRead + Unpin),
    work: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::select! {
        done = work => done,
        () = linger(from) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Shows the log until the session has ended and all is shown.
async fn logs(
    hub: &Hub,
    outputs: Outputs,
    begin: Begin,
    mut show: impl AsyncFnMut(Answer) -> io::Result<()>,
) -> io::Result<Status> {
    let (mut written, mut ended) = (hub.written.clone(), hub.ended.clone());
    let mut selection = Selection::following(&hub.folder, outputs, begin)?;
    loop {
        written.mark_unchanged();
        // What is written when it has ended is all that there is.
        let end = *ended.borrow_and_update();
        while let Some(answer) = selection.next()? {
            show(answer).await?;
        }
        if let Some(status) = end {
            return Ok(status);
        }
        tokio::select! {
            // The process ends with its log, and so do these.
            changed = written.changed() => if changed.is_err() { drop(ended.changed().await) },
            _ = ended.changed() => {}
        }
    }
}

/// Passes input on; the client is told what was written.
async fn send(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, hub: &Hub) -> io::Result<()> {
    let Some(input) = &hub.input else { return refuse(from, to, Refusal::NoInput).await };
    let mut closed = input.closed();
    if *closed.borrow() {
        return refuse(from, to, Refusal::InputClosed).await;
    }
    let (writer, mut credits) = match Writer::new(Some(input)) {
        Ok(writer) => writer,
        Err(refusal) => return refuse(from, to, refusal).await,
    };
    Answer::Opened.write(&mut to).await?;
    let mut taking = pin!(writer.take(from, |_| {}));
    let telling = async {
        loop {
            tokio::select! {
                biased;
                Some(bytes) = credits.recv() => {
                    writer.give_back(bytes);
                    Answer::Credit(bytes).write(&mut to).await?;
                }
                status = hub.ended() => return Answer::Ended(status).write(&mut to).await,
                () = async { drop(closed.wait_for(|closed| *closed).await) } => return Answer::InputClosed.write(&mut to).await,
            }
        }
    };
    tokio::select! {
        () = &mut taking => {}
        told = telling => {
            told?;
            taking.await;
        }
    }
    Ok(())
}

/// Input and output of a session, as of a command that has started.
async fn attach(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    size: Option<(u16, u16)>,
    hub: &Hub,
) -> io::Result<()> {
    let (writer, mut credits) = match Writer::new(hub.input.as_ref()) {
        Ok(writer) => writer,
        Err(refusal) => return refuse(from, to, refusal).await,
    };
    let begin = if hub.is_terminal() { Begin::Bytes(SCROLLBACK) } else { Begin::End(*hub.written.borrow()) };
    Answer::Opened.write(&mut to).await?;
    if let Some(size) = size {
        hub.resize(size);
    }
    let (say, mut said) = mpsc::channel::<FromGuest>(QUEUE);
    let mut taking = pin!(writer.take(from, |frame| match frame {
        ToGuest::Resize(cols, rows) => hub.resize((cols, rows)),
        ToGuest::Signal(number) => hub.group.signal(number.into()),
        _ => {}
    }));
    let writing = async {
        while let Some(frame) = said.recv().await {
            frame.write(&mut to).await?;
        }
        io::Result::Ok(())
    };
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let talking = async {
        let say = say;
        let showing = logs(hub, Outputs::Both, begin, async |answer| {
            let frame = match answer {
                Answer::Record(record) if record.error => FromGuest::ErrorOutput(record.bytes),
                Answer::Record(record) => FromGuest::Output(record.bytes),
                // One who watches sees what comes next.
                _ => return Ok(()),
            };
            say.send(frame).await.map_err(|_| gone())
        });
        let crediting = async {
            while let Some(bytes) = credits.recv().await {
                writer.give_back(bytes);
                if bytes > 0 && say.send(FromGuest::Credit(bytes)).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let status = tokio::select! {
            status = showing => status?,
            () = crediting => return Ok(()),
        };
        let last = match status {
            Status::Killed(number) => FromGuest::Killed(number),
            Status::Exited(code) => FromGuest::Exited(code),
            Status::Running | Status::LostGuest | Status::LostProcess => return Ok(()),
        };
        say.send(last).await.map_err(|_| gone())
    };
    tokio::select! {
        () = &mut taking => {}
        told = async { tokio::try_join!(writing, talking) } => {
            told?;
            taking.await;
        }
    }
    Ok(())
}
