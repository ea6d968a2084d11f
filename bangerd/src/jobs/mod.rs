//! Jobs: work that outlives the call that began it, seen and cancelled from outside.
//!
//! A job is two things: a [`Job`] that the task holds which does the work (it alone says how far it
//! is and how it ended), and an entry here that any number of watchers look at. Finished jobs are
//! kept, bounded.

use crate::db::{Db, DbError};
use crate::error::OverLimit;
use banger_policy::Peer;
use banger_policy::access::Owner;
use banger_policy::quota::{self, Limited, UserLimits};
use banger_proto::model::{ApiError, ErrorCode, JobId, JobPage, JobResult, JobState, JobView, Stage};
use banger_proto::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Finished jobs of one user that are kept for those who ask late: nobody else's push them out.
const KEPT: usize = 64;
/// However many they are, for so long: a client may be between two looks at its job.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// But never more than these.
const KEPT_AT_MOST: usize = 4 * KEPT;
/// Stages and warnings of one job; a view fits a frame.
const MAX_STAGES: usize = 32;
/// What is said of a job that was at work when the daemon ended.
const CUT_SHORT: &str = "the daemon ended while this was at work; it was undone as far as it got";
/// The longest title, stage or warning, bytes.
const MAX_TEXT: usize = 512;

/// Why there is no job, or none for this user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// What the user makes would be nobody's.
    #[error("the host's user database has no name for uid {uid}")]
    Nameless { uid: u32 },
    #[error(transparent)]
    Limit(#[from] OverLimit),
    #[error("no such job: {0}")]
    NotFound(JobId),
    /// A failure of an earlier run of the daemon, of which the text was kept.
    #[error("{0}")]
    Earlier(String),
    #[error("{}", CUT_SHORT)]
    CutShort,
    /// Only after a defect: whoever held the job went away without a word.
    #[error("the work ended without a result")]
    NoResult,
}

/// Somebody wants a job undone.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("cancelled")]
pub(crate) struct Cancelled;

/// All jobs, of this run of the daemon and the newest of earlier ones.
#[derive(Debug)]
pub(crate) struct Jobs {
    db: Db,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    next: u64,
    jobs: BTreeMap<JobId, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    owner: Owner,
    view: watch::Receiver<JobView>,
    cancel: CancellationToken,
    ended: Arc<OnceLock<Instant>>,
}

/// The side of a job that does the work. Dropped without an end, the job has failed.
#[derive(Debug)]
pub(crate) struct Job {
    id: JobId,
    /// Who ordered it.
    peer: Peer,
    db: Db,
    view: watch::Sender<JobView>,
    cancel: CancellationToken,
    stage_began: Mutex<Instant>,
    ended: Arc<OnceLock<Instant>>,
}

impl Jobs {
    /// Reads the history. A job that was at work when the daemon ended has failed.
    pub(crate) async fn load(db: Db) -> Result<Arc<Self>, DbError> {
        let mut jobs = BTreeMap::new();
        let mut next = 1;
        for past in db.past_jobs().await? {
            let state = match past.outcome.as_deref() {
                Some("done") => JobState::Done(JobResult::Text(past.message)),
                Some("cancelled") => JobState::Cancelled,
                Some(_) => JobState::Failed(JobError::Earlier(past.message).into()),
                None => {
                    db.record_job_end(past.id, "failed", CUT_SHORT.to_owned());
                    JobState::Failed(JobError::CutShort.into())
                }
            };
            next = past.id + 1;
            let view = JobView {
                id: JobId(past.id),
                title: past.title,
                owner: past.owner.uid,
                // Above everything that a watcher of the earlier run has seen.
                seq: u64::MAX,
                started_at: past.started_at,
                stages: Vec::new(),
                warnings: Vec::new(),
                state,
            };
            let (id, view, cancel) = (view.id, watch::channel(view).1, CancellationToken::new());
            jobs.insert(id, Entry { owner: past.owner, view, cancel, ended: Arc::new(Instant::now().into()) });
        }
        Ok(Arc::new(Self { db, inner: Mutex::new(Inner { next, jobs }) }))
    }

