//! A hostile daemon, and everybody else who would be it, against the installed helper: refused with
//! a code, the host as before, the helper the same process.

mod fuzz;
mod identity;
mod matrix;
mod objects;
mod records;
mod wire;

use anyhow::Result;

use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::peer::Json;
use crate::suite::peer::place::{Who, instead_of_the_daemon, role};
use crate::suite::scene::Scene;

pub(in crate::suite) use fuzz::play as fuzz_role;
pub(in crate::suite) use identity::play as identity_role;
pub(in crate::suite) use wire::play as wire_role;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "hostile-client",
    about: "a hostile client of the helper: identity, malformed frames, every operation in every state, objects changed by somebody else",
    setup: Setup::Still,
    scenarios,
};

/// The same, whole: what takes too long for every test run.
pub(in crate::suite) const LONG: Suite = Suite {
    name: "hostile-client-long",
    about: "on request: every prefix, the whole matrix, as many VMs as there may be, many mutated frames",
    setup: Setup::Vmm,
    scenarios: long_scenarios,
};

fn long_scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("every-prefix", wire::every_prefix),
        Scenario::new("every-operation-in-every-state", matrix::whole),
        Scenario::new("taps-quota", objects::quota),
        Scenario::new("many-mutated-frames", fuzz::many_mutated),
    ]
}

fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("identity", identity::identity),
        Scenario::new("malformed", wire::malformed),
        Scenario::new("crowds", wire::crowds),
        Scenario::new("gone-mid-reply", wire::gone_mid_reply),
        Scenario::new("vm-ids", matrix::vm_ids),
        Scenario::new("every-operation-in-telling-states", matrix::telling),
        Scenario::new("one-record-per-operation", records::one_each),
        Scenario::new("observed-system-calls", records::observed),
        Scenario::new("mutated-frames", fuzz::mutated),
    ];
    all.extend(objects::scenarios());
    all
}

/// Plays a role in the daemon's place and prints what it says; its numbers go into the report.
fn in_the_daemons_place(scene: &mut Scene, words: &str) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        let told: Json = played(scene, &Who::daemon(), words)?;
        for (name, value) in told.as_object().into_iter().flatten() {
            scene.measured(name, value);
        }
        Ok(())
    })
}

/// Plays a role as somebody; what it says.
fn played(scene: &Scene, who: &Who, words: &str) -> Result<Json> {
    scene.root_any(&who.line(&role(words)?))?.ok()?.json()
}
