//! What the root helper may do for a VM, given what its ledger says about it. The helper asks one
//! function per operation; a grant comes back, without which the operation cannot be called.
//!
//! A VM's row is absent until its first tap or disk, and is closed by [`release`]. The columns of
//! the table are what a row can hold; `-` is nothing, `i` an intent (an attempt that was not
//! finished), `h` held; a process is unbound (`-`), running (`r`) or gone (`g`). The whole table is
//! tested in `holding_tests.rs`.
//!
//! | operation | granted when |
//! |---|---|
//! | acquire tap | no tap, no process of this boot yet; the same tap again is answered from the row |
//! | attach disk | no disk, no process of this boot yet, and a COW record of this owner; the same disk again is answered from the row |
//! | give disk | there is a COW record, and the VM has no row |
//! | release tap, detach disk | the claim equals the row in every field, no process runs |
//! | bind process | a tap is held; one process per boot |
//! | set network | a tap is held; to reach nothing: always, on an existing row |
//! | grow disk | no disk is attached or half attached, and there is a COW record of this owner that is not larger |
//! | discard disk | no disk is attached or half attached |
//! | release | no process runs; nothing held is success |
//!
//! A quarantined row refuses everything but release, which looks again.

pub use super::row::{AttachedDisk, Cow, Disk, DiskIdentity, Process, Registration, Row, Rows, Tap, TapIdentity};
use crate::access::Decision;
use crate::id::{Digest, VmId};
use crate::limits::{MAX_COWS, MAX_DISK_BYTES, MAX_VMS, MIN_ROOT_BYTES, ROOT_STEP_BYTES};
use crate::reach::Reach;
use std::net::Ipv4Addr;

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Never held, held by another owner, or the claim differs.
    #[error("not-yours")]
    NotYours,
    /// Has no meaning in the row's present state.
    #[error("bad-state")]
    BadState,
    /// Outside the bounds.
    #[error("bad-argument")]
    BadArgument,
    /// Another VM has that address or name.
    #[error("busy")]
    Busy,
    /// The bound process runs.
    #[error("still-running")]
    StillRunning,
    /// Too many.
    #[error("quota")]
    Quota,
    /// See [`Row::quarantined`].
    #[error("quarantined")]
    Quarantined,
}

impl Refusal {
    /// One word for the journal.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NotYours => "not-yours",
            Self::BadState => "bad-state",
            Self::BadArgument => "bad-argument",
            Self::Busy => "taken-by-another-vm",
            Self::StillRunning => "still-running",
            Self::Quota => "quota",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Permission to change one VM. The row in it is what the ledger must say before the kernel is
/// asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    intent: Row,
}

impl Grant {
    /// The row to write first.
    #[must_use]
    pub fn intent(&self) -> &Row {
        &self.intent
    }

    /// The row, to commit from.
    #[must_use]
    pub fn into_row(self) -> Row {
        self.intent
    }
}

/// A granted operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It has been done before; the row has the answer.
    Stored,
    /// Do it.
    Do(Grant),
}

/// The answer of every function here.
pub type Verdict = Decision<Step, Refusal>;

fn grant(intent: Row) -> Verdict {
    Decision::Allow(Step::Do(Grant { intent }))
}

fn stored() -> Verdict {
    Decision::Allow(Step::Stored)
}

/// The row to add a tap or disk to: the VM's own, or a new one of generation `fresh`.
fn open(rows: &Rows, vm: VmId, owner: u32, fresh: u64) -> Result<Row, Refusal> {
    match rows.get(&vm) {
        Some(row) if row.owner != owner => Err(Refusal::NotYours),
        Some(row) if row.quarantined => Err(Refusal::Quarantined),
        Some(row) if !row.is_empty() => Ok(row.clone()),
        _ => {
            let holders = rows.values().filter(|row| !row.is_empty()).count();
            let limit = usize::try_from(MAX_VMS).unwrap_or(usize::MAX);
            if holders < limit { Ok(Row::opened(vm, owner, fresh)) } else { Err(Refusal::Quota) }
        }
    }
}

/// May a tap be made for `vm`?
pub fn acquire_tap(rows: &Rows, vm: VmId, owner: u32, address: Ipv4Addr, fresh: u64) -> Verdict {
    let row = match open(rows, vm, owner, fresh) {
        Ok(row) => row,
        Err(refusal) => return Decision::Deny(refusal),
    };
    match row.tap {
        Tap::Held { address: held, .. } if held == address => return stored(),
        Tap::Held { .. } => return Decision::Deny(Refusal::BadState),
        Tap::None | Tap::Intent { .. } => {}
    }
    if row.process.is_some() {
        return Decision::Deny(Refusal::BadState);
    }
    let name = vm.tap_name();
    let clash = |other: &Row| {
        other.vm != vm && other.address().is_some_and(|taken| taken == address || other.vm.tap_name() == name)
    };
    if rows.values().any(clash) {
        return Decision::Deny(Refusal::Busy);
    }
    grant(row.with_tap(Tap::Intent { address }))
}

