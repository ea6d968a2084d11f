//! What a VM may be: the numbers of a specification, checked.

use crate::limits::{
    MAX_DISK_BYTES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, MIN_ROOT_BYTES, MIN_WORK_DISK_BYTES, ROOT_STEP_BYTES,
};
use crate::size::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number outside its bounds; the message says both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// vCPUs.
    #[error("{0} vCPUs are not possible: a VM has 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// Memory in MiB.
    #[error("{0} MiB of memory are not possible: a VM has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")]
    Memory(u32),
    /// A disk in bytes.
    #[error("{what} of {size} is not possible: it has {min} to 128G")]
    Disk {
        /// Which disk.
        what: &'static str,
        /// What was asked for, formatted.
        size: String,
        /// The least, formatted.
        min: String,
    },
}

/// Whether a VM that ran when the host went down is started again when the host is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestartPolicy {
    /// It stays stopped.
    #[default]
    No,
    /// It is started.
    Always,
}

impl RestartPolicy {
    /// All of them.
    pub const ALL: [RestartPolicy; 2] = [RestartPolicy::No, RestartPolicy::Always];

    /// As on the command line, in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RestartPolicy::No => "no",
            RestartPolicy::Always => "always",
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no restart policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: it is `no` or `always`")]
pub struct UnknownPolicy(String);

impl FromStr for RestartPolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let known = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        known.ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// A specification within all limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedSpec {
    vcpus: u32,
    memory_mib: u32,
    root_bytes: u64,
    work_disk_bytes: u64,
}

impl CheckedSpec {
    /// A root disk is rounded up to a multiple of [`ROOT_STEP_BYTES`], a work disk to whole blocks
    /// of 4096 bytes.
    ///
    /// # Errors
    /// [`SpecError`] names the first number out of bounds.
    pub fn new(vcpus: u32, memory_mib: u32, root_bytes: u64, work_disk_bytes: u64) -> Result<Self, SpecError> {
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(SpecError::Vcpus(vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
            return Err(SpecError::Memory(memory_mib));
        }
        Ok(Self {
            vcpus,
            memory_mib,
            root_bytes: disk("a root disk", root_bytes, MIN_ROOT_BYTES, ROOT_STEP_BYTES)?,
            work_disk_bytes: disk("a work disk", work_disk_bytes, MIN_WORK_DISK_BYTES, 4096)?,
        })
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(self) -> u32 {
        self.vcpus
    }

    /// Memory, MiB.
    #[must_use]
    pub fn memory_mib(self) -> u32 {
        self.memory_mib
    }

    /// The root disk, bytes.
    #[must_use]
    pub fn root_bytes(self) -> u64 {
        self.root_bytes
    }

    /// The disk on `/root`, bytes.
    #[must_use]
    pub fn work_disk_bytes(self) -> u64 {
        self.work_disk_bytes
    }
}

fn disk(what: &'static str, bytes: u64, min: u64, step: u64) -> Result<u64, SpecError> {
    if (min..=MAX_DISK_BYTES).contains(&bytes) {
        return Ok(bytes.next_multiple_of(step));
    }
    let text = |bytes: u64| ByteSize::from_bytes(bytes).map_or_else(|_| format!("{bytes}B"), |size| size.to_string());
    Err(SpecError::Disk { what, size: text(bytes), min: text(min) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_what_it_is_called() {
        for policy in RestartPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert!("on-failure".parse::<RestartPolicy>().is_err_and(|error| error.to_string().contains("on-failure")));
    }

    #[test]
    fn bounds() {
        let gib = 1 << 30;
        assert!(CheckedSpec::new(1, 128, gib, gib).is_ok());
        assert_eq!(CheckedSpec::new(0, 128, gib, gib), Err(SpecError::Vcpus(0)));
        assert_eq!(CheckedSpec::new(33, 128, gib, gib), Err(SpecError::Vcpus(33)));
        assert_eq!(CheckedSpec::new(1, 127, gib, gib), Err(SpecError::Memory(127)));
        assert!(CheckedSpec::new(1, 128, 0, gib).is_err());
        assert!(CheckedSpec::new(1, 128, gib, u64::MAX).is_err());
        let rounded = CheckedSpec::new(1, 128, gib + 1, gib + 1).unwrap();
        assert_eq!((rounded.root_bytes(), rounded.work_disk_bytes()), (gib + (128 << 20), gib + 4096));
        assert!(CheckedSpec::new(1, 128, MIN_ROOT_BYTES - 1, gib).is_err(), "not rounded up from below the least");
        assert_eq!(CheckedSpec::new(1, 128, MAX_DISK_BYTES, gib).unwrap().root_bytes(), MAX_DISK_BYTES);
    }
}
