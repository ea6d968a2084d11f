//! Daemon and helper die and are restarted while VMs run: the VMs go on, unbroken, and everything
//! works afterwards.

mod aftermath;
mod matrix;
mod operation;
mod place;
mod strike;

pub(in crate::suite) use matrix::BY_OPERATION;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "crash",
    about: "kill -9 and restart of daemon and helper under running VMs",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("daemon-kill-9", |scene| survives(scene, |scene| kill(scene, "bangerd.service"))),
        Scenario::new("daemon-restart", |scene| survives(scene, |scene| restart(scene, "bangerd.service"))),
        Scenario::new("daemon-ten-kills-in-five-seconds", |scene| survives(scene, ten_kills)),
        Scenario::new("helper-kill-9", |scene| survives(scene, |scene| kill(scene, "banger-priv.service"))),
        Scenario::new("helper-restart", |scene| survives(scene, |scene| restart(scene, "banger-priv.service"))),
        Scenario::new("both-at-once", |scene| {
            survives(scene, |scene| {
                let (daemon, helper) = (scene.main_pid("bangerd.service")?, scene.main_pid("banger-priv.service")?);
                scene.root(&format!("kill -KILL {daemon} {helper}")).map(drop)
            })
        }),
        Scenario::new("daemon-killed-while-a-vm-starts", killed_while_starting),
        Scenario::new("vmm-dies-while-the-daemon-is-down", dies_unseen),
        Scenario::new("corrupt-handles-file", corrupt_handles),
        Scenario::new("row-removed-by-hand", orphaned),
        Scenario::new("another-database", another_database),
        Scenario::new("older-database-under-a-running-vm", older_database),
        Scenario::new("damaged-database", damaged_database),
        Scenario::new("kill-matrix", matrix::kill_matrix),
    ]
}

fn kill(scene: &Scene, unit: &str) -> Result<()> {
    let pid = scene.main_pid(unit)?;
    scene.root(&format!("kill -KILL {pid}")).map(drop)
}

fn restart(scene: &Scene, unit: &str) -> Result<()> {
    scene.root(&format!("systemctl restart {unit}")).map(drop)
}

fn ten_kills(scene: &Scene) -> Result<()> {
    // SIGKILL to whatever is the main process at that moment; a moment without one is a kill less
    // to give, not an error.
    scene.root("for i in 1 2 3 4 5 6 7 8 9 10; do systemctl kill --kill-whom=main --signal=KILL bangerd.service || :; sleep 0.5; done").map(drop)
}

