//! Opening a tap that exists already, as Firecracker does when the interface is configured: from
//! then on the device is busy, and a tap that is missing or somebody else's is found out before the
//! machine starts. QEMU inherits the descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

/// Why a tap was not opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("invalid interface name")]
    Name,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Attaches to the tap `name` with the flags of Firecracker's `Tap::open_named`.
pub(super) fn open(name: &str) -> Result<File, OpenError> {
    // SAFETY: all-zero bytes are a valid `ifreq`, a C struct of integers and unions of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte less than the field: the kernel wants the name terminated.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(OpenError::Name);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;

    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: `tun` is open, and TUNSETIFF reads and writes one `ifreq`, which lives until the call
    // returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_cut_are_refused_before_it_sees_them() {
        for name in ["", "sixteen-letters-", "a\0b"] {
            assert!(matches!(open(name), Err(OpenError::Name)), "{name:?}");
        }
    }
}
