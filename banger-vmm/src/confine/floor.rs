//! What a process may open, connect to and signal, by Landlock (landlock(7)): nothing but what is
//! allowed.
//!
//! For VMMs, and for the daemon's converter. All of ABI 6 or none: nothing is left out on a kernel
//! older than Linux 6.12.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::path::Path;

pub(super) const FLOOR: ABI = ABI::V6;

/// Why a process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// It does not know all of the rules, or has Landlock switched off.
    #[error("the kernel cannot confine it as it must be (Linux 6.12 with Landlock among its security modules): {0}")]
    Kernel(#[from] RulesetError),
    /// Some of the rules hold.
    #[error("the kernel applies its Landlock rules in part only (Linux 6.12 is the least)")]
    Partial,
    /// What is to be allowed cannot be opened.
    #[error(transparent)]
    Path(#[from] PathFdError),
}

/// Everything is handled, and nothing allowed yet: where no rule follows for TCP, signals and
/// abstract sockets, all of them are refused.
///
/// # Errors
/// When the kernel does not know all of it, or has Landlock switched off.
pub fn nothing() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(FLOOR))?
        .handle_access(AccessNet::from_all(FLOOR))?
        .scope(Scope::from_all(FLOOR))?
        .create()
}

/// Allows rights on a file, or on all that is in a folder.
///
/// # Errors
/// When there is nothing at `path`.
pub fn allow(rules: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> Result<RulesetCreated, LandlockError> {
    let handle = PathFd::new(path)?;
    // Rights on folders mean nothing for a file, and the kernel refuses them there.
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(FLOOR) };
    Ok(rules.add_rule(PathBeneath::new(handle, rights))?)
}

/// Confines this thread, and what it becomes and makes, for good.
///
/// # Errors
/// When the kernel does not apply every rule.
pub fn enforce(rules: RulesetCreated) -> Result<(), LandlockError> {
    let status = rules.restrict_self()?;
    if status.ruleset == RulesetStatus::FullyEnforced { Ok(()) } else { Err(LandlockError::Partial) }
}
