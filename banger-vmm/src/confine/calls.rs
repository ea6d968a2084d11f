//! The system calls that are taken away from a VMM: those that reach beyond it without opening a
//! path, of which Landlock therefore knows nothing, and those that Landlock of our floor does not
//! restrict.
//!
//! A list of what is denied, not of what is allowed: Firecracker brings an allow-list of its own,
//! per thread, and knows best what it needs. This one holds also when that is switched off or not
//! compiled in. A call that needs a capability is not listed: there are none to be had.

use super::ConfineError;
use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;

/// When a call is denied.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    /// Of a VMM that is one process, which the bench's stand-in is not.
    OneProcess,
    /// Its argument of this number is a process, and another than this one. Not for the stand-in
    /// either.
    Other(u8),
    /// The same; 0 stands for the caller.
    OtherOrZero(u8),
    /// The socket's family is another one.
    NotFamily(&'static [i32]),
    /// The flags of `clone` have none of these.
    Without(i32),
    /// They have one of these.
    With(i32),
}

/// `fchmodat2`, `setxattrat`, `removexattrat`: not named by libc yet (the kernel's
/// `syscall_64.tbl`).
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Call, when, why.
const DENIED: &[(c_long, When, &str)] = &[
    // Signals. Landlock's scope holds these too, and `tkill`, which musl uses for its own threads.
    (libc::SYS_kill, When::Other(0), "signals to the daemon and other VMMs"),
    (libc::SYS_tgkill, When::Other(0), "the same; vCPU threads are kicked by it"),
    (libc::SYS_rt_sigqueueinfo, When::Other(0), "the same"),
    (libc::SYS_rt_tgsigqueueinfo, When::Other(0), "the same"),
    (libc::SYS_pidfd_send_signal, When::Always, "the same"),
    // Other processes' memory, descriptors, limits.
    (libc::SYS_ptrace, When::Always, "looks into other processes of the uid"),
    (libc::SYS_process_vm_readv, When::Always, "the same"),
    (libc::SYS_process_vm_writev, When::Always, "the same"),
    (libc::SYS_process_madvise, When::Always, "the same"),
    (libc::SYS_pidfd_getfd, When::Always, "the same"),
    (libc::SYS_kcmp, When::Always, "the same"),
    (libc::SYS_move_pages, When::Always, "the same"),
    (libc::SYS_migrate_pages, When::Always, "the same"),
    (libc::SYS_prlimit64, When::OtherOrZero(0), "a CPU limit ends a process of the same uid"),
    (libc::SYS_setpriority, When::Always, "slows others of the uid down"),
    (libc::SYS_ioprio_set, When::Always, "the same"),
    (libc::SYS_sched_setaffinity, When::Always, "the same"),
    (libc::SYS_sched_setattr, When::Always, "the same"),
    (libc::SYS_sched_setparam, When::Always, "the same"),
    (libc::SYS_sched_setscheduler, When::Always, "the same"),
    // The uid owns the daemon's files, and Landlock does not know these.
    (libc::SYS_chmod, When::Always, "opens the owner's files to all users, or closes them to the owner"),
    (libc::SYS_fchmod, When::Always, "the same"),
    (libc::SYS_fchmodat, When::Always, "the same"),
    (FCHMODAT2, When::Always, "the same"),
    (libc::SYS_chown, When::Always, "gives the owner's files to another of its groups"),
    (libc::SYS_fchown, When::Always, "the same"),
    (libc::SYS_lchown, When::Always, "the same"),
    (libc::SYS_fchownat, When::Always, "the same"),
    (libc::SYS_setxattr, When::Always, "an access list does what a mode does"),
    (libc::SYS_lsetxattr, When::Always, "the same"),
    (libc::SYS_fsetxattr, When::Always, "the same"),
    (SETXATTRAT, When::Always, "the same"),
    (libc::SYS_removexattr, When::Always, "the same"),
    (libc::SYS_lremovexattr, When::Always, "the same"),
    (libc::SYS_fremovexattr, When::Always, "the same"),
    (REMOVEXATTRAT, When::Always, "the same"),
    (libc::SYS_utime, When::Always, "forges times of the owner's files"),
    (libc::SYS_utimes, When::Always, "the same"),
    (libc::SYS_futimesat, When::Always, "the same"),
    (libc::SYS_utimensat, When::Always, "the same"),
    (libc::SYS_inotify_init, When::Always, "tells the names of sockets in folders that cannot be listed"),
    (libc::SYS_inotify_init1, When::Always, "the same"),
    (libc::SYS_fanotify_init, When::Always, "the same"),
    (libc::SYS_name_to_handle_at, When::Always, "handles go round paths"),
    (libc::SYS_open_by_handle_at, When::Always, "the same"),
    // Ways to others that are no files.
    (libc::SYS_socket, When::NotFamily(&[libc::AF_UNIX]), "UDP, netlink and the rest; its only sockets have paths"),
    (libc::SYS_shmget, When::Always, "System V memory is shared by the uid"),
    (libc::SYS_semget, When::Always, "the same"),
    (libc::SYS_msgget, When::Always, "the same"),
    (libc::SYS_mq_open, When::Always, "the same for POSIX queues"),
    (libc::SYS_keyctl, When::Always, "keyrings are shared by the uid"),
    (libc::SYS_add_key, When::Always, "the same"),
    (libc::SYS_request_key, When::Always, "the same"),
    // New processes and namespaces: a VMM is one process with threads.
    (libc::SYS_fork, When::OneProcess, "Firecracker makes threads only"),
    (libc::SYS_vfork, When::OneProcess, "the same"),
    (libc::SYS_clone, When::Without(libc::CLONE_THREAD), "the same"),
    (libc::SYS_clone, When::With(NAMESPACES), "a user namespace has all capabilities"),
    (libc::SYS_unshare, When::Always, "the same"),
    (libc::SYS_setns, When::Always, "the same"),
    (libc::SYS_mount, When::Always, "with a user namespace, another view of paths"),
    (libc::SYS_umount2, When::Always, "the same"),
    (libc::SYS_pivot_root, When::Always, "the same"),
    (libc::SYS_chroot, When::Always, "the same"),
    (libc::SYS_move_mount, When::Always, "the same"),
    (libc::SYS_open_tree, When::Always, "the same"),
    (libc::SYS_fsopen, When::Always, "the same"),
    (libc::SYS_fspick, When::Always, "the same"),
    (libc::SYS_mount_setattr, When::Always, "the same"),
    // Parts of the kernel that were ways out before, and that Firecracker as it is used here does
    // not need.
    (libc::SYS_io_uring_setup, When::Always, "its operations pass this filter by; disks use the Sync engine"),
    (libc::SYS_io_uring_enter, When::Always, "the same"),
    (libc::SYS_io_uring_register, When::Always, "the same"),
    (libc::SYS_userfaultfd, When::Always, "for snapshots, which are not used"),
    (libc::SYS_perf_event_open, When::Always, "looks into other processes and the kernel"),
    (libc::SYS_bpf, When::Always, "a program in the kernel"),
];