/// The row that a claim speaks of.
fn claimed(row: Option<&Row>, generation: u64, running: bool) -> Result<&Row, Refusal> {
    match row {
        Some(row) if row.generation != generation => Err(Refusal::NotYours),
        Some(row) if row.quarantined => Err(Refusal::Quarantined),
        Some(_) if running => Err(Refusal::StillRunning),
        Some(row) => Ok(row),
        None => Err(Refusal::NotYours),
    }
}

/// May the tap be removed? `running`: the bound process lives.
pub fn release_tap(row: Option<&Row>, claim: &TapIdentity, running: bool) -> Verdict {
    // The name before the state: a claim with a wrong name learns nothing.
    if row.is_some_and(|row| row.vm.tap_name() != claim.tap_device) {
        return Decision::Deny(Refusal::NotYours);
    }
    match claimed(row, claim.generation, running) {
        Err(refusal) => Decision::Deny(refusal),
        Ok(row) if row.tap == Tap::None => stored(),
        Ok(row) => grant(row.clone()),
    }
}

/// May the disk be attached? `cow` is its durable record.
pub fn attach_disk(rows: &Rows, vm: VmId, cow: Option<&Cow>, owner: u32, fresh: u64) -> Verdict {
    match cow {
        Some(cow) if cow.owner == owner && cow.vm == vm && cow.ready && cow.growing_to.is_none() => {}
        Some(cow) if cow.owner == owner && cow.growing_to.is_some() => return Decision::Deny(Refusal::BadState),
        _ => return Decision::Deny(Refusal::NotYours),
    }
    match open(rows, vm, owner, fresh) {
        Err(refusal) => Decision::Deny(refusal),
        Ok(row) => match row.disk {
            Disk::Held(_) => stored(),
            Disk::None | Disk::Intent if row.process.is_some() => Decision::Deny(Refusal::BadState),
            Disk::None | Disk::Intent => grant(row.with_disk(Disk::Intent)),
        },
    }
}

/// May the COW file become another owner's? Only while nothing of the VM is held: what is held was
/// bound to the owner that it has.
pub fn give_disk(row: Option<&Row>, cow: Option<&Cow>, owner: u32) -> Decision<Option<Cow>, Refusal> {
    match cow {
        Some(cow) if cow.ready && row.is_none() => {
            Decision::Allow((cow.owner != owner).then(|| Cow { owner, ..cow.clone() }))
        }
        Some(cow) if cow.ready => Decision::Deny(Refusal::BadState),
        _ => Decision::Deny(Refusal::NotYours),
    }
}

/// May the disk be detached? `running`: the bound process lives.
pub fn detach_disk(row: Option<&Row>, claim: &DiskIdentity, running: bool) -> Verdict {
    // Every field that the row knows; of a disk that is not held, only the name is known.
    let differs = |row: &Row| DiskIdentity::of(row).map_or(row.vm.dm_name() != claim.dm_name, |held| held != *claim);
    if row.is_some_and(differs) {
        return Decision::Deny(Refusal::NotYours);
    }
    match claimed(row, claim.generation, running) {
        Err(refusal) => Decision::Deny(refusal),
        Ok(row) if row.disk == Disk::None => stored(),
        Ok(row) => grant(row.clone()),
    }
}

/// May a COW file be made? `count`: how many there are on the host.
pub fn create_disk(
    cow: Option<&Cow>,
    count: usize,
    owner: u32,
    image: Digest,
    root_bytes: u64,
) -> Decision<Create, Refusal> {
    if !is_root_size(root_bytes) {
        return Decision::Deny(Refusal::BadArgument);
    }
    match cow {
        Some(cow) if cow.owner != owner => Decision::Deny(Refusal::NotYours),
        Some(cow) if cow.image != image || cow.root_bytes != root_bytes => Decision::Deny(Refusal::BadState),
        Some(cow) if cow.ready => Decision::Allow(Create::Stored),
        // A record that is not ready belongs to an attempt that failed and could not be undone.
        Some(_) => Decision::Deny(Refusal::BadState),
        None if count >= MAX_COWS => Decision::Deny(Refusal::Quota),
        None => Decision::Allow(Create::Make(CreateGrant(()))),
    }
}

