//! The system calls of a helper that serves: one table, a row each. What has no row, or other
//! arguments than its row says, ends the process (`SECCOMP_RET_KILL_PROCESS`).
//!
//! Absent on purpose: running and making processes (execve, clone), signals (kill), other
//! processes' memory (ptrace, process_vm), new sockets and connections (socket, bind, connect),
//! mounts and namespaces, bpf, io_uring, and every change of identity or of this filter (prctl,
//! seccomp, capset). `open` and `openat` are absent too: what is opened is opened by `openat2`,
//! below a handle. Memory never becomes executable.
//!
//! A filter sees numbers and no memory: which path `openat2` opens is Landlock's business
//! ([`crate::confine`]), and which device an ioctl asks is the descriptors'. Numbers are compared
//! as the kernel reads them: 32 bits.

use crate::sys::{dm, loopdev, tun};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::fmt;

/// What one argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Is {
    argument: u8,
    value: u32,
}

/// A system call, in which forms it is used (none listed: any), and why.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    number: c_long,
    forms: &'static [&'static [Is]],
    why: &'static str,
}

const fn is(argument: u8, value: u32) -> Is {
    Is { argument, value }
}

const fn row(name: &'static str, number: c_long, forms: &'static [&'static [Is]], why: &'static str) -> Row {
    Row { name, number, forms, why }
}

/// `O_CLOEXEC | O_NONBLOCK`, as accept4(2) spells it.
const ACCEPTED: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned();
/// Memory to read and write, of nobody else, from no file.
const PLAIN: &[Is] = &[
    is(2, (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned()),
    is(3, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned()),
];
const NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW.cast_unsigned();
const DONTWAIT: u32 = libc::MSG_DONTWAIT.cast_unsigned();
const NOSIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();
/// What locks ask for (glibc's the first two, std's the last two), of threads of this process only.
const WAIT: u32 = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG).cast_unsigned();
const WAKE: u32 = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG).cast_unsigned();
const WAIT_BITSET: u32 = (libc::FUTEX_WAIT_BITSET | libc::FUTEX_PRIVATE_FLAG).cast_unsigned();
const SOL_SOCKET: Is = is(1, libc::SOL_SOCKET.cast_unsigned());

/// The table, by name.
pub(crate) const ROWS: &[Row] = &[
    row("accept4", libc::SYS_accept4, &[&[is(3, ACCEPTED)]], "the daemon connects"),
    row("brk", libc::SYS_brk, &[], "memory"),
    row("clock_gettime", libc::SYS_clock_gettime, &[&[is(0, 0)], &[is(0, 1)]], "hosts whose clock is not in the vDSO"),
    row("close", libc::SYS_close, &[], "handles of one operation"),
    row("epoll_ctl", libc::SYS_epoll_ctl, &[], "waiting for the daemon"),
    row("epoll_wait", libc::SYS_epoll_wait, &[], "waiting for the daemon"),
    row("exit_group", libc::SYS_exit_group, &[], "the end after a panic"),
    row("fallocate", libc::SYS_fallocate, &[&[is(1, 0)]], "COW files are reserved whole; no holes are punched"),
    row("fchmodat", libc::SYS_fchmodat, &[&[is(2, 0o660)]], "dm nodes, where no udev rule does it"),
    row("fchownat", libc::SYS_fchownat, &[&[is(2, u32::MAX), is(4, NOFOLLOW)]], "their group alone, no link followed"),
    row("fstat", libc::SYS_fstat, &[], "what was opened is looked at"),
    row("fstatfs", libc::SYS_fstatfs, &[], "what the host's disk has free, before anything is reserved"),
    row("fsync", libc::SYS_fsync, &[], "COW files and their records are durable before the answer"),
    row("ftruncate", libc::SYS_ftruncate, &[], "a COW file that could not grow gets its length back"),
    row(
        "futex",
        libc::SYS_futex,
        &[&[is(1, WAIT)], &[is(1, WAKE)], &[is(1, WAIT_BITSET)]],
        "the serving thread and the disk's wait for each other",
    ),
    row("getrandom", libc::SYS_getrandom, &[&[is(2, 0)]], "generations"),
    row(
        "getsockopt",
        libc::SYS_getsockopt,
        &[
            &[SOL_SOCKET, is(2, libc::SO_PEERCRED.cast_unsigned())],
            &[SOL_SOCKET, is(2, libc::SO_PEERPIDFD.cast_unsigned())],
        ],
        "who connects",
    ),
    row("ioctl", libc::SYS_ioctl, IOCTLS, "taps, loops and dm devices"),
    row("mmap", libc::SYS_mmap, &[PLAIN], "memory in large pieces"),
    row("mremap", libc::SYS_mremap, &[&[is(3, libc::MREMAP_MAYMOVE.cast_unsigned())]], "memory in large pieces"),
    row("munmap", libc::SYS_munmap, &[], "memory in large pieces"),
    row("newfstatat", libc::SYS_newfstatat, &[&[is(3, NOFOLLOW)]], "dm nodes; a COW file that should not be there"),
    row("openat2", libc::SYS_openat2, &[&[is(3, 24)]], "files below held folders"),
    row("pidfd_open", libc::SYS_pidfd_open, &[&[is(1, 0)]], "a process that is looked at stays the same"),
    row("poll", libc::SYS_poll, &[&[is(1, 1), is(2, 0)]], "is it alive?"),
    row("read", libc::SYS_read, &[], "records, /proc, cgroups"),
    row(
        "recvfrom",
        libc::SYS_recvfrom,
        &[&[is(3, 0)], &[is(3, DONTWAIT)]],
        "requests; the kernel's answers over netlink",
    ),
    row("renameat", libc::SYS_renameat, &[], "records are replaced whole"),
    row("sendto", libc::SYS_sendto, &[&[is(3, 0)], &[is(3, NOSIGNAL)]], "answers; netlink; systemd's watchdog"),
    row("unlinkat", libc::SYS_unlinkat, &[&[is(2, 0)]], "records and COW files; no folder"),
    row("write", libc::SYS_write, &[], "records; the journal"),
    row("writev", libc::SYS_writev, &[], "answers"),
];

