//! Many at once: VMs of two users, orders that meet at one VM, names and images that two want,
//! clients that die in the middle.
//!
//! What runs in these VMs matters little, so their VMM boots nothing (`still-vmm`). Whatever meets
//! whatever, each client gets an answer, what the list says is what the host shows ([`truth`]), and
//! at the end nothing is left.

mod clients;
pub(super) mod dead;
mod meet;
pub(in crate::suite) mod scale;
mod truth;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::suite::command::{Finished, Run};
use crate::suite::guests::TINY;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "crowd",
    about: "many VMs and orders at once, races for a name and an image, clients killed in the middle",
    setup: Setup::Still,
    scenarios,
};

/// The same in numbers that take too long for every test run.
pub(in crate::suite) const LONG: Suite = Suite {
    name: "crowd-long",
    about: "on request: fifty VMs at once, every meeting and every client at several moments",
    setup: Setup::Still,
    scenarios: long_scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("eight-at-once-by-two-users", |scene| many(scene, 4, 1)),
        Scenario::new("one-name-for-one", meet::one_name),
        Scenario::new("orders-that-meet", |scene| meet::meetings(scene, &[meet::TELLING], &[0])),
        Scenario::new("clients-killed-in-the-middle", |scene| clients::killed(scene, &[400])),
        Scenario::new("two-imports-of-one-image", clients::two_imports),
    ]
}

fn long_scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("fifty-at-once-by-two-users", |scene| amply(scene, |scene| many(scene, 25, 3))),
        Scenario::new("orders-that-meet", |scene| {
            meet::meetings(scene, &[meet::TELLING, meet::MORE], &[0, 50, 200, 800, 2000])
        }),
        Scenario::new("clients-killed-in-the-middle", |scene| clients::killed(scene, &[150, 300, 600, 1200])),
    ]
}

const USERS: [&str; 2] = ["alice", "bob"];
/// A crowd's orders have ended within this, under KVM.
const CROWD: Duration = Duration::from_secs(150);

/// More memory for a user and the host than there is: what the VMs run in boots nothing and takes
/// little of what they are given.
const AMPLE: &str = "cp -a /etc/banger/banger.toml /srv/bench/kept.toml; sed -i 's/^\\[limits.user\\]/&\\nmemory = \"100G\"/; \
    s/^\\[limits.host\\]/&\\nmemory = \"400G\"/' /etc/banger/banger.toml";

/// With [`AMPLE`], and then as before.
fn amply(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<Outcome>) -> Result<Outcome> {
    scene.root(&format!("{AMPLE}; systemctl reload bangerd.service"))?;
    let outcome = work(scene);
    scene.root("mv /srv/bench/kept.toml /etc/banger/banger.toml; systemctl reload bangerd.service")?;
    outcome
}

/// `vm create` of a VM of the suites, started only.
fn create(scene: &Scene, user: &str, name: &str) -> Result<Run> {
    scene.start_banger(user, &[&["vm", "create", "--name", name], TINY].concat())
}

/// All at once; then the end of each.
fn together(scene: &Scene, orders: impl IntoIterator<Item = Result<Run>>) -> Result<Vec<Finished>> {
    let runs = orders.into_iter().collect::<Result<Vec<_>>>()?;
    runs.into_iter().map(|run| run.wait(scene.limit(CROWD))).collect()
}

fn all_well(ends: Vec<Finished>) -> Result<()> {
    ends.into_iter().try_for_each(|end| end.ok().map(drop))
}

/// A verb for some of a user's VMs in one command.
fn order_all(scene: &Scene, user: &str, verb: &str, names: &[String]) -> Result<Run> {
    let words: Vec<&str> = ["vm", verb].into_iter().chain(names.iter().map(String::as_str)).collect();
    scene.start_banger(user, &words)
}

fn many(scene: &mut Scene, each: usize, rounds: usize) -> Result<Outcome> {
    scene.allow_database_growth();
    let names: Vec<String> = (1..=each).map(|number| format!("crowd-{number}")).collect();
    let (some, others) = names.split_at(each / 2);
    let every = || USERS.into_iter().flat_map(|user| names.iter().map(move |name| (user, name.as_str())));
    let all = USERS.len() * each;
    for _ in 0..rounds {
        scene.step(&format!("{all} are made at once, by a client each"), |scene| {
            all_well(together(scene, every().map(|(user, name)| create(scene, user, name)))?)?;
            counted(scene, 0, all)
        })?;
        scene.step("started at once, by a client of each user", |scene| {
            all_well(together(scene, USERS.map(|user| order_all(scene, user, "start", &names)))?)?;
            counted(scene, all, all)
        })?;
        scene.step("some stopped by a client each, while the others are restarted", |scene| {
            let stops = every().filter(|(_, name)| some.iter().any(|some| some == name));
            let stops = stops.map(|(user, name)| scene.start_banger(user, &["vm", "stop", name]));
            let restarts = USERS.map(|user| order_all(scene, user, "restart", others));
            all_well(together(scene, stops.chain(restarts))?)?;
            counted(scene, USERS.len() * others.len(), all)
        })?;
        scene.step("those that stand started, while the others are deleted", |scene| {
            let starts = USERS.map(|user| order_all(scene, user, "start", some));
            let deletes = USERS.map(|user| order_all(scene, user, "delete", others));
            all_well(together(scene, starts.into_iter().chain(deletes))?)?;
            counted(scene, USERS.len() * some.len(), USERS.len() * some.len())
        })?;
        scene.step("all deleted while they run", |scene| {
            all_well(together(scene, USERS.map(|user| order_all(scene, user, "delete", some)))?)?;
            counted(scene, 0, 0)
        })?;
    }
    scene.measured("VMs at once", all);
    scene.passed()
}

/// So many run of so many that there are, each with an address of its own, and the host shows the
/// same.
fn counted(scene: &mut Scene, running: usize, all: usize) -> Result<()> {
    let found = truth::is_told(scene)?;
    let mut vms = truth::listed(scene, "alice")?;
    vms.extend(truth::listed(scene, "bob")?);
    ensure!((found, vms.len()) == (running, all), "{found} of {} run, expected {running} of {all}: {vms:?}", vms.len());
    let addresses: std::collections::BTreeSet<_> = vms.iter().map(|vm| &vm.address).collect();
    ensure!(addresses.len() == all, "an address has two VMs: {vms:?}");
    Ok(())
}
