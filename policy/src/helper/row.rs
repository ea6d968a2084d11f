//! What the helper holds for one VM, and whose an object of the kernel is.

use crate::id::{Digest, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The block major of loop devices (linux/major.h).
const LOOP_MAJOR: u32 = 7;

/// The ledger: a row per VM.
pub type Rows = BTreeMap<VmId, Row>;

/// What the helper holds for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Whose.
    pub vm: VmId,
    /// The user, as the daemon told.
    pub owner: u32,
    /// Random, drawn when the row is opened: a claim of an earlier boot never matches.
    pub generation: u64,
    /// Its tap.
    pub tap: Tap,
    /// Its disk.
    pub disk: Disk,
    /// NAT is wanted.
    pub nat: bool,
    /// The process of this boot.
    pub process: Option<Process>,
    /// Some object is no longer what this row says.
    pub quarantined: bool,
}

/// A VM's tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Tap {
    /// None.
    None,
    /// About to be made.
    Intent {
        /// The guest's address.
        address: Ipv4Addr,
    },
    /// Made.
    Held {
        /// The guest's address.
        address: Ipv4Addr,
        /// The kernel's number of the link; never given out twice.
        ifindex: u32,
    },
}

/// A VM's attached disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Disk {
    /// None.
    None,
    /// About to be attached.
    Intent,
    /// Attached.
    Held(AttachedDisk),
}

/// The kernel's numbers of an attached disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachedDisk {
    /// N of `/dev/dm-N`.
    pub minor: u32,
    /// N of the base image's `/dev/loopN`.
    pub base_loop: u32,
    /// N of the COW file's `/dev/loopN`.
    pub cow_loop: u32,
}

/// A process, so that it cannot be mistaken for a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The inode of its pidfd: unique for the life of the kernel.
    pub pidfd_inode: u64,
    /// Clock ticks since boot at its start, field 22 of proc_pid_stat(5).
    pub start_ticks: u64,
}

/// A COW file, as its durable record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cow {
    /// Whose.
    pub vm: VmId,
    /// The user, as the daemon told.
    pub owner: u32,
    /// The base image.
    pub image: Digest,
    /// The base image's size, bytes.
    pub base_bytes: u64,
    /// The size of the root disk, bytes.
    pub root_bytes: u64,
    /// The file's size, bytes.
    pub file_bytes: u64,
    /// The root disk is being made this large, bytes; the file may already be longer than
    /// `file_bytes`.
    pub growing_to: Option<u64>,
    /// Random, drawn at create.
    pub generation: u64,
    /// The file is there and fully reserved.
    pub ready: bool,
}

/// What the firewall lets pass for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The link.
    pub tap_name: String,
    /// The only source address that may come out of it.
    pub address: Ipv4Addr,
    /// The user who may connect to it from the host.
    pub owner: u32,
    /// It may leave through the uplink.
    pub nat: bool,
}

impl Row {
    /// Nothing of the kernel's is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tap == Tap::None && self.disk == Disk::None && !self.quarantined
    }

    /// The guest's address, also of a tap that is only intended.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.tap {
            Tap::None => None,
            Tap::Intent { address } | Tap::Held { address, .. } => Some(address),
        }
    }

    /// Are these the name and the alias of this row's tap?
    #[must_use]
    pub fn owns_link(&self, name: &str, alias: &str) -> bool {
        name == self.vm.tap_name() && alias == self.vm.tap_alias(self.generation)
    }

    /// Is a dm device that has this row's UUID its disk: name, minor and the loops under it (major
    /// and minor, in any order)? Of one that is not committed nothing but the name is known.
    #[must_use]
    pub fn owns_disk(&self, name: &str, minor: u32, uses: &[(u32, u32)]) -> bool {
        name == self.vm.dm_name()
            && match self.disk {
                Disk::Held(held) => {
                    let loops = [(LOOP_MAJOR, held.base_loop), (LOOP_MAJOR, held.cow_loop)];
                    minor == held.minor && uses.len() == loops.len() && loops.iter().all(|used| uses.contains(used))
                }
                Disk::None | Disk::Intent => true,
            }
    }

    /// What the firewall should let pass: nothing before a process is bound and after it has ended,
    /// so that an idle tap carries nothing, whoever holds it.
    #[must_use]
    pub fn registration(&self) -> Option<Registration> {
        match (self.tap, self.process, self.quarantined) {
            (Tap::Held { address, .. }, Some(_), false) => {
                Some(Registration { tap_name: self.vm.tap_name(), address, owner: self.owner, nat: self.nat })
            }
            _ => None,
        }
    }

    /// The most that the firewall could let pass because of this row's tap, whatever the rest of
    /// the row says: what a withdrawal takes out, so that nothing stays behind that was registered
    /// when the row said otherwise.
    #[must_use]
    pub fn registrable(&self) -> Option<Registration> {
        let address = self.address()?;
        Some(Registration { tap_name: self.vm.tap_name(), address, owner: self.owner, nat: true })
    }

    pub(crate) fn opened(vm: VmId, owner: u32, generation: u64) -> Self {
        Self { vm, owner, generation, tap: Tap::None, disk: Disk::None, nat: false, process: None, quarantined: false }
    }

    /// Copies with one thing changed, for the helper's commits.
    #[must_use]
    pub fn with_tap(self, tap: Tap) -> Self {
        Self { tap, ..self }
    }

    /// NAT goes with the tap.
    #[must_use]
    pub fn without_tap(self) -> Self {
        Self { tap: Tap::None, nat: false, ..self }
    }

    /// See [`Row::with_tap`].
    #[must_use]
    pub fn with_disk(self, disk: Disk) -> Self {
        Self { disk, ..self }
    }

    /// Nothing passes a tap any more whose process has ended: from then on anybody of the daemon's
    /// user could open it.
    #[must_use]
    pub fn without_process(self) -> Self {
        Self { process: None, ..self }
    }

    /// See [`Row::with_tap`].
    #[must_use]
    pub fn with_quarantine(self, quarantined: bool) -> Self {
        Self { quarantined, ..self }
    }
}

impl AttachedDisk {
    /// The dm device's node.
    #[must_use]
    pub fn dm_node(&self) -> String {
        format!("/dev/dm-{}", self.minor)
    }
}

/// The node of a loop device.
#[must_use]
pub fn loop_node(number: u32) -> String {
    format!("/dev/loop{number}")
}
