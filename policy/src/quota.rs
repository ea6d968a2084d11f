//! How much one user may have, so that no user takes what the others need.

use crate::publish::PortRange;
use crate::size::ByteSize;
use std::fmt;

/// The most that one user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLimits {
    /// VMs, running or not. Each has an address of the host's network, which has about 4,000.
    pub vms: u64,
    /// VMs that run, are being started, or will be after a reboot of the host.
    pub running: u64,
    /// What the disks of all VMs may grow to, bytes.
    pub disk: u64,
    /// Names of images.
    pub images: u64,
    /// Names of kernels.
    pub kernels: u64,
    /// What images and kernels take in the store, bytes; content with two names counts once.
    pub store: u64,
    /// Jobs at work.
    pub jobs: u64,
    /// Published ports, of VMs that run or not.
    pub ports: u64,
    /// The host's ports that are the user's to publish; `None`: all that are published.
    pub port_range: Option<PortRange>,
    /// What VMs that run were given together with what their VMMs need, bytes.
    pub memory: u64,
}

/// The most that all users together may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// What VMs that run were given together with what their VMMs need, bytes.
    pub memory: u64,
    /// What the disks of all VMs may grow to, bytes.
    pub disk: u64,
}

impl HostLimits {
    /// No limits.
    pub const NONE: Self = Self { memory: u64::MAX, disk: u64::MAX };
}

impl UserLimits {
    /// When nobody says otherwise: several users fit a host, and none of them meets a limit by
    /// ordinary work.
    pub const BUILT_IN: Self = Self {
        vms: 64,
        running: 32,
        disk: 1 << 40,
        images: 32,
        kernels: 16,
        store: 256 << 30,
        jobs: 64,
        memory: u64::MAX,
        ports: 64,
        port_range: None,
    };
    /// For root, whose host it is, and for what nobody ordered.
    pub const NONE: Self = Self {
        vms: u64::MAX,
        running: u64::MAX,
        disk: u64::MAX,
        images: u64::MAX,
        kernels: u64::MAX,
        store: u64::MAX,
        jobs: u64::MAX,
        memory: u64::MAX,
        ports: u64::MAX,
        port_range: None,
    };

    /// The same with what an administrator has decided.
    #[must_use]
    pub fn with(self, other: &Overrides) -> Self {
        Self {
            vms: other.vms.unwrap_or(self.vms),
            running: other.running.unwrap_or(self.running),
            disk: other.disk.unwrap_or(self.disk),
            images: other.images.unwrap_or(self.images),
            kernels: other.kernels.unwrap_or(self.kernels),
            store: other.store.unwrap_or(self.store),
            jobs: other.jobs.unwrap_or(self.jobs),
            memory: other.memory.unwrap_or(self.memory),
            ports: other.ports.unwrap_or(self.ports),
            port_range: other.port_range.or(self.port_range),
        }
    }
}

/// Some of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// As in [`UserLimits`], and so are the others.
    pub vms: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub running: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub disk: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub images: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub kernels: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub store: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub jobs: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub memory: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub ports: Option<u64>,
    #[expect(missing_docs, reason = "as in UserLimits")]
    pub port_range: Option<PortRange>,
}

impl Overrides {
    /// Of several groups, each number is the most that one of them allows.
    #[must_use]
    pub fn or_more(self, other: &Self) -> Self {
        Self {
            vms: self.vms.max(other.vms),
            running: self.running.max(other.running),
            disk: self.disk.max(other.disk),
            images: self.images.max(other.images),
            kernels: self.kernels.max(other.kernels),
            store: self.store.max(other.store),
            jobs: self.jobs.max(other.jobs),
            ports: self.ports.max(other.ports),
            port_range: self.port_range.into_iter().chain(other.port_range).max_by_key(|range| range.count()),
            memory: self.memory.max(other.memory),
        }
    }

