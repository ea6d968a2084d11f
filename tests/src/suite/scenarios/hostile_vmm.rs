//! A guest that has broken out: what its VMM's process can reach. The units are those of the
//! package, without any drop-in of the bench; the VMM is [`crate::hostile`], which makes its
//! attempts and writes the results to its console.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::hostile::{self, ABSTRACT, ATTEMPTS, Alone, HIDDEN, OVER, TARGETS, Targets, X32, is_refusal};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::product::VMM;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "hostile-vmm",
    about: "a VMM that a guest has taken over reaches nothing but its own",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("every-attempt-is-refused-and-alone-they-succeed", attack),
        Scenario::new("names-of-sockets-are-not-for-everybody", names_of_sockets),
    ]
}

/// Where the hostile program is installed; the daemon's configuration names it.
const PROGRAM: &str = "/usr/local/lib/banger-bench/hostile-vmm";
const DROP_IN: &str = "/etc/systemd/system/bangerd.service.d/bench.conf";
const CONFIG: &str = "/etc/banger/banger.toml";

/// The program's lines, by attempt.
type Results = BTreeMap<String, String>;

fn attack(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let other = Guest::run(scene, "bob", "bystander")?;
    other.start_counter(scene)?;
    let boot = other.boot_id(scene)?;
    let before = other.counter(scene)?;

    let attacker = Guest::create(scene, "alice", "attacker")?;
    let neighbour = scene.root(&format!(
        "runuser -u bangerd -- socat ABSTRACT-LISTEN:{ABSTRACT},fork /dev/null >/dev/null 2>&1 & sleep 1; pgrep -u bangerd -x socat"
    ))?;
    let neighbour: i32 = neighbour.trim().parse().with_context(|| format!("the neighbour: {neighbour:?}"))?;
    scene.step("the daemon starts hostile VMMs, under its packaged unit", install)?;
    let attacked = attacked(scene, &other, &attacker, neighbour);
    scene.step("the daemon is as it was before", remove)?;
    scene.root(&format!("kill {neighbour}"))?;
    attacked?;

    scene.step("the other user's VM is unharmed", |scene| {
        ensure!(other.boot_id(scene)? == boot, "it was started again");
        let now = other.counter(scene)?;
        ensure!(now > before, "its counter stands at {now}, and was {before}");
        Ok(())
    })?;
    scene.step("the attacker's VM can be used", |scene| {
        attacker.order(scene, "start")?.ok()?;
        attacker.shell(scene, "true")?.ok().map(drop)
    })?;
    attacker.delete(scene)?;
    other.delete(scene)?;
    scene.passed()
}

fn install(scene: &mut Scene) -> Result<()> {
    let from = scene.material("hostile-vmm").context("the harness has not brought hostile-vmm")?;
    scene.root(&format!("install -D -m 0755 {from} {PROGRAM}; mkdir -p $(dirname {TARGETS})"))?;
    scene.root(&format!("! test -e {DROP_IN} || mv {DROP_IN} {DROP_IN}.away"))?;
    scene.root(&format!("sed -i 's#^firecracker_bin.*#firecracker_bin = \"{PROGRAM}\"#' {CONFIG}"))?;
    scene.root("systemctl daemon-reload && systemctl restart bangerd.service")?;
    let shown = scene.root("systemctl show -P DropInPaths -P Environment bangerd.service")?;
    ensure!(shown.trim().is_empty(), "the unit is not the packaged one: {shown}");
    Ok(())
}

fn remove(scene: &mut Scene) -> Result<()> {
    scene.root(&format!("! test -e {DROP_IN}.away || mv {DROP_IN}.away {DROP_IN}"))?;
    scene.root(&format!(
        "sed -i 's#^firecracker_bin.*#firecracker_bin = \"{VMM}\"#' {CONFIG}; rm -rf {PROGRAM} $(dirname {TARGETS})"
    ))?;
    scene.root("systemctl daemon-reload && systemctl restart bangerd.service").map(drop)
}

