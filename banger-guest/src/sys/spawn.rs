//! What a command's process does between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the process the leader of a session of its own, with standard input as its controlling
/// terminal when `terminal` says that it is one, and takes the agent's protection from the OOM killer
/// off it.
pub(crate) fn in_own_session(command: &mut Command, terminal: bool) {
    let prepare = move || {
        // SAFETY: setsid, ioctl, open, write and close are async-signal-safe (signal-safety(7)); the
        // path and the text are constants, and no memory is allocated in the child.
        unsafe {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            if terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if score >= 0 {
                libc::write(score, c"0".as_ptr().cast(), 1);
                libc::close(score);
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` keeps to the rules of a fork child: see its own comment.
    unsafe { command.pre_exec(prepare) };
}
