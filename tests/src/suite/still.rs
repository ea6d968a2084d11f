//! A VMM that boots nothing in the place of the one that does.

use anyhow::{Context, Result};

use crate::suite::list::Outcome;
use crate::suite::product::VMM;
use crate::suite::scene::Scene;

const CONFIG: &str = "/etc/banger/banger.toml";
const STILL: &str = "/usr/local/lib/banger-bench/still-vmm";

/// Runs `work` with it, and brings the other one back whatever comes of that.
pub(in crate::suite) fn with_still(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<Outcome> {
    let program = scene.material("still-vmm").context("the harness has not brought still-vmm")?;
    scene.root(&format!("install -D -m 0755 {program} {STILL}"))?;
    take(scene, STILL)?;
    let result = work(scene);
    let back = take(scene, VMM);
    scene.root(&format!("rm {STILL}"))?;
    result?;
    back?;
    scene.passed()
}

fn take(scene: &Scene, vmm: &str) -> Result<()> {
    scene.root(&format!("sed -i 's#^firecracker_bin.*#firecracker_bin = \"{vmm}\"#' {CONFIG}"))?;
    scene.root("systemctl restart bangerd.service").map(drop)
}
