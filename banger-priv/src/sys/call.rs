//! The end of a confined process, and one system call by its number, for `--self-check-call`: how
//! the tests see that each row of the filter allows what it says and nothing else, in the program
//! that ships. The helper that serves never does that.

use std::io;

/// Ends the process by the one call that the filter leaves for it: exit(3) would first take down
/// the stack of the signal handlers that Rust sets up, and abort(3) raise a signal.
pub fn exit(code: i32) -> ! {
    // SAFETY: it ends here; nothing runs that could miss what exit(3) would have done.
    unsafe { libc::_exit(code) }
}

/// Arguments end here: no address of a position-independent program on x86-64 is that low, so none
/// of them can make the kernel read, write or unmap memory that this process uses.
pub const END: u64 = 1 << 34;

/// Does it, and says what the kernel answered.
///
/// # Errors
/// The kernel's, and EINVAL for an argument of [`END`] or more.
pub fn by_number(number: u32, arguments: [u64; 6]) -> io::Result<i64> {
    if arguments.iter().any(|argument| *argument >= END) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no argument is an address of this process's memory (see END). What else a call can do
    // is what its caller could have done without this program, which holds less than was needed to
    // start it.
    let answer = unsafe { libc::syscall(i64::from(number), a, b, c, d, e, f) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