/// `request` of ioctl(2).
const IOCTLS: &[&[Is]] = &[
    &[is(1, tun::TUNSETIFF)],
    &[is(1, tun::TUNSETOWNER)],
    &[is(1, tun::TUNSETPERSIST)],
    &[is(1, loopdev::LOOP_CTL_GET_FREE)],
    &[is(1, loopdev::LOOP_CONFIGURE)],
    &[is(1, loopdev::LOOP_GET_STATUS64)],
    &[is(1, loopdev::BLKGETDISKSEQ)],
    &[is(1, dm::Command::Create as u32)],
    &[is(1, dm::Command::Remove as u32)],
    &[is(1, dm::Command::Suspend as u32)],
    &[is(1, dm::Command::Status as u32)],
    &[is(1, dm::Command::Load as u32)],
    &[is(1, dm::Command::Deps as u32)],
];

/// `name number form|form why`, a form being `argument=value,...`.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = |form: &&[Is]| form.iter().map(|is| format!("{}={}", is.argument, is.value)).collect::<Vec<_>>();
        let forms: Vec<String> = self.forms.iter().map(|is| form(is).join(",")).collect();
        let forms = if forms.is_empty() { "any".to_owned() } else { forms.join("|") };
        write!(f, "{} {} {forms} {}", self.name, self.number, self.why)
    }
}

/// The table as the kernel takes it.
///
/// # Errors
/// None that a table of constants could have and the tests not find.
pub(crate) fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for row in ROWS {
        let mut forms = Vec::new();
        for form in row.forms {
            let conditions = form.iter().map(|is| {
                SeccompCondition::new(is.argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, is.value.into())
            });
            forms.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
        }
        rules.insert(row.number, forms);
    }
    let (refused, allowed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules, refused, allowed, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_no_name_or_number_twice() {
        assert!(ROWS.is_sorted_by(|one, next| one.name < next.name));
        let numbers: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.number).collect();
        assert_eq!(numbers.len(), ROWS.len());
        assert!(ROWS.iter().all(|row| !row.why.is_empty()));
        assert!(ROWS.len() <= 35);
    }

    /// Each of these would be one for the families that are absent on purpose.
    #[test]
    fn what_is_absent_on_purpose_is_absent() {
        for name in [
            "bind",
            "bpf",
            "capset",
            "clone",
            "clone3",
            "connect",
            "execve",
            "execveat",
            "fork",
            "fsmount",
            "fsopen",
            "io_uring_setup",
            "kill",
            "mount",
            "mount_setattr",
            "move_mount",
            "mprotect",
            "open",
            "open_tree",
            "openat",
            "pidfd_send_signal",
            "pivot_root",
            "prctl",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
            "seccomp",
            "setns",
            "setuid",
            "socket",
            "socketpair",
            "tgkill",
            "tkill",
            "umount2",
            "unshare",
            "vfork",
        ] {
            assert!(ROWS.iter().all(|row| row.name != name), "{name}");
        }
        assert!(ROWS.iter().all(|row| row.name != "mmap" || row.forms == [PLAIN]));
    }

    #[test]
    fn it_becomes_a_program_within_the_kernels_limit() {
        let length = program().unwrap().len();
        assert!((ROWS.len()..4096).contains(&length), "{length} instructions");
    }

    #[test]
    fn a_row_is_said_as_the_tests_read_it() {
        const X: Row = row("x", 7, &[&[is(0, 1), is(2, 3)], &[is(0, 4)]], "because of this");
        assert_eq!(X.to_string(), "x 7 0=1,2=3|0=4 because of this");
        assert_eq!(row("y", 8, &[], "why").to_string(), "y 8 any why");
    }
}
