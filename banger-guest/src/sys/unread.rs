//! How much lies in a pipe.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

mod ioctls {
    nix::ioctl_read_bad!(unread, libc::FIONREAD, libc::c_int);
}

/// Bytes that were written to a pipe and not read (pipe(7), FIONREAD).
pub(crate) fn unread(pipe: impl AsFd) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which lives across the call.
    unsafe { ioctls::unread(pipe.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}
