//! Another program of the bench in the place of the VMM that boots guests.

use anyhow::{Context, Result};

use crate::suite::list::Outcome;
use crate::suite::product::VMM;
use crate::suite::scene::Scene;

const CONFIG: &str = "/etc/banger/banger.toml";
/// Boots nothing; its agent behaves.
pub(in crate::suite) const STILL: &str = "still-vmm";

/// Runs `work` with it, and brings the other one back whatever comes of that.
pub(in crate::suite) fn with_vmm(
    scene: &mut Scene,
    program: &str,
    work: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<Outcome> {
    let brought = scene.material(program).with_context(|| format!("the harness has not brought {program}"))?;
    let path = format!("/usr/local/lib/banger-bench/{program}");
    scene.root(&format!("install -D -m 0755 {brought} {path}"))?;
    take(scene, &path)?;
    let result = work(scene);
    let back = take(scene, VMM);
    scene.root(&format!("rm {path}"))?;
    result?;
    back?;
    scene.passed()
}

fn take(scene: &Scene, vmm: &str) -> Result<()> {
    scene.root(&format!("sed -i 's#^firecracker_bin.*#firecracker_bin = \"{vmm}\"#' {CONFIG}"))?;
    scene.root("systemctl restart bangerd.service").map(drop)
}
