//! Releases of Firecracker: which ones banger runs VMs in, and which ones it is tested with.

use std::fmt;

/// A release, as far as its interface depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

/// The oldest that works. docs/admin.md names both.
pub const OLDEST: Release = Release { major: 1, minor: 16 };
/// The newest that the suites have seen. A later one is taken as well.
pub const NEWEST_TESTED: Release = Release { major: 1, minor: 16 };

impl Release {
    /// From a version line such as `Firecracker v1.16.0`.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        line.split_whitespace().find_map(|word| {
            let mut parts = word.strip_prefix('v')?.split('.').map(str::parse::<u32>);
            Some(Self { major: parts.next()?.ok()?, minor: parts.next()?.ok()? })
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_lines() {
        assert_eq!(Release::of("Firecracker v1.16.2-dev"), Some(Release { major: 1, minor: 16 }));
        assert_eq!(Release::of("Firecracker v2.0.0").map(|release| release.to_string()).as_deref(), Some("2.0"));
        assert_eq!((Release::of("something else"), Release::of("v1"), Release::of("vx.1")), (None, None, None));
        assert!(Release { major: 1, minor: 9 } < OLDEST && OLDEST <= NEWEST_TESTED);
    }
}