/// A VM with a counter, a blow, and then: same guest, counter unbroken, limits still set, list and
/// exec work, delete leaves nothing.
fn survives(scene: &mut Scene, blow: impl Fn(&Scene) -> Result<()>) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "survivor")?;
    guest.start_counter(scene)?;
    let boot = guest.boot_id(scene)?;
    let vmm = guest.vmm(scene)?;
    let memory = format!("cat {}/memory.max", guest.cgroup(scene)?);
    let limit = scene.root(&memory)?;
    ensure!(limit.trim() != "max", "the VM's cgroup has no memory limit");
    let before = guest.counter(scene)?;

    scene.step("the blow", |scene| blow(scene))?;

    scene.step("the next commands work", |scene| {
        scene.banger_long("alice", &["vm", "list"])?.ok()?.says("survivor")?.says("running")?;
        guest.shell(scene, "true")?.ok().map(drop)
    })?;
    scene.step("it is the same guest, and nothing of it has stopped", |scene| {
        ensure!(guest.boot_id(scene)? == boot, "the guest was started again");
        ensure!(guest.vmm(scene)? == vmm, "another VMM runs the guest");
        ensure!(scene.root(&memory)? == limit, "memory.max is not what it was");
        let now = guest.counter(scene)?;
        ensure!(now > before, "the counter stands at {now}, and was {before}");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// Whatever the daemon makes of it afterwards, it is the truth, and delete leaves nothing.
fn killed_while_starting(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    for delay in [200_u64, 1000, 3000] {
        let words = [&["vm", "run", "--detach", "--name", "halfway"], TINY].concat();
        let run = scene.start_banger("alice", &words)?;
        std::thread::sleep(Duration::from_millis(delay));
        kill(scene, "bangerd.service")?;
        let finished = run.wait(scene.limit(Duration::from_secs(60)))?;
        ensure!(finished.status.code().is_some(), "the client must end by itself: {finished}");
        scene.wait_until("the VM is gone, or in a state that stays", Duration::from_secs(40), || {
            let shown = scene.banger("alice", &["vm", "show", "halfway", "--json"])?;
            // Undone altogether is right as well.
            if !shown.status.success() && shown.stderr.contains("no such VM") {
                return Ok(None);
            }
            let record = shown.ok()?.json()?;
            let state = record.get("state").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
            // `created` does not stay: what was begun with a start and did not get there is undone.
            Ok((!["running", "stopped", "error"].contains(&state.as_str())).then_some(state))
        })?;
        if names(scene, "alice")?.is_empty() {
            continue;
        }
        scene.banger_long("alice", &["vm", "delete", "halfway"])?.ok()?;
    }
    scene.passed()
}

fn dies_unseen(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "unseen")?;
    let vmm = guest.vmm(scene)?;
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    scene.root(&format!("kill -KILL {vmm}; while kill -0 {vmm} 2>/dev/null; do sleep 0.1; done"))?;
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    guest.becomes(scene, "stopped", &[], Duration::from_secs(5))?;
    guest.order(scene, "start")?.ok()?;
    guest.shell(scene, "true")?.ok()?;
    guest.delete(scene)?;
    scene.passed()
}

/// A missing or corrupt `handles.json` leaks nothing: the mirror in the database has the same
/// facts.
fn corrupt_handles(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    for damage in ["echo '{' >", "rm -f"] {
        let guest = Guest::run(scene, "alice", "damaged")?;
        let vmm = guest.vmm(scene)?;
        scene.root("systemctl stop bangerd.socket bangerd.service")?;
        scene.root(&format!("{damage} /var/lib/banger/vms/{}/handles.json", guest.id))?;
        scene.root(&format!("kill -KILL {vmm}"))?;
        scene.root("systemctl start bangerd.socket bangerd.service")?;
        guest.becomes(scene, "stopped", &[], Duration::from_secs(5))?;
        guest.delete(scene)?;
    }
    scene.passed()
}

/// Nobody knows the VM any more, and it runs: an administrator sees all of it, and releases it.
fn orphaned(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "orphan")?;
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    let line = format!("PRAGMA foreign_keys = on; DELETE FROM vms WHERE id = '{}'", guest.id);
    scene.root(&format!("runuser -u bangerd -- sqlite3 /var/lib/banger/banger.db \"{line}\""))?;
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    scene.banger("alice", &["doctor", "--leaks"])?.refused(&["banger-admin"])?;
    let seen = scene.root_any("banger doctor --leaks")?.exits(1)?;
    for kind in ["cgroup", "holding", "folder", "tap bgr-", "COW file", "processes run"] {
        ensure!(seen.stdout.contains(kind), "no {kind} is shown: {seen}");
    }
    ensure!(seen.stdout.contains(&guest.id), "{seen}");
    scene.root("banger doctor --leaks --fix")?;
    scene.root_any("banger doctor --leaks")?.ok()?.says("nothing is left behind")?;
    scene.passed()
}

