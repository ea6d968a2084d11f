//! Puts builds with points in the place of daemon and helper, and a VMM that boots nothing in the
//! place of the real one; takes them away again. The daemon's points are `bangerd/src/fail.rs`, the
//! helper's `banger-priv/src/fail.rs`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::suite::product::VMM;
use crate::suite::scene::Scene;

const PROGRAMS: &str = "/usr/local/lib/banger-bench";
const CONFIG: &str = "/etc/banger/banger.toml";
/// The stand-in's drop-in is not wanted: VMMs are confined as shipped.
const STAND_IN: &str = "/etc/systemd/system/bangerd.service.d/bench.conf";
const OF_DAEMON: &str = "/etc/systemd/system/bangerd.service.d/points.conf";
const OF_HELPER: &str = "/etc/systemd/system/banger-priv.service.d/points.conf";
/// Read by systemd at each start of the helper; there only while it is started to die.
const HELPER_FAILS: &str = "/run/bench-points.env";
/// Where the daemon's points look for the bench.
const POINTS: &str = "/var/lib/banger/failpoints";

/// Runs `work` with them in place.
pub(super) fn with_points(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let result = scene.step("daemon, helper and VMM of the bench are in place", install).and_then(|()| work(scene));
    let removed = scene.step("those of the package are back", remove);
    result.and(removed)
}

fn install(scene: &mut Scene) -> Result<()> {
    for program in ["bangerd-failpoints", "banger-priv-failpoints", "still-vmm"] {
        let from = scene.material(program).with_context(|| format!("the harness has not brought {program}"))?;
        scene.root(&format!("install -D -m 0755 {from} {PROGRAMS}/{program}"))?;
    }
    // What the timer starts would come and go in the inventories.
    scene.root("systemctl stop banger-host-firewall.timer banger-host-firewall.service")?;
    scene.root(&format!("install -d -o bangerd -g bangerd -m 0755 {POINTS}"))?;
    scene.root(&format!("! test -e {STAND_IN} || mv {STAND_IN} {STAND_IN}.away"))?;
    drop_in(OF_DAEMON, &format!("ExecStart=\nExecStart={PROGRAMS}/bangerd-failpoints\n"))?;
    drop_in(
        OF_HELPER,
        &format!(
            "ExecStart=\nExecStart={PROGRAMS}/banger-priv-failpoints --boot-id %b\nExecPaths={PROGRAMS}\nEnvironmentFile=-{HELPER_FAILS}\n"
        ),
    )?;
    scene.root(&format!("sed -i 's#^firecracker_bin.*#firecracker_bin = \"{PROGRAMS}/still-vmm\"#' {CONFIG}"))?;
    restart(scene)
}

fn drop_in(path: &str, lines: &str) -> Result<()> {
    let folder = Path::new(path).parent().context("a drop-in has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(path, format!("# Bench only: points at which things are killed.\n[Service]\n{lines}"))
        .with_context(|| format!("write {path}"))
}

fn remove(scene: &mut Scene) -> Result<()> {
    scene.root(&format!("rm -rf {OF_DAEMON} {OF_HELPER} {HELPER_FAILS} {POINTS}; rmdir $(dirname {OF_HELPER})"))?;
    scene.root(&format!("! test -e {STAND_IN}.away || mv {STAND_IN}.away {STAND_IN}"))?;
    scene.root(&format!("sed -i 's#^firecracker_bin.*#firecracker_bin = \"{VMM}\"#' {CONFIG}"))?;
    scene.root(&format!("rm {PROGRAMS}/bangerd-failpoints {PROGRAMS}/banger-priv-failpoints {PROGRAMS}/still-vmm"))?;
    restart(scene)?;
    scene.root("systemctl start banger-host-firewall.timer").map(drop)
}

fn restart(scene: &Scene) -> Result<()> {
    scene.root("systemctl daemon-reload && systemctl restart banger-priv.service bangerd.service").map(drop)
}

/// Tells the daemon to note its points from now on, and to stop at one of them.
pub(super) fn plan(stop_at: Option<&str>) -> Result<()> {
    static PLANS: AtomicU32 = AtomicU32::new(0);
    forget_plan()?;
    let number = PLANS.fetch_add(1, Ordering::Relaxed);
    let unfinished = format!("{POINTS}/plan.new");
    let text = format!("{} {number}\n{}\n", std::process::id(), stop_at.unwrap_or_default());
    fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path("plan"))).context("write the plan")
}

/// From now on points are passed, by daemons that are yet to come as well.
pub(super) fn withdraw_plan() -> Result<()> {
    gone("plan")
}

/// The point that the daemon has stopped at, and its pid.
pub(super) fn reached() -> Result<Option<(String, i32)>> {
    let Some(text) = read("reached")? else { return Ok(None) };
    let (point, pid) = text.rsplit_once('\t').with_context(|| format!("reached: {text:?}"))?;
    Ok(Some((point.to_owned(), pid.parse().with_context(|| format!("reached: {text:?}"))?)))
}

/// Lets a daemon go on that has stopped.
pub(super) fn go_on() -> Result<()> {
    gone("reached")
}

/// The lines of all points that were passed under the plan.
pub(super) fn passed() -> Result<Vec<String>> {
    Ok(read("passed")?.unwrap_or_default().lines().map(str::to_owned).collect())
}

pub(super) fn forget_plan() -> Result<()> {
    ["plan", "reached", "passed"].into_iter().try_for_each(gone)
}

/// Starts the helper again so that it dies at its point of this number; answers its pid. The next
/// helper lives.
pub(super) fn doom_helper(scene: &Scene, number: u32) -> Result<u32> {
    fs::write(HELPER_FAILS, format!("BANGER_PRIV_FAIL={number}\n")).with_context(|| format!("write {HELPER_FAILS}"))?;
    let restarted = scene.root("systemctl restart banger-priv.service");
    fs::remove_file(HELPER_FAILS).with_context(|| format!("remove {HELPER_FAILS}"))?;
    restarted?;
    scene.main_pid("banger-priv.service")
}

/// What a helper has passed so far, by number and name.
pub(super) fn helper_points(scene: &Scene, pid: u32) -> Result<Vec<(u32, String)>> {
    let said = scene.root(&format!("journalctl --sync; journalctl --no-pager -q -o cat _PID={pid}"))?;
    let point = |line: &str| {
        let (number, name) = line.split_once("failpoint=")?.1.split_once(" name=")?;
        Some((number.parse().ok()?, name.trim().to_owned()))
    };
    Ok(said.lines().filter_map(point).collect())
}

fn path(name: &str) -> String {
    format!("{POINTS}/{name}")
}

fn read(name: &str) -> Result<Option<String>> {
    match fs::read_to_string(path(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(path(name)),
    }
}

fn gone(name: &str) -> Result<()> {
    match fs::remove_file(path(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(path(name)),
        _ => Ok(()),
    }
}
