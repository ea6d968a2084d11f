//! What belongs to no VM that the daemon knows: a crash came between the last effect of a deletion
//! and its record, the database is an older copy or was deleted, a row was removed by hand. Found
//! from what is there (the helper's ledger, the VMs' cgroups, folders), never from memory.

use crate::db::VmRow;
use crate::db::store::{IMAGES, KERNELS};
use crate::paths::VmPaths;
use crate::store;
use crate::vm::Context;
use crate::vm::error::VmError;
use crate::vm::readers::Readers;
use crate::vm::reconcile::holds;
use banger_policy::VmId;
use banger_policy::lifecycle::State;
use banger_policy::reach::Mode;
use banger_proto::helper::Holding;
use banger_proto::model::{Leak, LeakKind};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// One thing that belongs to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Orphan {
    /// A cgroup, with or without processes in it.
    Group {
        owner: u32,
        vm: VmId,
        populated: bool,
    },
    /// A row of the helper's ledger, or a COW file of its own.
    Held {
        vm: VmId,
        quarantined: bool,
        only_cow: bool,
        what: String,
    },
    Folder {
        path: PathBuf,
        of: Folder,
    },
}

/// What a folder is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Folder {
    /// A VM's work disk, console and handles.
    Disk,
    Sockets,
    /// Files of a guest that read a disk for somebody.
    Reader,
    /// An image or a kernel.
    Store,
}

impl Folder {
    /// What a folder among those of the VMs is for.
    fn among_disks(path: &Path) -> Self {
        let id = path.file_name().and_then(|name| name.to_str()?.parse::<VmId>().ok());
        if id.is_some_and(|id| Readers::is_id(&id)) { Self::Reader } else { Self::Disk }
    }
}

/// What a look has found.
pub(super) struct Seen {
    /// Processes first, then what they held, then files: the order in which they can be released.
    pub(super) orphans: Vec<Orphan>,
    pub(super) rows: Vec<VmRow>,
    pub(super) held: Vec<Holding>,
}

impl Seen {
    /// Nothing runs, nothing is held, nothing waits for another look. Only an order of a user can
    /// change that, and it looks after itself.
    pub(super) fn is_at_rest(&self) -> bool {
        self.orphans.is_empty()
            && self.rows.iter().all(|row| matches!(row.state, State::Created | State::Stopped))
            && !self.held.iter().any(holds)
    }
}

