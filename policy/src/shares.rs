//! The share of the host that all VMs of one user have together, as the kernel's cgroups enforce
//! it, and what a VM counts against the limits of memory.

use crate::quota::HostLimits;

/// What Firecracker itself and the kernel's tables take beside a guest of any size, MiB.
const OVERHEAD_MIB: u64 = 16;
/// One part in so many of the guest's memory comes on top of that: page tables of the host.
const OVERHEAD_PART: u64 = 64;
/// Of the host's memory, one part in so many stays for the host itself ...
const RESERVE_PART: u64 = 8;
/// ... and never less than this, bytes.
const LEAST_RESERVE: u64 = 512 << 20;
/// Weights of cgroups (`cpu.weight` and `io.weight` of the kernel's cgroup-v2 documentation).
pub const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// What a running VM counts against the limits of memory, MiB. The database sums up the same: see
/// [`COMMITTED_SQL`].
#[must_use]
pub fn committed_mib(memory_mib: u32) -> u64 {
    let memory = u64::from(memory_mib);
    memory.saturating_add(memory / OVERHEAD_PART).saturating_add(OVERHEAD_MIB)
}

/// [`committed_mib`] of the column `memory_mib`.
pub const COMMITTED_SQL: &str = "(memory_mib + memory_mib / 64 + 16)";

/// The host's limits when nobody says otherwise: its memory less a reserve. A host whose memory
/// cannot be found out has none.
#[must_use]
pub fn host_limits(memory: Option<u64>) -> HostLimits {
    let Some(memory) = memory else { return HostLimits::NONE };
    let reserve = (memory / RESERVE_PART).max(LEAST_RESERVE);
    HostLimits { memory: memory.saturating_sub(reserve), ..HostLimits::NONE }
}

/// What a user may commit when nobody says otherwise: half of what the host gives to VMs, so that
/// no one user takes all of it.
#[must_use]
pub fn user_memory(host: &HostLimits) -> u64 {
    if host.memory == u64::MAX { u64::MAX } else { host.memory / 2 }
}

/// A user's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of the CPUs, against other users, when all of them are busy.
    pub cpu_weight: u64,
    /// Of the disks, likewise.
    pub io_weight: u64,
    /// From this on the kernel slows the VMs down and takes back what it can, bytes; `None`: never.
    pub memory_high: Option<u64>,
    /// More than this they do not get: one of them is ended, bytes; `None`: no such limit.
    pub memory_max: Option<u64>,
    /// Processes and threads of all VMMs together.
    pub pids: u64,
}

impl Share {
    /// When nobody says otherwise: the same for everybody.
    pub const BUILT_IN: Self =
        Self { cpu_weight: 100, io_weight: 100, memory_high: None, memory_max: None, pids: 16_384 };

    /// The same with what an administrator has decided.
    #[must_use]
    pub fn with(self, other: &ShareOverrides) -> Self {
        Self {
            cpu_weight: other.cpu_weight.unwrap_or(self.cpu_weight),
            io_weight: other.io_weight.unwrap_or(self.io_weight),
            memory_high: other.memory_high.or(self.memory_high),
            memory_max: other.memory_max.or(self.memory_max),
            pids: other.pids.unwrap_or(self.pids),
        }
    }
}

/// Some of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Share")]
pub struct ShareOverrides {
    pub cpu_weight: Option<u64>,
    pub io_weight: Option<u64>,
    pub memory_high: Option<u64>,
    pub memory_max: Option<u64>,
    pub pids: Option<u64>,
}

impl ShareOverrides {
    /// Of several groups, each number is the most that one of them allows.
    #[must_use]
    pub fn or_more(self, other: &Self) -> Self {
        Self {
            cpu_weight: self.cpu_weight.max(other.cpu_weight),
            io_weight: self.io_weight.max(other.io_weight),
            memory_high: self.memory_high.max(other.memory_high),
            memory_max: self.memory_max.max(other.memory_max),
            pids: self.pids.max(other.pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::{Limited, UserLimits, fits, host_fits};
    use proptest::prelude::*;

    #[test]
    fn a_vm_counts_its_memory_and_its_vmm() {
        assert_eq!((committed_mib(256), committed_mib(128), committed_mib(8192)), (276, 146, 8336));
        for number in ["/ 64", "+ 16"] {
            assert!(COMMITTED_SQL.contains(number), "the database counts otherwise: {COMMITTED_SQL}");
        }
    }

    #[test]
    fn the_host_keeps_an_eighth_and_a_user_gets_half_of_the_rest() {
        let host = host_limits(Some(32 << 30));
        assert_eq!((host.memory, user_memory(&host)), (28 << 30, 14 << 30));
        assert_eq!(host_limits(Some(1 << 30)).memory, 512 << 20);
        assert_eq!(host_limits(Some(1 << 20)).memory, 0);
        assert_eq!((host_limits(None), user_memory(&HostLimits::NONE)), (HostLimits::NONE, u64::MAX));
    }

    #[test]
    fn what_is_set_wins_and_of_groups_the_most() {
        let ci = ShareOverrides { cpu_weight: Some(50), memory_max: Some(1 << 30), ..ShareOverrides::default() };
        let lab = ShareOverrides { cpu_weight: Some(200), pids: Some(9), ..ShareOverrides::default() };
        let share = Share::BUILT_IN.with(&ci.or_more(&lab));
        assert_eq!((share.cpu_weight, share.memory_max, share.pids, share.io_weight), (200, Some(1 << 30), 9, 100));
    }

    proptest! {
        /// Whatever the numbers are: no sum wraps, and what fits is never above the limit.
        #[test]
        fn nothing_overflows(memory: u32, used: u64, more: u64, limit: u64, host in proptest::option::of(any::<u64>())) {
            prop_assert!(committed_mib(memory) >= u64::from(memory));
            let limits = UserLimits { memory: limit, ..UserLimits::NONE };
            let sum = u128::from(used) + u128::from(more);
            prop_assert_eq!(fits(Limited::Memory, &limits, used, more).is_ok(), sum <= u128::from(limit));
            let most = host_limits(host);
            prop_assert!(most.memory <= host.unwrap_or(u64::MAX) && user_memory(&most) <= most.memory);
            prop_assert_eq!(host_fits(Limited::HostMemory, &most, used, more).is_ok(), sum <= u128::from(most.memory));
        }
    }
}
