//! Whether what `vm list` says is what the host shows.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::VmId;
use serde_json::Value;

use crate::suite::scene::Scene;

/// The cgroups of all VMs, a folder per owner.
const VMS: &str = "/sys/fs/cgroup/system.slice/bangerd.service/vms";

/// A VM as its owner's list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) address: String,
    id: VmId,
}

/// A user's list.
pub(super) fn listed(scene: &Scene, user: &str) -> Result<Vec<Listed>> {
    let list = scene.banger(user, &["vm", "list", "--json"])?.ok()?.json()?;
    let vms = list.as_array().with_context(|| format!("no list: {list}"))?;
    let one = |vm: &Value| {
        let text = |at: &str| {
            let found = vm.pointer(at).and_then(Value::as_str);
            found.map(str::to_owned).with_context(|| format!("no {at} in {vm}"))
        };
        let id = text("/id")?.parse().with_context(|| format!("the id of {vm}"))?;
        Ok(Listed { name: text("/name")?, state: text("/state")?, address: text("/runtime/guest_ip")?, id })
    };
    vms.iter().map(one).collect()
}

/// The state of one VM; `None` when the list has none of that name.
pub(super) fn state(scene: &Scene, user: &str, name: &str) -> Result<Option<String>> {
    Ok(listed(scene, user)?.into_iter().find(|vm| vm.name == name).map(|vm| vm.state))
}

/// Those of which the host still has something.
pub(super) fn holding(vms: &[Listed]) -> Result<Vec<&Listed>> {
    let mut holding = Vec::new();
    for vm in vms {
        if !held(vm)?.is_empty() {
            holding.push(vm);
        }
    }
    Ok(holding)
}

/// Process, tap and dm device of a VM, as far as they are there.
fn held(vm: &Listed) -> Result<Vec<&'static str>> {
    let in_cgroup = |owner: &Path| {
        let procs = fs::read_to_string(owner.join(vm.id.to_string()).join("cgroup.procs")).unwrap_or_default();
        !procs.trim().is_empty()
    };
    let owners = fs::read_dir(VMS).into_iter().flatten().flatten();
    let process = owners.map(|owner| owner.path()).any(|owner| in_cgroup(&owner));
    let tap = Path::new("/sys/class/net").join(vm.id.tap_name()).exists();
    let mut dm = false;
    for device in fs::read_dir("/sys/class/block").context("list the block devices")?.flatten() {
        let name = fs::read_to_string(device.path().join("dm/name")).unwrap_or_default();
        dm |= name.trim() == vm.id.dm_name();
    }
    let all = [(process, "process"), (tap, "tap"), (dm, "dm device")];
    Ok(all.into_iter().filter(|(there, _)| *there).map(|(_, what)| what).collect())
}

/// A VM that runs has all that a VM holds, every other has nothing of it. How many run.
pub(super) fn is_told(scene: &Scene) -> Result<usize> {
    is_told_to(scene, &super::USERS)
}

/// The same for other users.
pub(super) fn is_told_to(scene: &Scene, users: &[&str]) -> Result<usize> {
    let mut running = 0;
    for user in users {
        for vm in listed(scene, user)? {
            let held = held(&vm)?;
            let wanted = if vm.state == "running" { 3 } else { 0 };
            running += wanted / 3;
            ensure!(
                held.len() == wanted,
                "{user}'s {} is listed as {}, and the host has its {held:?}",
                vm.name,
                vm.state
            );
        }
    }
    Ok(running)
}

/// Waits until nobody's order is at work any more.
pub(super) fn settled(scene: &Scene) -> Result<()> {
    for user in ["alice", "bob"] {
        scene.wait_until(&format!("{user}'s jobs have ended"), Duration::from_secs(60), || {
            let jobs = scene.banger(user, &["job", "list"])?.ok()?.stdout;
            // The third column: a job may also say of a VM that it is running.
            Ok(jobs.lines().any(|line| line.split_whitespace().nth(2) == Some("running")).then_some(jobs))
        })?;
    }
    Ok(())
}
