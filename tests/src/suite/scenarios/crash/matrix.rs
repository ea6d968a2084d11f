//! The kill matrix: for every operation SIGKILL to daemon, helper and VMM at each of its points,
//! and to two of them at once. Then whatever has died comes back by itself, `vm list` tells the
//! truth, `vm delete` works, and nothing is left on the host.
//!
//! The rows are not written down: each operation is run once undisturbed, and the points that it
//! passes are its rows. A point that is then not reached is a failure. The guest does not matter,
//! so there is none: the VMM boots nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::aftermath::{self, Baseline};
use super::operation::{self, OPERATIONS, Operation, Trace};
use super::place;
use super::strike::{Place, Row, Victims};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::product;
use crate::suite::report::print_line;
use crate::suite::sample::Random;
use crate::suite::scene::Scene;

/// An operation at a time, for those who look for a fault.
pub(in crate::suite) const BY_OPERATION: Suite = Suite {
    name: "kill-matrix",
    about: "the kill matrix of crash, a scenario for each operation",
    setup: Setup::Guests,
    scenarios: || {
        let scenario = |operation: &'static Operation| {
            Scenario::new(operation.name.replace(" --", "-").replace(' ', "-"), move |scene| {
                run(scene, std::slice::from_ref(operation))
            })
        };
        let alone = Scenario::new("under-a-command-that-counts", under_a_command);
        OPERATIONS.iter().map(scenario).chain([alone]).collect()
    },
};

/// All of it, or the sample that is asked for.
pub(super) fn kill_matrix(scene: &mut Scene) -> Result<Outcome> {
    run(scene, OPERATIONS)
}

/// After so many rows the host is looked at with all means; what other rows leave is seen at once.
const WHOLE_EVERY: usize = 10;
/// So many rows that could not be carried out say nothing about the rest.
const GIVE_UP: usize = 12;
/// Rows of a sample beside those that bring every step of the daemon's once.
const FURTHER: usize = 2;
/// Of the former, so many: a row takes a quarter of a minute under emulation.
const STEPS: usize = 12;

fn run(scene: &mut Scene, operations: &'static [Operation]) -> Result<Outcome> {
    scene.allow_database_growth();
    operation::write_material()?;
    let result = place::with_points(scene, |scene| {
        let mut random = scene.sample().map(Random);
        let all = traced(scene, chosen(operations, random.as_mut()))?;
        let rows = match (random.as_mut(), scene.sample()) {
            (Some(random), Some(seed)) => {
                let sample = sample(&all, random);
                print_line(&format!("  a sample with seed {seed}: {} of {} rows", sample.len(), all.len()));
                sample
            }
            _ => all,
        };
        strike_all(scene, rows)
    });
    operation::remove_material()?;
    result?;
    scene.passed()
}

/// Each operation undisturbed, and the rows that come of it.
fn traced(scene: &mut Scene, operations: Vec<&'static Operation>) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for operation in operations {
        let title = format!("{}: undisturbed, every point noted", operation.name);
        let trace = scene.step(&title, |scene| {
            let trace = operation.trace(scene)?;
            aftermath::clean(scene, operation)?;
            Ok(trace)
        })?;
        all.extend(rows(operation, &trace));
    }
    Ok(all)
}

/// Where the bystander's command writes: nowhere that is looked at after each blow, since it grows.
const COUNTED: &str = "/run/bob-counted";

/// The daemon alone is killed, at each of its points in each operation, while a command of another
/// user counts in a real guest: the guest goes on, and no line of the command is lost.
fn under_a_command(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    operation::write_material()?;
    let guest = Guest::run(scene, "bob", "counting")?;
    let boot = guest.boot_id(scene)?;
    let script = "i=0; while [ ! -e /root/enough ]; do i=$((i+1)); echo $i; sleep 0.2; done; exit 7";
    let line = format!("banger vm exec -T -n counting -- sh -c '{script}' > {COUNTED}");
    scene.root(&format!("install -o bob -m 644 /dev/null {COUNTED}"))?;
    let command = scene.start_user("bob", &line)?;
    let result = place::with_points(scene, |scene| {
        let mut rows = traced(scene, OPERATIONS.iter().collect())?;
        rows.retain(|row| row.victims == Victims::Daemon);
        strike_all(scene, rows)
    });
    operation::remove_material()?;
    result?;
    scene.step("the command has gone on all the time, and no line is lost", |scene| {
        ensure!(guest.boot_id(scene)? == boot, "the guest was started again");
        guest.shell(scene, "touch /root/enough")?.ok()?;
        command.wait(scene.limit(Duration::from_secs(20)))?.exits(7)?;
        let counted = std::fs::read_to_string(COUNTED).with_context(|| format!("read {COUNTED}"))?;
        let lines: Vec<&str> = counted.lines().collect();
        let wrong = lines.iter().zip(1_u64..).find(|(line, number)| **line != number.to_string());
        ensure!(lines.len() > 10 && wrong.is_none(), "{} lines, the first wrong one: {wrong:?}", lines.len());
        scene.measured("lines without a gap", lines.len());
        scene.root(&format!("rm {COUNTED}")).map(drop)
    })?;
    guest.delete(scene)?;
    scene.passed()
}

/// Every way to kill something at every point of an operation.
fn rows(operation: &Operation, trace: &Trace) -> Vec<Row> {
    let row = |place, victims| Row { operation: *operation, place, victims };
    let mut rows = Vec::new();
    for point in &trace.daemon {
        let at = |victims| row(Place::Daemon(point.key.clone()), victims);
        rows.extend([at(Victims::Daemon), at(Victims::DaemonAndHelper)]);
        if point.vmm {
            rows.extend([at(Victims::Vmm), at(Victims::DaemonAndVmm)]);
        }
    }
    rows.extend(trace.helper.iter().map(|(number, name)| row(Place::Helper(*number, name.clone()), Victims::Helper)));
    rows
}

