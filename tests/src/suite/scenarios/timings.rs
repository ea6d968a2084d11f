//! Timings of the main path, for `make bench`. Not part of `make test`: it measures and judges
//! nothing but that it works.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scenarios::crowd;
use crate::suite::scene::Scene;

mod bare;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "bench",
    about: "timings of run, exec, stop, start and delete; exec and cp beside a bare vsock",
    setup: Setup::Guests,
    scenarios,
};

/// Each is done this often; the least is reported, which disturbs least by what else the machine
/// does.
const TIMES: usize = 3;

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("main-path", main_path),
        Scenario::new("beside-bare-vsock", bare::beside),
        Scenario::new("reconcile-of-a-thousand-rows", |scene| reconcile(scene, 1000)),
        Scenario::new("reconcile-of-one-row", |scene| reconcile(scene, 1)),
        Scenario::new("reconcile-of-twenty-vms", |scene| crowd::dead::reclaimed(scene, 20)),
    ]
}

fn main_path(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let mut least = std::collections::BTreeMap::<&str, f64>::new();
    for _ in 0..TIMES {
        let mut note = |what: &'static str, seconds: f64| {
            least.entry(what).and_modify(|known| *known = known.min(seconds)).or_insert(seconds);
        };
        let started = Instant::now();
        let guest = Guest::run(scene, "alice", "timed")?;
        note("run until ready", started.elapsed().as_secs_f64());
        note("exec true", guest.shell(scene, "true")?.ok()?.took.as_secs_f64());
        note("list", scene.banger("alice", &["vm", "list"])?.ok()?.took.as_secs_f64());
        note("stop", guest.order(scene, "stop")?.ok()?.took.as_secs_f64());
        note("start", guest.order(scene, "start")?.ok()?.took.as_secs_f64());
        note("delete", guest.order(scene, "delete")?.ok()?.took.as_secs_f64());
    }
    for (what, seconds) in least {
        scene.measured(&format!("{what}, s"), format!("{seconds:.2}"));
    }
    scene.passed()
}

const DB: &str = "runuser -u bangerd -- sqlite3 /var/lib/banger/banger.db";
/// Addresses for more VMs than the built-in network has; the helper's bridge is made anew for it.
const LARGE: &str = "cp -a /etc/banger/banger.toml /srv/bench/kept.toml; sed -i '/^cidr/d; 1i cidr = 20' /etc/banger/banger.toml; \
    ip link del br-fc; systemctl restart banger-priv.service";
const AS_BEFORE: &str = "cp -a /srv/bench/kept.toml /etc/banger/banger.toml; rm /srv/bench/kept.toml; \
    ip link del br-fc; systemctl restart banger-priv.service; systemctl start bangerd.socket bangerd.service";
const RECLAIMED: Duration = Duration::from_secs(60);

/// The daemon starts and finds so many VMs that ran and are dead. From READY=1 on: how long until
/// alice's list is answered, and until all are reclaimed. Every row says that it holds a tap and a
/// disk, so the helper is asked for all of it.
fn reconcile(scene: &mut Scene, rows: u32) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::altered(Kind::Link, "br-fc", "made again for another network and back, so with another number"));
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    scene.root(LARGE)?;
    let result = reconciled(scene, rows);
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    scene.root(&format!("{DB} \"PRAGMA foreign_keys = on; DELETE FROM vms WHERE name LIKE 'row-%'\""))?;
    scene.root(AS_BEFORE)?;
    result?;
    scene.passed()
}

fn reconciled(scene: &mut Scene, rows: u32) -> Result<()> {
    // Ids of which the first bits differ, as those of names of taps do.
    scene.root(&format!(
        "{DB} \"PRAGMA foreign_keys = on; BEGIN;
         CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n;
         INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at,
             last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled,
             tap_device, base_loop, cow_loop, dm_name, dm_dev, generation)
             SELECT printf('%08x', i * 65536) || '{tail}', 1001, 'alice', 'row-' || i, (SELECT id FROM images LIMIT 1),
             'tiny', (SELECT id FROM kernels LIMIT 1), 'running', 0, 1, 1, 1, 1, 256, 134217728, 67108864, 1,
             'bgr-none', '/dev/loop7', '/dev/loop8', 'bgr-none', '/dev/dm-7', 7 FROM n;
         INSERT INTO leases (address_index, vm_id) SELECT i, printf('%08x', i * 65536) || '{tail}' FROM n; COMMIT\"",
        tail = "5a".repeat(28)
    ))?;
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    let ready = Instant::now();
    let list = scene.banger("alice", &["vm", "list", "--json"])?.ok()?;
    let answered = ready.elapsed();
    let still = running(scene)?;
    let listed = list.json()?.as_array().map_or(0, Vec::len);
    ensure!(listed == usize::try_from(rows)?, "{listed} of {rows} are listed");
    scene.wait_until("all are reclaimed", RECLAIMED, || {
        let left = running(scene)?;
        Ok((left > 0).then(|| format!("{left} are not")))
    })?;
    let reclaimed = ready.elapsed();
    let stopped = scene.root(&format!(
        "{DB} \"SELECT count(*) FROM vms WHERE name LIKE 'row-%' AND state = 'stopped' AND tap_device IS NULL\""
    ))?;
    ensure!(stopped.trim() == rows.to_string(), "{} of {rows} are stopped and hold nothing", stopped.trim());
    let quiet = scene.banger("alice", &["vm", "list", "--json"])?.ok()?.took;
    let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
    scene.measured(&format!("{rows} rows: list answered after READY=1, s"), seconds(answered));
    scene.measured(&format!("{rows} rows: not yet reclaimed then"), still);
    scene.measured(&format!("{rows} rows: the same list later, s"), seconds(quiet));
    scene.measured(&format!("{rows} rows: all reclaimed after READY=1, s"), seconds(reclaimed));
    Ok(())
}

fn running(scene: &Scene) -> Result<u32> {
    let count =
        scene.root(&format!("{DB} \"SELECT count(*) FROM vms WHERE name LIKE 'row-%' AND state = 'running'\""))?;
    count.trim().parse().with_context(|| format!("a count: {count:?}"))
}
