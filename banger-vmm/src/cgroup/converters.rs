//! The group of the processes that parse what users bring, beside that of all VMs. They are
//! nobody's in particular, so they take of the host's CPUs and disks what VMs and the daemon leave.

use super::share::{set, weigh_io};
use super::{Cgroups, Kind, make, write};
use std::io;

/// Beside the groups of VMs and of the daemon.
const GROUP: &str = "convert";
/// `cpu.weight` and `io.weight`; VMs together and the daemon have 100 each.
const WEIGHT: u64 = 20;
/// `memory.max`, bytes: of four at a time, each of which limits itself to 1 GiB, and of what the
/// kernel keeps of their files.
const MEMORY: u64 = 5 << 30;

impl Cgroups {
    /// Moves a process that parses there. Without groups it stays where it is.
    ///
    /// # Errors
    /// The file that could not be written.
    pub fn hold_converter(&self, pid: u32) -> io::Result<()> {
        let Kind::Tree(tree) = &self.kind else { return Ok(()) };
        let group = tree.vms.with_file_name(GROUP);
        let has = |controller: &str| tree.controllers.iter().any(|have| have == controller);
        // Each time: systemd removes empty groups when a daemon has died.
        make(&group)?;
        for (controller, file, value) in [("cpu", "cpu.weight", WEIGHT), ("memory", "memory.max", MEMORY)] {
            if has(controller) {
                set(&group.join(file), &value.to_string())?;
            }
        }
        weigh_io(tree, &group, WEIGHT)?;
        write(&group.join("cgroup.procs"), &pid.to_string())
    }
}
