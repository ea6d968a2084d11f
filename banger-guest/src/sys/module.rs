//! `finit_module(2)`.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Loads the module in `file` without parameters. A module that is loaded already is success.
pub(crate) fn load(file: &File) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the duration of the call and the parameter string is a
    // NUL-terminated constant; the kernel keeps neither.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
