//! A session's own process: it starts the command, keeps its log, its input and its exit status,
//! and serves those who attach. It outlives the agent that started it.
//!
//! The agent starts this program again for each session, with the order in a nameless file on
//! standard input, and reads from its standard output whether the command has started.

use banger_proto::command::{FromGuest, MAX_START};
use banger_proto::session::{New, Refusal, Status};
use banger_proto::wire;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};

use super::clients::{self, Hub};
use super::folder::{self, End, Meta, Places};
use super::log::{CAP, Kind, Log};
use crate::agent::ending::last_frame;
use crate::agent::exec::{self, Asked, Request, Started, Tables};
use crate::agent::output::Stream;
use crate::agent::pty::Terminal;
use crate::console::say;
use crate::sys::signals;

/// The process's name.
pub(in crate::agent) const NAME: &str = "banger-session";
/// The longest order, bytes: a command, and the image's configuration.
const MAX_ORDER: usize = MAX_START + (256 << 10);
/// Output that waits for the log.
const QUEUE: usize = 4;
/// How long the output of a command that has ended may take.
const DRAIN: Duration = Duration::from_secs(10);
/// How long those who read the log slowly are served after the end.
const LINGER: Duration = Duration::from_secs(600);
/// The same when the machine ends: its init waits for this process.
const LEAVING: Duration = Duration::from_secs(2);
/// Wait after a failed accept, which is a lack of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is to be started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) meta: Meta,
    pub(super) new: New,
    pub(super) tables: Tables,
    pub(super) places: Places,
}

impl Order {
    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(wire::encode(self, MAX_ORDER)?)
    }
}

/// The program, started with the argument for it.
pub(crate) fn main() -> ExitCode {
    signals::unblock_all();
    let _ = fs::write("/proc/self/comm", NAME);
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("session: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn begin() -> io::Result<()> {
    let mut order = Vec::new();
    io::stdin().lock().read_to_end(&mut order)?;
    // Commands find neither the order nor the agent's pipe on a descriptor.
    let ready = io::stdout().as_fd().try_clone_to_owned()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        // All of them are the machine's end, or nothing: the terminal that a signal may come from
        // is not ours.
        let mut terminate = signal(SignalKind::terminate())?;
        let _ignored = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()].map(signal);
        serve(&order, ready, async move {
            terminate.recv().await;
        })
        .await
    })
}

/// Starts what is ordered, says so, and serves it until its end, in a [`LocalSet`]. `terminated`:
/// the machine ends.
pub(super) async fn serve(order: &[u8], ready: OwnedFd, terminated: impl Future<Output = ()>) -> io::Result<()> {
    let mut ready = File::from(ready);
    let begun = match wire::decode(order, MAX_ORDER) {
        Ok(order) => Begun::new(order, &ready),
        Err(error) => Err(Refusal::Failed(error.to_string())),
    };
    let (answer, begun) = match begun {
        Ok(begun) => (Ok(()), Some(begun)),
        Err(refusal) => (Err(refusal), None),
    };
    // An agent that is gone has nobody to tell any more; the session runs.
    let _ = ready.write_all(&wire::encode::<Result<(), Refusal>>(&answer, MAX_ORDER)?);
    drop(ready);
    match begun {
        Some(begun) => begun.serve(terminated).await,
        None => Ok(()),
    }
}

/// A session whose command has started.
struct Begun {
    id: String,
    places: Places,
    started: Started,
    log: Log,
    listener: UnixListener,
    /// While it is held, the session runs.
    _lock: File,
}

impl Begun {
    fn new(order: Order, ready: &File) -> Result<Self, Refusal> {
        let Order { meta, new, tables, places } = order;
        let id = meta.id();
        let socket = places.socket(&id);
        let begun = Self::try_new(&id, &meta, &request(new, tables), &places, ready);
        if begun.is_err() {
            let _ = fs::remove_dir_all(places.new_folder(&id));
            let _ = fs::remove_file(socket);
        }
        begun
    }

    fn try_new(id: &str, meta: &Meta, request: &Request, places: &Places, ready: &File) -> Result<Self, Refusal> {
        let cannot = |error: io::Error| Refusal::Failed(format!("cannot keep the session on the work disk: {error}"));
        let beginning = places.new_folder(id);
        let lock = folder::begin(&beginning, meta).map_err(cannot)?;
        let mut log = Log::begin(&beginning, CAP).map_err(cannot)?;
        let socket = places.socket(id);
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .map_err(|error| Refusal::Failed(format!("cannot listen on {}: {error}", socket.display())))?;
        // All this may have waited for the disk so long that the start was called failed.
        if !is_waited_for(ready) {
            return Err(Refusal::Failed("its start took too long".to_owned()));
        }
        let started = exec::start(request).map_err(|error| Refusal::Command(error.status(), error.to_string()))?;
        let folder = places.folder(id);
        if let Err(error) = fs::rename(&beginning, &folder) {
            if let Some(pid) = started.child.id() {
                let _ = signals::send(-pid.cast_signed(), libc::SIGKILL);
            }
            return Err(cannot(error));
        }
        log.moved(&folder);
        Ok(Self { id: id.to_owned(), places: places.clone(), started, log, listener, _lock: lock })
    }

