//! The allow-list of paths of a VMM ([`super::floor`] refuses the rest).
//!
//! Not allowed, because not listed: the database, other VMs' folders and disks, `/proc`, `/sys`
//! with the cgroups that the daemon's user may write, `/run`. Processes outside cannot be
//! signalled, traced or read. What this ABI does not know: `connect()` to a socket with a path (the
//! daemon says where they lie: its `paths` has why other VMs' paths are not known to a VMM) and
//! changes of modes and owners, which [`super::calls`] takes away.

use super::floor::{LandlockError, allow, enforce, nothing};
use super::{Files, StandIn};
use landlock::{AccessFs, BitFlags, make_bitflags};
use std::path::Path;

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
) -> Result<(), LandlockError> {
    let mut rules = nothing()?;
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
    enforce(rules)
}

#[cfg(test)]
mod tests {
    use super::super::floor::FLOOR;
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