    /// Begins a job.
    ///
    /// # Errors
    /// When the peer has too many at work, and when it is not known who the peer is.
    pub(crate) fn begin(&self, peer: &Peer, title: String) -> Result<Job, JobError> {
        let owner = peer.owner();
        if owner.name.is_empty() {
            return Err(JobError::Nameless { uid: owner.uid });
        }
        let mut inner = self.lock();
        quota::fits(Limited::Jobs, &peer.limits, inner.at_work(&owner), 1).map_err(|why| OverLimit::of(&owner, why))?;
        let id = JobId(inner.next);
        inner.next += 1;
        let cancel = CancellationToken::new();
        let view = JobView {
            id,
            title: short(title.clone()),
            owner: owner.uid,
            seq: 1,
            started_at: Timestamp::now(),
            stages: Vec::new(),
            warnings: Vec::new(),
            state: JobState::Running,
        };
        let (sender, receiver) = watch::channel(view);
        let ended = Arc::new(OnceLock::new());
        inner.jobs.insert(
            id,
            Entry { owner: owner.clone(), view: receiver, cancel: cancel.clone(), ended: Arc::clone(&ended) },
        );
        forget_oldest(&mut inner.jobs, &owner, Instant::now());
        drop(inner);
        self.db.record_job(id.0, owner.clone(), title);
        let (db, stage_began) = (self.db.clone(), Mutex::new(Instant::now()));
        let job = Job { id, peer: peer.clone(), db, view: sender, cancel, stage_began, ended };
        Ok(job)
    }

    /// The caller's jobs before the one given, newest first.
    pub(crate) fn list(&self, peer: &Peer, before: Option<JobId>, limit: usize) -> JobPage {
        let inner = self.lock();
        let older = inner.jobs.iter().rev().filter(|(id, _)| before.is_none_or(|before| **id < before));
        let mut visible = older.filter(|(_, entry)| may_see(peer, entry));
        let jobs: Vec<JobView> =
            visible.by_ref().take(limit).map(|(_, entry)| brief(entry.view.borrow().clone())).collect();
        let next = visible.next().and_then(|_| jobs.last().map(|job| job.id));
        JobPage { jobs, next }
    }

    /// Answers when `seq` is above `after`, or after `limit` with what there is.
    pub(crate) async fn watch(&self, peer: &Peer, id: JobId, after: u64, limit: Duration) -> Result<JobView, JobError> {
        let mut view = self.entry(peer, id)?.view;
        // Either news, or time is up, or the job's side is gone: what there is now is the answer.
        drop(tokio::time::timeout(limit, view.wait_for(|view| view.seq > after)).await);
        Ok(view.borrow().clone())
    }

    pub(crate) fn cancel(&self, peer: &Peer, id: JobId) -> Result<(), JobError> {
        self.entry(peer, id)?.cancel.cancel();
        Ok(())
    }

    fn entry(&self, peer: &Peer, id: JobId) -> Result<Entry, JobError> {
        let entry = self.lock().jobs.get(&id).cloned();
        entry.filter(|entry| may_see(peer, entry)).ok_or(JobError::NotFound(id))
    }

