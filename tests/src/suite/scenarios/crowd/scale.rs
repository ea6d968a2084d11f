//! As many VMs as one host's network has addresses for, of a hundred users: what a list, the daemon
//! and the helper take, by the number of VMs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{AMPLE, USERS, all_well, together, truth};
use crate::inventory::{Allow, Kind};
use crate::suite::guests::TINY;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "scale",
    about: "on request: 250 VMs of a hundred users on one host, and what they cost",
    setup: Setup::Still,
    scenarios: || vec![Scenario::new("two-hundred-and-fifty-vms-of-a-hundred-users", scale)],
};

/// Beside alice and bob.
const MORE_USERS: usize = 98;
/// Running VMs at which a row of the table is made.
const ROWS: [usize; 5] = [0, 10, 50, 100, 250];
/// Orders at a time.
const AT_ONCE: usize = 8;
/// Lists of one user's and of all VMs, per row.
const LISTS: usize = 40;
/// Looked at for this long.
const AT_REST: Duration = Duration::from_secs(15);

/// Root disks are reserved whole, and the host VM's disk is too small for so many.
fn room() -> String {
    format!("{ROOM}; {AMPLE}; systemctl start banger-priv.socket bangerd.socket bangerd.service")
}

const ROOM: &str = "systemctl stop bangerd.socket bangerd.service banger-priv.socket banger-priv.service; \
    truncate -s 48G /srv/bench/room.img; mkfs.ext4 -q -m 0 -E nodiscard,lazy_itable_init=1 /srv/bench/room.img; \
    mount -o loop /srv/bench/room.img /var/lib/banger-priv/cow; chmod --reference=/var/lib/banger-priv /var/lib/banger-priv/cow; \
    rmdir /var/lib/banger-priv/cow/lost+found";
const UNDO: &str = "systemctl stop bangerd.socket bangerd.service banger-priv.socket banger-priv.service; \
    umount /var/lib/banger-priv/cow; rm -f /srv/bench/room.img; mv /srv/bench/kept.toml /etc/banger/banger.toml; \
    systemctl start banger-priv.socket bangerd.socket bangerd.service";

fn scale(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/*", "home folders of users who are made and removed"));
    let more: Vec<String> = (1..=MORE_USERS).map(|number| format!("u{number}")).collect();
    let made = more.iter().map(|user| format!("useradd -m -G banger {user}; ")).collect::<String>();
    let removed = more.iter().map(|user| format!("userdel -r {user} 2>/dev/null; ")).collect::<String>();
    scene.root(&made)?;
    let users: Vec<&str> = USERS.into_iter().chain(more.iter().map(String::as_str)).collect();
    scene.root(&room())?;
    let result = grown(scene, &users);
    scene.root(UNDO)?;
    scene.root(&format!("{removed} true"))?;
    result?;
    scene.passed()
}

/// A VM of the users in turn.
fn vms<'a>(users: &'a [&'a str]) -> impl Iterator<Item = (&'a str, String)> {
    users.iter().cycle().enumerate().map(move |(number, user)| (*user, format!("vm-{}", number / users.len() + 1)))
}

fn grown(scene: &mut Scene, users: &[&str]) -> Result<()> {
    let mut running = 0;
    for wanted in ROWS {
        let next: Vec<(&str, String)> = vms(users).take(wanted).skip(running).collect();
        scene.step(&format!("{wanted} VMs run"), |scene| {
            for some in next.chunks(AT_ONCE) {
                let creates = some.iter().map(|(user, name)| {
                    scene.start_banger(user, &[&["vm", "create", "--name", name.as_str()], TINY].concat())
                });
                all_well(together(scene, creates)?)?;
                let starts = some.iter().map(|(user, name)| scene.start_banger(user, &["vm", "start", name]));
                all_well(together(scene, starts)?)?;
            }
            Ok(())
        })?;
        running = wanted;
        scene.step(&format!("what {wanted} cost"), |scene| row(scene, wanted))?;
    }
    scene.step("what each user is told is what the host shows", |scene| {
        ensure!(truth::is_told_to(scene, users)? == running, "not all of them run");
        Ok(())
    })?;
    scene.step("daemon and helper start again, and find them all", |scene| {
        scene.root("systemctl restart banger-priv.service bangerd.service")?;
        ensure!(truth::is_told_to(scene, users)? == running, "not all of them run");
        Ok(())
    })?;
    scene.step("all deleted while they run", |scene| {
        let all: Vec<(&str, String)> = vms(users).take(running).collect();
        for some in all.chunks(AT_ONCE) {
            let deletes = some.iter().map(|(user, name)| scene.start_banger(user, &["vm", "delete", name]));
            all_well(together(scene, deletes)?)?;
        }
        ensure!(truth::is_told_to(scene, users)? == 0, "one of them runs");
        Ok(())
    })
}

fn row(scene: &mut Scene, vms: usize) -> Result<()> {
    for (who, user) in [("a user's", "alice"), ("everybody's", "root")] {
        let mut times = Vec::with_capacity(LISTS);
        for _ in 0..LISTS {
            times.push(scene.banger(user, &["vm", "list", "--json"])?.ok()?.took);
        }
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap_or_default();
        let text = format!("{} / {} ms", at(50).as_millis(), at(99).as_millis());
        scene.measured(&format!("{vms} VMs: {who} list, p50 / p99"), text);
    }
    for unit in ["bangerd", "banger-priv"] {
        let pid = scene.main_pid(&format!("{unit}.service"))?;
        let before = switches(scene, pid)?;
        std::thread::sleep(AT_REST);
        let after = switches(scene, pid)?;
        let resident = scene.root(&format!("awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"))?;
        let each_second = after.saturating_sub(before) as f64 / AT_REST.as_secs_f64();
        let text = format!("{} KiB resident, {each_second:.1} wake-ups a second at rest", resident.trim());
        scene.measured(&format!("{vms} VMs: {unit}"), text);
    }
    Ok(())
}

/// How often all threads of a process have gone to sleep.
fn switches(scene: &Scene, pid: u32) -> Result<u64> {
    let text =
        scene.root(&format!("cat /proc/{pid}/task/*/status | awk '/^voluntary/ {{ s += $2 }} END {{ print s }}'"))?;
    text.trim().parse().with_context(|| format!("context switches: {text:?}"))
}
