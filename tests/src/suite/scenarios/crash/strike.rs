//! One row of the matrix: an operation, a point of it, and who is killed there.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::operation::Operation;
use super::place;
use crate::suite::command::Run;
use crate::suite::scene::Scene;

/// Where VMs have their cgroups: a folder per owner, in it one per VM.
const VMS: &str = "/sys/fs/cgroup/system.slice/bangerd.service/vms";
const DAEMON: &str = "/sys/fs/cgroup/system.slice/bangerd.service/daemon";
const HELPER: &str = "/sys/fs/cgroup/system.slice/banger-priv.service";
/// A point is reached within this, or never, under KVM.
const REACHED: Duration = Duration::from_secs(20);
/// Some points come after the client has its answer: the row of a job, what is reclaimed behind a
/// list.
const AFTER_CLIENT: Duration = Duration::from_secs(3);
/// Whatever happens to the daemon, a client ends within this, under KVM.
const CLIENT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victims {
    Daemon,
    Vmm,
    Helper,
    DaemonAndHelper,
    DaemonAndVmm,
}

impl Victims {
    pub(super) const ALL: [Self; 5] =
        [Self::Daemon, Self::Vmm, Self::Helper, Self::DaemonAndHelper, Self::DaemonAndVmm];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Vmm => "VMM",
            Self::Helper => "helper",
            Self::DaemonAndHelper => "daemon+helper",
            Self::DaemonAndVmm => "daemon+VMM",
        }
    }
}

/// Where.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// At a point of the daemon's.
    Daemon(String),
    /// At the helper's own.
    Helper(u32, String),
}

/// A row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) operation: Operation,
    pub(super) place: Place,
    pub(super) victims: Victims,
}

impl Row {
    pub(super) fn title(&self) -> String {
        let place = match &self.place {
            Place::Daemon(key) => key.replace('\t', " "),
            Place::Helper(number, name) => format!("{name} ({number})"),
        };
        format!("{}, {}: {} killed", self.operation.name, place, self.victims.name())
    }

    /// The step of the daemon's that is cut short. All requests to the VMM are one: the boot of its
    /// guest. None when the daemon is not what dies.
    pub(super) fn step(&self) -> Option<String> {
        match &self.place {
            Place::Daemon(key) if self.victims != Victims::Vmm => {
                let name = key.split('\t').next().unwrap_or(key);
                let area = name.split(':').next().unwrap_or(name);
                Some(if area == "vmm's api" { area } else { name }.to_owned())
            }
            _ => None,
        }
    }

    /// Does the operation and kills. Afterwards the client has ended, and nothing of the bench is
    /// in the way any more.
    pub(super) fn strike(&self, scene: &Scene) -> Result<()> {
        self.operation.prepare(scene)?;
        let struck = match &self.place {
            Place::Daemon(key) => self.at_a_point_of_the_daemon(scene, key),
            Place::Helper(number, name) => self.at_a_point_of_the_helper(scene, *number, name),
        };
        let cleared = place::forget_plan();
        struck.and(cleared)
    }

    fn at_a_point_of_the_daemon(&self, scene: &Scene, key: &str) -> Result<()> {
        place::plan(Some(key))?;
        let mut run = self.operation.begin(scene)?;
        let daemon = wait_for_point(scene, &mut run, key)?;
        // The daemon that comes next passes all points.
        place::withdraw_plan()?;
        match self.victims {
            Victims::Daemon => end(daemon)?,
            Victims::DaemonAndHelper => {
                let helpers = processes(HELPER);
                ensure!(!helpers.is_empty(), "no helper runs");
                end(daemon)?;
                helpers.into_iter().try_for_each(end)?;
            }
            Victims::DaemonAndVmm => {
                let vmms = vmms(scene)?;
                end(daemon)?;
                vmms.into_iter().try_for_each(end)?;
            }
            Victims::Vmm => {
                let vmms = vmms(scene)?;
                vmms.iter().copied().try_for_each(end)?;
                scene.wait_until("the VMM is gone", Duration::from_secs(5), || {
                    let left = alive();
                    Ok((!left.is_empty()).then(|| format!("{left:?}")))
                })?;
            }
            Victims::Helper => bail!("the helper is killed at its own points"),
        }
        place::go_on()?;
        run.wait(scene.limit(CLIENT)).map(drop)
    }

    fn at_a_point_of_the_helper(&self, scene: &Scene, number: u32, name: &str) -> Result<()> {
        let pid = place::doom_helper(scene, number)?;
        self.operation.begin(scene)?.wait(scene.limit(CLIENT))?;
        let last = place::helper_points(scene, pid)?.pop();
        ensure!(last == Some((number, name.to_owned())), "not reached: the helper's last point was {last:?}");
        ensure!(!processes(HELPER).contains(&i32::try_from(pid)?), "the helper that was to die lives");
        Ok(())
    }
}

/// The pid of the daemon that has stopped there.
fn wait_for_point(scene: &Scene, run: &mut Run, key: &str) -> Result<i32> {
    let began = Instant::now();
    let mut over = None;
    loop {
        if let Some((point, pid)) = place::reached()? {
            ensure!(point == key, "another point was reached: {point}");
            return Ok(pid);
        }
        if over.is_none() && run.has_ended()? {
            over = Some(Instant::now());
        }
        let late = over.is_some_and(|over| over.elapsed() > scene.limit(AFTER_CLIENT));
        if late || began.elapsed() > scene.limit(REACHED) {
            bail!("not reached: {key}; these were: {:?}", place::passed()?);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Gone already is fine.
pub(super) fn end(pid: i32) -> Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill {pid}")),
    }
}

/// The processes of all VMs; there must be one.
pub(super) fn vmms(scene: &Scene) -> Result<Vec<i32>> {
    scene.wait_until("a VMM lives", Duration::from_secs(2), || Ok(alive().is_empty().then(|| "none".to_owned())))?;
    Ok(alive().iter().flat_map(|vm| processes(&format!("{VMS}/{vm}"))).collect())
}

/// Whose VMs a row kills and looks at: others' are bystanders.
pub(super) const USER: &str = "alice";

/// `OWNER/ID` of every VM of the user in whose cgroup something runs.
pub(super) fn alive() -> BTreeSet<String> {
    let user = User::from_name(USER).ok().flatten().map(|user| user.uid.to_string());
    let owners = entries(VMS).into_iter().filter(|owner| user.as_ref() == Some(owner));
    let vms =
        owners.flat_map(|owner| entries(&format!("{VMS}/{owner}")).into_iter().map(move |vm| format!("{owner}/{vm}")));
    vms.filter(|vm| !processes(&format!("{VMS}/{vm}")).is_empty()).collect()
}

pub(super) fn daemons() -> Vec<i32> {
    processes(DAEMON)
}

pub(super) fn helper_runs() -> bool {
    !processes(HELPER).is_empty()
}

fn processes(cgroup: &str) -> Vec<i32> {
    let text = fs::read_to_string(format!("{cgroup}/cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The folders in a cgroup.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
