//! What a command's process does between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Who a process becomes.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Makes the process the leader of a session of its own, with standard input as its controlling
/// terminal when `terminal` says that it is one, takes the agent's protection from the OOM killer
/// off it, and makes it a process of that user. The standard streams become the user's, too:
/// programs open `/dev/stdout` and their terminal anew.
pub(crate) fn in_own_session(command: &mut Command, terminal: bool, identity: Identity) {
    // A test's agent is not root and can start commands as itself only; any other user is an error
    // of the kernel's there.
    let switch = identity.uid != 0 || nix::unistd::geteuid().is_root();
    let Identity { uid, gid, groups } = identity;
    let prepare = move || {
        // SAFETY: setsid, ioctl, open, write, close, fchown and the set*id functions are
        // async-signal-safe (signal-safety(7)) or, setgroups, a bare system call in the child's
        // only thread; the path and the text are constants, the groups were allocated before the
        // fork, and no memory is allocated in the child.
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
            if !switch {
                return Ok(());
            }
            if uid != 0 {
                for stream in 0..3 {
                    // One that has no owner to change is as good as before.
                    libc::fchown(stream, uid, libc::gid_t::MAX);
                }
            }
            // The user last: whoever is not root any more cannot change the groups.
            if libc::setgroups(groups.len(), groups.as_ptr()) < 0 || libc::setgid(gid) < 0 || libc::setuid(uid) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `prepare` keeps to the rules of a fork child: see its own comment.
    unsafe { command.pre_exec(prepare) };
}
