//! The sections `[limits...]` of the configuration: how much a user may have.

use super::Refused;
use banger_policy::ByteSize;
use banger_policy::publish::PortError;
use banger_policy::quota::{Overrides, UserLimits};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Who may have how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    user: Overrides,
    users: BTreeMap<String, Overrides>,
    groups: BTreeMap<String, Overrides>,
}

impl Limits {
    /// Of a user in groups: what is said of the user wins over what is said of groups, and of
    /// groups the most counts. It is root's host.
    pub(crate) fn of(&self, uid: u32, name: &str, groups: &[String]) -> UserLimits {
        if uid == 0 {
            return UserLimits::NONE;
        }
        let groups = groups.iter().filter_map(|group| self.groups.get(group));
        let groups = groups.fold(Overrides::default(), |most, group| most.or_more(group));
        let own = self.users.get(name).copied().unwrap_or_default();
        UserLimits::BUILT_IN.with(&self.user).with(&groups).with(&own)
    }
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLimits {
    user: RawOverrides,
    users: BTreeMap<String, RawOverrides>,
    groups: BTreeMap<String, RawOverrides>,
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
    ports: Option<u64>,
    port_range: Option<String>,
}

/// # Errors
/// A size that is none.
pub(crate) fn check(raw: RawLimits) -> Result<Limits, Refused> {
    let all = |raw: BTreeMap<String, RawOverrides>| {
        raw.into_iter().map(|(name, raw)| Ok((name, overrides(&raw)?))).collect::<Result<BTreeMap<_, _>, Refused>>()
    };
    Ok(Limits { user: overrides(&raw.user)?, users: all(raw.users)?, groups: all(raw.groups)? })
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
