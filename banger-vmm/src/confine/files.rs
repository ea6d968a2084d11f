//! The allow-list of paths, ports and scopes, by Landlock (landlock(7), ABI 6: Linux 6.12).
//!
//! Not allowed, because not listed: the database, other VMs' folders and disks, `/proc`, `/sys`
//! with the cgroups that the daemon's user may write, `/run`. Processes outside cannot be
//! signalled, traced or read. What this ABI does not know: `connect()` to a socket with a path (the
//! daemon says where they lie: its `paths` has why other VMs' paths are not known to a VMM) and
//! changes of modes and owners, which [`super::calls`] takes away.

use super::{ConfineError, Files, StandIn};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use std::path::Path;

/// All of it or none: nothing is left out on an older kernel.
const FLOOR: ABI = ABI::V6;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile});
const READ_WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile});
const RUN: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | Execute});
const LIBRARIES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
const SOCKETS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadDir | MakeSock});
const STAND_IN: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute | WriteFile | IoctlDev});

/// The same for every VM: path, rights, need. One that a host does not have is left out.
const COMMON: &[(&str, BitFlags<AccessFs>, &str)] = &[
    ("/lib", LIBRARIES, "libraries of a VMM that is not linked statically"),
    ("/lib64", LIBRARIES, "its loader"),
    ("/usr/lib", LIBRARIES, "the same where /usr is not merged"),
    ("/usr/lib64", LIBRARIES, "the same"),
    ("/etc/ld.so.cache", READ, "where the loader finds them"),
    ("/dev/kvm", DEVICE, "the virtual machine"),
    ("/dev/net/tun", DEVICE, "its tap, by name; which taps there are is the helper's to say"),
];

pub(super) fn restrict(
    binary: &Path,
    folder: &Path,
    files: &Files,
    stand_in: Option<&StandIn>,
) -> Result<(), ConfineError> {
    let mut rules = rules()?;
    for (path, rights, _) in COMMON.iter().filter(|(path, ..)| Path::new(path).exists()) {
        rules = allow(rules, Path::new(path), *rights)?;
    }
    rules = allow(rules, binary, RUN)?;
    // It makes its API and vsock sockets there; the daemon removes them.
    rules = allow(rules, folder, SOCKETS)?;
    for path in &files.read {
        rules = allow(rules, path, READ)?;
    }
    // QEMU asks a block device whether it may be written, Firecracker just writes.
    let writing = if stand_in.is_some() { DEVICE } else { READ_WRITE };
    for path in &files.write {
        rules = allow(rules, path, writing)?;
    }
    for path in stand_in.iter().flat_map(|stand_in| &stand_in.paths).filter(|path| path.exists()) {
        rules = allow(rules, path, STAND_IN)?;
    }
    let status = rules.restrict_self()?;
    if status.ruleset == RulesetStatus::FullyEnforced { Ok(()) } else { Err(ConfineError::Partial) }
}

/// Everything is handled, and nothing allowed yet.
///
/// # Errors
/// When the kernel does not know all of it, or has Landlock switched off.
pub(super) fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(FLOOR))?
        // No rule follows for these two: TCP in both directions, signals and abstract sockets are
        // all refused.
        .handle_access(AccessNet::from_all(FLOOR))?
        .scope(Scope::from_all(FLOOR))?
        .create()
}

fn allow(rules: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> Result<RulesetCreated, ConfineError> {
    let handle = PathFd::new(path)?;
    // Rights on folders mean nothing for a file, and the kernel refuses them there.
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(FLOOR) };
    Ok(rules.add_rule(PathBeneath::new(handle, rights))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shared_may_be_written() {
        let writing = AccessFs::from_write(FLOOR);
        for (path, rights, need) in COMMON {
            let device = path.starts_with("/dev/");
            assert!(device || (*rights & writing).is_empty(), "{path} ({need})");
        }
    }
}
