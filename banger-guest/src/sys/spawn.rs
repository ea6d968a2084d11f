//! What a command's process does between fork and exec.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who a process becomes.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The limit of open files that commands get; 0 for that of this process.
static OPEN_FILES: AtomicU64 = AtomicU64::new(0);

/// Raises this process's own limit of open files to `wanted`, as far as it may. What it starts by
/// [`in_own_session`] has the limit of before.
pub(crate) fn raise_open_files(wanted: u64) -> Result<(), nix::Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted.min(hard) {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
        // The first one's: it is what init has set.
        let _ = OPEN_FILES.compare_exchange(0, soft, Ordering::Relaxed, Ordering::Relaxed);
    }
    Ok(())
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
    let open_files = OPEN_FILES.load(Ordering::Relaxed);
    let prepare = move || {
        // SAFETY: setsid, ioctl, open, write, close, fchown and the set*id functions are
        // async-signal-safe (signal-safety(7)) or, setgroups and the limits, a bare system call in
        // the child's only thread; the path and the text are constants, the groups were allocated
        // before the fork, and no memory is allocated in the child.
        unsafe {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if open_files > 0 && libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
                limit.rlim_cur = open_files.min(limit.rlim_max);
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            }
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn what_is_started_has_the_limit_of_before() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let before = hard / 2;
        setrlimit(Resource::RLIMIT_NOFILE, before, hard).unwrap();
        raise_open_files(before + 1).unwrap();
        raise_open_files(u64::MAX).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -n; ulimit -Hn"]);
        in_own_session(&mut command, false, Identity { uid: 0, gid: 0, groups: Vec::new() });
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(said.lines().collect::<Vec<_>>(), [before.to_string(), hard.to_string()]);
    }
}
