//! Faults of the earlier system that need a whole host to be seen; the others have tests elsewhere.
//! The table of all is in `tests/README.md`.

use anyhow::{Context as _, Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "faults",
    about: "an address used again, a disk that is full or gone at a start, what `active` means",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a-new-vm-at-an-old-address", old_address),
        Scenario::new("active-means-that-calls-are-answered", active),
        Scenario::new("a-full-disk-at-start", full_disk),
        Scenario::new("disks-that-are-gone", disks_gone),
    ]
}

/// Another guest under the name and at the address of one that is gone: it has another host key,
/// and no memory of the first keeps anybody out. What cleans up after the first leaves the keys of
/// users and daemon alone.
fn old_address(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/alice/.local*", "alice's SSH key for her VMs is made once"));
    let keys = "sha256sum /home/alice/.local/share/banger/ssh/id_ed25519 /var/lib/banger/socket_key";
    let mut first: Option<(serde_json::Value, String, String)> = None;
    for _ in 0..2 {
        let guest = Guest::run(scene, "alice", "again")?;
        let address = guest.record(scene)?.pointer("/runtime/guest_ip").cloned().unwrap_or_default();
        let said = scene.banger_long("alice", &["vm", "ssh", "again", "--", "hostname"])?.ok()?;
        ensure!(said.stdout.trim() == "again" && !said.stderr.contains("WARNING"), "{said}");
        let host_key = scene.root(&format!("sha256sum < /var/lib/banger/vms/{}/host_key", guest.id))?;
        let users = scene.root(keys)?;
        if let Some((old_address, old_host_key, old_users)) = &first {
            ensure!(address == *old_address, "it was {old_address}, and is {address}: nothing is used again");
            ensure!(host_key != *old_host_key, "two VMs have one host key");
            ensure!(users == *old_users, "keys were {old_users}, and are {users}");
        }
        guest.delete(scene)?;
        ensure!(scene.root(keys)? == users, "the clean-up has changed a key");
        first = Some((address, host_key, users));
    }
    scene.passed()
}

/// Whoever is told by systemd that a service is there is answered by it, at once and every time.
fn active(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    for _ in 0..3 {
        scene.root("systemctl restart bangerd.service && systemctl is-active bangerd.service")?;
        scene.banger("alice", &["vm", "list"])?.ok()?;
        scene.root("systemctl restart banger-priv.service && systemctl is-active banger-priv.service")?;
        let checks = scene.banger("alice", &["doctor", "--json"])?.json()?;
        let helper = checks.as_array().into_iter().flatten().find(|check| check["name"] == "helper");
        ensure!(helper.is_some_and(|check| check["status"] == "pass"), "{checks}");
    }
    scene.passed()
}

/// The host's disk is full: a start says so, and afterwards everything is as it was before. (A disk
/// that went read-only cannot be had here without losing the host VM:
/// `a_read_only_disk_is_called_so_and_nothing_is_lost` is its test.)
fn full_disk(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = stopped_with_files(scene, "keeper")?;

    scene.step("a full disk", |scene| {
        scene.root("fallocate -l $(( $(df --output=avail -B1 /var/lib | tail -n 1) - 262144 )) /var/lib/filler")?;
        let refused = guest.order(scene, "start").and_then(|ended| ended.refused(&["keeper", "space"]));
        let list = scene.banger("alice", &["vm", "list"]);
        scene.root("rm /var/lib/filler")?;
        refused?;
        list?.ok()?.says("keeper").map(drop)
    })?;
    scene.step("with room again: nothing is lost", |scene| {
        guest.order(scene, "start")?.ok()?;
        nothing_is_lost(scene, &guest)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// A start without one of the VM's disks says which, and puts no empty one in its place; with the
/// disk brought back the VM is as it was.
fn disks_gone(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = stopped_with_files(scene, "bereft")?;
    let id = &guest.id;
    let work = format!("/var/lib/banger/vms/{id}/{}", file_name(&guest.record(scene)?, "/runtime/work_disk_path")?);
    let cow = format!("/var/lib/banger-priv/cow/{id}");
    for (files, says) in [
        (vec![work], "the work disk is gone"),
        (vec![cow.clone()], "banger-priv refused to attach the disk"),
        (vec![cow.clone(), format!("{cow}.json")], "the root disk is gone"),
    ] {
        scene.step(&format!("without {}", files.join(" and ")), |scene| {
            // The helper knows its records from its start on.
            scene.root("systemctl stop banger-priv.socket banger-priv.service")?;
            for file in &files {
                scene.root(&format!("mv {file} /var/lib/bench-$(basename {file})"))?;
            }
            scene.root("systemctl start banger-priv.socket banger-priv.service")?;
            let refused = guest.order(scene, "start").and_then(|ended| ended.refused(&["bereft", says]));
            let made = files.iter().filter(|file| std::path::Path::new(file).exists()).count();
            scene.root("systemctl stop banger-priv.socket banger-priv.service")?;
            for file in &files {
                scene.root(&format!("mv /var/lib/bench-$(basename {file}) {file}"))?;
            }
            scene.root("systemctl start banger-priv.socket banger-priv.service")?;
            refused?;
            ensure!(made == 0, "{made} were made anew");
            Ok(())
        })?;
    }
    scene.step("with all of them", |scene| {
        guest.order(scene, "start")?.ok()?;
        nothing_is_lost(scene, &guest)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// A VM that does not run, with a file on each of its disks.
fn stopped_with_files(scene: &Scene, name: &'static str) -> Result<Guest> {
    let guest = Guest::run(scene, "alice", name)?;
    guest.shell(scene, "echo kept > /root/kept; echo kept > /etc/kept")?.ok()?;
    guest.order(scene, "stop")?.ok()?;
    Ok(guest)
}

fn nothing_is_lost(scene: &Scene, guest: &Guest) -> Result<()> {
    let kept = guest.shell(scene, "cat /root/kept /etc/kept")?.ok()?.stdout;
    ensure!(kept == "kept\nkept\n", "{kept:?}");
    Ok(())
}

fn file_name(record: &serde_json::Value, at: &str) -> Result<String> {
    let path =
        record.pointer(at).and_then(serde_json::Value::as_str).with_context(|| format!("no {at} in {record}"))?;
    Ok(path.rsplit('/').next().unwrap_or(path).to_owned())
}
