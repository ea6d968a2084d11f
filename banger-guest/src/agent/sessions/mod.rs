//! Sessions, as the agent answers for them ([`banger_proto::session`]).
//!
//! The agent reads their folders, starts their processes and passes connections on; it holds
//! nothing of them, so its end harms none. What waits for the disk runs beside the agent's only
//! thread.

pub(super) use banger_proto::session::Request;
use banger_proto::session::{Answer, New, Outputs, Refusal, Session, Status};
use banger_proto::wire;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::exec::Tables;
use crate::console::say;
use crate::sys::pass;
use crate::sys::spawn::{Identity, in_own_session};
pub(super) use again::resume;
use folder::{Meta, Places};
use process::Order;
use read::{Begin, Selection};

mod again;
mod clients;
mod folder;
mod group;
mod input;
mod log;
pub(super) mod process;
mod read;

/// On the work disk.
const FOLDERS: &str = "/root/.banger/sessions";
const SOCKETS: &str = "/run/banger/sessions";
/// Sessions that run at a time.
const RUNNING: usize = 64;
/// How long a session's process may take to say whether its command has started.
const START: Duration = Duration::from_secs(60);
/// How long one may take to accept a connection.
const PASS: Duration = Duration::from_secs(10);
/// The longest of what a session's process says about its start, bytes.
const MAX_READY: u64 = 64 << 10;

/// The sessions of this guest.
#[derive(Debug)]
pub(super) struct Sessions {
    places: Places,
    /// Starts one after the other: each chooses a number, and a name that no other has.
    starting: Arc<Mutex<()>>,
    launch: Launch,
    /// What commands are looked up in.
    tables: Arc<Tables>,
    /// What is started again.
    again: again::Watching,
}

/// How a session's process is started.
#[derive(Clone, Debug)]
enum Launch {
    /// By this program.
    Program(PathBuf),
    #[cfg(test)]
    Thread,
}

/// Answers a request. Gives the stream back when this was the agent's to answer; it is the
/// session's otherwise.
pub(super) async fn serve<S>(mut stream: S, request: Request, sessions: &Arc<Sessions>) -> Option<S>
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    match answer(&mut stream, request, sessions).await {
        Ok(true) => Some(stream),
        // Passed on, or lost.
        Ok(false) | Err(_) => None,
    }
}

/// Whether it was answered here.
async fn answer<S>(stream: &mut S, request: Request, sessions: &Arc<Sessions>) -> io::Result<bool>
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send,
{
    let Some(word) = request.session().map(str::to_owned) else {
        let answer = match request {
            Request::Start(new) => match sessions.start(*new).await {
                Ok(session) => Answer::Sessions(vec![session]),
                Err(refusal) => Answer::Refused(refusal),
            },
            _ => Answer::Sessions(sessions.list().await),
        };
        return answer.write(stream).await.map(|()| true);
    };
    // It may end between two looks, and then the second one shows it.
    for _ in 0..2 {
        let Some(mut session) = sessions.find(&word).await else {
            return Answer::Refused(Refusal::Unknown).write(stream).await.map(|()| true);
        };
        if let Request::Show { .. } = request {
            return Answer::Sessions(vec![session]).write(stream).await.map(|()| true);
        }
        if let Request::Stop { .. } = request {
            session = sessions.let_be(&word, session).await;
        }
        if let Request::Logs { outputs, tail, follow, .. } = request
            && (!follow || session.status != Status::Running)
        {
            return sessions.show_log(stream, session, outputs, tail).await.map(|()| true);
        }
        if session.status != Status::Running || matches!(request, Request::Remove { .. }) {
            return sessions.answer_for(&session, &request).await.write(stream).await.map(|()| true);
        }
        if sessions.places.pass(&session.id, Some(stream.as_fd()), &request).await.is_ok() {
            return Ok(false);
        }
    }
    let why = "the session's process does not answer".to_owned();
    Answer::Refused(Refusal::Failed(why)).write(stream).await.map(|()| true)
}

impl Sessions {
    /// Those on the work disk, by this program.
    pub(super) fn new(tables: Arc<Tables>) -> Self {
        let places = Places { folders: FOLDERS.into(), sockets: SOCKETS.into() };
        Self::of(places, Launch::Program("/proc/self/exe".into()), tables)
    }

    /// Elsewhere, and by the program that is named: for tests.
    pub(super) fn below(folder: &Path, program: PathBuf, tables: Arc<Tables>) -> Self {
        let places = Places { folders: folder.join("sessions"), sockets: folder.join("run") };
        Self::of(places, Launch::Program(program), tables)
    }

    fn of(places: Places, launch: Launch, tables: Arc<Tables>) -> Self {
        Self { places, starting: Arc::default(), launch, tables, again: again::Watching::default() }
    }

    async fn list(&self) -> Vec<Session> {
        let places = self.places.clone();
        spawn_blocking(move || places.list()).await.unwrap_or_default()
    }