    async fn serve(self, terminated: impl Future<Output = ()>) -> io::Result<()> {
        let Self { id, places, started, log, listener, _lock } = self;
        let folder = places.folder(&id);
        let Started { mut child, input, output, errors, terminal } = started;
        let (written, has_written) = watch::channel(log.end());
        let (ended, has_ended) = watch::channel(None);
        let meta = folder::meta(&folder).filter(|meta| meta.stdin);
        let hub = Hub::new(&folder, meta.map(|_| input), terminal, child.id(), has_written, has_ended);
        let hub = Arc::new(hub);

        let (say, said) = mpsc::channel(QUEUE);
        let keeping = tokio::spawn(keep(log, said, written));
        let (end_outputs, outputs_end) = watch::channel(false);
        let mut outputs = JoinSet::new();
        let stream = |frame: fn(Vec<u8>) -> FromGuest| Stream { say: say.clone(), frame, terminal: hub.is_terminal() };
        outputs.spawn(stream(FromGuest::Output).pump(output, outputs_end.clone()));
        if let Some(errors) = errors {
            outputs.spawn(stream(FromGuest::ErrorOutput).pump(errors, outputs_end));
        }
        drop(say);

        let mut clients = JoinSet::new();
        let mut terminated = std::pin::pin!(terminated);
        let mut leaving = false;
        let mut has_status = std::pin::pin!(hub.group.ended(&mut child));
        let status = loop {
            tokio::select! {
                status = &mut has_status => break last_frame(status),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(clients.spawn_local(clients::serve(stream, Arc::clone(&hub)))),
                    Err(_) => sleep(ACCEPT_RETRY).await,
                },
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                () = &mut terminated, if !leaving => {
                    leaving = true;
                    hub.end();
                }
            }
        };
        let status = match status {
            FromGuest::Killed(number) => Status::Killed(number),
            FromGuest::Exited(code) => Status::Exited(code),
            _ => Status::LostProcess,
        };
        let _ = end_outputs.send(true);
        let drained = async { while outputs.join_next().await.is_some() {} };
        let _ = timeout(DRAIN, drained).await;
        outputs.abort_all();
        let log = async { while outputs.join_next().await.is_some() {} };
        log.await;
        if let Ok(mut log) = keeping.await {
            // What cannot be synced may be lost in a power cut, and nothing else.
            let _ = log.finish(now());
        }
        let end = End { status, ended_at: now() / 1000 };
        let kept = folder::end(&folder, &end);
        // From now on the agent answers for it.
        let _ = fs::remove_file(places.socket(&id));
        drop(listener);
        let _ = ended.send(Some(status));
        let served = async { while clients.join_next().await.is_some() {} };
        tokio::select! {
            _ = timeout(if leaving { LEAVING } else { LINGER }, served) => {}
            () = &mut terminated, if !leaving => {}
        }
        kept
    }
}

/// Whether somebody reads what is written to this pipe.
fn is_waited_for(pipe: &File) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // An error is reported whether it was asked for or not (poll(2)).
    let mut pipe = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    let polled = poll(&mut pipe, PollTimeout::ZERO);
    let closed = pipe.iter().filter_map(PollFd::revents).any(|events| events.contains(PollFlags::POLLERR));
    polled.is_err() || !closed
}

fn request(new: New, tables: Tables) -> Request {
    let banger_proto::command::Start { words, env, working_dir, user, terminal } = new.start;
    let text = OsString::from_vec;
    Request {
        asked: Asked::Command { words, user, folder: working_dir },
        terminal: terminal.as_ref().map(Terminal::of_command),
        environment: env.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
        tables: Arc::new(tables),
    }
}

/// Writes the log until the outputs have ended.
async fn keep(mut log: Log, mut said: mpsc::Receiver<FromGuest>, written: watch::Sender<u64>) -> Log {
    while let Some(frame) = said.recv().await {
        match frame {
            FromGuest::Output(bytes) => log.append(Kind::Output, now(), bytes),
            FromGuest::ErrorOutput(bytes) => log.append(Kind::Error, now(), bytes),
            _ => {}
        }
        written.send_replace(log.end());
    }
    log
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