/// Looks, and changes nothing: any user may ask for a count.
pub(super) async fn look(ctx: &Context) -> Result<Seen, VmError> {
    // Things first, rows second: a row is written before anything is made for it, so what has no
    // row now never had one.
    // A reader that ends meanwhile was somebody's when its group was seen.
    let readers = ctx.readers.ids();
    let groups = ctx.machine.groups();
    let mut held = Vec::new();
    let mut after = None;
    loop {
        let page = ctx.privileged.list(after).await.map_err(|error| error.at("what the helper holds"))?;
        held.extend(page.holdings);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let folders = entries(&ctx.paths.vms());
    let sockets = entries(&ctx.paths.runtime.join("vm"));
    let mut stored = [entries(&ctx.paths.images()), entries(&ctx.paths.kernels())].concat();
    stored.retain(|path| store::is_finished(path));
    let rows = ctx.db.vms(None, None, u32::MAX).await?;
    // Those of this daemon's readers belong to whoever reads.
    let ids: HashSet<VmId> = rows.iter().map(|row| row.id).chain(readers).chain(ctx.readers.ids()).collect();
    let mut homes: HashSet<PathBuf> =
        ids.iter().map(|id| ctx.paths.vm(id)).flat_map(|vm| [vm.dir, vm.runtime]).collect();
    let images = ctx.db.contents(&IMAGES).await?;
    homes.extend(images.iter().map(|image| ctx.paths.image_dir(image)));
    let kernels = ctx.db.contents(&KERNELS).await?;
    homes.extend(kernels.iter().map(|kernel| ctx.paths.kernel_dir(kernel)));

    let mut orphans = Vec::new();
    let unknown = groups.into_iter().filter(|(_, vm)| !ids.contains(vm));
    orphans.extend(unknown.map(|(owner, vm)| Orphan::Group {
        owner,
        vm,
        populated: ctx.machine.populated(owner, &vm),
    }));
    let unknown = held.iter().filter(|holding| !ids.contains(&holding.vm));
    orphans.extend(unknown.map(|holding| Orphan::Held {
        vm: holding.vm,
        quarantined: holding.quarantined,
        only_cow: holding.cow.is_some() && !holding.quarantined && !holds(holding),
        what: what(holding),
    }));
    let folders = folders.into_iter().map(|path| (Folder::among_disks(&path), path));
    let sockets = sockets.into_iter().map(|path| (Folder::Sockets, path));
    let stored = stored.into_iter().map(|path| (Folder::Store, path));
    let unknown = folders.chain(sockets).chain(stored).filter(|(_, path)| !homes.contains(path));
    orphans.extend(unknown.map(|(of, path)| Orphan::Folder { path, of }));
    Ok(Seen { orphans, rows, held })
}

impl Orphan {
    /// Whether it is nothing but what somebody may want back.
    pub(super) fn is_data(&self) -> bool {
        match self {
            Self::Group { .. } => false,
            Self::Held { only_cow, .. } => *only_cow,
            Self::Folder { of, .. } => matches!(of, Folder::Disk | Folder::Store),
        }
    }

    /// The VM of a cgroup in which something runs. A reader is none: nobody misses it.
    pub(super) fn running(&self) -> Option<VmId> {
        match self {
            Self::Group { vm, populated: true, .. } => Some(*vm).filter(|vm| !Readers::is_id(vm)),
            _ => None,
        }
    }

    pub(super) fn is_of(&self, vm: &VmId, paths: &VmPaths) -> bool {
        match self {
            Self::Group { vm: mine, .. } | Self::Held { vm: mine, .. } => mine == vm,
            // The name of a socket folder cannot be turned back into an id.
            Self::Folder { path, .. } => *path == paths.dir || *path == paths.runtime,
        }
    }

    pub(super) fn leak(&self) -> Leak {
        let (kind, name, detail) = match self {
            Self::Group { owner, vm, populated } => {
                let detail = if *populated { "processes run in it" } else { "empty" };
                (LeakKind::Cgroup, vm.to_string(), format!("of uid {owner}, {detail}"))
            }
            Self::Held { vm, quarantined, what, .. } => {
                let detail = if *quarantined { format!("{what}; quarantined") } else { what.clone() };
                (LeakKind::Holding, vm.to_string(), detail)
            }
            Self::Folder { path, of } => {
                let detail = match of {
                    Folder::Disk => "work disk, console and handles of a VM",
                    Folder::Sockets => "sockets of a VM",
                    Folder::Reader => "files of a guest that read a VM's disk",
                    Folder::Store => "an image or a kernel without a record",
                };
                (LeakKind::Folder, path.display().to_string(), detail.to_owned())
            }
        };
        Leak { kind, name, detail, fixed: None }
    }
}

fn what(holding: &Holding) -> String {
    let tap = holding.tap.as_ref().map(|tap| format!("tap {}", tap.tap_device));
    let disk =
        holding.disk.as_ref().map(|disk| format!("disk {} on {}, {}", disk.dm_dev, disk.base_loop, disk.cow_loop));
    let cow = holding.cow.as_ref().map(|cow| format!("COW file of {} bytes", cow.allocated_bytes));
    let reach = (holding.reach != Mode::None).then(|| format!("network {}", holding.reach));
    let all: Vec<String> = [tap, disk, cow, reach].into_iter().flatten().collect();
    if all.is_empty() { "a row of the ledger".to_owned() } else { all.join(", ") }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