    /// How many run. Asked with each heartbeat, which waits for no disk: the kernel's list of
    /// sockets (proc(5), `/proc/net/unix`) has that of each session's process as long as it lives.
    pub(super) fn running(&self) -> usize {
        let bytes = std::fs::read("/proc/net/unix").unwrap_or_default();
        String::from_utf8_lossy(&bytes).lines().filter(|line| self.places.is_listener(line)).count()
    }

    async fn find(&self, word: &str) -> Option<Session> {
        let (places, word) = (self.places.clone(), word.to_owned());
        spawn_blocking(move || places.find(&word)).await.ok()?
    }

    /// For one that has ended, and for what the folder alone decides.
    async fn answer_for(&self, session: &Session, request: &Request) -> Answer {
        match request {
            Request::Wait { .. } | Request::Stop { .. } => Answer::Ended(session.status),
            Request::Remove { .. } if session.status == Status::Running => Answer::Refused(Refusal::Runs),
            Request::Remove { .. } => {
                let (places, gone) = (self.places.clone(), session.clone());
                // With its newest session goes what would start it again.
                let remove = move || {
                    let newest = places.find(&gone.name).is_some_and(|newest| newest.id == gone.id);
                    if newest {
                        places.forget_order(&gone.name)?;
                    }
                    places.remove(&gone.id).map(|()| newest)
                };
                match blocking(remove).await {
                    Ok(newest) => {
                        if newest {
                            self.again.end(&session.name);
                        }
                        Answer::Done
                    }
                    Err(error) => Answer::Refused(Refusal::Failed(error.to_string())),
                }
            }
            _ => Answer::Refused(Refusal::Ended(session.status)),
        }
    }

    /// What is written by now.
    async fn show_log(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        session: Session,
        outputs: Outputs,
        tail: Option<u64>,
    ) -> io::Result<()> {
        let folder = self.places.folder(&session.id);
        let begin = tail.map_or(Begin::Oldest, Begin::Lines);
        let mut selection = blocking(move || Selection::until_now(&folder, outputs, begin)).await?;
        loop {
            let next = blocking(move || selection.next().map(|answer| (answer, selection))).await?;
            match next.0 {
                Some(answer) => answer.write(to).await?,
                None => return Answer::Ended(session.status).write(to).await,
            }
            selection = next.1;
        }
    }

    /// Its user stops it: it is not started again in this boot. Gives the session that is to be
    /// stopped.
    async fn let_be(&self, word: &str, session: Session) -> Session {
        // One that is being started again at this moment is what the name means when it runs. And
        // its task is not to end between the start of the process and the end of that.
        let _turn = self.starting.lock().await;
        let session = self.find(word).await.unwrap_or(session);
        let (places, gone) = (self.places.clone(), session.clone());
        let newest = blocking(move || {
            let newest = places.find(&gone.name).is_some_and(|newest| newest.id == gone.id);
            if newest { places.let_be(&gone.name).map(|()| true) } else { Ok(false) }
        });
        match newest.await {
            Ok(true) => self.again.end(&session.name),
            Ok(false) => {}
            Err(error) => say(format_args!("agent: session {} may be started again: {error}", session.name)),
        }
        session
    }

    /// Starts a session. What was to be started again under its name no longer is, or this one
    /// instead.
    async fn start(self: &Arc<Self>, new: New) -> Result<Session, Refusal> {
        let order = new.again.then(|| new.clone());
        let session = self.start_now(new).await?;
        self.again.end(&session.name);
        let (places, name, again) = (self.places.clone(), session.name.clone(), order.is_some());
        let kept = blocking(move || match order {
            Some(order) => places.keep_order(&name, &New { name: Some(name.clone()), ..order }),
            None => places.forget_order(&name),
        });
        kept.await.map_err(|error| {
            Refusal::Failed(format!("session {} runs, but what is started again cannot be kept: {error}", session.id))
        })?;
        if again {
            self.again.begin(self, &session.name, true);
        }
        Ok(session)
    }