fn attacked(scene: &mut Scene, other: &Guest, attacker: &Guest, neighbour: i32) -> Result<()> {
    other.becomes(scene, "running", &[], Duration::from_secs(10))?;
    let record = other.record(scene)?;
    let of_other = |field: &str| {
        let value = record.pointer(&format!("/runtime/{field}")).and_then(serde_json::Value::as_str);
        value.map(str::to_owned).with_context(|| format!("no {field} in {record}"))
    };
    let pid = |pid: u32| i32::try_from(pid).context("a pid beyond 31 bits");
    let targets = Targets {
        daemon: pid(scene.main_pid("bangerd.service")?)?,
        other_vmm: pid(other.vmm(scene)?)?,
        neighbour,
        other_vm: other.id.clone(),
        other_cgroup: other.cgroup(scene)?,
        other_disk: of_other("dm_dev")?,
        other_tap: of_other("tap_device")?,
        own_cgroup: attacker.cgroup(scene)?,
        image: scene.root("ls -d /var/lib/banger/images/*/ | head -n 1")?.trim().trim_end_matches('/').to_owned(),
    };
    let helper = scene.main_pid("banger-priv.service")?;

    let confined = scene.step("the hostile VMM makes its attempts", |scene| {
        tell(&targets)?;
        // Its last attempt, a call of the x32 table, ends it.
        attacker.order(scene, "start")?.refused(&["attacker"])?;
        let console = scene.root(&format!("cat /var/lib/banger/vms/{}/console.log", attacker.id))?;
        ensure!(!console.contains(X32), "it has lived through a call of the x32 table: {console}");
        results(&console)
    })?;
    let alone = scene.step("the control: the same program, unconfined", |scene| {
        // The attacker's group is gone with its process.
        tell(&Targets { own_cgroup: targets.other_cgroup.clone(), ..targets.clone() })?;
        let said = scene.root(&format!("runuser -u bangerd -- {PROGRAM}"))?;
        ensure!(said.contains(X32), "unconfined, the call of the x32 table has ended it: {said}");
        results(&said)
    })?;
    scene.step("daemon and helper are alive, and the helper has said why", |scene| {
        ensure!(scene.main_pid("banger-priv.service")? == helper, "the helper was started again");
        ensure!(pid(scene.main_pid("bangerd.service")?)? == targets.daemon, "the daemon was started again");
        let said = scene.journal("banger-priv.service")?;
        ensure!(said.contains("rule=outside-daemon-cgroup"), "no refusal in the helper's journal: {said}");
        Ok(())
    })?;
    scene.step("every attempt was refused, and succeeded where nothing but the confinement stops it", |_| {
        let wrong = judge(&confined, &alone);
        ensure!(wrong.is_empty(), "{} of {} attempts:\n  {}", wrong.len(), ATTEMPTS.len(), wrong.join("\n  "));
        Ok(())
    })?;
    scene.measured("attempts refused", confined.len());
    scene.measured(
        "of these stopped by the confinement alone",
        alone.values().filter(|line| *line == "succeeded").count(),
    );
    Ok(())
}

fn tell(targets: &Targets) -> Result<()> {
    std::fs::write(TARGETS, serde_json::to_string(targets)?).with_context(|| format!("write {TARGETS}"))
}

fn results(text: &str) -> Result<Results> {
    ensure!(text.contains(OVER), "it did not get through its attempts: {text}");
    let of = |name: &str| {
        let begin = hostile::line(name);
        text.lines().find_map(|line| line.strip_prefix(&begin).map(str::to_owned))
    };
    ATTEMPTS
        .iter()
        .map(|attempt| {
            Ok((attempt.name.to_owned(), of(attempt.name).with_context(|| format!("{} was not made", attempt.name))?))
        })
        .collect()
}

/// What is not as it must be.
fn judge(confined: &Results, alone: &Results) -> Vec<String> {
    let mut wrong = Vec::new();
    for attempt in ATTEMPTS {
        let line = |results: &Results| results.get(attempt.name).cloned().unwrap_or_default();
        let (inside, outside) = (line(confined), line(alone));
        let hidden = HIDDEN.contains(&attempt.name) && inside.contains("No such file");
        if !is_refusal(&inside) && !hidden {
            wrong.push(format!("{} by a VMM: {inside}", attempt.name));
        }
        let as_expected = match attempt.alone {
            Alone::Succeeds => outside == "succeeded",
            Alone::Refused => is_refusal(&outside),
            Alone::Either => true,
        };
        if !as_expected {
            wrong.push(format!("{} alone: {outside}, expected {:?}", attempt.name, attempt.alone));
        }
    }
    wrong
}

/// A VMM could connect to any socket whose path it is told. No user can tell it the path of another
/// user's.
fn names_of_sockets(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "bob", "unseen")?;
    let folder = scene.root("ls /run/bangerd/vm")?.trim().to_owned();
    ensure!(folder.len() == 16 && !guest.id.starts_with(&folder), "one folder, not named after the id: {folder:?}");
    scene.user("alice", "ls /run/bangerd/vm")?.refused(&["Permission denied"])?;
    scene.user("bob", "banger vm show unseen")?.ok()?;
    let seen = scene
        .user("alice", "cat /proc/net/unix /proc/[0-9]*/cmdline | tr '\\0' ' '; ls -l /proc/[0-9]*/cwd; ss -xa; :")?
        .ok()?;
    // Otherwise this would look for a name in nothing.
    ensure!(seen.stdout.contains("api.sock") && seen.stdout.contains("vsock.sock_"), "no sockets of VMs: {seen}");
    seen.does_not_say(&folder)?;
    let status = scene.root(&format!("cat /proc/{}/status", guest.vmm(scene)?))?;
    ensure!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "a VMM without filter: {status}");
    guest.delete(scene)?;
    scene.passed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_have_names_of_their_own_and_wrong_results_are_seen() {
        let refused: Results = ATTEMPTS
            .iter()
            .map(|attempt| (attempt.name.to_owned(), "refused (Permission denied (os error 13))".to_owned()))
            .collect();
        assert_eq!(refused.len(), ATTEMPTS.len());
        let alone: Results = ATTEMPTS
            .iter()
            .map(|attempt| {
                (
                    attempt.name.to_owned(),
                    if attempt.alone == Alone::Refused { "refused (hung up)" } else { "succeeded" }.to_owned(),
                )
            })
            .collect();
        assert!(judge(&refused, &alone).is_empty());
        // A confinement that stops nothing, and a control in which nothing works.
        assert!(judge(&alone, &alone).iter().any(|line| line.contains("read-database by a VMM")));
        assert!(judge(&refused, &refused).iter().any(|line| line.contains("read-database alone")));
    }

    #[test]
    fn what_is_missing_is_not_refused() {
        assert!(!is_refusal("refused (No such file or directory (os error 2))"));
        assert!(!is_refusal("succeeded"));
    }
}