    /// The number for one limit.
    #[must_use]
    pub fn get(&self, what: Limited) -> Option<u64> {
        match what {
            Limited::Vms => self.vms,
            Limited::Running => self.running,
            Limited::Disk => self.disk,
            Limited::Images => self.images,
            Limited::Kernels => self.kernels,
            Limited::Store => self.store,
            Limited::Jobs => self.jobs,
            Limited::Ports => self.ports,
            Limited::Memory => self.memory,
            Limited::HostMemory | Limited::HostDisk => None,
        }
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    #[expect(missing_docs, reason = "as in UserLimits, and so are the others")]
    Vms,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Running,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Disk,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Images,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Kernels,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Store,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Jobs,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Memory,
    #[expect(missing_docs, reason = "as in HostLimits")]
    HostMemory,
    #[expect(missing_docs, reason = "as in HostLimits")]
    HostDisk,
    #[expect(missing_docs, reason = "as in UserLimits")]
    Ports,
}

impl Limited {
    /// Every limit of a user, in the order in which users are shown them.
    pub const OF_A_USER: [Self; 9] = [
        Self::Vms,
        Self::Running,
        Self::Memory,
        Self::Disk,
        Self::Images,
        Self::Kernels,
        Self::Store,
        Self::Jobs,
        Self::Ports,
    ];

    /// Is it a limit of the whole host, not of one user?
    #[must_use]
    pub fn is_of_the_host(self) -> bool {
        matches!(self, Self::HostMemory | Self::HostDisk)
    }

    /// Is it counted in bytes?
    #[must_use]
    pub fn in_bytes(self) -> bool {
        matches!(self, Self::Disk | Self::Store | Self::Memory) || self.is_of_the_host()
    }

    /// The key in the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Vms => "vms",
            Self::Running => "running",
            Self::Disk | Self::HostDisk => "disk",
            Self::Images => "images",
            Self::Kernels => "kernels",
            Self::Store => "store",
            Self::Jobs => "jobs",
            Self::Ports => "ports",
            Self::Memory | Self::HostMemory => "memory",
        }
    }

    /// The number in a user's limits. A user has none of the host's.
    #[must_use]
    pub fn of(self, limits: &UserLimits) -> u64 {
        match self {
            Self::Vms => limits.vms,
            Self::Running => limits.running,
            Self::Disk => limits.disk,
            Self::Images => limits.images,
            Self::Kernels => limits.kernels,
            Self::Store => limits.store,
            Self::Jobs => limits.jobs,
            Self::Ports => limits.ports,
            Self::Memory => limits.memory,
            Self::HostMemory | Self::HostDisk => u64::MAX,
        }
    }
}

/// A user would have more than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exceeded {
    what: Limited,
    limit: u64,
    used: u64,
    more: u64,
}

impl Exceeded {
    /// Which limit.
    #[must_use]
    pub fn what(&self) -> Limited {
        self.what
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| ByteSize::from_bytes(bytes).map_or_else(|_| gib(bytes), |size| size.to_string());
        let Self { what, limit, used, more } = *self;
        let key = what.key();
        match what {
            Limited::Vms => write!(f, "the limit {key} is {limit} VMs of one user, and {used} are there"),
            Limited::Running => write!(f, "the limit {key} is {limit} running VMs of one user, and {used} run"),
            Limited::Images | Limited::Kernels => {
                write!(f, "the limit {key} is {limit} {key} of one user, and {used} are there")
            }
            Limited::Jobs => write!(f, "the limit {key} is {limit} jobs of one user at a time, and {used} are at work"),
            Limited::Ports => {
                write!(
                    f,
                    "the limit {key} is {limit} published ports of one user, and {used} are there, {more} more wanted"
                )
            }
            Limited::Disk => write!(
                f,
                "the limit {key} is {} for the disks of one user's VMs: {} are in use, and this needs {} more",
                size(limit),
                size(used),
                size(more)
            ),
            Limited::Memory => write!(
                f,
                "the limit {key} is {} for the memory of one user's running VMs: {} are in use, and this needs {} more",
                size(limit),
                size(used),
                size(more)
            ),
            Limited::HostMemory => write!(
                f,
                "this host's limit {key} is {} for the memory of all running VMs: {} are in use, and this needs {} more",
                size(limit),
                size(used),
                size(more)
            ),
            Limited::HostDisk => write!(
                f,
                "this host's limit {key} is {} for the disks of all VMs: {} are in use, and this needs {} more",
                size(limit),
                size(used),
                size(more)
            ),
            Limited::Store => write!(
                f,
                "the limit {key} is {} for the images and kernels of one user: {} are in use, and this needs {} more",
                size(limit),
                size(used),
                size(more)
            ),
        }
    }
}

