//! One-use tickets for streams: given by a call, shown on the stream's own connection, bound to the
//! uid that got it, void after a minute.

use crate::jobs::Job;
use crate::store::wanted::Wanted;
use crate::util::fill_random;
use banger_policy::Peer;
use banger_proto::model::{ApiError, ErrorCode};
use banger_proto::stream::{StreamRequest, TICKET_SECONDS, Ticket};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Tickets that one user may hold at a time.
const PER_USER: usize = 64;

/// How often unused tickets are looked through.
const SWEEP: Duration = Duration::from_secs(30);

/// What a ticket stands for.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) peer: Peer,
    pub(crate) work: Work,
}

/// What becomes of the connection that shows the ticket.
#[derive(Debug)]
pub(crate) enum Work {
    /// To be served as it was asked for, by what is there when the connection comes.
    Serve(StreamRequest),
    /// An upload, checked, with its job, which has begun.
    Import(Box<Wanted>, Job),
}

impl Work {
    /// The job of an upload.
    pub(crate) fn job(&self) -> Option<&Job> {
        match self {
            Self::Serve(_) => None,
            Self::Import(_, job) => Some(job),
        }
    }
}

/// All tickets that wait for their stream.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    all: Mutex<HashMap<Ticket, (Instant, Promise)>>,
    /// One was issued.
    issued: Notify,
}

impl Tickets {
    /// Whether this user may have one more.
    ///
    /// # Errors
    /// `Limit` when the user has too many that are not used.
    pub(crate) fn room(&self, uid: u32) -> Result<(), ApiError> {
        room(&self.lock(), uid)
    }

    /// # Errors
    /// As [`room`](Self::room).
    pub(crate) fn issue(&self, promise: Promise) -> Result<Ticket, ApiError> {
        let mut bytes = [0; 32];
        fill_random(&mut bytes)?;
        let ticket = Ticket(bytes);
        let mut all = self.lock();
        room(&all, promise.peer.uid)?;
        all.insert(ticket.clone(), (Instant::now(), promise));
        self.issued.notify_one();
        Ok(ticket)
    }

    /// What the ticket stands for, once and for its owner only. Another's attempt does not use it
    /// up.
    pub(crate) fn take(&self, ticket: &Ticket, peer: &Peer) -> Option<Promise> {
        self.take_at(ticket, peer, Instant::now())
    }

    fn take_at(&self, ticket: &Ticket, peer: &Peer, now: Instant) -> Option<Promise> {
        let mut all = self.lock();
        let (issued, promise) = all.get(ticket)?;
        if promise.peer.owner() != peer.owner() || is_void(*issued, now) {
            return None;
        }
        all.remove(ticket).map(|(_, promise)| promise)
    }

    /// Looks through unused tickets for as long as there are any, and sleeps otherwise.
    pub(crate) async fn keep_swept(&self) {
        loop {
            self.issued.notified().await;
            while !self.lock().is_empty() {
                tokio::time::sleep(SWEEP).await;
                self.sweep();
            }
        }
    }

    /// Ends what nobody came for, or wants any more.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let is_over = |_: &Ticket, (issued, promise): &mut (Instant, Promise)| {
            is_void(*issued, now) || promise.work.job().is_some_and(|job| job.go_on().is_err())
        };
        let over: Vec<Promise> = self.lock().extract_if(is_over).map(|(_, (_, promise))| promise).collect();
        for promise in over {
            let Work::Import(_, job) = promise.work else { continue };
            let never_began = ApiError::new(ErrorCode::OperationFailed, "the upload never began");
            let why = job.go_on().err().map_or(never_began, ApiError::from);
            job.finish(Err(why));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ticket, (Instant, Promise)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room(all: &HashMap<Ticket, (Instant, Promise)>, uid: u32) -> Result<(), ApiError> {
    if all.values().filter(|(_, held)| held.peer.uid == uid).count() < PER_USER {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Limit, "too many streams are being opened").hint("Try again in a minute."))
}

fn is_void(issued: Instant, now: Instant) -> bool {
    now.saturating_duration_since(issued) > Duration::from_secs(TICKET_SECONDS)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::vm::tests::{ALICE, BOB};
    use std::future::Future as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    fn promise(uid: u32) -> Promise {
        let request = StreamRequest::Ssh { vm: "demo".into() };
        Promise { peer: if uid == ALICE.uid { ALICE } else { BOB }, work: Work::Serve(request) }
    }

    #[test]
    fn a_ticket_is_good_once_and_for_its_owner() {
        let tickets = Tickets::default();
        let ticket = tickets.issue(promise(1001)).unwrap();
        let other_name = Peer::new(ALICE.uid, "carol", false);
        assert!(tickets.take(&ticket, &BOB).is_none() && tickets.take(&ticket, &other_name).is_none());
        assert!(tickets.take(&Ticket([0; 32]), &ALICE).is_none());
        assert!(tickets.take(&ticket, &ALICE).is_some());
        assert!(tickets.take(&ticket, &ALICE).is_none());
    }

    #[test]
    fn a_ticket_is_void_after_its_time() {
        let tickets = Tickets::default();
        let (early, late) = (tickets.issue(promise(1001)).unwrap(), tickets.issue(promise(1001)).unwrap());
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert!(tickets.take_at(&early, &ALICE, after(TICKET_SECONDS - 1)).is_some());
        // Nobody has swept it away yet.
        assert!(tickets.take_at(&late, &ALICE, after(TICKET_SECONDS + 1)).is_none());
    }

    /// Counts how often a task is to be polled.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_tickets_nothing_is_scheduled() {
        let (tickets, woken) = (Tickets::default(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let mut sweeper = std::pin::pin!(tickets.keep_swept());
        let mut poll = || assert!(sweeper.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let day = Duration::from_secs(24 * 60 * 60);
        poll();
        tokio::time::sleep(day).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "nobody has a ticket");
        let ticket = tickets.issue(promise(1001)).unwrap();
        poll();
        tokio::time::sleep(2 * SWEEP).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "the ticket, and the time to look at it");
        drop(tickets.take(&ticket, &ALICE));
        poll();
        tokio::time::sleep(day).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "it is used");
    }

    #[test]
    fn one_user_cannot_hold_them_all() {
        let tickets = Tickets::default();
        for _ in 0..PER_USER {
            tickets.issue(promise(1001)).unwrap();
        }
        assert_eq!(tickets.issue(promise(1001)).unwrap_err().code, ErrorCode::Limit);
        assert!(tickets.room(1001).is_err() && tickets.room(1002).is_ok());
        assert!(tickets.issue(promise(1002)).is_ok());
    }
}