    /// How many of an owner's are at work.
    pub(crate) fn at_work(&self, owner: &Owner) -> u64 {
        self.lock().at_work(owner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn at_work(&self, owner: &Owner) -> u64 {
        let at_work = |entry: &&Entry| entry.owner == *owner && entry.view.borrow().state == JobState::Running;
        u64::try_from(self.jobs.values().filter(at_work).count()).unwrap_or(u64::MAX)
    }
}

/// For a list, which must fit a frame: the present stage, and of a result that there is one.
fn brief(mut view: JobView) -> JobView {
    const MESSAGE: usize = 200;
    view.stages = view.stages.pop().into_iter().collect();
    view.warnings.clear();
    match &mut view.state {
        JobState::Done(result @ (JobResult::Vm(_) | JobResult::Image(_) | JobResult::Kernel(_))) => {
            *result = JobResult::Text(String::new());
        }
        JobState::Failed(error) => {
            error.message = error.message.lines().next().unwrap_or_default().chars().take(MESSAGE).collect();
        }
        JobState::Done(JobResult::Text(_)) | JobState::Running | JobState::Cancelled => {}
    }
    view
}

fn may_see(peer: &Peer, entry: &Entry) -> bool {
    banger_policy::access::vm(peer, &entry.owner).granted().is_ok()
}

/// Of one user's, those whose end is longest ago, whenever they began.
fn forget_oldest(jobs: &mut BTreeMap<JobId, Entry>, owner: &Owner, now: Instant) {
    let own = jobs.iter().filter(|(_, entry)| entry.owner == *owner);
    let mut ended: Vec<(Instant, JobId)> = own.filter_map(|(id, entry)| Some((*entry.ended.get()?, *id))).collect();
    ended.sort();
    let surplus = ended.len().saturating_sub(KEPT);
    let far = ended.len().saturating_sub(KEPT_AT_MOST);
    for (at, (when, id)) in ended.into_iter().take(surplus).enumerate() {
        if at < far || now.saturating_duration_since(when) >= KEPT_FOR {
            jobs.remove(&id);
        }
    }
}

fn short(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Job {
    pub(crate) fn id(&self) -> JobId {
        self.id
    }

    /// Whether whoever ordered it may still do so: since the order was left, the VM may have become
    /// somebody else's.
    pub(crate) fn may_change(&self, owner: &Owner) -> bool {
        banger_policy::access::vm(&self.peer, owner).granted().is_ok()
    }

    /// How much the owner of a VM may have. What an administrator orders for another user's VM is
    /// the administrator's decision.
    pub(crate) fn limits_of(&self, owner: &Owner) -> UserLimits {
        if self.peer.admin && !self.peer.owns(owner) { UserLimits::NONE } else { self.peer.limits }
    }

    /// A stage begins; the one before it is done.
    pub(crate) fn stage(&self, name: &str) {
        let took = self.lap();
        self.view.send_modify(|view| {
            close_stage(view, took);
            if view.stages.len() < MAX_STAGES {
                view.stages.push(Stage { name: short(name.to_owned()), took_ms: None, detail: String::new() });
            }
            view.seq += 1;
        });
        tracing::debug!(stage = name, "stage");
    }

    /// How far the stage is.
    pub(crate) fn detail(&self, detail: String) {
        self.view.send_if_modified(|view| {
            let Some(stage) = view.stages.last_mut().filter(|stage| stage.detail != detail) else { return false };
            stage.detail = short(detail);
            view.seq += 1;
            true
        });
    }

    /// What the user should know although nothing failed.
    pub(crate) fn warn(&self, warning: String) {
        tracing::warn!("{warning}");
        self.view.send_modify(|view| {
            if view.warnings.len() < MAX_STAGES {
                view.warnings.push(short(warning));
            }
            view.seq += 1;
        });
    }

    /// Somebody wants it undone.
    pub(crate) fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Fails when somebody wants it undone; asked between steps.
    pub(crate) fn go_on(&self) -> Result<(), Cancelled> {
        if self.cancel.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// The end. The watchers see it when everything that belongs to it is done, and an error as
    /// `rpc` answers it.
    pub(crate) fn finish(self, result: Result<JobResult, impl Into<ApiError>>) {
        self.end(match result.map_err(Into::into) {
            Ok(result) => JobState::Done(result),
            Err(error) if error.code == ErrorCode::Cancelled => JobState::Cancelled,
            Err(error) => JobState::Failed(error),
        });
    }

    fn end(&self, state: JobState) {
        let took = self.lap();
        let (outcome, message) = match &state {
            JobState::Done(JobResult::Text(text)) => ("done", text.clone()),
            JobState::Done(_) => ("done", String::new()),
            JobState::Cancelled => ("cancelled", String::new()),
            JobState::Failed(error) => ("failed", error.message.clone()),
            JobState::Running => return,
        };
        tracing::info!(banger_job = %self.id, "{outcome}{}{message}", if message.is_empty() { "" } else { ": " });
        // Once: a job that has ended is not dropped without an end.
        let _ = self.ended.set(Instant::now());
        self.view.send_modify(|view| {
            close_stage(view, took);
            view.state = state;
            view.seq += 1;
        });
        self.db.record_job_end(self.id.0, outcome, message);
    }

    fn lap(&self) -> Duration {
        let mut began = self.stage_began.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *began, Instant::now()).elapsed()
    }
}

fn close_stage(view: &mut JobView, took: Duration) {
    if let Some(stage) = view.stages.last_mut().filter(|stage| stage.took_ms.is_none()) {
        stage.took_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.view.borrow().state == JobState::Running {
            self.end(JobState::Failed(JobError::NoResult.into()));
        }
    }
}

#[cfg(test)]
mod tests;
