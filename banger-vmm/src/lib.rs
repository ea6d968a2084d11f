//! Firecracker processes: a confined start, the API, the cgroup, the console.
//!
//! Called by the daemon's VM actors. [`launch`] spawns the daemon's program again as [`launcher`],
//! which confines itself and becomes Firecracker; [`api`] tells Firecracker what to run. Whether a
//! process is the VMM of a VM is decided by the VM's cgroup and by the peer of the API socket,
//! never by a process id alone. Nothing here acquires or releases what the helper makes, and
//! nothing here knows the daemon's records.
#![forbid(unsafe_code)]

pub mod api;
pub mod cgroup;
pub mod confine;
pub mod console;
mod end;
mod error;
pub mod fail;
pub mod launcher;
pub mod pidfd;
mod process;
pub mod written;

pub use confine::{Files, StandIn};
pub use end::VmmEnd;
pub use error::VmmError;
pub use launcher::Launch;
pub use process::{Vmm, launch};
