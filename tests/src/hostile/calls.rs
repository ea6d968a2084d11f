//! System calls that no safe wrapper makes the way an attacker would. All unsafe code of the
//! hostile program is here.

use std::io;

/// A call by number, with up to six arguments.
pub(super) fn call<const N: usize>(number: i64, arguments: [usize; N]) -> io::Result<usize> {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: the callers pass numbers, null pointers or addresses of their own live buffers with
    // the right length; an error is a result like any other.
    let result =
        unsafe { libc::syscall(number, argument(0), argument(1), argument(2), argument(3), argument(4), argument(5)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A child that ends at once.
pub(super) fn fork() -> io::Result<()> {
    // SAFETY: this program has one thread, and the child does nothing but end.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running anything of the parent's.
        0 => unsafe { libc::_exit(0) },
        child => {
            // SAFETY: a child of ours and no place for its status.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            Ok(())
        }
    }
}

/// Attaches to a tap by its name.
pub(super) fn take_tap(tun: &std::fs::File, name: &str) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: all-zero bytes are a valid `ifreq`, a C struct of integers and unions of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which lives until
    // the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
