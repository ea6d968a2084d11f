//! The cgroup of a VM: its limits, and its process identity.
//!
//! Under systemd the daemon runs in the leaf `daemon` of its delegated unit
//! (`DelegateSubgroup=daemon`), and VMs lie beside it as `vms/<owner uid>/<vm id>`: found again
//! from the VM's id alone, ended as a whole by `cgroup.kill` (cgroup-v2 documentation of the
//! kernel). Without delegation, in a build folder, a pidfd stands in and there are no limits.
//! Called by the VM's actor and by [`crate::launch`]; it must not touch any group outside `vms`.

mod converters;
mod share;
mod usage;

pub use usage::{OutOfMemory, Usage};

use crate::pidfd::Pidfd;
use banger_policy::VmId;
use banger_policy::process::{DAEMON_LEAF, VMS_GROUP};
use banger_policy::shares::Share;
use rustix::process::Signal;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};
use tokio::time::Instant;

/// Where systemd mounts the unified hierarchy; other layouts are below our floor.
const ROOT: &str = "/sys/fs/cgroup";
/// What the limits need.
const CONTROLLERS: &[&str] = &["memory", "pids", "cpu"];
/// Taken where the host's kernel has it: without it, disks are shared as they come.
const IO: &str = "io";
/// How long [`VmCgroup::kill`] waits for the kernel to end everything: exits of processes with
/// gigabytes of memory take seconds on a loaded host.
const KILL_WAIT: Duration = Duration::from_secs(20);
/// A group made by the VM itself inside its own is removed with it, but not without end.
const MAX_DEPTH: u32 = 8;

/// What a VM may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max`, bytes: the guest's memory and the VMM's own.
    pub memory_bytes: u64,
    /// `pids.max`.
    pub pids: u64,
    /// `cpu.weight`, 1 to 10000, 100 by default.
    pub cpu_weight: u64,
}

/// All groups of VMs, or the table of their processes where there are no groups. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Tree(Arc<Tree>),
    Table(Table),
}

#[derive(Debug)]
struct Tree {
    /// The folder that holds the owners' folders.
    vms: PathBuf,
    controllers: Vec<String>,
    /// What each user's group gets when it is made; it goes with the user's last VM.
    shares: Mutex<HashMap<u32, Share>>,
}

type Table = Arc<Mutex<HashMap<VmId, Pidfd>>>;

/// The group of one VM, which need not exist yet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VmCgroup {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Group { tree: Arc<Tree>, path: PathBuf },
    Process { vm: VmId, table: Table },
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| at(path, &error))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(|error| at(path, &error))
}

/// The unified hierarchy's line of `/proc/self/cgroup` (cgroups(7)).
fn own_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The unit's group, when this process is in its delegated leaf.
fn delegated_base(root: &Path, own: &str) -> Option<PathBuf> {
    let own = Path::new(own.strip_prefix('/')?);
    let base = own.parent()?;
    let is_ours = own.file_name()? == DAEMON_LEAF && !base.as_os_str().is_empty();
    is_ours.then(|| root.join(base))
}

