//! Giving up what the helper does not need, each step irreversible. Called once, by one thread,
//! before any request is read.

use crate::sys::start;
use crate::{filter, record};
use banger_policy::process;
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::unistd::{Gid, getgroups, setgroups};
use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::error::Error;
use std::path::PathBuf;

/// Taps, routes and nf_tables want the first, device-mapper's ioctls the second.
pub(crate) const KEEP: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN];

/// A step that did not work.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Confinement acts per thread.
    #[error("start-up found {0:?} threads instead of one")]
    Threads(Option<u32>),
    /// Not started as root.
    #[error("{0} is missing: banger-priv is started by systemd as root")]
    Capability(Capability),
    /// A step that the kernel refused.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

fn step<T, E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str, result: Result<T, E>) -> Result<T, ConfineError> {
    result.map_err(|error| ConfineError::Step { step, source: error.into() })
}

/// Empties the environment and makes sure that nobody else runs in this process.
pub(crate) fn alone() -> Result<(), ConfineError> {
    step("clear the environment", start::clear_environment())?;
    let status = step("read /proc/self/status", std::fs::read_to_string("/proc/self/status"))?;
    let threads = process::field(&status, "Threads").and_then(|threads| threads.parse().ok());
    if threads == Some(1) { Ok(()) } else { Err(ConfineError::Threads(threads)) }
}

/// Joins the daemon's group, to which the disks are given. The unit (`SupplementaryGroups=`) has
/// done so already.
pub(crate) fn join_group(gid: u32) -> Result<(), ConfineError> {
    let group = Gid::from_raw(gid);
    let groups = step("read the groups", getgroups())?;
    if groups.contains(&group) { Ok(()) } else { step("join the daemon's group", setgroups(&[group])) }
}

/// Keeps two capabilities, for good.
pub(crate) fn privileges() -> Result<(), ConfineError> {
    let keep: CapsHashSet = KEEP.into_iter().collect();
    let read = |set| step("read the capabilities", caps::read(None, set));
    if let Some(missing) = keep.difference(&read(CapSet::Permitted)?).next() {
        return Err(ConfineError::Capability(*missing));
    }
    step("clear the ambient capabilities", caps::clear(None, CapSet::Ambient))?;
    // Under the unit the bounding set is these two already, and SETPCAP is not among them.
    for capability in read(CapSet::Bounding)?.difference(&keep) {
        step("bound the capabilities", caps::drop(None, CapSet::Bounding, *capability))?;
    }
    let none = CapsHashSet::new();
    for (set, value) in [(CapSet::Inheritable, &none), (CapSet::Effective, &keep), (CapSet::Permitted, &keep)] {
        // The unit's filter has no capset(2), and gives these sets already.
        if read(set)? != *value {
            step("drop capabilities", caps::set(None, set, value))?;
        }
    }
    step("set no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("become undumpable", nix::sys::prctl::set_dumpable(false))?;
    step("forbid core files", setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }))
}

/// The Landlock of Linux 6.12, the oldest kernel that banger runs on: files, ioctls of devices,
/// TCP, and signals and abstract sockets of other processes. A kernel that has less of it is
/// refused.
pub(crate) const LANDLOCK: ABI = ABI::V6;

/// From now on nothing can be opened but what lies below these folders, with these rights. Handles
/// that are open stay as they are. No TCP, no signal, no abstract socket.
pub(crate) fn landlock(reach: impl IntoIterator<Item = (PathBuf, BitFlags<AccessFs>)>) -> Result<(), ConfineError> {
    const STEP: &str = "apply Landlock (ABI 6, Linux 6.12)";
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = step(STEP, ruleset.handle_access(AccessFs::from_all(LANDLOCK)))?;
    let ruleset = step(STEP, ruleset.handle_access(AccessNet::from_all(LANDLOCK)))?;
    let mut created = step(STEP, ruleset.scope(Scope::from_all(LANDLOCK)).and_then(Ruleset::create))?;
    for (path, rights) in reach {
        let folder = step("open a folder for Landlock", record::folder(&path, OFlags::PATH))?;
        created = step(STEP, created.add_rule(PathBeneath::new(folder, rights)))?;
    }
    step(STEP, created.restrict_self()).map(drop)
}

/// The last step: [`filter::ROWS`], on every thread.
pub(crate) fn seccomp() -> Result<(), ConfineError> {
    let program = step("build the system call filter", filter::program())?;
    step("apply the system call filter", seccompiler::apply_filter_all_threads(&program))
}
