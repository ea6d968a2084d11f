//! Sessions that are started again: when they end, and with the guest.
//!
//! What is to run lies on the work disk, a file for each name. One that its user has stopped is let
//! be until the guest's next boot: a file below `/run` says so, which an agent that is started
//! again finds.

use banger_proto::session::{Answer, New, Refusal, Request, Session, Status};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::folder::{self, Places};
use super::{Sessions, blocking};
use crate::agent::shutdown;
use crate::console::say;
use crate::init_kind::InitKind;

/// The first pause before a session is started again. An agent that hears at the same time that the
/// guest ends is done before.
pub(super) const FIRST: Duration = Duration::from_secs(1);
/// The longest: each pause is twice the one before.
const LONGEST: Duration = Duration::from_secs(60);
/// One that ran this long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(10);
/// Sessions of one name that have ended and are kept: one that ends at once must not push out the
/// others.
const KEPT: usize = 3;
/// The longest file of an order, bytes: a command's words are lists of numbers in it.
const MAX_FILE: u64 = 16 << 20;
/// How long an init may take until its `/run` is there.
const SETTLE: Duration = Duration::from_secs(60);
/// How long one has that does not show when it is.
const GUESS: Duration = Duration::from_secs(2);

/// The tasks that start sessions again, by name.
#[derive(Debug, Default)]
pub(super) struct Watching(Mutex<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    by_name: HashMap<String, AbortHandle>,
    /// The guest ends: nothing is started any more.
    over: bool,
}

impl Watching {
    /// From now on the session of this name is started again when it ends. `begun`: it was started
    /// just now; if it does not run, it has ended already.
    pub(super) fn begin(&self, sessions: &Arc<Sessions>, name: &str, begun: bool) {
        let mut tasks = self.tasks();
        if !tasks.over {
            let task = tokio::spawn(keep(Arc::clone(sessions), name.to_owned(), begun)).abort_handle();
            tasks.by_name.insert(name.to_owned(), task).iter().for_each(AbortHandle::abort);
        }
    }

    /// No longer.
    pub(super) fn end(&self, name: &str) {
        self.tasks().by_name.remove(name).iter().for_each(AbortHandle::abort);
    }

    /// None of them: the guest ends.
    pub(super) fn end_all(&self) {
        let mut tasks = self.tasks();
        tasks.over = true;
        tasks.by_name.drain().for_each(|(_, task)| task.abort());
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn orders(&self) -> PathBuf {
        self.folders.with_file_name("again")
    }

    fn stopped(&self, name: &str) -> PathBuf {
        self.sockets.with_file_name("stopped").join(name)
    }

    /// Keeps what is to be started again.
    pub(super) fn keep_order(&self, name: &str, new: &New) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.orders())?;
        folder::store(&self.orders(), name, new)?;
        self.let_run(name)
    }

    /// The session of this name is no longer to be started again.
    pub(super) fn forget_order(&self, name: &str) -> io::Result<()> {
        gone(fs::remove_file(self.orders().join(name)))?;
        self.let_run(name)
    }

    /// Its user has stopped it: until the next boot.
    pub(super) fn let_be(&self, name: &str) -> io::Result<()> {
        let file = self.stopped(name);
        if let (true, Some(folder)) = (self.orders().join(name).exists(), file.parent()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            File::create(file)?;
        }
        Ok(())
    }

    fn let_run(&self, name: &str) -> io::Result<()> {
        gone(fs::remove_file(self.stopped(name)))
    }

    /// What is to be started under this name; `None` when nothing is, or its user has stopped it.
    fn order(&self, name: &str) -> io::Result<Option<New>> {
        if self.stopped(name).try_exists()? {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        match File::open(self.orders().join(name)) {
            Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let new: New = serde_json::from_slice(&bytes)?;
        if new.name.as_deref() == Some(name) { Ok(Some(new)) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// The names under which something is to run.
    pub(super) fn ordered(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.orders()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let entries = entries.take(folder::MAX_ENTRIES).collect::<io::Result<Vec<fs::DirEntry>>>()?;
        let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| banger_proto::session::is_name(name)).collect())
    }

    fn running(&self, name: &str) -> Option<Session> {
        self.find(name).filter(|session| session.name == name && session.status == Status::Running)
    }

    /// Removes all but the newest sessions of this name that have ended.
    fn prune_name(&self, name: &str) {
        let ended = |session: &Session| session.name == name && session.status != Status::Running;
        let ended: Vec<Session> = self.list().into_iter().filter(ended).collect();
        for session in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            let _ = self.remove(&session.id);
        }
    }
}

/// What is not there is gone.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Starts what is to run in this guest.
pub(in crate::agent) async fn resume(sessions: Arc<Sessions>, init: InitKind) {
    let names = loop {
        let places = sessions.places.clone();
        match blocking(move || places.ordered()).await {
            Ok(names) => break names,
            Err(error) => say(format_args!("agent: cannot read what sessions are to be started: {error}")),
        }
        sleep(LONGEST).await;
    };
    if names.is_empty() {
        return;
    }
    // Some inits mount a new /run over the one with the sockets of sessions.
    settled(init).await;
    for name in names {
        sessions.again.begin(&sessions, &name, false);
    }
}

async fn settled(init: InitKind) {
    let begun = Instant::now();
    loop {
        match shutdown::listens(init) {
            Some(true) => return,
            None if begun.elapsed() >= GUESS => return,
            Some(false) if begun.elapsed() >= SETTLE => return,
            _ => sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Has it run, for as long as its order is there.
async fn keep(sessions: Arc<Sessions>, name: String, mut begun: bool) {
    let (mut pause, mut failed) = (FIRST, false);
    loop {
        let (places, word) = (sessions.places.clone(), name.clone());
        let found = blocking(move || Ok(places.order(&word)?.map(|order| (order, places.running(&word))))).await;
        let began = Instant::now();
        let started = match found {
            Ok(None) => return,
            Ok(Some((_, Some(session)))) => Ok(Some(session)),
            Ok(Some((_, None))) if begun => Ok(None),
            Ok(Some((order, None))) => sessions.start_now(order).await.map(Some),
            // Too many open files, a disk that does not answer: both may pass.
            Err(error) => Err(Refusal::Failed(error.to_string())),
        };
        begun = false;
        match started {
            // Its end is the first one, and is waited after like every other.
            Ok(None) => {}
            Ok(Some(session)) => {
                failed = false;
                wait(&sessions, &session.id).await;
                let (places, word) = (sessions.places.clone(), name.clone());
                let _ = blocking(move || {
                    places.prune_name(&word);
                    Ok(())
                })
                .await;
            }
            Err(refusal) if !failed => {
                failed = true;
                say(format_args!("agent: session {name} does not start again: {refusal:?}"));
            }
            Err(_) => {}
        }
        if began.elapsed() >= STEADY {
            pause = FIRST;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// Waits until the session has ended.
async fn wait(sessions: &Sessions, id: &str) {
    loop {
        let request = Request::Wait { session: id.to_owned() };
        if let Ok(mut socket) = sessions.places.pass(id, None, &request).await
            && let Ok(Some(Answer::Ended(_))) = Answer::read(&mut socket).await
        {
            return;
        }
        match sessions.find(id).await {
            Some(session) if session.status == Status::Running => sleep(FIRST).await,
            _ => return,
        }
    }
}
