//! The host goes down under VMs, cleanly and by a power cut, and comes back.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{no_unit_has_failed, writer};
use crate::inventory::{Allow, Inventory, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Reboot};
use crate::suite::scene::Scene;

const NOTED: &str = "/srv/bench/before-reboot.json";
const COWS: &str = "/var/lib/banger-priv/cow";
const HOST_BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// `banger-guests.service` is through with two small guests within this.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// A VM that comes back with the host does so within this, once the host is up.
const RETURN: Duration = Duration::from_secs(30);

/// In the guest: nothing becomes durable by itself any more, only by sync or by a clean end. Then
/// one file of each sort on each disk.
const WRITE: &str = "echo 0 > /proc/sys/vm/dirty_writeback_centisecs && echo kept > /root/synced && echo kept > /var/synced && sync && \
    echo kept > /root/unsynced && echo kept > /var/unsynced";

/// What of a record a reboot must not change.
const LASTING: &[&str] = &[
    "/id",
    "/name",
    "/image_id",
    "/created_at",
    "/spec",
    "/restart",
    "/runtime/guest_ip",
    "/runtime/vsock_cid",
    "/runtime/dns_name",
    "/runtime/system_overlay_path",
    "/runtime/work_disk_path",
];

#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    host: String,
    /// By name of the VM.
    guests: BTreeMap<String, Lasting>,
    /// The last number that the writer was seen to have made durable.
    written: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lasting {
    record: BTreeMap<String, Value>,
    /// Path, inode and size of both disks.
    disks: String,
    host_key: String,
}

impl Lasting {
    fn of(scene: &Scene, guest: &Guest) -> Result<Self> {
        let record = guest.record(scene)?;
        let part = |path: &&str| {
            let value = record.pointer(path).with_context(|| format!("no {path} in {record}"))?;
            Ok(((*path).to_owned(), value.clone()))
        };
        let id = &guest.id;
        Ok(Self {
            record: LASTING.iter().map(part).collect::<Result<_>>()?,
            disks: scene.root(&format!(
                "test -s {COWS}/{id}.json && stat -c '%n %i %s' {COWS}/{id} /var/lib/banger/vms/{id}/work.ext4"
            ))?,
            host_key: scene.root(&format!("sha256sum < /var/lib/banger/vms/{id}/host_key"))?,
        })
    }
}

/// The one stays stopped after a reboot, the other comes back by itself; of two users.
fn guests(scene: &Scene) -> Result<(Guest, Guest)> {
    Ok((Guest::known(scene, "alice", "stays")?, Guest::known(scene, "bob", "returns")?))
}

pub(super) fn before(scene: &mut Scene, how: Reboot) -> Result<Outcome> {
    Guest::run_with(scene, "alice", "stays", &["--restart", "no"])?;
    Guest::run_with(scene, "bob", "returns", &["--restart", "always"])?;
    let (stays, returns) = guests(scene)?;
    let mut noted =
        Noted { host: fs::read_to_string(HOST_BOOT).context("read the boot id")?, guests: BTreeMap::new(), written: 0 };
    for guest in [&stays, &returns] {
        guest.shell(scene, WRITE)?.ok()?;
        noted.guests.insert(guest.name.to_owned(), Lasting::of(scene, guest)?);
    }
    if how == Reboot::Hard {
        writer::start(scene, &stays)?;
        noted.written = writer::check(scene, &stays)?.last;
    }
    fs::write(NOTED, serde_json::to_vec(&noted)?).with_context(|| format!("write {NOTED}"))?;
    Ok(Outcome::Reboot(how))
}

