//! The helper's rows as they are told on the wire, and its refusals as codes.

use crate::helper::{CowRecord, DiskIdentity, HelperError, Holding, TapIdentity};
use banger_policy::VmId;
use banger_policy::helper::holding::{Cow, Refusal, Row};

impl CowRecord {
    /// Of a COW file that takes `allocated_bytes`.
    #[must_use]
    pub fn of(cow: &Cow, allocated_bytes: u64) -> Self {
        Self { image: cow.image, root_bytes: cow.root_bytes, allocated_bytes }
    }
}

impl Holding {
    /// Of a VM's row and COW file (with what it takes); `None` when there is neither.
    #[must_use]
    pub fn of(vm: VmId, row: Option<&Row>, cow: Option<(&Cow, u64)>) -> Option<Self> {
        Some(Self {
            vm,
            owner: row.map(|row| row.owner).or(cow.map(|(cow, _)| cow.owner))?,
            tap: row.and_then(TapIdentity::of),
            disk: row.and_then(DiskIdentity::of),
            cow: cow.map(|(cow, allocated)| CowRecord::of(cow, allocated)),
            reach: row.map(|row| row.reach.mode).unwrap_or_default(),
            pid: row.and_then(|row| row.process).map(|process| process.pid),
            quarantined: row.is_some_and(|row| row.quarantined),
        })
    }
}

impl From<Refusal> for HelperError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotYours => Self::NotYours,
            Refusal::BadState => Self::BadState,
            Refusal::BadArgument => Self::BadArgument,
            Refusal::Busy => Self::Busy,
            Refusal::StillRunning => Self::StillRunning,
            Refusal::Quota => Self::Quota,
            Refusal::Quarantined => Self::Quarantined,
        }
    }
}