/// An empty database, in which a daemon has worked, and then the right one again: nobody has lost a
/// disk, an image or a kernel.
fn another_database(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "kept")?;
    guest.shell(scene, "echo on the root disk > /kept; echo on the work disk > /root/kept; sync")?.ok()?;
    guest.order(scene, "stop")?.ok()?;
    scene.root(&format!(
        "systemctl stop bangerd.socket bangerd.service; for f in {DB}*; do mv $f /run/right-${{f##*/}}; done"
    ))?;
    let told = scene.step("with an empty database nothing is known, and nothing is removed", |scene| {
        scene.root("systemctl start bangerd.socket bangerd.service")?;
        ensure!(
            !scene.banger("alice", &["vm", "list"])?.ok()?.stdout.contains("kept"),
            "the empty database knows a VM"
        );
        let seen = scene.root_any("banger doctor --leaks")?.exits(1)?;
        for what in ["work disk", "COW file", "an image or a kernel without a record"] {
            ensure!(seen.stdout.contains(what), "no {what} is shown: {seen}");
        }
        Ok(())
    });
    scene.root(&format!("systemctl stop bangerd.socket bangerd.service; rm -f {DB}*; for f in /run/right-*; do mv $f /var/lib/banger/${{f##*/right-}}; done"))?;
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    told?;
    scene.step("with the right one all is as it was", |scene| {
        guest.order(scene, "start")?.ok()?;
        let said = guest.shell(scene, "cat /kept /root/kept")?.ok()?.stdout;
        ensure!(said == "on the root disk\non the work disk\n", "{said:?}");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.root_any("banger doctor --leaks")?.ok()?.says("nothing is left behind")?;
    scene.passed()
}

/// A copy from before the VM's start is put back while it runs: it goes on, and the list says so.
fn older_database(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "older")?;
    guest.order(scene, "stop")?.ok()?;
    let (stop, start) =
        ("systemctl stop bangerd.socket bangerd.service", "systemctl start bangerd.socket bangerd.service");
    let older = "/var/lib/banger/older.db";
    scene.root(&format!(
        "runuser -u bangerd -- sqlite3 {DB} \"VACUUM INTO '{older}'\"; chmod --reference={DB} {older}"
    ))?;
    guest.order(scene, "start")?.ok()?;
    guest.shell(scene, "echo unsynced > /kept")?.ok()?;
    let vmm = guest.vmm(scene)?;
    scene.root(&format!("{stop}; rm -f {DB}-wal {DB}-shm; mv {older} {DB}; {start}"))?;
    guest.becomes(scene, "running", &[], Duration::from_secs(10))?;
    ensure!(guest.vmm(scene)? == vmm, "it is another VMM");
    let said = guest.shell(scene, "cat /kept")?.ok()?.stdout;
    ensure!(said == "unsynced\n", "{said:?}");
    guest.order(scene, "restart")?.ok()?;
    guest.shell(scene, "cat /kept")?.ok()?;
    guest.delete(scene)?;
    scene.root_any("banger doctor --leaks")?.ok()?.says("nothing is left behind")?;
    scene.passed()
}

/// The daemon does not start on it, says so, changes nothing of it, and works again with a sound
/// one in its place.
fn damaged_database(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    // The last connection that closes moves the log into the file: no page is left to be read from
    // there.
    scene.root(&format!("runuser -u bangerd -- sqlite3 {DB} 'PRAGMA wal_checkpoint(TRUNCATE)'; test ! -s {DB}-wal"))?;
    scene.root(&format!("cp --archive {DB} /run/sound.db"))?;
    let result = on_a_damaged_database(scene);
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    let unchanged = scene.root(&format!("cmp {DB} /run/damaged.db"));
    scene.root(&format!("cp --archive /run/sound.db {DB}; rm /run/sound.db /run/damaged.db"))?;
    scene.root("runuser -u bangerd -- /usr/libexec/banger/bangerd --check")?;
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    result?;
    unchanged?;
    scene.banger("alice", &["vm", "list"])?.ok()?;
    scene.passed()
}

const DB: &str = "/var/lib/banger/banger.db";
/// How often a daemon that cannot start is started for a client and for an administrator, at most.
const STARTS: usize = 8;

fn on_a_damaged_database(scene: &mut Scene) -> Result<()> {
    scene.root(&format!(
        "printf 'this was a database' | dd of={DB} conv=notrunc status=none; cp {DB} /run/damaged.db"
    ))?;
    scene.step("bangerd --check says so", |scene| {
        let checked = scene.root_any("runuser -u bangerd -- /usr/libexec/banger/bangerd --check")?.exits(1)?;
        ensure!(checked.stderr.contains("is damaged") && checked.stderr.contains("backups"), "{checked}");
        Ok(())
    })?;
    scene.step("bangerd does not start, and says why", |scene| {
        scene.root_any("systemctl start bangerd.socket bangerd.service")?;
        scene.banger("alice", &["vm", "list"])?.refused(&["bangerd"])?;
        ensure!(
            scene.journal("bangerd")?.contains("is damaged"),
            "its journal does not say that the database is damaged"
        );
        Ok(())
    })?;
    scene.step("nor is it tried again when nobody asks for it", |scene| {
        let tried = |scene: &Scene| Ok::<_, anyhow::Error>(scene.journal("bangerd")?.matches("is damaged").count());
        std::thread::sleep(Duration::from_secs(5));
        let times = tried(scene)?;
        // Each start says it twice: on its standard error, and in its log.
        ensure!((1..=2 * STARTS).contains(&times), "its journal says {times} times that the database is damaged");
        std::thread::sleep(Duration::from_secs(5));
        ensure!(tried(scene)? == times, "it is started again although nobody asked");
        // With the client of before in its queue, the socket would start it again and again.
        let failed = scene.root_any("systemctl is-failed bangerd.service")?.ok()?;
        ensure!(failed.stdout.trim() == "failed", "{failed}");
        Ok(())
    })
}
