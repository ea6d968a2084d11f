//! The host: the daemon itself, its checks, and what belongs to no VM.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// What belongs to no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaks {
    /// At most 200, so that they fit a frame. What can be released only after others comes after
    /// them.
    pub leaks: Vec<Leak>,
    /// How many there are beside these.
    pub more: u64,
}

/// How a check of `doctor` came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Fine.
    Pass,
    /// Works, but.
    Warn,
    /// Does not work.
    Fail,
}

/// A line of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What mends it: a command that can be typed as it stands, where there is one. Empty when
    /// nothing is wrong.
    pub mend: String,
}

impl Check {
    /// All is well.
    #[must_use]
    pub fn pass(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Pass, detail, "")
    }

    /// It works, but.
    #[must_use]
    pub fn warn(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Warn, detail, mend)
    }

    /// It does not work.
    #[must_use]
    pub fn fail(name: &str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Fail, detail, mend)
    }

    fn new(name: &str, status: CheckStatus, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name: name.to_owned(), status, detail: detail.into(), mend: mend.into() }
    }
}

/// What a leak is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeakKind {
    /// A VM's cgroup, with what runs in it.
    Cgroup,
    /// What the helper holds: tap, disk, COW file, NAT.
    Holding,
    /// A VM's folder, or that of its sockets.
    Folder,
}

impl std::fmt::Display for LeakKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "cgroup",
            Self::Holding => "holding",
            Self::Folder => "folder",
        })
    }
}

/// Something of banger's that belongs to no VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// What it is.
    pub kind: LeakKind,
    /// The id of the VM that it was made for, or its path.
    pub name: String,
    /// What is known of it.
    pub detail: String,
    /// Was it released? `None` when that was not asked for.
    pub fixed: Option<bool>,
}

/// What the daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Release.
    pub version: String,
    /// Protocol version.
    pub protocol: u16,
    /// When it started.
    pub started_at: Timestamp,
    /// Firecracker's own version line; empty when it could not be asked.
    pub vmm_version: String,
    /// SHA-256 of that program, in hexadecimal; empty when it could not be read.
    pub vmm_sha256: String,
}
