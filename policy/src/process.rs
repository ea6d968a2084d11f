//! What `/proc` and the cgroups say about a process, as text that the helper has read. Only what
//! the kernel writes is looked at; a name or command line decides nothing.

use crate::VmId;

/// The daemon's own leaf below its unit's cgroup: systemd's `DelegateSubgroup=` of bangerd.service.
pub const DAEMON_LEAF: &str = "daemon";

/// What holds the leaves of VMs, below the same cgroup.
pub const VMS_GROUP: &str = "vms";

/// The leaf of a VM below the same cgroup.
#[must_use]
pub fn vm_leaf(owner: u32, vm: &VmId) -> String {
    format!("{VMS_GROUP}/{owner}/{vm}")
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 is the process's own and may hold spaces and
/// parentheses, so fields are counted from the last parenthesis.
#[must_use]
pub fn start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The line `Uid:` of `/proc/PID/status` with its four numbers.
#[must_use]
pub fn uids(status: &str) -> Option<[u32; 4]> {
    let numbers = field(status, "Uid")?.split_ascii_whitespace().map(|number| number.parse().ok());
    numbers.collect::<Option<Vec<u32>>>()?.try_into().ok()
}

/// The process behind a pidfd, from `/proc/self/fdinfo/FD`; there it is -1 once it has been reaped.
#[must_use]
pub fn pidfd_pid(info: &str) -> Option<u32> {
    field(info, "Pid")?.parse().ok()
}

/// A line `Name:<tab>value`. The process's own name in the first line has its newlines escaped by
/// the kernel.
#[must_use]
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_name_does_not_move_the_fields() {
        let stat = "12 (x) R 1 (evil) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_ticks(stat), Some(777));
        assert_eq!(start_ticks("12 no parenthesis"), None);
        assert_eq!(uids("Name:\tx\\nUid:\t0 0 0 0\nUid:\t5\t6\t7\t8\n"), Some([5, 6, 7, 8]));
        assert_eq!(uids("Uid:\t5\t6\t7\n"), None);
    }

    #[test]
    fn a_process_that_was_reaped_has_no_number() {
        assert_eq!(pidfd_pid("pos:\t0\nflags:\t02000002\nPid:\t77\nNSpid:\t77\n"), Some(77));
        assert_eq!(pidfd_pid("pos:\t0\nPid:\t-1\n"), None);
        assert_eq!(pidfd_pid("NSPid:\t5\n"), None);
    }
}