/// Can a root disk have this size?
fn is_root_size(bytes: u64) -> bool {
    (MIN_ROOT_BYTES..=MAX_DISK_BYTES).contains(&bytes) && bytes.is_multiple_of(ROOT_STEP_BYTES)
}

/// May the root disk become `root_bytes` large?
pub fn grow_disk(row: Option<&Row>, cow: Option<&Cow>, owner: u32, root_bytes: u64) -> Decision<Grow, Refusal> {
    let cow = match cow {
        Some(cow) if cow.owner == owner && cow.ready => cow,
        _ => return Decision::Deny(Refusal::NotYours),
    };
    // The base is read beyond the image's file system, where it has zeros, but never beyond its own
    // end.
    if !is_root_size(root_bytes) || root_bytes < cow.root_bytes || root_bytes > cow.base_bytes {
        return Decision::Deny(Refusal::BadArgument);
    }
    match row {
        Some(row) if row.quarantined => Decision::Deny(Refusal::Quarantined),
        Some(row) if row.disk != Disk::None => Decision::Deny(Refusal::BadState),
        // An attempt that was not undone is in the record until the next start of the helper.
        _ if cow.growing_to.is_some() => Decision::Deny(Refusal::BadState),
        _ if cow.root_bytes == root_bytes => Decision::Allow(Grow::Stored),
        _ => Decision::Allow(Grow::Make(GrowGrant(()))),
    }
}

/// The answer of [`grow_disk`].
#[derive(Debug, PartialEq, Eq)]
pub enum Grow {
    /// It is that large.
    Stored,
    /// Make it that large.
    Make(GrowGrant),
}

/// Permission to lengthen a COW file.
#[derive(Debug, PartialEq, Eq)]
pub struct GrowGrant(());

/// The answer of [`create_disk`].
#[derive(Debug, PartialEq, Eq)]
pub enum Create {
    /// It is there.
    Stored,
    /// Make it.
    Make(CreateGrant),
}

/// Permission to make a COW file.
#[derive(Debug, PartialEq, Eq)]
pub struct CreateGrant(());

/// Permission to remove a COW file.
#[derive(Debug, PartialEq, Eq)]
pub struct DiscardGrant(());

/// May the COW file be removed?
pub fn discard_disk(row: Option<&Row>) -> Decision<DiscardGrant, Refusal> {
    match row {
        Some(row) if row.quarantined => Decision::Deny(Refusal::Quarantined),
        Some(row) if row.disk != Disk::None => Decision::Deny(Refusal::BadState),
        _ => Decision::Allow(DiscardGrant(())),
    }
}

/// May the guest reach that far?
pub fn set_network(row: Option<&Row>, reach: Reach) -> Verdict {
    let Some(row) = row else { return Decision::Deny(Refusal::NotYours) };
    let Some(reach) = reach.checked() else { return Decision::Deny(Refusal::BadArgument) };
    if row.quarantined {
        return Decision::Deny(Refusal::Quarantined);
    }
    if row.reach == reach {
        return stored();
    }
    if reach != Reach::default() && !matches!(row.tap, Tap::Held { .. }) {
        return Decision::Deny(Refusal::BadState);
    }
    grant(row.clone().with_reach(reach))
}

/// May this process be recorded? The caller has proved that it is the VM's.
pub fn bind_process(row: Option<&Row>, process: Process) -> Verdict {
    match row {
        None => Decision::Deny(Refusal::NotYours),
        Some(row) if row.quarantined => Decision::Deny(Refusal::Quarantined),
        Some(row) if !matches!(row.tap, Tap::Held { .. }) => Decision::Deny(Refusal::BadState),
        Some(row) if row.process == Some(process) => stored(),
        Some(row) if row.process.is_some() => Decision::Deny(Refusal::BadState),
        Some(row) => grant(Row { process: Some(process), ..row.clone() }),
    }
}

/// Which process to look at when asked about `pid`.
pub fn process_running(row: Option<&Row>, pid: u32) -> Decision<Process, Refusal> {
    match row.and_then(|row| row.process) {
        Some(process) if process.pid == pid => Decision::Allow(process),
        _ => Decision::Deny(Refusal::NotYours),
    }
}

/// May everything but the COW file be released? `running`: the bound process lives.
pub fn release(row: Option<&Row>, running: bool) -> Verdict {
    match row {
        None => stored(),
        Some(_) if running => Decision::Deny(Refusal::StillRunning),
        Some(row) => grant(row.clone()),
    }
}

#[cfg(test)]
#[path = "holding_tests.rs"]
mod tests;
