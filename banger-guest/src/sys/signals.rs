//! Signals by number, real-time ones included, which nix's `Signal` does not know.

use nix::errno::Errno;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// Power off, as systemd's PID 1 understands it (`systemd(1)`, signals).
pub(crate) fn rt_poweroff() -> i32 {
    libc::SIGRTMIN() + 4
}

/// Reboot, as systemd's PID 1 understands it.
pub(crate) fn rt_reboot() -> i32 {
    libc::SIGRTMIN() + 5
}

/// All signals, blocked in this process for [`Blocked::wait`].
#[derive(Debug)]
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    /// Blocks every signal that can be blocked. PID 1 then takes them one by one, and none is lost.
    pub(crate) fn all() -> Result<Self, Errno> {
        // SAFETY: sigset_t is a plain C structure; sigfillset initialises it before it is read, and
        // sigprocmask is given a valid set and no place for the old one.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            Errno::result(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
            Ok(Self(set))
        }
    }

    /// The number of the next signal.
    pub(crate) fn wait(&self) -> Result<i32, Errno> {
        // SAFETY: the set is initialised and no siginfo is asked for.
        Errno::result(unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) })
    }
}

/// Lets every signal through. The agent starts with this: a mask is inherited, and PID 1 blocks
/// all.
pub(crate) fn unblock_all() {
    // SAFETY: sigset_t is a plain C structure and is initialised by sigemptyset before it is read;
    // setting an empty mask cannot fail.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Remembers who sends SIGTERM to this process: what receives it by a handler is not told.
#[derive(Debug)]
pub(crate) struct Senders(());

/// Of the last SIGTERM; 0 before the first one.
static SENDER: AtomicI32 = AtomicI32::new(0);

impl Senders {
    /// From now on. Before any other handler, so that a sender is known when its signal is.
    pub(crate) fn note() -> io::Result<Self> {
        // SAFETY: the action reads a field of the siginfo that it is given and stores an integer,
        // both of which are async-signal-safe. What kill(2) sends has a sender; of what the kernel
        // sends the field is 0 or means nothing to us, and is an integer all the same.
        unsafe {
            signal_hook_registry::register_sigaction(libc::SIGTERM, |info| {
                SENDER.store(info.si_pid(), Ordering::Relaxed);
            })?;
        }
        Ok(Self(()))
    }

    /// The process that sent the last one.
    pub(crate) fn last(&self) -> i32 {
        SENDER.load(Ordering::Relaxed)
    }
}

/// Sends signal `number` to a process, or to a process group when `pid` is negative (`kill(2)`).
pub(crate) fn send(pid: i32, number: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two integers and touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid, number) }).map(drop)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_sender_is_known() {
        let senders = Senders::note().unwrap();
        let ours = nix::unistd::getpid().as_raw();
        send(ours, libc::SIGTERM).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(senders.last(), ours);
        // Another process.
        let line = format!("kill -TERM {ours}");
        let mut child = std::process::Command::new("/bin/sh").args(["-c", &line]).spawn().unwrap();
        let other = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(senders.last(), other);
    }
}
