//! The thread that waits for the host's disk, so that the serving thread never does.
//!
//! Whoever changes a file on a journalled file system may have to wait for the journal: not only in
//! fsync(2), but in fallocate(2), rename(2) and unlink(2) as well. On a disk to which VMs write,
//! that takes seconds. The serving thread must be able to withdraw an address at any time, so it
//! gives whatever reads or changes files below `/var/lib` to this thread as a job, and goes on with
//! the calls of other VMs.
//!
//! There is one such thread, and its jobs are done in turn, each short enough to let others in
//! between: a large file is reserved and freed piece by piece. The ledger is not its business: it
//! lies in memory (tmpfs).
//!
//! The thread is started once, after Landlock, which holds for the calling thread and those that it
//! starts, and before the system call filter, in which nothing can start a thread.

use crate::kernel::{KernelError, Outcome};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use tokio::sync::oneshot;

/// Enough for one record as JSON, several times over. Bytes.
const STACK: usize = 256 * 1024;
/// The thread ended in the middle of a job. A panic ends the whole process, so this is seen in
/// tests only.
const GONE: KernelError = KernelError { step: "disk-thread", errno: libc::EIO };

type Job = Box<dyn FnOnce() + Send>;

/// A handle on the thread. The thread ends with the last handle, which the helper never gives up.
#[derive(Clone, Default)]
pub struct DiskThread(Arc<Handle>);

#[derive(Default)]
struct Handle(Arc<Queue>);

/// Own code, because the channels of std and tokio sometimes call sched_yield(2), for which the
/// system call filter has no row. A mutex and a condition variable use futex(2) only.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl DiskThread {
    /// Starts the thread and answers its number. Jobs that were given before wait for it.
    ///
    /// # Errors
    /// The kernel's, when it has no room for a thread.
    pub fn start(&self) -> io::Result<u32> {
        let queue = Arc::clone(&self.0.0);
        let begun = Arc::new((Barrier::new(2), AtomicU32::new(0)));
        let begins = Arc::clone(&begun);
        thread::Builder::new().stack_size(STACK).spawn(move || {
            begins.1.store(nix::unistd::gettid().as_raw().cast_unsigned(), Ordering::Release);
            begins.0.wait();
            queue.work();
        })?;
        // What a thread does at its beginning must be over before the filter comes, which has no
        // row for it.
        begun.0.wait();
        Ok(begun.1.load(Ordering::Acquire))
    }

    /// Queues a job; its answer comes over the channel.
    pub(crate) fn begin<T, F>(&self, job: F) -> oneshot::Receiver<Outcome<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> Outcome<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.0.0.push(Box::new(move || drop(answer.send(job()))));
        answered
    }

    /// Does a job on the thread and waits for its answer. The job is done to its end even if nobody
    /// waits.
    ///
    /// # Errors
    /// The job's.
    pub async fn run<T, F>(&self, job: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Outcome<T> + Send + 'static,
    {
        self.begin(job).await.unwrap_or(Err(GONE))
    }
}

impl Queue {
    fn push(&self, job: Job) {
        lock(&self.waiting).jobs.push_back(job);
        self.changed.notify_one();
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    /// Waits for a job; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut waiting = lock(&self.waiting);
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        lock(&self.0.waiting).closed = true;
        self.0.changed.notify_one();
    }
}

impl fmt::Debug for DiskThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskThread")
    }
}

/// No code that holds one of these locks can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn jobs_are_done_in_turn_and_their_answers_come_back() {
        let disk = DiskThread::default();
        let done = Arc::new(Mutex::new(Vec::new()));
        let answers: Vec<_> = (0..100)
            .map(|n| {
                let done = Arc::clone(&done);
                disk.begin(move || {
                    lock(&done).push(n);
                    if n % 2 == 0 { Ok(n) } else { Err(KernelError { step: "odd", errno: n }) }
                })
            })
            .collect();
        assert!(lock(&done).is_empty(), "nothing is done before the thread runs");
        disk.start().unwrap();
        for (n, answer) in (0..).zip(answers) {
            let expected = if n % 2 == 0 { Ok(n) } else { Err(KernelError { step: "odd", errno: n }) };
            assert_eq!(answer.blocking_recv().unwrap(), expected);
        }
        assert_eq!(*lock(&done), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_job_is_done_although_nobody_waits_and_the_thread_ends_with_its_last_handle() {
        let disk = DiskThread::default();
        let (ended, sees_end) = (Arc::new(()), Arc::new(Barrier::new(2)));
        let (held, job_done) = (Arc::clone(&ended), Arc::clone(&sees_end));
        drop(disk.begin(move || {
            drop(held);
            job_done.wait();
            Ok(())
        }));
        disk.start().unwrap();
        sees_end.wait();
        assert_eq!(Arc::strong_count(&ended), 1);
        let queue = Arc::downgrade(&disk.0.0);
        drop(disk);
        while queue.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
