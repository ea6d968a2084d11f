//! Pseudo-terminals: the parts that have no safe wrapper.

use nix::errno::Errno;
use nix::pty::Winsize;
use std::os::fd::{AsFd, AsRawFd};

mod ioctls {
    nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, nix::pty::Winsize);
}

/// Sets the size of a terminal; the kernel sends SIGWINCH to its foreground processes.
pub(crate) fn set_window_size(terminal: impl AsFd, size: Winsize) -> Result<(), Errno> {
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    unsafe { ioctls::set_window_size(terminal.as_fd().as_raw_fd(), &raw const size) }.map(drop)
}
