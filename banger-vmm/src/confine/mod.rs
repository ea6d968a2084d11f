//! What a VMM may do from before its first instruction on: a guest that breaks out of it is a
//! process of the daemon's user, and stays within this.
//!
//! Called by the launcher as its last step before exec. [`files`] is an allow-list (Landlock),
//! [`calls`] takes away what Landlock does not know (seccomp). Both are inherited, cannot be taken
//! back, and are refused whole when the kernel knows a part of them only: a VMM that cannot be
//! confined is not started.

mod calls;
mod files;
pub mod floor;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The variable that describes a [`StandIn`]: its paths, separated by colons.
pub const STAND_IN: &str = "BANGER_STAND_IN_PATHS";

/// What a VMM opens, all of it its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Kernel and initramfs.
    pub read: Vec<PathBuf>,
    /// Disks and the metrics file. All of them exist before the start.
    pub write: Vec<PathBuf>,
}

/// For the test bench alone, whose VMM runs QEMU where no Firecracker is to be had. Only what
/// starts the daemon can say it (in the bench a drop-in of the unit, written by root); nothing that
/// is shipped does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandIn {
    /// Programs, folders and devices that it uses beside Firecracker's.
    pub paths: Vec<PathBuf>,
}

impl StandIn {
    /// From the value of [`STAND_IN`].
    #[must_use]
    pub fn from_variable(value: Option<std::ffi::OsString>) -> Option<Self> {
        let paths: Vec<PathBuf> = std::env::split_paths(&value?).filter(|path| path.is_absolute()).collect();
        (!paths.is_empty()).then_some(Self { paths })
    }
}

/// Why a VMM is not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[error(transparent)]
    Landlock(#[from] floor::LandlockError),
    #[error("its filter of system calls: {0}")]
    Filter(#[from] seccompiler::Error),
    #[error("its filter of system calls: {0}")]
    Rule(#[from] seccompiler::BackendError),
}

/// Could a VMM be confined on this host? Restricts nothing.
///
/// # Errors
/// What the kernel does not know.
pub fn supported() -> Result<(), landlock::RulesetError> {
    floor::nothing().map(drop)
}

/// Confines this process and what it becomes. `binary` is what it may become, `folder` where its
/// sockets lie.
pub(super) fn confine(
    binary: &Path,
    folder: &Path,
    files: &Files,
    stand_in: Option<&StandIn>,
) -> Result<(), ConfineError> {
    files::restrict(binary, folder, files, stand_in)?;
    calls::restrict(std::process::id(), stand_in.is_some())
}
