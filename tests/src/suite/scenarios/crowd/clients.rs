//! Clients that end in the middle of what they asked for: with SIGKILL nobody is told, with SIGINT
//! the daemon is asked to undo it. Either it is done whole or not at all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{CROWD, create, together, truth};
use crate::suite::command::Run;
use crate::suite::guests::TINY;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// What a client was asked for, what stands before it, and what may stand afterwards.
struct Case {
    verb: &'static str,
    /// The VM's state before; `gone` for none.
    before: &'static str,
    /// After SIGKILL: the daemon goes on with it.
    killed: &'static [&'static str],
    /// After SIGINT: the daemon undoes what can be undone.
    interrupted: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case { verb: "run", before: "gone", killed: &["gone", "running"], interrupted: &["gone"] },
    Case { verb: "create", before: "gone", killed: &["gone", "created"], interrupted: &["gone", "created"] },
    Case { verb: "start", before: "created", killed: &["created", "running"], interrupted: &["created", "running"] },
    Case { verb: "stop", before: "running", killed: &["running", "stopped"], interrupted: &["running", "stopped"] },
    Case {
        verb: "delete",
        before: "running",
        killed: &["running", "gone"],
        // `stopped`: interrupted while its guest shut down.
        interrupted: &["running", "stopped", "gone"],
    },
    Case { verb: "import", before: "gone", killed: &["gone"], interrupted: &["gone"] },
];

/// An image that is not the one that the suites boot, of some megabytes.
const TAR: &str = "/srv/crowd/image.tar";
const IMAGE: &str = "crowd-image";

/// Each client ended so many milliseconds after its start.
pub(super) fn killed(scene: &mut Scene, delays: &'static [u64]) -> Result<Outcome> {
    scene.allow_database_growth();
    with_tars(scene, |scene| {
        crate::suite::vmm::with_vmm(scene, crate::suite::vmm::STILL, |scene| {
            let (mut ended, mut all) = (0, 0);
            for case in CASES {
                for signal in [Signal::SIGKILL, Signal::SIGINT] {
                    for delay in delays {
                        let title = format!("{signal} to {} after {delay} ms", case.verb);
                        all += 1;
                        ended += usize::from(scene.step(&title, |scene| kill(scene, case, signal, *delay))?);
                    }
                }
            }
            scene.measured("clients ended in the middle", format!("{ended} of {all}"));
            // A client that had its answer already proves nothing.
            ensure!(ended * 2 >= all, "only {ended} of {all} clients were ended in the middle");
            Ok(())
        })
    })
}

/// Whether the client was still at it.
fn kill(scene: &mut Scene, case: &Case, signal: Signal, delay: u64) -> Result<bool> {
    if case.before != "gone" {
        create(scene, "alice", "cut")?.wait(scene.limit(CROWD))?.ok()?;
    }
    if case.before == "running" {
        scene.banger_long("alice", &["vm", "start", "cut"])?.ok()?;
    }
    let mut run = begin(scene, case.verb)?;
    std::thread::sleep(Duration::from_millis(delay));
    let at_it = !run.has_ended()?;
    if at_it {
        run.signal(signal)?;
    }
    let end = run.wait(scene.limit(CROWD))?;
    // It may have been faster than the signal.
    let in_the_middle = at_it && !end.status.success();
    ensure!(!end.stderr.contains("panicked"), "{end}");
    truth::settled(scene)?;
    truth::is_told(scene)?;
    if case.verb == "import" {
        let list = scene.banger("alice", &["image", "list"])?.ok()?;
        // Whole: then it can be removed like any other. In half, its leftovers are the inventory's
        // to find.
        if list.stdout.contains(IMAGE) {
            ensure!(!in_the_middle || signal != Signal::SIGINT, "an interrupted import has published: {end}");
            scene.banger("alice", &["image", "delete", IMAGE])?.ok()?;
        }
        return Ok(in_the_middle);
    }
    let state = truth::state(scene, "alice", "cut")?.unwrap_or_else(|| "gone".to_owned());
    let allowed = if signal == Signal::SIGKILL { case.killed } else { case.interrupted };
    if in_the_middle {
        ensure!(allowed.contains(&state.as_str()), "afterwards it is {state}, expected one of {allowed:?}: {end}");
    }
    if state != "gone" {
        scene.banger_long("alice", &["vm", "delete", "cut"])?.ok()?;
    }
    Ok(in_the_middle)
}

fn begin(scene: &Scene, verb: &str) -> Result<Run> {
    match verb {
        "run" => scene.start_banger("alice", &[&["vm", "run", "--detach", "--name", "cut"], TINY].concat()),
        "create" => create(scene, "alice", "cut"),
        "import" => import(scene, "alice", IMAGE, TAR),
        verb => scene.start_banger("alice", &["vm", verb, "cut"]),
    }
}

fn import(scene: &Scene, user: &str, name: &str, tar: &str) -> Result<Run> {
    scene.start_banger(user, &["image", "import", "--name", name, "--size", "512M", tar])
}

/// The tiny image with a file more, and with another one.
fn with_tars(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<Outcome>) -> Result<Outcome> {
    scene.root(
        "mkdir -p /srv/crowd/more; cd /srv/crowd; for tar in image other; do cp /srv/bench/tiny.tar $tar.tar; \
         echo $tar > more/$tar; tar --append --file $tar.tar more/$tar; done; chmod -R a+rX /srv/crowd",
    )?;
    let result = work(scene);
    scene.root("rm -r /srv/crowd")?;
    result
}

/// The same content by two users, under two names and under one, and two contents under one name:
/// each has what is theirs, and nobody the other's.
pub(super) fn two_imports(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    with_tars(scene, |scene| {
        for (title, alices, bobs) in [
            ("one content, two names", ("twin-a", TAR), ("twin-b", TAR)),
            ("one content, one name", ("twin", TAR), ("twin", TAR)),
            ("two contents, one name", ("twin", TAR), ("twin", "/srv/crowd/other.tar")),
        ] {
            scene.step(title, |scene| {
                let both = [("alice", alices), ("bob", bobs)];
                let before = [images(scene, "alice")?, images(scene, "bob")?];
                let imports = both.map(|(user, (name, tar))| import(scene, user, name, tar));
                for end in together(scene, imports)? {
                    end.ok()?;
                }
                for ((user, (name, _)), before) in both.into_iter().zip(before) {
                    let mut expected = [before, vec![name.to_owned()]].concat();
                    expected.sort();
                    let now = images(scene, user)?;
                    ensure!(now == expected, "{user} sees {now:?} and not {expected:?}");
                }
                for (user, (name, _)) in both {
                    scene.banger(user, &["image", "delete", name])?.ok()?;
                }
                Ok(())
            })?;
        }
        scene.passed()
    })
}

fn images(scene: &Scene, user: &str) -> Result<Vec<String>> {
    let list = scene.banger(user, &["image", "list", "--json"])?.ok()?.json()?;
    let images = list.as_array().with_context(|| format!("no list: {list}"))?;
    let name = |image: &serde_json::Value| image.get("name").and_then(serde_json::Value::as_str).map(str::to_owned);
    Ok(images.iter().filter_map(name).collect())
}
