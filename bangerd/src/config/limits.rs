//! The sections `[limits...]` of the configuration: how much a user may have.

use super::Refused;
use banger_policy::ByteSize;
use banger_policy::publish::PortError;
use banger_policy::quota::{HostLimits, Limited, Overrides, UserLimits};
use banger_policy::shares::{Share, ShareOverrides, WEIGHTS, host_limits, user_memory};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Who may have how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    user: Said,
    users: BTreeMap<String, Said>,
    groups: BTreeMap<String, Said>,
    host: HostLimits,
}

/// What a section says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    limits: Overrides,
    share: ShareOverrides,
}

/// As without a section, on this host.
impl Default for Limits {
    fn default() -> Self {
        let host = host_limits(host_memory());
        Self { user: Said::default(), users: BTreeMap::new(), groups: BTreeMap::new(), host }
    }
}

/// The host's memory, bytes (sysinfo(2)).
fn host_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    Some(u64::from(info.mem_unit).saturating_mul(info.totalram)).filter(|bytes| *bytes > 0)
}

impl Limits {
    /// Of a user in groups: what is said of the user wins over what is said of groups, and of
    /// groups the most counts. It is root's host.
    pub(crate) fn of(&self, uid: u32, name: &str, groups: &[String]) -> UserLimits {
        if uid == 0 {
            return UserLimits::NONE;
        }
        let groups = groups.iter().filter_map(|group| self.groups.get(group));
        let groups = groups.fold(Overrides::default(), |most, group| most.or_more(&group.limits));
        let own = self.users.get(name).copied().unwrap_or_default().limits;
        let built_in = UserLimits { memory: user_memory(&self.host), ..UserLimits::BUILT_IN };
        built_in.with(&self.user.limits).with(&groups).with(&own)
    }

    /// The share of the host that all VMs of a user have together, by the same rules.
    pub(crate) fn share_of(&self, uid: u32, name: &str, groups: &[String]) -> Share {
        if uid == 0 {
            return Share::BUILT_IN;
        }
        let groups = groups.iter().filter_map(|group| self.groups.get(group));
        let groups = groups.fold(ShareOverrides::default(), |most, group| most.or_more(&group.share));
        let own = self.users.get(name).copied().unwrap_or_default().share;
        Share::BUILT_IN.with(&self.user.share).with(&groups).with(&own)
    }

    /// Of all users together, root among them: nobody makes the host's memory larger.
    pub(crate) fn host(&self) -> HostLimits {
        self.host
    }

    /// Which section a user's limit comes from, as an administrator finds it in the file.
    pub(crate) fn source_of(&self, what: Limited, uid: u32, name: &str, groups: &[String]) -> String {
        if uid == 0 {
            return "root has no limits".to_owned();
        }
        let by_group = |group: &&String| self.groups.get(*group).and_then(|said| said.limits.get(what));
        if self.users.get(name).is_some_and(|said| said.limits.get(what).is_some()) {
            format!("[limits.users.{name}]")
        } else if let Some(group) = groups.iter().filter(|group| by_group(group).is_some()).max_by_key(by_group) {
            format!("[limits.groups.{group}]")
        } else if self.user.limits.get(what).is_some() {
            "[limits.user]".to_owned()
        } else if what == Limited::Memory {
            "half of the host's".to_owned()
        } else {
            "built in".to_owned()
        }
    }

    /// For tests, whose machine is of any size.
    #[cfg(test)]
    pub(crate) fn of_host(host: HostLimits) -> Self {
        Self { host, ..Self::default() }
    }

