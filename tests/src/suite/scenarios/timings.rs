//! Timings of the main path, for `make bench`. Not part of `make test`: it measures and judges nothing but that it works.

use anyhow::Result;

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite =
    Suite { name: "bench", about: "timings of run, exec, stop, start and delete", setup: Setup::Guests, scenarios };

/// Each is done this often; the least is reported, which disturbs least by what else the machine does.
const TIMES: usize = 3;

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("main-path", main_path)]
}

fn main_path(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let mut least = std::collections::BTreeMap::<&str, f64>::new();
    for _ in 0..TIMES {
        let mut note = |what: &'static str, seconds: f64| {
            least.entry(what).and_modify(|known| *known = known.min(seconds)).or_insert(seconds);
        };
        let started = std::time::Instant::now();
        let guest = Guest::run(scene, "alice", "timed")?;
        note("run until ready", started.elapsed().as_secs_f64());
        note("exec true", guest.shell(scene, "true")?.ok()?.took.as_secs_f64());
        note("list", scene.banger("alice", &["vm", "list"])?.ok()?.took.as_secs_f64());
        note("stop", guest.order(scene, "stop")?.ok()?.took.as_secs_f64());
        note("start", guest.order(scene, "start")?.ok()?.took.as_secs_f64());
        note("delete", guest.order(scene, "delete")?.ok()?.took.as_secs_f64());
    }
    for (what, seconds) in least {
        scene.measured(&format!("{what}, s"), format!("{seconds:.2}"));
    }
    scene.passed()
}