/// For a sample: those that between them have every step, and another.
fn chosen(operations: &'static [Operation], random: Option<&mut Random>) -> Vec<&'static Operation> {
    let Some(random) = random else { return operations.iter().collect() };
    let (mut chosen, others): (Vec<_>, Vec<_>) = operations.iter().partition(|operation| operation.makes_something());
    chosen.extend(others.get(random.below(others.len().max(1))));
    chosen
}

/// Steps of the daemon's, each once, in some operation and with some victims, and a few rows more.
fn sample(all: &[Row], random: &mut Random) -> Vec<Row> {
    let mut shuffled = all.to_vec();
    for last in (1..shuffled.len()).rev() {
        shuffled.swap(last, random.below(last + 1));
    }
    let mut seen = BTreeSet::new();
    let (mut sample, mut further) = (Vec::new(), Vec::new());
    for row in shuffled {
        let first = row.step().is_some_and(|step| seen.insert(step));
        if first { sample.push(row) } else { further.push(row) }
    }
    sample.truncate(STEPS);
    sample.extend(further.into_iter().take(FURTHER));
    sample
}

/// What came of all rows.
#[derive(Default)]
struct Tally {
    kills: BTreeMap<(&'static str, Victims), usize>,
    lies: usize,
    leaks: usize,
    failures: Vec<String>,
}

fn strike_all(scene: &mut Scene, rows: Vec<Row>) -> Result<()> {
    let mut tally = Tally::default();
    let mut baseline = Baseline::take()?;
    let count = rows.len();
    for (row, number) in rows.iter().zip(1..) {
        let whole = number % WHOLE_EVERY == 0 || number == count;
        let title = row.title();
        let done = scene.step(&format!("{number} of {count}: {title}"), |scene| {
            row.strike(scene)?;
            aftermath::look(scene, &row.operation, &baseline, whole)
        });
        match done {
            Ok(found) => {
                *tally.kills.entry((row.operation.name, row.victims)).or_default() += 1;
                for lie in &found.lies {
                    print_line(&format!("    LIE: {lie}"));
                }
                let after = if whole { "in this row or the nine before it" } else { "in this row" };
                for leak in &found.leaks {
                    print_line(&format!("    LEAK {after}: {leak}"));
                }
                tally.lies += found.lies.len();
                tally.leaks += found.leaks.len();
                if !found.leaks.is_empty() {
                    // Counted; the next rows are not to blame for it.
                    baseline = Baseline::take()?;
                }
            }
            Err(error) => {
                print_line(&format!("    FAILED: {error:#}"));
                tally.failures.push(title);
                ensure!(
                    tally.failures.len() < GIVE_UP,
                    "given up after {number} of {count} rows: {:?}",
                    tally.failures
                );
                product::clean_up(&[]);
                aftermath::clean(scene, &row.operation)?;
            }
        }
    }
    tally.report(scene)
}

impl Tally {
    /// The table, and the three numbers as the last lines.
    fn report(&self, scene: &mut Scene) -> Result<()> {
        let total: usize = self.kills.values().sum();
        let cells = |of: &dyn Fn(Victims) -> usize| -> String {
            Victims::ALL.iter().map(|victims| format!("{:>15}", of(*victims))).collect()
        };
        let names: String = Victims::ALL.iter().map(|victims| format!("{:>15}", victims.name())).collect();
        print_line(&format!("  {:<15}{names}", "killed during"));
        for operation in OPERATIONS {
            let of = |victims| self.kills.get(&(operation.name, victims)).copied().unwrap_or_default();
            print_line(&format!("  {:<15}{}", operation.name, cells(&of)));
        }
        let of =
            |wanted| self.kills.iter().filter(|((_, victims), _)| *victims == wanted).map(|(_, count)| count).sum();
        print_line(&format!("  {:<15}{}", "all", cells(&of)));
        scene.measured("kill points", total);
        print_line(&format!("{total} kill points"));
        print_line(&format!("leaks: {}", self.leaks));
        print_line(&format!("lies: {}", self.lies));
        ensure!(self.failures.is_empty(), "{} rows failed: {}", self.failures.len(), self.failures.join("; "));
        ensure!(self.leaks == 0 && self.lies == 0, "{} leaks and {} lies", self.leaks, self.lies);
        ensure!(total > 0, "nothing was killed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::Point;
    use super::*;

    fn all() -> Vec<Row> {
        let point = |name: &str, count, vmm| Point { key: format!("{name}\t{count}"), name: name.to_owned(), vmm };
        let daemon =
            (1..40).map(|count| point(if count % 2 == 0 { "even" } else { "odd" }, count, count > 20)).collect();
        let trace = Trace { daemon, helper: vec![(7, "tap".to_owned())] };
        OPERATIONS.iter().flat_map(|operation| rows(operation, &trace)).collect()
    }

    #[test]
    fn every_point_has_its_rows() {
        let rows = all();
        let of = |victims| rows.iter().filter(|row| row.victims == victims).count() / OPERATIONS.len();
        assert_eq!(Victims::ALL.map(of), [39, 19, 1, 39, 19]);
    }

    #[test]
    fn a_sample_has_every_name_and_follows_from_its_seed() {
        let titles = |seed| sample(&all(), &mut Random(seed)).iter().map(Row::title).collect::<Vec<_>>();
        assert_eq!(titles(1), titles(1));
        assert_ne!(titles(1), titles(2));
        assert_eq!(titles(1).len(), 2 + FURTHER);
        assert!(
            titles(3).iter().any(|title| title.contains("even")) && titles(3).iter().any(|title| title.contains("odd"))
        );
    }
}
