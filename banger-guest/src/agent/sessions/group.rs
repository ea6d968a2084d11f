//! A session's command and the other processes of its group: signals, and their end.
//!
//! The command leads the group. Until it is reaped, its number, which is the group's as well, can
//! be no other process's.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::process::Child;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::agent::processes;
use crate::sys::signals;

/// How long the group may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(10);
/// How long the end of killed processes may take. One that waits for a disk is not waited for.
const KILLED: Duration = Duration::from_secs(2);
/// How often is looked whether the group is empty: the kernel says it to nobody.
const LOOK: Duration = Duration::from_millis(100);

/// The command's process group.
#[derive(Debug)]
pub(super) struct Group {
    /// Until its leader is reaped.
    number: Mutex<Option<i32>>,
    /// When it is killed, since its user has stopped it.
    killed_at: OnceLock<Instant>,
}

impl Group {
    pub(super) fn new(leader: Option<u32>) -> Self {
        Self { number: Mutex::new(leader.map(u32::cast_signed)), killed_at: OnceLock::new() }
    }

    /// Sends a signal to all of its processes.
    pub(super) fn signal(&self, number: i32) {
        if let Some(group) = *self.number() {
            let _ = signals::send(-group, number);
        }
    }

    /// Its user stops it. Gives the time at which it is to be killed.
    pub(super) fn stopped(&self) -> Instant {
        *self.killed_at.get_or_init(|| Instant::now() + STOP)
    }

    /// Waits until the leader has ended and, if the group was stopped, the others as well, and
    /// reaps the leader. Without a stop the others may go on.
    pub(super) async fn ended(&self, leader: &mut Child) -> ExitStatus {
        if let Some(pid) = leader.id() {
            has_ended(pid.cast_signed()).await;
        }
        self.others_have_ended().await;
        let status = leader.wait().await;
        *self.number() = None;
        status.unwrap_or_default()
    }

    async fn others_have_ended(&self) {
        let group = *self.number();
        let (Some(group), Some(killed_at)) = (group, self.killed_at.get()) else { return };
        if timeout_at(*killed_at, is_empty(group)).await.is_err() {
            self.signal(libc::SIGKILL);
            let _ = timeout(KILLED, is_empty(group)).await;
        }
    }

    fn number(&self) -> MutexGuard<'_, Option<i32>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a child has ended, and leaves it to be reaped.
async fn has_ended(pid: i32) {
    let wait = move || {
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(Pid::from_raw(pid)), ended) == Err(Errno::EINTR) {}
    };
    let _ = spawn_blocking(wait).await;
}

/// Waits until only processes that have ended are left: the leader is one of these, so kill(2) does
/// not tell.
async fn is_empty(group: i32) {
    let anybody = move || processes::all().iter().any(|process| process.group == group);
    while spawn_blocking(anybody).await.unwrap_or(false) {
        sleep(LOOK).await;
    }
}