/// The value of a key in a flat keyed file such as `cgroup.events`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Cgroups {
    /// Finds the delegated group of this process and prepares it, or falls back to pidfds.
    ///
    /// # Errors
    /// When the group is delegated but does not have the controllers that the limits need, or
    /// cannot be prepared: VMs without limits are not an alternative there.
    pub fn discover() -> io::Result<Self> {
        let own = read(Path::new("/proc/self/cgroup"))?;
        let unified = Path::new(ROOT).join("cgroup.controllers").exists();
        match own_path(&own).and_then(|own| delegated_base(Path::new(ROOT), own)) {
            Some(base) if unified => Self::under(&base, CONTROLLERS),
            _ => {
                tracing::warn!("no delegated cgroup: VMs run without limits and are tracked by pidfd");
                Ok(Self::untracked())
            }
        }
    }

    /// No groups: processes are tracked by pidfd.
    #[must_use]
    pub fn untracked() -> Self {
        Self { kind: Kind::Table(Table::default()) }
    }

    /// Groups under `base`, with these controllers.
    ///
    /// # Errors
    /// When a controller is missing or the group is not writable.
    pub fn under(base: &Path, controllers: &[&str]) -> io::Result<Self> {
        let available = read(&base.join("cgroup.controllers"))?;
        if let Some(missing) = controllers.iter().find(|name| !available.split_whitespace().any(|have| have == **name))
        {
            let message = format!("{}: the {missing} controller is not delegated", base.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let io = available.split_whitespace().any(|have| have == IO).then_some(IO);
        let controllers = controllers.iter().copied().chain(io).map(str::to_owned).collect();
        let tree = Tree { vms: base.join(VMS_GROUP), controllers, shares: Mutex::default() };
        tree.enable(base)?;
        make(&tree.vms)?;
        tree.enable(&tree.vms)?;
        Ok(Self { kind: Kind::Tree(Arc::new(tree)) })
    }

    /// Are there groups?
    #[must_use]
    pub fn delegated(&self) -> bool {
        matches!(self.kind, Kind::Tree(_))
    }

    /// Owner and VM of every group that is there; none without groups. What does not have such
    /// names is not ours.
    #[must_use]
    pub fn all(&self) -> Vec<(u32, VmId)> {
        let Kind::Tree(tree) = &self.kind else { return Vec::new() };
        let mut all = Vec::new();
        for owner in fs::read_dir(&tree.vms).into_iter().flatten().flatten() {
            let Some(uid) = owner.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            for vm in fs::read_dir(owner.path()).into_iter().flatten().flatten() {
                all.extend(vm.file_name().to_str().and_then(|name| name.parse().ok()).map(|vm| (uid, vm)));
            }
        }
        all
    }

    /// The group of a VM.
    #[must_use]
    pub fn vm(&self, owner: u32, vm: &VmId) -> VmCgroup {
        let place = match &self.kind {
            Kind::Tree(tree) => {
                let path = tree.vms.join(owner.to_string()).join(vm.to_string());
                Place::Group { tree: tree.clone(), path }
            }
            Kind::Table(table) => Place::Process { vm: *vm, table: table.clone() },
        };
        VmCgroup { place }
    }
}

impl Tree {
    /// Lets the children of `group` have the controllers. Repeatable.
    fn enable(&self, group: &Path) -> io::Result<()> {
        if self.controllers.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = self.controllers.iter().map(|name| format!("+{name}")).collect();
        write(&group.join("cgroup.subtree_control"), &list.join(" "))
    }

    fn create(&self, path: &Path, limits: &Limits) -> io::Result<()> {
        if let Some(owner) = path.parent() {
            make(owner)?;
            self.share_of(owner)?;
            self.enable(owner)?;
        }
        make(path)?;
        for (controller, file, value) in [
            ("memory", "memory.max", limits.memory_bytes),
            // One process killed for want of memory leaves no half VM.
            ("memory", "memory.oom.group", 1),
            ("pids", "pids.max", limits.pids),
            ("cpu", "cpu.weight", limits.cpu_weight),
        ] {
            if self.controllers.iter().any(|have| have == controller) {
                write(&path.join(file), &value.to_string())?;
            }
        }
        Ok(())
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(path, &error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path, depth: u32) -> io::Result<()> {
    if depth < MAX_DEPTH
        && let Ok(entries) = fs::read_dir(path)
    {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth + 1)?;
            }
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
        _ => Ok(()),
    }
}

impl VmCgroup {
    /// Makes the group and sets its limits. An empty one that is left is taken over.
    ///
    /// # Errors
    /// `AlreadyExists` when a process of an earlier boot is still in it; else the file that could
    /// not be written.
    pub fn create(&self, limits: &Limits) -> io::Result<()> {
        if self.populated()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a process of this VM is still running"));
        }
        let Place::Group { tree, path } = &self.place else { return Ok(()) };
        match tree.create(path, limits) {
            // The removal of the owner's last other VM took the owner's group away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => tree.create(path, limits),
            done => done,
        }?;
        crate::fail::point("cgroup", "made");
        Ok(())
    }

    /// The folder; `None` without groups.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Group { path, .. } => Some(path),
            Place::Process { .. } => None,
        }
    }

    /// Without groups: from now on the VM is this process. With groups there is nothing to do.
    pub(crate) fn track(&self, process: &Pidfd) {
        if let Place::Process { vm, table } = &self.place {
            table.lock().unwrap_or_else(PoisonError::into_inner).insert(*vm, process.clone());
        }
    }

    fn tracked(&self) -> Option<Pidfd> {
        let Place::Process { vm, table } = &self.place else { return None };
        table.lock().unwrap_or_else(PoisonError::into_inner).get(vm).cloned()
    }

    /// The VM's processes; none when there is no group.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn procs(&self) -> io::Result<Vec<u32>> {
        let Place::Group { path, .. } = &self.place else {
            let held = self.tracked().filter(|held| !held.has_ended().unwrap_or(true));
            return Ok(held.map(|held| held.pid()).into_iter().collect());
        };
        match read(&path.join("cgroup.procs")) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Does anything of the VM run, in the group or below? No when there is no group.
    ///
    /// # Errors
    /// When the group cannot be read.
    pub fn populated(&self) -> io::Result<bool> {
        let Place::Group { path, .. } = &self.place else {
            return self.tracked().map_or(Ok(false), |held| held.has_ended().map(|ended| !ended));
        };
        match read(&path.join("cgroup.events")) {
            Ok(text) => Ok(keyed(&text, "populated").is_none_or(|value| value != 0)),
            Err(error) if gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends everything of the VM and waits until it is gone. Nothing there is fine.
    ///
    /// # Errors
    /// `TimedOut` when something survives 20 s, such as a process that hangs in the kernel.
    pub async fn kill(&self) -> io::Result<()> {
        match &self.place {
            Place::Group { path, .. } => match write(&path.join("cgroup.kill"), "1") {
                // Emptied, and removed: by systemd, which trims the unit's empty groups when a
                // daemon has died.
                Err(error) if gone(&error) => {}
                done => done?,
            },
            Place::Process { .. } => self.tracked().map_or(Ok(()), |held| held.signal(Signal::KILL))?,
        }
        let deadline = Instant::now() + KILL_WAIT;
        let mut pause = Duration::from_millis(1);
        while self.populated()? {
            if Instant::now() >= deadline {
                let message = format!("processes of the VM survive SIGKILL: {:?}", self.procs()?);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        crate::fail::point("cgroup", "emptied");
        Ok(())
    }

    /// Removes the group, and the owner's when it was the last in it. Gone is fine.
    ///
    /// # Errors
    /// `ResourceBusy` while something runs in it.
    pub fn remove(&self) -> io::Result<()> {
        match &self.place {
            Place::Group { path, .. } => {
                remove_tree(path, 0)?;
                crate::fail::point("cgroup", "removed");
                if let Some(owner) = path.parent() {
                    // Not empty: another VM of that owner.
                    let _ = fs::remove_dir(owner);
                }
            }
            Place::Process { vm, table } => {
                table.lock().unwrap_or_else(PoisonError::into_inner).remove(vm);
            }
        }
        Ok(())
    }
}

fn gone(error: &io::Error) -> bool {
    // ENODEV: the group was removed while its file was open.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

#[cfg(test)]
mod tests;
