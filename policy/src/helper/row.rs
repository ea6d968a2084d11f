//! What the helper holds for one VM, and whose an object of the kernel is.

use crate::id::{Digest, VmId};
use crate::reach::{Mode, Reach, Target};
use serde::{Deserialize, Deserializer, Serialize};
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
    /// How far its guest reaches. Helpers of before wrote `nat` and a truth value.
    #[serde(alias = "nat", deserialize_with = "reach_or_nat")]
    pub reach: Reach,
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

/// A tap as it was acquired. A release must repeat it in every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapIdentity {
    /// Name of the link, derived from the VM's id.
    pub tap_device: String,
    /// Drawn by the helper for this boot of the VM; never zero, never the same again.
    pub generation: u64,
}

/// An attached disk. A detach must repeat it in every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// Name of the dm device, derived from the VM's id.
    pub dm_name: String,
    /// Its node, `/dev/dm-N`.
    pub dm_dev: String,
    /// The loop device of the base image, `/dev/loopN`.
    pub base_loop: String,
    /// The loop device of the COW file, `/dev/loopN`.
    pub cow_loop: String,
    /// As in [`TapIdentity`].
    pub generation: u64,
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
    /// It may leave through the uplink, to what the rest says.
    pub out: bool,
    /// To the public internet.
    pub public: bool,
    /// To everywhere.
    pub anywhere: bool,
    /// And to these.
    pub targets: Vec<Target>,
    /// It reaches these guests, and they reach it.
    pub peers: Vec<Ipv4Addr>,
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
    /// so that an idle tap carries nothing, whoever holds it. `rows` has the other VMs.
    #[must_use]
    pub fn registration(&self, rows: &Rows) -> Option<Registration> {
        let address = self.live()?;
        Some(Registration {
            out: self.reach.mode != Mode::None,
            public: matches!(self.reach.mode, Mode::Public | Mode::Nat),
            anywhere: self.reach.mode == Mode::Nat,
            ..self.registration_of(address, self.peers(rows).filter_map(Row::live).collect())
        })
    }

    /// The most that the firewall could let pass because of this row's tap, whatever the rest of
    /// the row says: what a withdrawal takes out, so that nothing stays behind that was registered
    /// when the row said otherwise.
    #[must_use]
    pub fn registrable(&self, rows: &Rows) -> Option<Registration> {
        let peers = self.peers(rows).filter_map(Row::address).collect();
        let most = self.registration_of(self.address()?, peers);
        Some(Registration { out: true, public: true, anywhere: true, ..most })
    }

    /// The address that a bound process has.
    fn live(&self) -> Option<Ipv4Addr> {
        match self.tap {
            Tap::Held { address, .. } if self.process.is_some() && !self.quarantined => Some(address),
            _ => None,
        }
    }

    /// The other VMs of its private network: those of the same recorded owner that were given the
    /// same id. So never one of another owner, whatever was told.
    fn peers<'a>(&'a self, rows: &'a Rows) -> impl Iterator<Item = &'a Row> {
        let with = |other: &&Row| {
            other.vm != self.vm
                && other.owner == self.owner
                && self.reach.group.is_some()
                && other.reach.group == self.reach.group
        };
        rows.values().filter(with)
    }

    fn registration_of(&self, address: Ipv4Addr, peers: Vec<Ipv4Addr>) -> Registration {
        Registration {
            tap_name: self.vm.tap_name(),
            address,
            owner: self.owner,
            out: false,
            public: false,
            anywhere: false,
            targets: self.reach.targets.clone(),
            peers,
        }
    }

    pub(crate) fn opened(vm: VmId, owner: u32, generation: u64) -> Self {
        Self {
            vm,
            owner,
            generation,
            tap: Tap::None,
            disk: Disk::None,
            reach: Reach::default(),
            process: None,
            quarantined: false,
        }
    }

    /// Copies with one thing changed, for the helper's commits.
    #[must_use]
    pub fn with_tap(self, tap: Tap) -> Self {
        Self { tap, ..self }
    }

    /// What its guest may reach goes with the tap.
    #[must_use]
    pub fn without_tap(self) -> Self {
        Self { tap: Tap::None, reach: Reach::default(), ..self }
    }

    /// See [`Row::with_tap`].
    #[must_use]
    pub fn with_reach(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// On the way from `old` to this row: what both let pass. So each of the two steps only takes
    /// away or only adds, and what the kernel lets pass is never more than the row says.
    #[must_use]
    pub fn halfway_from(&self, old: &Self) -> Self {
        self.clone().with_reach(self.reach.common(&old.reach))
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

fn reach_or_nat<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reach, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Nat(bool),
        Reach(Reach),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Nat(true) => Reach::of(Mode::Nat),
        Either::Nat(false) => Reach::default(),
        Either::Reach(reach) => reach,
    })
}

impl TapIdentity {
    /// Of a row that holds a tap.
    #[must_use]
    pub fn of(row: &Row) -> Option<Self> {
        matches!(row.tap, Tap::Held { .. }).then(|| Self { tap_device: row.vm.tap_name(), generation: row.generation })
    }
}

impl DiskIdentity {
    /// Of a row that holds a disk.
    #[must_use]
    pub fn of(row: &Row) -> Option<Self> {
        let Disk::Held(AttachedDisk { minor, base_loop, cow_loop }) = row.disk else { return None };
        Some(Self {
            dm_name: row.vm.dm_name(),
            dm_dev: format!("/dev/dm-{minor}"),
            base_loop: format!("/dev/loop{base_loop}"),
            cow_loop: format!("/dev/loop{cow_loop}"),
            generation: row.generation,
        })
    }
}
