//! What a guest boots: the kernel taken out of a distribution's package, and the initramfs of each
//! start.
//!
//! Called by the import jobs and by the start of a VM, on a blocking thread. It must not know of
//! the database or of VMs' states.

mod bzimage;
mod elf;
mod error;
pub mod initramfs;
pub mod kernel;
mod modules_disk;
#[cfg(test)]
mod tests;

/// Modules that go into the initramfs; a distribution's kernel has about ten.
pub const MAX_MODULES: usize = 64;
/// What they have together, not compressed, bytes: Debian's have 4 MiB. The guest that reads a
/// work disk has 256 MiB, and holds them twice while it boots.
pub const MAX_MODULES_BYTES: u64 = 64 << 20;
/// The longest name of one, bytes: the kernel's own limit is 55 (`MODULE_NAME_LEN`).
pub const MAX_MODULE_NAME: usize = 64;

/// Arguments of every guest's kernel. `reboot=k` ends the VMM (Firecracker has a keyboard
/// controller for just that), `panic=1` turns a panic into such a reboot, and the console is what
/// `vm logs` shows. The guest's init configures `eth0`, so no image may rename it; and systemd must
/// leave vsock port 22 to our agent.
pub const KERNEL_ARGS: &str =
    "console=ttyS0 reboot=k panic=1 quiet loglevel=4 net.ifnames=0 systemd.ssh_auto=no rdinit=/init";