/// Numbers of the x32 ABI have this bit. A kernel that has it would take every call above by
/// another number.
const X32: u32 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Takes the calls away from this process, whose number is `pid`, and from what it becomes.
pub(super) fn restrict(pid: u32, stand_in: bool) -> Result<(), ConfineError> {
    let eperm = filter(rules(pid, stand_in)?, libc::EPERM)?;
    // ENOSYS makes libc use `clone`, whose flags a filter can see.
    let enosys = filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    for program in [x32(), enosys, eperm] {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

fn filter(rules: Rules, errno: i32) -> Result<BpfProgram, ConfineError> {
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64)?.try_into()?)
}

fn rules(pid: u32, stand_in: bool) -> Result<Rules, ConfineError> {
    let mut rules = Rules::new();
    for (call, when, _) in DENIED {
        let conditions = conditions(*when, pid, stand_in)?;
        let Some(conditions) = conditions else { continue };
        let of_call = rules.entry(*call).or_default();
        for all_of in conditions {
            of_call.push(SeccompRule::new(all_of)?);
        }
    }
    Ok(rules)
}

/// Any of these, each of which is all of its conditions; `None`: the row is not for this VMM.
/// Empty: always.
fn conditions(when: When, pid: u32, stand_in: bool) -> Result<Option<Vec<Vec<SeccompCondition>>>, ConfineError> {
    use SeccompCmpOp::{MaskedEq, Ne};
    let is = |argument, op, value: u32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, u64::from(value)).map_err(ConfineError::Rule)
    };
    let bits = |flags: i32| flags.cast_unsigned();
    Ok(Some(match when {
        When::OneProcess | When::Other(_) | When::OtherOrZero(_) | When::Without(_) if stand_in => return Ok(None),
        When::Always | When::OneProcess => Vec::new(),
        When::Other(argument) => vec![vec![is(argument, Ne, pid)?]],
        When::OtherOrZero(argument) => vec![vec![is(argument, Ne, pid)?, is(argument, Ne, 0)?]],
        When::NotFamily(families) => {
            // QEMU's vsock device needs the host's own.
            let families = families.iter().copied().chain(stand_in.then_some(libc::AF_VSOCK));
            vec![families.map(|family| is(0, Ne, bits(family))).collect::<Result<_, _>>()?]
        }
        When::Without(flags) => vec![vec![is(0, MaskedEq(u64::from(bits(flags))), 0)?]],
        When::With(flags) => (0..32)
            .map(|bit| 1_u32 << bit)
            .filter(|flag| bits(flags) & flag != 0)
            .map(|flag| Ok(vec![is(0, MaskedEq(u64::from(flag)), flag)?]))
            .collect::<Result<_, ConfineError>>()?,
    }))
}

/// Every call whose number has [`X32`]: ENOSYS. By hand, for seccompiler compares whole numbers
/// only.
fn x32() -> BpfProgram {
    // linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JGE|BPF_K, BPF_RET|BPF_K. The number is
    // the first word of `seccomp_data` (seccomp(2)).
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        instruction(0x20, 0, 0, 0),
        instruction(0x35, 0, 1, X32),
        instruction(0x06, 0, 0, errno),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_rule_of_a_vmm_and_becomes_a_program() {
        let ours = rules(7, false).unwrap();
        assert!(DENIED.iter().all(|(call, ..)| ours.contains_key(call)));
        assert!(!filter(ours, libc::EPERM).unwrap().is_empty());
    }

    #[test]
    fn a_stand_in_may_have_children_and_no_more_of_the_rest() {
        let theirs = rules(7, true).unwrap();
        let missing: Vec<c_long> =
            DENIED.iter().map(|(call, ..)| *call).filter(|call| !theirs.contains_key(call)).collect();
        let expected = [
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
            libc::SYS_prlimit64,
            libc::SYS_fork,
            libc::SYS_vfork,
        ];
        assert_eq!(missing, expected);
    }
}