/// Of more than any one disk has.
fn gib(bytes: u64) -> String {
    format!("{}G", bytes >> 30)
}

/// May a user who has `used` have `more`?
///
/// # Errors
/// With limit and use.
pub fn fits(what: Limited, limits: &UserLimits, used: u64, more: u64) -> Result<(), Exceeded> {
    decide(what, what.of(limits), used, more)
}

/// May the host, which has given away `used`, give `more`?
///
/// # Errors
/// With limit and use.
pub fn host_fits(what: Limited, limits: &HostLimits, used: u64, more: u64) -> Result<(), Exceeded> {
    let limit = match what {
        Limited::HostMemory => limits.memory,
        Limited::HostDisk => limits.disk,
        _ => u64::MAX,
    };
    decide(what, limit, used, more)
}

fn decide(what: Limited, limit: u64, used: u64, more: u64) -> Result<(), Exceeded> {
    match used.checked_add(more) {
        Some(all) if all <= limit => Ok(()),
        _ => Err(Exceeded { what, limit, used, more }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_fits_and_the_next_does_not() {
        let limits = UserLimits { vms: 3, disk: 1 << 30, ..UserLimits::BUILT_IN };
        for (what, used, more, fit) in [
            (Limited::Vms, 2, 1, true),
            (Limited::Vms, 3, 1, false),
            (Limited::Vms, 4, 1, false),
            (Limited::Vms, 0, 0, true),
            (Limited::Disk, 0, 1 << 30, true),
            (Limited::Disk, 1, 1 << 30, false),
            (Limited::Disk, u64::MAX, u64::MAX, false),
            (Limited::Disk, u64::MAX, 1, false),
        ] {
            assert_eq!(fits(what, &limits, used, more).is_ok(), fit, "{what:?} {used} {more}");
        }
        assert!(fits(Limited::Vms, &UserLimits::NONE, 1 << 40, 1).is_ok());
    }

    #[test]
    fn a_refusal_says_which_limit_how_much_and_how_much_is_used() {
        let limits = UserLimits { vms: 3, disk: 20 << 30, ..UserLimits::BUILT_IN };
        let said = |what, used, more| fits(what, &limits, used, more).map_err(|why| why.to_string());
        assert_eq!(said(Limited::Vms, 3, 1), Err("the limit vms is 3 VMs of one user, and 3 are there".to_owned()));
        assert_eq!(
            said(Limited::Disk, 16 << 30, 8 << 30),
            Err("the limit disk is 20G for the disks of one user's VMs: 16G are in use, and this needs 8G more"
                .to_owned())
        );
    }

    #[test]
    fn a_user_wins_over_groups_and_of_groups_the_most_counts() {
        let ci = Overrides { vms: Some(100), running: Some(4), ..Overrides::default() };
        let staff = Overrides { vms: Some(50), jobs: Some(9), ..Overrides::default() };
        let alice = Overrides { running: Some(2), ..Overrides::default() };
        let limits = UserLimits::BUILT_IN.with(&ci.or_more(&staff)).with(&alice);
        assert_eq!((limits.vms, limits.running, limits.jobs), (100, 2, 9));
        assert_eq!(limits.images, UserLimits::BUILT_IN.images);
    }

    #[test]
    fn of_ranges_of_ports_the_users_own_counts_and_of_groups_the_widest() {
        let range = |text: &str| Overrides { port_range: Some(text.parse().unwrap()), ..Overrides::default() };
        let groups = range("2000-2001").or_more(&range("3000-3009")).or_more(&Overrides::default());
        assert_eq!(UserLimits::BUILT_IN.with(&groups).port_range, range("3000-3009").port_range);
        let own = UserLimits::BUILT_IN.with(&groups).with(&range("4000-4000")).with(&Overrides::default());
        assert_eq!(own.port_range, range("4000-4000").port_range);
    }
}
