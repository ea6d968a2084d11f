//! Work on a thread, because it reads and writes files or waits for git.
//!
//! Whoever waits for it may stop waiting: the user has interrupted. Then the thread's process is
//! ended and the thread is waited for, so that it does not write into a folder that is being
//! removed, and nothing is left behind of what it had begun. A thread that reads or writes a pipe
//! ends because the caller has dropped the pipe's other end before.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::process::{Child, Output};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a thread may take to end. One that takes longer waits for a disk or a file system that
/// hangs, and the user does not.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long a process may take after each of these.
const ENDS: [(Signal, u16); 2] = [(Signal::TERM, 3000), (Signal::KILL, 1000)];

thread_local! {
    /// The work that this thread does.
    static OURS: RefCell<Option<Arc<Mutex<State>>>> = const { RefCell::new(None) };
}

/// How it stands with some work.
#[derive(Debug, Default)]
struct State {
    /// Nobody waits for it any more.
    stopped: bool,
    /// Tells the thread so while it waits for a process.
    waiting: Option<Sender<Told>>,
}

/// What a thread hears that waits for a process.
#[derive(Debug)]
enum Told {
    Ended(io::Result<Output>),
    Stop,
}

/// Work that is being done. It gives what the work gives.
#[derive(Debug)]
pub(crate) struct Work<T> {
    done: oneshot::Receiver<T>,
    /// Nothing is sent; it ends with the thread's work.
    ended: Receiver<()>,
    state: Arc<Mutex<State>>,
}

/// Does it on a thread of its own.
pub(crate) fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Work<T> {
    let state = Arc::new(Mutex::new(State::default()));
    let ours = Arc::clone(&state);
    let (tell, done) = oneshot::channel();
    let (end, ended) = channel();
    tokio::task::spawn_blocking(move || {
        OURS.set(Some(ours));
        // What nobody waits for any more is dropped before the end is told: it may own a folder.
        drop(tell.send(work()));
        OURS.set(None);
        drop(end);
    });
    Work { done, ended, state }
}

impl<T> Future for Work<T> {
    type Output = anyhow::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.done).poll(context).map(|done| done.map_err(|_| anyhow::anyhow!("a thread ended")))
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.done.close();
        let ended = |patience| self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected);
        // Nearly always it has ended.
        if ended(Duration::ZERO) {
            return;
        }
        let waiting = {
            let mut state = lock(&self.state);
            state.stopped = true;
            state.waiting.take()
        };
        drop(waiting.map(|waiting| waiting.send(Told::Stop)));
        ended(PATIENCE);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a process, which ends with the work of this thread when nobody waits for that.
///
/// # Errors
/// When it cannot be waited for, or was ended so.
pub(crate) fn outcome(child: Child) -> io::Result<Output> {
    let Some(state) = OURS.with_borrow(Clone::clone) else { return child.wait_with_output() };
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (tell, told) = channel();
    {
        let mut state = lock(&state);
        if state.stopped {
            drop(tell.send(Told::Stop));
        }
        state.waiting = Some(tell.clone());
    }
    // On a thread of its own: a process that it has left behind may hold its outputs open.
    std::thread::spawn(move || tell.send(Told::Ended(child.wait_with_output())));
    let ended = told.recv();
    lock(&state).waiting = None;
    if let Ok(Told::Ended(output)) = ended {
        return output;
    }
    for (signal, patience) in ENDS {
        // One that has ended needs none.
        let _ = pidfd_send_signal(&process, signal);
        let mut gone = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut gone, PollTimeout::from(patience)), Ok(1..)) {
            break;
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends_with_its_process_and_leaves_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let (begun, begins) = oneshot::channel();
        let mut work = begin(move || {
            // As git does with a filter: the program below holds the output longer than its parent.
            let mut sh = Command::new("sh");
            sh.args(["-c", "echo $$ > pid; sleep 60; echo late > late"]).current_dir(folder.path());
            let child = sh.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            while !folder.path().join("pid").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            begun.send(child.id()).unwrap();
            let ended = outcome(child).map(drop);
            (folder, ended)
        });
        let id = tokio::select! {
            id = begins => id.unwrap(),
            _ = &mut work => unreachable!("it sleeps for a minute"),
        };
        let began = Instant::now();
        drop(work);
        assert!(began.elapsed() < Duration::from_secs(5) && !path.exists(), "{:?}", began.elapsed());
        let state = std::fs::read_to_string(format!("/proc/{id}/stat"));
        assert!(state.is_err() || state.unwrap().contains(") Z "), "the process goes on");
        // What is done gives what it gives, a process of it too.
        let done = begin(|| outcome(Command::new("echo").arg("x").stdout(Stdio::piped()).spawn().unwrap()));
        assert_eq!(done.await.unwrap().unwrap().stdout, b"x\n");
    }
}
