//! Giving up what the helper does not need, each step irreversible. Called once, by one thread, before any
//! request is read.

use crate::sys::start;
use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io;

/// Taps, routes and nf_tables want the first, device-mapper's ioctls the second.
const KEEP: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN];

/// A step that did not work.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Confinement acts per thread.
    #[error("start-up found {0:?} threads instead of one")]
    Threads(Option<u32>),
    /// Not started as root.
    #[error("{0} is missing: banger-priv is started by systemd as root")]
    Capability(Capability),
    /// A capability set could not be read or changed.
    #[error("cannot change the capability set {set:?}")]
    Capabilities {
        /// Which.
        set: CapSet,
        /// Why.
        #[source]
        source: caps::errors::CapsError,
    },
    /// The process is not in the daemon's group and cannot join it.
    #[error("cannot join the daemon's group {group} (SupplementaryGroups= of the unit)")]
    Group {
        /// Its number.
        group: u32,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// Another step.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, ConfineError> {
    result.map_err(|error| ConfineError::Step { step, source: error.into() })
}

/// Empties the environment and makes sure that nobody else runs in this process.
pub(crate) fn alone() -> Result<(), ConfineError> {
    step("clear the environment", start::clear_environment())?;
    let status = step("read /proc/self/status", std::fs::read_to_string("/proc/self/status"))?;
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).and_then(|n| n.trim().parse().ok());
    if threads == Some(1) { Ok(()) } else { Err(ConfineError::Threads(threads)) }
}

/// Joins the daemon's group, to which the disks are given. The unit has done so already.
pub(crate) fn join_group(gid: u32) -> Result<(), ConfineError> {
    use nix::unistd::{Gid, getgroups, setgroups};
    let failed = |source| ConfineError::Group { group: gid, source };
    if getgroups().map_err(failed)?.contains(&Gid::from_raw(gid)) {
        return Ok(());
    }
    setgroups(&[Gid::from_raw(gid)]).map_err(failed)
}

/// Keeps two capabilities, for good.
pub(crate) fn privileges() -> Result<(), ConfineError> {
    let failed = |set| move |source| ConfineError::Capabilities { set, source };
    let keep: CapsHashSet = KEEP.into_iter().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed(CapSet::Permitted))?;
    if let Some(missing) = KEEP.into_iter().find(|capability| !permitted.contains(capability)) {
        return Err(ConfineError::Capability(missing));
    }
    caps::clear(None, CapSet::Ambient).map_err(failed(CapSet::Ambient))?;
    // Under the unit the bounding set is these two already, and SETPCAP is not among them.
    let bounding = caps::read(None, CapSet::Bounding).map_err(failed(CapSet::Bounding))?;
    for capability in bounding.difference(&keep) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(failed(CapSet::Bounding))?;
    }
    for (set, value) in
        [(CapSet::Inheritable, &CapsHashSet::new()), (CapSet::Effective, &keep), (CapSet::Permitted, &keep)]
    {
        // The unit's filter has no capset(2), and gives these sets already.
        if caps::read(None, set).map_err(failed(set))? != *value {
            caps::set(None, set, value).map_err(failed(set))?;
        }
    }
    step("set no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("become undumpable", nix::sys::prctl::set_dumpable(false))?;
    step("forbid core files", setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }))
}
