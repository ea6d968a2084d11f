//! Signals by number, real-time ones included, which nix's `Signal` does not know.

use nix::errno::Errno;

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

/// Lets every signal through. The agent starts with this: a mask is inherited, and PID 1 blocks all.
pub(crate) fn unblock_all() {
    // SAFETY: sigset_t is a plain C structure and is initialised by sigemptyset before it is read;
    // setting an empty mask cannot fail.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Sends signal `number` to a process, or to a process group when `pid` is negative (`kill(2)`).
pub(crate) fn send(pid: i32, number: i32) -> Result<(), Errno> {
    // SAFETY: kill takes two integers and touches no memory of this process.
    Errno::result(unsafe { libc::kill(pid, number) }).map(drop)
}
