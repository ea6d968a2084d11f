//! Many VMs that died while no daemon was there: what the next daemon makes of them, and how long
//! it takes. For `make bench`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{CROWD, all_well, amply, create, order_all, together, truth};
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// All VMMs at once, by the cgroup that they are in.
const END: &str = "echo 1 > /sys/fs/cgroup/system.slice/bangerd.service/vms/cgroup.kill";
const RECLAIMED: Duration = Duration::from_secs(30);

/// So many of alice's that ran, each with a tap, a disk and rules of its own; from READY=1 on, how
/// long until her list is answered and until nothing of them is held.
pub(in crate::suite::scenarios) fn reclaimed(scene: &mut Scene, many: usize) -> Result<Outcome> {
    scene.allow_database_growth();
    amply(scene, |scene| ended_and_found(scene, many))
}

fn ended_and_found(scene: &mut Scene, many: usize) -> Result<Outcome> {
    crate::suite::vmm::with_vmm(scene, crate::suite::vmm::STILL, |scene| {
        let names: Vec<String> = (1..=many).map(|number| format!("dead-{number}")).collect();
        all_well(together(scene, names.iter().map(|name| create(scene, "alice", name)))?)?;
        all_well(together(scene, [order_all(scene, "alice", "start", &names)])?)?;
        ensure!(truth::is_told(scene)? == many, "not all of them run");
        scene.root("systemctl stop bangerd.socket bangerd.service")?;
        scene.root(END)?;
        scene.root("systemctl start bangerd.socket bangerd.service")?;
        let ready = Instant::now();
        let list = truth::listed(scene, "alice")?;
        let answered = ready.elapsed();
        ensure!(list.len() == many && list.iter().all(|vm| vm.state == "stopped"), "{list:?}");
        let left = || -> Result<usize> { Ok(truth::holding(&list)?.len()) };
        let still = left()?;
        scene.wait_until("nothing of them is held", RECLAIMED, || {
            let left = left()?;
            Ok((left > 0).then(|| format!("{left} hold something")))
        })?;
        let reclaimed = ready.elapsed();
        ensure!(truth::is_told(scene)? == 0, "one of them runs");
        // What a list takes here by itself, the client's start included.
        let asked = Instant::now();
        truth::listed(scene, "alice")?;
        let settled = asked.elapsed();
        let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
        scene.measured(&format!("{many} dead VMs: list answered after READY=1, s"), seconds(answered));
        scene.measured(&format!("{many} dead VMs: the same list with nothing to reclaim, s"), seconds(settled));
        scene.measured(&format!("{many} dead VMs: not yet reclaimed then"), still);
        scene.measured(&format!("{many} dead VMs: all reclaimed after READY=1, s"), seconds(reclaimed));
        order_all(scene, "alice", "delete", &names)?.wait(scene.limit(CROWD))?.ok().map(drop)
    })
}
