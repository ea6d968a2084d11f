//! What an administrator does with a host in use: another configuration without a restart, metrics,
//! backup and restore, another Firecracker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::docs::{ADMIN, below};
use crate::inventory::{Allow, Kind};
use crate::suite::guests::{Guest, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::product::VMM;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "operating",
    about: "a reload, metrics by a stock client, backup and restore as the page says, another Firecracker",
    setup: Setup::Still,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("reload-of-the-configuration", reload),
        Scenario::new("metrics-by-curl", metrics),
        Scenario::new("backup-and-restore", backup),
        Scenario::new("another-firecracker-under-a-running-vm", upgrade),
    ]
}

const DAEMON: &str = "bangerd.service";
const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/run/bench.toml";

fn reload(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "first")?;
    scene.root(&format!("cp --archive {CONFIG} {KEPT}"))?;
    let result = reloads(scene, &guest);
    scene.root(&format!("cp --archive {KEPT} {CONFIG}; rm {KEPT}; systemctl reload {DAEMON}"))?;
    result?;
    scene.step("with the first file again all is as before", |scene| {
        Guest::create(scene, "alice", "second")?.delete(scene)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

fn reloads(scene: &mut Scene, guest: &Guest) -> Result<()> {
    let lives = (scene.main_pid(DAEMON)?, guest.vmm(scene)?);
    let refused = |scene: &Scene| {
        let words = ["vm", "create", "--name", "second", "--image", "tiny"];
        scene.banger_long("alice", &words)?.refused(&["`vms` under [limits.users.alice]"]).map(drop)
    };
    scene.step("what can be applied counts at once, and what needs a restart is named", |scene| {
        // The first of the two: the other is an example for a group.
        scene.root(&format!(
            "sed -i -e '0,/^#:vms = /s//vms = 1 #/' -e 's/^stats_poll_interval = .*/stats_poll_interval = \"3s\"/' \
             -e 's/^cidr = .*/cidr = 22/' {CONFIG} && systemctl reload {DAEMON}"
        ))?;
        let journal = scene.journal(DAEMON)?;
        ensure!(journal.contains("changed: stats_poll_interval, limits"), "{journal}");
        ensure!(journal.contains("bridge_ip or cidr counts after a restart"), "{journal}");
        let status = scene.root(&format!("systemctl show --property StatusText {DAEMON}"))?;
        ensure!(status.contains("waiting for a restart: bridge_ip or cidr"), "{status}");
        refused(scene)
    })?;
    scene.step("doctor says what of the file is not in force, and nothing else", |scene| {
        let checks = scene.banger("alice", &["doctor", "--json"])?.json()?;
        let check = checks.as_array().into_iter().flatten().find(|check| check["name"] == "configuration");
        ensure!(check.is_some_and(|check| check["detail"] == "not in force yet: bridge_ip or cidr"), "{check:?}");
        Ok(())
    })?;
    scene.step("a wrong file is refused with its line, and the former one still counts", |scene| {
        scene.root(&format!("sed -i -e '1i stats_poll = \"3s\"' -e 's/^vms = 1.*/vms = 9/' {CONFIG}"))?;
        let ended = scene.root_any(&format!("systemctl reload {DAEMON}"))?;
        ensure!(!ended.status.success(), "the reload says that it is done: {ended}");
        let journal = scene.journal(DAEMON)?;
        ensure!(journal.contains("stats_poll") && journal.contains("line 1"), "{journal}");
        let checked = scene.root_any("/usr/libexec/banger/bangerd --check-config")?;
        checked.refused(&["stats_poll", "line 1"])?;
        refused(scene)
    })?;
    ensure!(lives == (scene.main_pid(DAEMON)?, guest.vmm(scene)?), "a process is another one");
    guest.is(scene, "running")
}

const SOCKET: &str = "/run/banger/metrics.sock";

fn metrics(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "counted")?;
    let curl = format!("curl --silent --show-error --fail --unix-socket {SOCKET} http://banger");
    scene.step("root reads the numbers of everybody's VMs", |scene| {
        let text = scene.root(&format!("{curl}/metrics --dump-header /dev/stderr"))?;
        for line in ["banger_vms{state=\"running\"} 1", "banger_user_vms_running{user=\"alice\",uid=\"1001\"} 1"] {
            ensure!(text.lines().any(|found| found == line), "{line} is not among them: {text}");
        }
        // Every number belongs to a metric that says what it is.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split([' ', '{']).next().unwrap_or_default();
            ensure!(text.contains(&format!("# TYPE {name} ")), "{line} has no type: {text}");
        }
        Ok(())
    })?;
    scene.step("it answers with the type that collectors look for, and nothing but metrics", |scene| {
        let head = scene.root(&format!("{curl}/metrics --head"))?;
        ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
        scene.root_any(&format!("{curl}/vms"))?.exits(22).map(drop)
    })?;
    scene.step("its group may ask, and a user of banger may not", |scene| {
        scene.root(&format!("setpriv --reuid=carol --regid=carol --groups=banger-admin {curl}/metrics"))?;
        scene.user("alice", &format!("{curl}/metrics"))?.refused(&[]).map(drop)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// The page's own commands, under a user's VM that has something to lose.
fn backup(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::altered(Kind::File, "/var/lib/banger*", "a backup is brought back"));
    let commands = below(ADMIN, "## Backup and restore")?;
    let [save, restore] = commands.as_slice() else { anyhow::bail!("the page has other commands: {commands:?}") };
    let guest = Guest::run(scene, "alice", "saved")?;
    let disks = format!(
        "systemctl stop bangerd.socket bangerd.service && \
         sha256sum /var/lib/banger/vms/{0}/work.ext4 /var/lib/banger-priv/cow/{0}; systemctl start bangerd.socket bangerd.service",
        guest.id
    );
    scene.step("the backup stops the VM and keeps all of it", |scene| {
        scene.start_root(&format!("cd && set -e; {save}"))?.wait(scene.limit(LONG))?.ok()?;
        guest.is(scene, "stopped")
    })?;
    let before = scene.root(&disks)?;
    ensure!(before.lines().count() == 2, "not two disks: {before}");
    scene.step("then it is lost", |scene| guest.delete(scene))?;
    let other = Guest::create(scene, "bob", "meanwhile")?;
    other.delete(scene)?;
    scene.step("the restore brings it back", |scene| {
        scene.start_root(&format!("cd && set -e; {restore}"))?.wait(scene.limit(LONG))?.ok()?;
        let known = Guest::known(scene, "alice", "saved")?;
        ensure!(known.id == guest.id, "it is another VM: {known:?}");
        guest.is(scene, "stopped")?;
        let after = scene.root(&disks)?;
        ensure!(after == before, "its disks were {before}, and are {after}");
        ensure!(names(scene, "bob")?.is_empty(), "bob has a VM of after the backup");
        scene.root("banger doctor --leaks").map(drop)
    })?;
    scene.step("and it runs, beside one that is made now", |scene| {
        guest.order(scene, "start")?.ok()?;
        let new = Guest::run(scene, "bob", "new")?;
        new.delete(scene)?;
        guest.delete(scene)
    })?;
    scene.passed()
}

/// A backup reads two disks, holes and all.
const LONG: Duration = Duration::from_secs(60);

/// Version and sum of the VMM that a VM runs in, when the daemon knows them.
fn runs_in(scene: &Scene, guest: &Guest) -> Result<(String, String)> {
    let mut found = (String::new(), String::new());
    scene.wait_until("it says in which Firecracker it runs", Duration::from_secs(10), || {
        let record = guest.record(scene)?;
        let text = |at: &str| record.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        found = (text("/runtime/vmm_version"), text("/runtime/vmm_sha256"));
        Ok(found.1.is_empty().then(|| record.to_string()))
    })?;
    Ok(found)
}

fn sum(scene: &Scene, path: &str) -> Result<String> {
    let text = scene.root(&format!("sha256sum {path}"))?;
    text.split(' ').next().map(str::to_owned).with_context(|| format!("no sum: {text}"))
}

fn upgrade(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::altered(Kind::File, format!("{VMM}*"), "another one is put there, and the first one back"));
    let older = Guest::run(scene, "alice", "older")?;
    scene.root(&format!("cp --archive {VMM} /run/bench-vmm"))?;
    let result = upgraded(scene, &older);
    scene.root(&format!("install -m 0755 /run/bench-vmm {VMM} && rm -f /run/bench-vmm /run/bench-newer"))?;
    result?;
    older.delete(scene)?;
    scene.passed()
}

fn upgraded(scene: &mut Scene, older: &Guest) -> Result<()> {
    let first = sum(scene, VMM)?;
    let vmm = older.vmm(scene)?;
    let goes_on = |scene: &Scene| {
        older.is(scene, "running")?;
        let (version, found) = runs_in(scene, older)?;
        ensure!(found == first && version.contains("Firecracker v"), "{version}, {found}; installed was {first}");
        ensure!(older.vmm(scene)? == vmm, "its VMM is another process");
        Ok(())
    };
    scene.step("a VM says which one runs it", |scene| goes_on(scene))?;
    // What stands behind an ELF file's last section is not loaded.
    scene.root(&format!(
        "cp {VMM} /run/bench-newer && printf newer >> /run/bench-newer && install -m 0755 /run/bench-newer {VMM}"
    ))?;
    let second = sum(scene, VMM)?;
    ensure!(first != second, "nothing was replaced");
    scene.step("with another one installed, it goes on in the first and says so", |scene| goes_on(scene))?;
    scene.step("also to a daemon that has begun since", |scene| {
        scene.root(&format!("systemctl restart {DAEMON}"))?;
        goes_on(scene)
    })?;
    scene.step("what starts now runs in the second, which status, doctor and version name", |scene| {
        let newer = Guest::run(scene, "bob", "newer")?;
        ensure!(runs_in(scene, &newer)?.1 == second, "{:?}", runs_in(scene, &newer)?);
        newer.delete(scene)?;
        for words in [&["system", "status"][..], &["doctor"], &["version"]] {
            let said = scene.banger("alice", words)?;
            ensure!(said.stdout.contains(&second) && !said.stdout.contains(&first), "{said}");
        }
        Ok(())
    })?;
    scene.step("and so does the first after its restart", |scene| {
        older.order(scene, "restart")?.ok()?;
        ensure!(runs_in(scene, older)?.1 == second, "{:?}", runs_in(scene, older)?);
        Ok(())
    })
}