    #[cfg(test)]
    pub(crate) fn with_cpu_weight(weight: u64) -> Self {
        let share = ShareOverrides { cpu_weight: Some(weight), ..ShareOverrides::default() };
        Self { user: Said { share, ..Said::default() }, ..Self::of_host(HostLimits::NONE) }
    }
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    user: RawOverrides,
    users: BTreeMap<String, RawOverrides>,
    groups: BTreeMap<String, RawOverrides>,
    host: RawHost,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHost {
    memory: Option<String>,
    disk: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawOverrides {
    vms: Option<u64>,
    running: Option<u64>,
    disk: Option<String>,
    images: Option<u64>,
    kernels: Option<u64>,
    store: Option<String>,
    jobs: Option<u64>,
    memory: Option<String>,
    cpu_weight: Option<u64>,
    io_weight: Option<u64>,
    memory_high: Option<String>,
    memory_max: Option<String>,
    pids: Option<u64>,
    ports: Option<u64>,
    port_range: Option<String>,
}

/// # Errors
/// A size that is none.
pub(crate) fn check(raw: RawLimits) -> Result<Limits, Refused> {
    let all = |raw: BTreeMap<String, RawOverrides>| {
        raw.into_iter().map(|(name, raw)| Ok((name, said(&raw)?))).collect::<Result<BTreeMap<_, _>, Refused>>()
    };
    let host = host_limits(host_memory());
    let host = HostLimits {
        memory: size("limits.host.memory", raw.host.memory.as_deref())?.unwrap_or(host.memory),
        disk: size("limits.host.disk", raw.host.disk.as_deref())?.unwrap_or(host.disk),
    };
    Ok(Limits { user: said(&raw.user)?, users: all(raw.users)?, groups: all(raw.groups)?, host })
}

fn said(raw: &RawOverrides) -> Result<Said, Refused> {
    let weight = |key, weight: Option<u64>| match weight {
        Some(number) if !WEIGHTS.contains(&number) => Err((
            key,
            format!("a weight is {} to {}, and 100 when nobody says otherwise", WEIGHTS.start(), WEIGHTS.end()),
        )),
        weight => Ok(weight),
    };
    let share = ShareOverrides {
        cpu_weight: weight("limits.cpu_weight", raw.cpu_weight)?,
        io_weight: weight("limits.io_weight", raw.io_weight)?,
        memory_high: size("limits.memory_high", raw.memory_high.as_deref())?,
        memory_max: size("limits.memory_max", raw.memory_max.as_deref())?,
        pids: raw.pids,
    };
    Ok(Said { limits: overrides(raw)?, share })
}

fn overrides(raw: &RawOverrides) -> Result<Overrides, Refused> {
    Ok(Overrides {
        vms: raw.vms,
        running: raw.running,
        disk: size("limits.disk", raw.disk.as_deref())?,
        images: raw.images,
        kernels: raw.kernels,
        store: size("limits.store", raw.store.as_deref())?,
        jobs: raw.jobs,
        memory: size("limits.memory", raw.memory.as_deref())?,
        ports: raw.ports,
        port_range: match raw.port_range.as_deref().map(str::parse) {
            Some(Err(error)) => return Err(("limits.port_range", PortError::to_string(&error))),
            Some(Ok(range)) => Some(range),
            None => None,
        },
    })
}

/// Of many disks: more than one may have. `T` is for these only.
fn size(key: &'static str, text: Option<&str>) -> Result<Option<u64>, Refused> {
    let Some(text) = text else { return Ok(None) };
    let large = text.trim().strip_suffix(['T', 't']).and_then(|number| number.trim().parse::<u64>().ok());
    let large = large.and_then(|tib| tib.checked_mul(1 << 40));
    let gib = text.trim().strip_suffix(['G', 'g']).and_then(|number| number.trim().parse::<u64>().ok());
    let gib = gib.and_then(|gib| gib.checked_mul(1 << 30));
    match large.or(gib) {
        Some(bytes) => Ok(Some(bytes)),
        None => text.parse::<ByteSize>().map(|size| Some(size.bytes())).map_err(|error| (key, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn read(text: &str) -> Result<Limits, Refused> {
        check(toml::from_str(text).unwrap())
    }

    #[test]
    fn a_user_wins_over_groups_over_everybody_and_root_has_none() {
        let limits = read(
            "[user]\nvms = 5\ndisk = \"300G\"\n[users.alice]\nvms = 7\n[groups.ci]\nvms = 50\nrunning = 3\n[groups.lab]\nrunning = 4\nstore = \"2T\"",
        )
        .unwrap();
        let of = |name, groups: &[&str]| {
            limits.of(1001, name, &groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!((of("bob", &[]).vms, of("bob", &["ci"]).vms, of("alice", &["ci"]).vms), (5, 50, 7));
        assert_eq!((of("bob", &["ci", "lab"]).running, of("bob", &["lab"]).store), (4, 2 << 40));
        assert_eq!((of("bob", &[]).disk, of("bob", &[]).jobs), (300 << 30, UserLimits::BUILT_IN.jobs));
        assert_eq!(limits.of(0, "root", &[]), UserLimits::NONE);
    }

    #[test]
    fn a_share_follows_the_same_rules_and_root_has_the_built_in_one() {
        let limits = read(
            "[user]\ncpu_weight = 50\nmemory_max = \"4G\"\n[users.alice]\ncpu_weight = 7\n[groups.ci]\nio_weight = 900\nmemory_high = \"2G\"",
        )
        .unwrap();
        let ci = ["ci".to_owned()];
        let (alice, bob) = (limits.share_of(1001, "alice", &ci), limits.share_of(1002, "bob", &[]));
        assert_eq!((alice.cpu_weight, alice.io_weight, alice.memory_high), (7, 900, Some(2 << 30)));
        assert_eq!((bob.cpu_weight, bob.io_weight, bob.memory_max), (50, 100, Some(4 << 30)));
        assert_eq!(limits.share_of(0, "root", &ci), Share::BUILT_IN);
        for (bad, key) in [("cpu_weight = 0", "limits.cpu_weight"), ("io_weight = 10001", "limits.io_weight")] {
            assert_eq!(read(&format!("[user]\n{bad}")).unwrap_err().0, key);
        }
    }

    #[test]
    fn memory_is_half_of_the_hosts_until_somebody_says_otherwise_and_each_limit_has_its_source() {
        let limits = read(
            "[user]\nvms = 5\n[users.alice]\nmemory = \"20G\"\n[groups.ci]\nrunning = 3\n[groups.lab]\nrunning = 9\n[host]\nmemory = \"48G\"\ndisk = \"1T\"",
        )
        .unwrap();
        assert_eq!(limits.host(), HostLimits { memory: 48 << 30, disk: 1 << 40 });
        let groups = ["ci".to_owned(), "lab".to_owned()];
        let memory = |name| limits.of(1001, name, &groups).memory;
        assert_eq!((memory("alice"), memory("bob")), (20 << 30, 24 << 30));
        for (name, what, source) in [
            ("alice", Limited::Memory, "[limits.users.alice]"),
            ("bob", Limited::Memory, "half of the host's"),
            ("bob", Limited::Running, "[limits.groups.lab]"),
            ("bob", Limited::Vms, "[limits.user]"),
            ("bob", Limited::Jobs, "built in"),
        ] {
            assert_eq!(limits.source_of(what, 1001, name, &groups), source);
        }
    }

    #[test]
    fn a_range_of_ports_is_somebodys_or_everybodys() {
        let limits =
            read("[user]\nports = 3\nport_range = \"20000-29999\"\n[users.alice]\nport_range = \"30000-30009\"");
        let limits = limits.unwrap();
        let range = |name| limits.of(1001, name, &[]).port_range.map(|range| range.to_string());
        assert_eq!(range("alice").as_deref(), Some("30000-30009"));
        assert_eq!(range("bob").as_deref(), Some("20000-29999"));
        assert_eq!(limits.of(1001, "bob", &[]).ports, 3);
        assert_eq!(read("[user]\nport_range = \"80-90\"").unwrap_err().0, "limits.port_range");
    }

    #[test]
    fn a_size_that_is_none_is_refused_with_its_key() {
        for bad in ["", "much", "-1G", "9X", "99999999999999999999T"] {
            let (key, why) = read(&format!("[user]\nstore = \"{bad}\"")).unwrap_err();
            assert_eq!(key, "limits.store", "{bad}: {why}");
        }
    }
}
