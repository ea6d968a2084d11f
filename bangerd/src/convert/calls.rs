//! The system calls of a converter's two threads: those of a program that reads and writes files
//! which it can open, and starts no thread. All others fail with EPERM. No socket is among them, so
//! the daemon's place at the helper's door is no use to whoever takes a converter over.

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Call, why.
pub(super) type Allowed = [(c_long, &'static str)];

/// Of the thread that converts.
pub(super) const CONVERTING: &Allowed = &[
    (libc::SYS_read, "the orders, the input"),
    (libc::SYS_pread64, "the input, at its offsets"),
    (libc::SYS_write, "spools; what is said to the daemon"),
    (libc::SYS_writev, "the last words of a panic"),
    (libc::SYS_pwrite64, "the file system, at its offsets"),
    (libc::SYS_openat, "files of the folder"),
    (libc::SYS_close, "the same"),
    (libc::SYS_fcntl, "copies of descriptors"),
    (libc::SYS_fstat, "lengths of files"),
    (libc::SYS_newfstatat, "the same"),
    (libc::SYS_statx, "the same"),
    (libc::SYS_lseek, "the same"),
    (libc::SYS_ftruncate, "sparse files"),
    (libc::SYS_fsync, "what is published is on disk"),
    (libc::SYS_fdatasync, "the same"),
    (libc::SYS_fchmod, "modes of what is published"),
    (libc::SYS_chmod, "the same"),
    (libc::SYS_fchmodat, "the same"),
    (libc::SYS_mkdir, "the folder of a kernel's modules"),
    (libc::SYS_mkdirat, "the same"),
    (libc::SYS_unlink, "what was begun and has failed"),
    (libc::SYS_unlinkat, "the same"),
    (libc::SYS_rmdir, "the same"),
    (libc::SYS_getdents64, "the same"),
    (libc::SYS_brk, "memory"),
    (libc::SYS_mmap, "the same"),
    (libc::SYS_munmap, "the same"),
    (libc::SYS_mremap, "the same"),
    (libc::SYS_madvise, "the same"),
    (libc::SYS_mprotect, "the same"),
    (libc::SYS_getrandom, "names of spools, seeds of hash tables"),
    (libc::SYS_clock_gettime, "how often the daemon is told"),
    (libc::SYS_futex, "locks of the allocator; waiting for the other thread"),
    (libc::SYS_sched_yield, "the same"),
    (libc::SYS_rt_sigaction, "a panic's end"),
    (libc::SYS_rt_sigprocmask, "the same"),
    (libc::SYS_rt_sigreturn, "the same"),
    (libc::SYS_sigaltstack, "the same"),
    (libc::SYS_getpid, "the same"),
    (libc::SYS_gettid, "the same"),
    (libc::SYS_exit, "the end"),
    (libc::SYS_exit_group, "the same"),
];

/// Of the thread that computes digests of files which are open.
pub(super) const HASHING: &Allowed = &[
    (libc::SYS_pread64, "what is hashed"),
    (libc::SYS_close, "a file that nobody else has any more"),
    (libc::SYS_futex, "waiting for the other thread, locks of the allocator"),
    (libc::SYS_sched_yield, "the same"),
    (libc::SYS_brk, "memory"),
    (libc::SYS_mmap, "the same"),
    (libc::SYS_munmap, "the same; its stack"),
    (libc::SYS_mremap, "the same"),
    (libc::SYS_madvise, "the same"),
    (libc::SYS_mprotect, "the same"),
    (libc::SYS_write, "the last words of a panic"),
    (libc::SYS_writev, "the same"),
    (libc::SYS_rt_sigaction, "a panic's end"),
    (libc::SYS_rt_sigprocmask, "the same"),
    (libc::SYS_rt_sigreturn, "the same"),
    (libc::SYS_sigaltstack, "the same"),
    (libc::SYS_getpid, "the same"),
    (libc::SYS_gettid, "the same"),
    (libc::SYS_exit, "the end"),
    (libc::SYS_exit_group, "the same"),
];

#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error(transparent)]
    Build(#[from] seccompiler::BackendError),
    #[error(transparent)]
    Apply(#[from] seccompiler::Error),
}

/// For this thread, from now on.
pub(super) fn restrict(allowed: &Allowed) -> Result<(), FilterError> {
    Ok(seccompiler::apply_filter(&program(allowed)?)?)
}

fn program(allowed: &Allowed) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.iter().map(|(call, _)| (*call, Vec::new())).collect();
    // abort(3): a signal to itself.
    let own = u64::from(std::process::id());
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![own])?]);
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_list_is_a_program_and_has_no_way_to_others() {
        let has = |list: &Allowed, call: c_long| list.iter().any(|(allowed, _)| *allowed == call);
        let processes = [libc::SYS_execve, libc::SYS_clone, libc::SYS_clone3, libc::SYS_kill, libc::SYS_ptrace];
        for list in [CONVERTING, HASHING] {
            assert!(!program(list).unwrap().is_empty());
            assert!(!processes.iter().chain(&[libc::SYS_socket]).any(|call| has(list, *call)));
        }
        assert!(HASHING.iter().all(|(call, _)| has(CONVERTING, *call)) && !has(HASHING, libc::SYS_openat));
    }
}
