//! What is looked at after each blow: that the services are back by themselves, that what `vm list`
//! says is so, and that nothing is left once the user has deleted what there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use serde_json::Value;

use super::operation::{NAME, Operation};
use super::strike::{USER, alive, helper_runs};
use crate::inventory::{Allow, Inventory, Kind, leaks};
use crate::suite::command::Finished;
use crate::suite::scene::Scene;

/// Within this the services are back, under KVM.
const BACK: Duration = Duration::from_secs(10);
/// Within this `vm list` tells the truth (docs/contract.md, "States of a VM").
const TRUTH: Duration = Duration::from_secs(5);
/// What stays longer than this has leaked, under KVM.
const SETTLE: Duration = Duration::from_secs(5);

/// What was not as it must be.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) lies: Vec<String>,
    pub(super) leaks: Vec<String>,
}

/// The host as it is when nothing of the matrix is there.
#[derive(Debug)]
pub(super) struct Baseline {
    quick: Inventory,
    whole: Inventory,
    allowed: Vec<Allow>,
}

impl Baseline {
    pub(super) fn take() -> Result<Self> {
        let allowed = vec![
            Allow::altered(Kind::File, "/var/lib/banger/banger.db*", "job history"),
            // Where there is a bystander; what is killed here is gone when this is looked at.
            Allow::altered(Kind::File, "/var/lib/banger/vms/*/console.log", "the kernel of a guest says something"),
        ];
        Ok(Self { quick: Inventory::take_quickly()?, whole: Inventory::take()?, allowed })
    }

    /// What is there and was not, and the other way round; `whole`: looked for by other programs
    /// too, which takes much longer.
    pub(super) fn leaks(&self, scene: &Scene, whole: bool) -> Result<Vec<String>> {
        let began = Instant::now();
        loop {
            let quick = leaks(&self.quick, &Inventory::take_quickly()?, &self.allowed);
            let difference = if whole && quick.leaks.is_empty() {
                leaks(&self.whole, &Inventory::take()?, &self.allowed)
            } else {
                quick
            };
            if difference.leaks.is_empty() || began.elapsed() > scene.limit(SETTLE) {
                return Ok(difference.leaks.iter().map(ToString::to_string).collect());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// After a blow.
pub(super) fn look(scene: &Scene, operation: &Operation, baseline: &Baseline, whole: bool) -> Result<Findings> {
    scene.wait_until("the helper is back by itself", BACK, || Ok((!helper_runs()).then(|| "no process".to_owned())))?;
    let (lies, vms) = lies(scene)?;
    delete(scene, operation, &vms)?;
    Ok(Findings { lies, leaks: baseline.leaks(scene, whole)? })
}

/// What the list says and the cgroups do not, after the time that there is for them to agree; and
/// the list.
fn lies(scene: &Scene) -> Result<(Vec<String>, Vec<Value>)> {
    let began = Instant::now();
    // When the daemon first answers, which it must by itself.
    let mut up = None;
    loop {
        let listed = scene.banger(USER, &["vm", "list", "--json"])?;
        if !listed.status.success() {
            ensure!(up.is_none() && began.elapsed() < scene.limit(BACK), "the daemon is not back by itself: {listed}");
            continue;
        }
        let up = *up.get_or_insert_with(Instant::now);
        let vms = entries(&listed)?;
        let running = vms.iter().filter(|vm| text(vm, "state") == "running").map(|vm| text(vm, "id").to_owned());
        let running: BTreeSet<String> = running.collect();
        let alive: BTreeSet<String> = alive().iter().filter_map(|vm| Some(vm.split_once('/')?.1.to_owned())).collect();
        if running == alive {
            return Ok((Vec::new(), vms));
        }
        if up.elapsed() > scene.limit(TRUTH) {
            let dead =
                running.difference(&alive).map(|vm| format!("{vm} is listed as running, and nothing of it lives"));
            let hidden = alive.difference(&running).map(|vm| format!("{vm} lives, and is not listed as running"));
            return Ok((dead.chain(hidden).collect(), vms));
        }
    }
}

/// The user deletes whatever there is of an operation, by the command line and nothing else.
fn delete(scene: &Scene, operation: &Operation, vms: &[Value]) -> Result<()> {
    for vm in vms {
        let deleted = scene.banger_long(USER, &["vm", "delete", text(vm, "id")])?;
        // A creation that was cut short is removed behind the list that still had it.
        let known = || Ok::<_, Error>(listed(scene)?.iter().any(|left| text(left, "id") == text(vm, "id")));
        ensure!(deleted.status.success() || !known()?, "{deleted}");
    }
    if let Some(what) = operation.imports
        && entries(&scene.banger(USER, &[what, "list", "--json"])?)?.iter().any(|entry| text(entry, "name") == NAME)
    {
        scene.banger(USER, &[what, "delete", NAME])?.ok()?;
    }
    Ok(())
}

/// The same when nothing was killed.
pub(super) fn clean(scene: &Scene, operation: &Operation) -> Result<()> {
    delete(scene, operation, &listed(scene)?)
}

fn listed(scene: &Scene) -> Result<Vec<Value>> {
    entries(&scene.banger(USER, &["vm", "list", "--json"])?)
}

fn entries(listed: &Finished) -> Result<Vec<Value>> {
    let list = listed.clone().ok()?.json()?;
    list.as_array().cloned().with_context(|| format!("no list: {list}"))
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}
