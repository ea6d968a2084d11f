//! Each finding of `banger doctor` that is not well, brought about once; what it prints as the mend
//! is typed as it stands, and all is well afterwards. A finding that has no row here fails a test.

mod caller;
mod host;
mod product;
mod row;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::row::{Case, Row, Way};
use crate::inventory::{Allow, Kind};
use crate::suite::command::{Finished, Run};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::report::print_line;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "doctor",
    about: "each finding of doctor, its mend typed as printed, and PASS afterwards",
    setup: Setup::Still,
    scenarios,
};

/// Where a mend finds what it names by itself: the package, and Firecracker.
const FOLDER: &str = "/srv/bench";
const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/run/bench-doctor.toml";
/// For a finding to come or go: doctor's answers are kept for a second.
const SEEN: Duration = Duration::from_secs(10);
/// The longest mend imports a kernel.
const MEND: Duration = Duration::from_secs(60);

fn rows() -> impl Iterator<Item = Row> {
    [caller::ROWS, product::ROWS, host::ROWS].concat().into_iter()
}

fn scenarios() -> Vec<Scenario> {
    let provoked = rows().filter_map(|row| match row.way {
        Way::Provoked(case) => Some(Scenario::new(case.name, move |scene| provoke_and_mend(scene, case))),
        Way::NotHere(_) => None,
    });
    provoked.chain([Scenario::new("what-is-not-provoked-here", not_provoked)]).collect()
}

/// Names them, each time.
fn not_provoked(_: &mut Scene) -> Result<Outcome> {
    let mut count = 0;
    for row in rows() {
        if let Way::NotHere(why) = row.way {
            print_line(&format!("  {}: {why}", row.said_by));
            count += 1;
        }
    }
    Ok(Outcome::Skipped(format!("{count} findings of doctor are named above with the reason")))
}

fn provoke_and_mend(scene: &mut Scene, case: Case) -> Result<Outcome> {
    scene.allow_database_growth();
    for kind in [Kind::Link, Kind::Address] {
        scene.allow(Allow::altered(kind, "*br-fc*", "the helper has made the link anew"));
    }
    scene.allow(Allow::altered(Kind::File, "/usr/local/lib/banger-bench/*", "the VMM was installed anew"));
    scene.root(&format!("cp --archive {CONFIG} {KEPT}"))?;
    let result = found_and_mended(scene, &case);
    let after = if case.after.is_empty() { Ok(String::new()) } else { scene.root(case.after) };
    // Only what is not as before is brought back: a restart costs seconds.
    let back = scene.root(&format!(
        "cmp --quiet {KEPT} {CONFIG} || {{ cp --archive {KEPT} {CONFIG} && systemctl restart banger-priv bangerd; }}; rm {KEPT}"
    ));
    result?;
    after.context("bring back what the mend does not")?;
    back.context("bring back the configuration")?;
    scene.passed()
}

fn found_and_mended(scene: &mut Scene, case: &Case) -> Result<()> {
    if !case.provoke.is_empty() {
        scene.step("before, doctor finds nothing of it", |scene| {
            let check = check(scene, case, &[])?;
            ensure!(!is_found(case, &check), "it is there already: {check}");
            Ok(())
        })?;
        scene.step(&format!("broken: {}", case.provoke), |scene| {
            let line = format!("cd {FOLDER} && {}", case.provoke);
            Run::start(None, &["bash", "-c", &line])?.wait(scene.limit(MEND))?.ok().map(drop)
        })?;
    }
    let mend = scene.step(&format!("doctor says {:?}", case.says), |scene| finding(scene, case))?;
    print_line(&format!("       -> {mend}"));
    let mend = case.meant.map_or_else(|| mend.clone(), |(word, here)| mend.replacen(word, here, 1));
    // What is wrong with a shell is mended in that shell.
    let in_shell = case.provoke.is_empty() && !mend.starts_with("sudo ");
    if !in_shell {
        scene.step("the mend is typed as it stands", |scene| {
            let ended = type_in(scene, case, &mend)?;
            if case.then.is_empty() {
                return ended.ok().map(drop);
            }
            ensure!(format!("{}{}", ended.stdout, ended.stderr).contains(case.then), "it names nothing more: {ended}");
            type_in(scene, case, case.then)?.ok().map(drop)
        })?;
    }
    let mends = if in_shell { vec![mend.as_str()] } else { Vec::new() };
    scene.step("and doctor says PASS", |scene| {
        scene
            .wait_until("all is well", SEEN, || {
                let check = check(scene, case, &mends)?;
                Ok((check["status"] != "pass").then(|| check.to_string()))
            })
            .map(drop)
    })
}

/// Waits for the finding, looks whether a person is told the same, and gives the mend.
fn finding(scene: &Scene, case: &Case) -> Result<String> {
    let mut mend = String::new();
    scene.wait_until("the finding", SEEN, || {
        let check = check(scene, case, &[])?;
        if !is_found(case, &check) {
            return Ok(Some(check.to_string()));
        }
        check["mend"].as_str().unwrap_or_default().clone_into(&mut mend);
        Ok(None)
    })?;
    ensure!(!mend.is_empty(), "nothing mends it");
    let printed = typed(scene, case, &[case.before, "banger doctor"])?;
    let word = case.status.to_uppercase();
    // Names of other checks may begin with this one's.
    let says = |line: &str| line.starts_with(&word) && line.contains(case.check) && line.contains(case.says);
    ensure!(printed.stdout.lines().any(says), "no line says so: {printed}");
    ensure!(printed.stdout.contains(&format!("-> {mend}")), "the mend is not printed as it is in JSON: {printed}");
    ensure!(case.status == "warn" || printed.status.code() == Some(1), "a FAIL is no success: {printed}");
    Ok(mend)
}

