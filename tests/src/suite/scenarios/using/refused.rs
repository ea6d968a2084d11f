//! `vm refused`: what a guest's network mode did not let it reach, told to its owner alone, also by
//! a daemon that was started again; and that no guest starts a daemon that was stopped.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::suite::guests::Guest;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

const SOON: Duration = Duration::from_secs(10);
/// The uplink's gateway in the host VM, which may answer or not.
const ALLOWED: &str = "10.0.2.2";
const STOPPED: &str = "systemctl stop bangerd.socket bangerd.service";
const STARTED: &str = "systemctl start bangerd.socket bangerd.service";
/// Longer than the firewall remembers who was refused something.
const FORGOTTEN: Duration = Duration::from_secs(13);

pub(super) fn refused(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run_with(scene, "alice", "asking", &["--allow", ALLOWED])?;
    scene.step("its owner sees the two destinations that were refused, and not the third", |scene| {
        // A dropped packet is answered by nobody: each of these waits.
        let line =
            format!("nc -w 2 192.0.2.7 443 </dev/null; nc -w 2 {ALLOWED} 9 </dev/null; ping -c 1 -W 1 198.51.100.9; :");
        guest.shell(scene, &line)?.ok()?;
        knows(scene, &guest, &["192.0.2.7 tcp 443", "198.51.100.9 icmp -"])?;
        let shown = scene.banger("alice", &["vm", "refused", "asking"])?.ok()?;
        ensure!(shown.stdout.lines().count() == 3, "{shown}");
        shown.says("ADDRESS")?.says("192.0.2.7")?.says("198.51.100.9")?;
        scene.banger("alice", &["vm", "show", "asking"])?.ok()?.says("2 destinations")?;
        // The control: the third one was sent as the others were.
        scene.banger("alice", &["vm", "set", "asking", "--net", "none"])?.ok()?;
        guest.shell(scene, &format!("nc -w 2 {ALLOWED} 9 </dev/null; :"))?.ok()?;
        let third = format!("{ALLOWED} tcp 9");
        knows(scene, &guest, &["192.0.2.7 tcp 443", "198.51.100.9 icmp -", &third])
    })?;
    scene.step("administrators see it as well, and other users do not", |scene| {
        scene.root_any("banger vm refused alice/asking")?.ok()?.says("192.0.2.7")?;
        for word in ["asking", "alice/asking", &guest.id] {
            scene.banger("bob", &["vm", "refused", word])?.refused(&["no such VM"])?.does_not_say("192.0.2.7")?;
        }
        Ok(())
    })?;
    scene.step("a daemon that was started again, or has died, is told as before", |scene| {
        for (how, port) in [("systemctl restart", "81"), ("systemctl kill --signal=KILL --kill-whom=main", "82")] {
            let before = scene.main_pid("bangerd.service")?;
            scene.root(&format!("{how} bangerd.service"))?;
            scene.wait_until("another daemon serves", SOON, || {
                let state = scene.root_any("systemctl is-active bangerd.service bangerd-refused.socket")?.stdout;
                let pid = scene.main_pid("bangerd.service").ok();
                Ok((state != "active\nactive\n" || pid.is_none() || pid == Some(before)).then_some(state))
            })?;
            // What the one before knew is gone with it.
            guest.shell(scene, &format!("nc -w 2 192.0.2.7 {port} </dev/null; :"))?.ok()?;
            knows(scene, &guest, &[&format!("192.0.2.7 tcp {port}")])?;
        }
        Ok(())
    })?;
    scene.step("a daemon that was stopped is not started by what a guest sends", |scene| {
        let again = "(while :; do nc -w 1 192.0.2.8 80 </dev/null; sleep 1; done) >/dev/null 2>&1 &";
        guest.shell(scene, again)?.ok()?;
        let stopped = stopped(scene, &guest);
        scene.root(STARTED)?;
        stopped?;
        knows(scene, &guest, &["192.0.2.8 tcp 80"])
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// Exactly these are shown, each as address, protocol and port.
fn knows(scene: &Scene, guest: &Guest, expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|text| (*text).to_owned()).collect();
    let what = format!("{} knows of {expected:?}", guest.name);
    scene
        .wait_until(&what, SOON, || {
            let list = scene.banger(guest.owner, &["vm", "refused", guest.name, "--json"])?.ok()?.json()?;
            ensure!(list["recorded"] == true, "nothing is recorded: {list}");
            let destinations = list["destinations"].as_array().with_context(|| list.to_string())?;
            ensure!(destinations.iter().all(|one| one["times"].as_u64() > Some(0)), "{list}");
            let seen: BTreeSet<String> = destinations.iter().map(destination).collect();
            Ok((seen != expected).then(|| list.to_string()))
        })
        .map(drop)
}

fn destination(one: &Value) -> String {
    let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let port = one["port"].as_u64().map_or_else(|| "-".to_owned(), |port| port.to_string());
    format!("{} {} {port}", text("address"), text("protocol"))
}

/// Without a daemon, while the guest goes on.
fn stopped(scene: &Scene, guest: &Guest) -> Result<()> {
    let address = guest.record(scene)?.pointer("/runtime/guest_ip").and_then(Value::as_str).map(str::to_owned);
    let address = address.context("no address")?;
    scene.root(STOPPED)?;
    std::thread::sleep(FORGOTTEN);
    let states = scene.root_any("systemctl is-active bangerd.service bangerd-refused.socket")?.stdout;
    ensure!(states == "inactive\ninactive\n", "{states}");
    let asked = scene.root("nft list set inet banger asked")?;
    ensure!(asked.contains(&address), "the control: the guest was refused something meanwhile: {asked}");
    Ok(())
}