pub(super) fn after(scene: &mut Scene, how: Reboot) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::altered(Kind::Link, "br-fc", "each boot of the host makes it anew, with a random address"));
    let noted: Noted = serde_json::from_slice(&fs::read(NOTED).with_context(|| format!("read {NOTED}"))?)?;
    fs::remove_file(NOTED).with_context(|| format!("remove {NOTED}"))?;
    ensure!(fs::read_to_string(HOST_BOOT).context("read the boot id")? != noted.host, "the host was not rebooted");
    let (stays, returns) = guests(scene)?;
    no_unit_has_failed(scene)?;
    if how == Reboot::Clean {
        scene.step("both were shut down at once, in bounded time", |scene| shut_down(scene, &[&stays, &returns]))?;
    }
    let took = scene.step("with --restart always it comes back by itself", |scene| {
        returns.becomes(scene, "running", &[], RETURN)
    })?;
    scene.measured("seconds until it was back", format!("{:.1}", took.as_secs_f64()));
    scene.step("the other is stopped, because of the host, and holds nothing", |scene| {
        let (state, reason) = stays.state(scene)?;
        ensure!(state == "stopped" && reason == "the host rebooted", "{state} ({reason})");
        holds(&returns, true)?;
        holds(&stays, false)?;
        scene.root("banger doctor --leaks").map(drop)
    })?;
    scene.step("it starts again", |scene| stays.order(scene, "start")?.ok().map(drop))?;
    for guest in [&stays, &returns] {
        scene.step(&format!("{}: the same disks, address, name and key, and its data", guest.name), |scene| {
            let (then, now) = (noted.guests.get(guest.name), Lasting::of(scene, guest)?);
            ensure!(then == Some(&now), "it was {then:#?}, and is {now:#?}");
            data(scene, guest, how)
        })?;
    }
    if how == Reboot::Hard {
        scene.step("every number that was written durably is there", |scene| {
            let last = writer::check(scene, &stays)?.last;
            ensure!(last >= noted.written, "{} were written before the power was cut, {last} are there", noted.written);
            Ok(())
        })?;
    }
    stays.delete(scene)?;
    returns.delete(scene)?;
    scene.passed()
}

fn data(scene: &mut Scene, guest: &Guest, how: Reboot) -> Result<()> {
    let read =
        |files: &str| Ok::<_, anyhow::Error>(guest.shell(scene, &format!("cat {files} 2>/dev/null; :"))?.ok()?.stdout);
    let synced = read("/root/synced /var/synced")?;
    ensure!(synced == "kept\nkept\n", "what was synced is {synced:?}");
    let unsynced = read("/root/unsynced /var/unsynced")?;
    match how {
        Reboot::Clean => ensure!(unsynced == "kept\nkept\n", "the guest was not shut down cleanly: {unsynced:?}"),
        // The control of the check above: without a clean end it is lost, unless the guest's
        // journal was committed for somebody else's sake meanwhile.
        Reboot::Hard => {
            let outlived = format!("{} of 2", unsynced.matches("kept").count());
            scene.measured("unsynced files that outlived the power cut", outlived);
        }
    }
    Ok(())
}

/// Whether the kernel and the process table name the VM.
fn holds(guest: &Guest, expected: bool) -> Result<()> {
    let inventory = Inventory::take()?;
    for kind in [Kind::Link, Kind::Dm, Kind::Loop, Kind::Cgroup] {
        let found = inventory.of(kind).any(|(name, detail)| name.contains(&guest.id) || detail.contains(&guest.id));
        ensure!(found == expected, "{}: {kind} is {}there", guest.name, if found { "" } else { "not " });
    }
    Ok(())
}

/// The journal of the boot before: both were asked before the first of them was down, and the unit
/// was through in time.
fn shut_down(scene: &mut Scene, guests: &[&Guest]) -> Result<()> {
    let times = |filter: &str, words: &str| -> Result<Vec<u64>> {
        let text = scene.root(&format!("journalctl --no-pager --boot=-1 -o json {filter}"))?;
        let mut times = Vec::new();
        for line in text.lines() {
            let entry: Value = serde_json::from_str(line).context("a line of the journal")?;
            if entry.get("MESSAGE").and_then(Value::as_str).is_some_and(|message| message.starts_with(words)) {
                let time = entry.get("__MONOTONIC_TIMESTAMP").and_then(Value::as_str).context("no time")?;
                times.push(time.parse()?);
            }
        }
        Ok(times)
    };
    let last =
        |filter: &str, words: &str| times(filter, words)?.into_iter().max().with_context(|| format!("no {words:?}"));
    let (mut asked, mut down) = (0, u64::MAX);
    for guest in guests {
        let filter = format!("_SYSTEMD_UNIT=bangerd.service BANGER_VM={}", guest.id);
        asked = asked.max(last(&filter, &format!("stop {}", guest.name))?);
        down = down.min(last(&filter, "now stopped")?);
        ensure!(times(&filter, "the guest did not shut down")?.is_empty(), "{} had to be killed", guest.name);
    }
    ensure!(asked < down, "one guest was asked only when another was down already");
    let unit = "--unit banger-guests.service";
    let took = last(unit, "Stopped")?.saturating_sub(last(unit, "Stopping")?);
    let took = Duration::from_micros(took);
    ensure!(took < scene.limit(SHUTDOWN), "banger-guests.service took {} s to stop", took.as_secs());
    scene.measured("banger-guests.service, s", format!("{:.1}", took.as_secs_f64()));
    Ok(())
}