    async fn start_now(&self, mut new: New) -> Result<Session, Refusal> {
        let _turn = self.starting.lock().await;
        if new.entrypoint {
            let image = &self.tables.image;
            let behind = if new.start.words.is_empty() {
                image.cmd.iter().map(|word| word.clone().into_bytes()).collect()
            } else {
                std::mem::take(&mut new.start.words)
            };
            let words = image.entrypoint.iter().map(|word| word.clone().into_bytes());
            new.start.words = words.chain(behind).collect();
            if new.start.words.is_empty() {
                return Err(Refusal::NoEntrypoint);
            }
        }
        let failed = |error: io::Error| Refusal::Failed(error.to_string());
        let (places, tables, launch) = (self.places.clone(), self.tables.as_ref().clone(), self.launch.clone());
        let (ready, order_id) = blocking(move || {
            places.make()?;
            places.prune();
            let running: Vec<Session> = places.list().into_iter().filter(|one| one.status == Status::Running).collect();
            if running.len() >= RUNNING {
                return Ok(Err(Refusal::TooMany));
            }
            if new.name.as_ref().is_some_and(|name| running.iter().any(|one| one.name == *name)) {
                return Ok(Err(Refusal::NameTaken));
            }
            let (number, name) = match &new.name {
                Some(name) => (places.take_number()?, name.clone()),
                None => places.free_name(&running)?,
            };
            if !banger_proto::session::is_name(&name) {
                return Ok(Err(Refusal::Failed("this is no name of a session".to_owned())));
            }
            let meta = Meta {
                name,
                number,
                command: folder::for_people(&new.start.words),
                stdin: new.stdin || new.start.terminal.is_some(),
                tty: new.start.terminal.is_some(),
                boot_id: folder::boot_id(),
                started_at: process::now() / 1000,
                again: new.again,
            };
            let id = meta.id();
            let (ready, theirs) = io::pipe()?;
            let order = Order { meta, new, tables, places };
            match launch {
                Launch::Program(program) => start(&program, &order, theirs.into())?,
                #[cfg(test)]
                Launch::Thread => tests::launch_thread(&order, theirs.into())?,
            }
            Ok(Ok((ready, id)))
        })
        .await
        .map_err(failed)??;
        let mut ready = tokio::net::unix::pipe::Receiver::from_owned_fd(ready.into()).map_err(failed)?.take(MAX_READY);
        let mut said = Vec::new();
        let read = timeout(START, ready.read_to_end(&mut said)).await;
        read.map_err(|_| Refusal::Failed("its process did not start it in time".to_owned()))?.map_err(failed)?;
        let said: Result<(), Refusal> = wire::decode(&said, said.len())
            .map_err(|_| Refusal::Failed("its process ended before the command had started".to_owned()))?;
        said?;
        // It may have ended already, and be the oldest of many.
        self.find(&order_id).await.ok_or_else(|| Refusal::Failed("it is gone already".to_owned()))
    }

    /// Asks all that run to end, and waits until they have.
    pub(super) async fn end_all(&self) {
        self.again.end_all();
        let sockets = self.places.sockets.clone();
        let names = blocking(move || {
            let names = std::fs::read_dir(sockets)?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.collect::<Vec<String>>())
        });
        let mut ending = JoinSet::new();
        for id in names.await.unwrap_or_default() {
            let places = self.places.clone();
            ending.spawn(async move {
                let stop = Request::Stop { session: id.clone() };
                if let Ok(mut socket) = places.pass(&id, None, &stop).await {
                    let _ = Answer::read(&mut socket).await;
                }
            });
        }
        while ending.join_next().await.is_some() {}
    }
}

impl Places {
    /// A number, and a name from it that means no other session: none that runs, and none that is
    /// to be started again.
    fn free_name(&self, running: &[Session]) -> io::Result<(u64, String)> {
        let ordered = self.ordered()?;
        loop {
            let number = self.take_number()?;
            let name = format!("s{number}");
            if !ordered.contains(&name) && !running.iter().any(|session| session.name == name) {
                return Ok((number, name));
            }
        }
    }

    /// Whether a line of `/proc/net/unix` is of a session's socket that listens (`__SO_ACCEPTCON`
    /// of its flags), and not of a connection to it, which has the same name.
    fn is_listener(&self, line: &str) -> bool {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, flags, _, _, _, path] = fields.as_slice() else { return false };
        *flags == "00010000" && Path::new(path).parent() == Some(&self.sockets)
    }

    /// Gives a client's connection, or none for the agent's own, to a session's process, and waits
    /// until it has it.
    async fn pass(&self, id: &str, client: Option<BorrowedFd<'_>>, request: &Request) -> io::Result<UnixStream> {
        let passing = async {
            let mut socket = UnixStream::connect(self.socket(id)).await?;
            pass::send(&socket, client).await?;
            request.write(&mut socket).await?;
            socket.read_u8().await?;
            Ok(socket)
        };
        timeout(PASS, passing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Starts the program as the session's process, in a process group of its own, which survives the
/// agent's.
fn start(program: &Path, order: &Order, ready: OwnedFd) -> io::Result<()> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"banger-session", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&order.encode()?)?;
    file.rewind()?;
    let mut command = Command::new(program);
    command.arg0(process::NAME).arg(crate::SESSION_COMMAND).arg(order.meta.id());
    command.env_clear().env("PATH", crate::launch::PATH).current_dir("/");
    command.stdin(Stdio::from(file)).stdout(Stdio::from(ready));
    in_own_session(&mut command, false, Identity { uid: 0, gid: 0, groups: Vec::new() });
    let mut child = tokio::process::Command::from(command).spawn()?;
    // Reaped here; by PID 1 when the agent is gone before.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

#[cfg(test)]
mod tests;
