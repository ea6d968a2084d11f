//! A process that cannot be mistaken for another one: pidfds (pidfd_open(2)).
//!
//! Used by [`crate::cgroup`] when no cgroup is delegated and by [`crate::Vmm`] to see a VMM end. A
//! number from anywhere becomes a [`Pidfd`] first and is verified while that is held; nothing here
//! ever signals a bare number.

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process, held by descriptor; cheap to clone.
#[derive(Clone, Debug)]
pub struct Pidfd {
    pid: u32,
    fd: Arc<OwnedFd>,
}

impl Pidfd {
    /// Holds the process that has this number now.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number =
            number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no such pid: {pid}")))?;
        // The kernel sets close-on-exec on every pidfd.
        let fd = rustix::process::pidfd_open(number, PidfdFlags::empty())?;
        Ok(Self { pid, fd: Arc::new(fd) })
    }

    /// Its number; another process may have it once this one [has ended](Self::has_ended).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Has it ended? A zombie has.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut fds, PollTimeout::ZERO)? > 0)
    }

    /// Returns when it has ended. Cancel safe.
    ///
    /// # Errors
    /// What the runtime says when it cannot watch the descriptor.
    pub async fn ended(&self) -> io::Result<()> {
        #[expect(deprecated, reason = "an OwnedFd keeps its descriptor; the replacement is an unsafe fn")]
        let fd = AsyncFd::with_interest(self.fd.try_clone()?, Interest::READABLE)?;
        fd.readable().await.map(drop)
    }

    /// Sends a signal. One that has ended already is fine.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.fd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn sees_the_end_of_a_process_also_as_a_zombie() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let held = Pidfd::open(child.id()).unwrap();
        assert!(!held.has_ended().unwrap());
        held.signal(Signal::KILL).unwrap();
        held.ended().await.unwrap();
        assert!(held.has_ended().unwrap(), "a zombie has ended");
        child.wait().unwrap();
        held.signal(Signal::KILL).unwrap();
        assert!(Pidfd::open(u32::MAX).is_err());
    }
}