fn is_found(case: &Case, check: &Value) -> bool {
    check["status"] == case.status && check["detail"].as_str().is_some_and(|detail| detail.contains(case.says))
}

/// The check of that name in what doctor says to who asks; null when it has none.
fn check(scene: &Scene, case: &Case, mends: &[&str]) -> Result<Value> {
    let lines: Vec<&str> =
        std::iter::once(case.before).chain(mends.iter().copied()).chain(["banger doctor --json"]).collect();
    let ended = typed(scene, case, &lines)?;
    let begin = ended.stdout.find('[').with_context(|| format!("expected JSON: {ended}"))?;
    let text = ended.stdout.get(begin..).unwrap_or_default();
    let checks: Vec<Value> = serde_json::from_str(text).with_context(|| format!("expected JSON: {ended}"))?;
    Ok(checks.into_iter().find(|check| check["name"] == case.check).unwrap_or_default())
}

/// Types lines into the asker's shell.
fn typed(scene: &Scene, case: &Case, lines: &[&str]) -> Result<Finished> {
    let quoted: Vec<String> =
        lines.iter().filter(|line| !line.is_empty()).map(|line| format!("'{}'", line.replace('\'', r"'\''"))).collect();
    let line = format!("cd {FOLDER}; printf '%s\\n' {} | {}", quoted.join(" "), case.shell);
    Run::start(None, &["bash", "-c", &line])?.wait(scene.limit(MEND))
}

/// Types a command as the administrator, who is root here, or as the asker if it needs no rights.
fn type_in(scene: &Scene, case: &Case, command: &str) -> Result<Finished> {
    let user = (case.shell == row::ALICE && !command.starts_with("sudo ")).then_some("alice");
    let line = format!("cd {FOLDER}; {command}");
    let mut run = if case.keys.is_empty() {
        Run::start(user, &["bash", "-c", &line])?
    } else {
        Run::start_on_terminal(user, &line)?
    };
    if !case.keys.is_empty() {
        run.type_in(case.keys)?;
    }
    run.wait(scene.limit(MEND))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// How many findings that are not well each function of doctor can have.
    fn findings() -> Result<BTreeMap<String, usize>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let daemons = std::fs::read_dir(root.join("bangerd/src/doctor"))?;
        let mut files = daemons.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.extend(["mod.rs", "caller.rs"].map(|name| root.join("banger/src/cmd/doctor").join(name)));
        let mut found = BTreeMap::new();
        for file in files {
            let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let mut function = String::new();
            for line in text.lines().take_while(|line| *line != "#[cfg(test)]") {
                if let Some((_, rest)) = line.split_once("fn ")
                    && let Some((name, _)) = rest.split_once(['(', '<'])
                {
                    name.clone_into(&mut function);
                }
                let count = line.matches("Check::fail(").count() + line.matches("Check::warn(").count();
                if count > 0 {
                    *found.entry(format!("{stem}::{function}")).or_default() += count;
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn every_finding_of_doctor_has_a_row() -> Result<()> {
        let mut table = BTreeMap::new();
        for row in rows() {
            *table.entry(row.said_by.to_owned()).or_insert(0) += 1;
        }
        let findings = findings()?;
        ensure!(findings.values().sum::<usize>() > 60, "doctor was not read: {findings:?}");
        let differing = findings.iter().filter(|(function, count)| table.get(*function) != Some(count));
        let differing: Vec<_> = differing.map(|(name, count)| (name, count, table.get(name))).collect();
        ensure!(differing.is_empty(), "function, findings, rows of the suite doctor: {differing:?}");
        let gone: Vec<_> = table.keys().filter(|function| !findings.contains_key(*function)).collect();
        ensure!(gone.is_empty(), "rows of functions that find nothing: {gone:?}");
        Ok(())
    }

    #[test]
    fn the_vmm_that_the_rows_break_is_the_bench_s() {
        let folder = Path::new(crate::suite::product::VMM).parent().unwrap().to_str().unwrap();
        let vmm = rows().filter(|row| row.said_by.starts_with("product::vmm"));
        let broken: Vec<&str> =
            vmm.filter_map(|row| if let Way::Provoked(case) = row.way { Some(case.provoke) } else { None }).collect();
        assert!(broken.len() == 5 && broken.iter().all(|line| line.contains(folder)), "{broken:?}");
    }

    #[test]
    fn the_shell_understands_every_line_of_the_table() -> Result<()> {
        for row in rows() {
            let Way::Provoked(case) = row.way else { continue };
            for line in [case.provoke, case.before, case.after, case.then, case.shell] {
                let ended = std::process::Command::new("bash").args(["-n", "-c", line]).output()?;
                ensure!(ended.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&ended.stderr));
            }
        }
        Ok(())
    }
}
