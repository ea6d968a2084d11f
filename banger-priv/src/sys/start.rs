//! What only start-up does: descriptors, environment and heap of the process, before it has
//! threads.

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const LISTEN_START: RawFd = 3;

/// Takes the one descriptor that systemd passed, and closes every other one above the standard
/// three.
///
/// # Errors
/// The kernel's.
pub fn take_descriptors(passed: u32) -> nix::Result<Option<OwnedFd>> {
    let first = if passed == 0 { LISTEN_START } else { LISTEN_START.saturating_add(1) };
    // SAFETY: the first thing that `main` does: nothing in this process owns a descriptor at or
    // above `first`.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })?;
    if passed == 0 {
        return Ok(None);
    }
    // SAFETY: systemd passes it to this process (LISTEN_PID was compared), and it is taken once.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(LISTEN_START) }))
}

/// Empties the environment: nothing later may be steered by it.
///
/// # Errors
/// Never on Linux.
pub fn clear_environment() -> Result<(), Errno> {
    // SAFETY: one thread, and nothing holds a pointer into the environment.
    unsafe { nix::env::clearenv() }.map_err(|_| Errno::ENOMEM)
}

/// Makes all threads use the first one's heap. Glibc gives each thread a heap of its own otherwise,
/// which grows by mprotect(2), and that has no row in the system call filter.
pub fn share_one_heap() {
    // SAFETY: one thread, and the parameter is a number that glibc knows; it changes where memory
    // comes from and nothing about memory that is in use.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
