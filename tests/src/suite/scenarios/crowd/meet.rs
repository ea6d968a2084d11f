//! What two want at the same time: a name, or different things of one VM.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{CROWD, USERS, create, together, truth};
use crate::suite::command::Finished;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

/// Creations of one name by one user.
const RIVALS: usize = 6;

/// One creation wins, the others are told why, and nothing of theirs is left. Another user's of
/// that name is another name.
pub(super) fn one_name(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    crate::suite::vmm::with_vmm(scene, crate::suite::vmm::STILL, |scene| {
        let rivals = (0..RIVALS).map(|_| create(scene, "alice", "wanted")).chain([create(scene, "bob", "wanted")]);
        let mut ends = together(scene, rivals)?;
        ends.pop().context("no end of bob's")?.ok()?;
        let (won, lost): (Vec<_>, Vec<_>) = ends.into_iter().partition(|end| end.status.success());
        ensure!(won.len() == 1, "{} of {RIVALS} creations of one name have won", won.len());
        for end in lost {
            end.refused(&["wanted", "exists already"])?;
        }
        super::counted(scene, 0, USERS.len())?;
        for user in USERS {
            scene.banger_long(user, &["vm", "delete", "wanted"])?.ok()?;
        }
        Ok(())
    })
}

/// Two orders: does the VM run before, the first one, the second one, and in which states it may be
/// afterwards (`gone` is one).
pub(super) type Meeting = (bool, &'static str, &'static str, &'static [&'static str]);

/// Those of every test run.
pub(super) const TELLING: &[Meeting] = &[
    (false, "start", "delete", &["gone"]),
    (false, "start", "stop", &["created", "stopped", "running"]),
    (false, "start", "kill", &["created", "stopped", "running"]),
    (true, "stop", "stop", &["stopped"]),
    (true, "stop", "start", &["stopped", "running"]),
    (true, "delete", "delete", &["gone"]),
];

/// And the others.
pub(super) const MORE: &[Meeting] = &[
    (false, "start", "start", &["running"]),
    (true, "stop", "kill", &["stopped"]),
    (true, "stop", "delete", &["gone"]),
    (true, "restart", "stop", &["stopped", "running"]),
    (true, "restart", "delete", &["gone"]),
    (true, "kill", "start", &["stopped", "running"]),
];

/// Each pair so many milliseconds apart.
pub(super) fn meetings(scene: &mut Scene, meetings: &[&'static [Meeting]], apart: &'static [u64]) -> Result<Outcome> {
    scene.allow_database_growth();
    crate::suite::vmm::with_vmm(scene, crate::suite::vmm::STILL, |scene| {
        let mut count = 0;
        for (runs, first, second, ends) in meetings.iter().copied().flatten() {
            for apart in apart {
                let title = format!("{second} during {first}, {apart} ms later");
                scene.step(&title, |scene| meet(scene, *runs, [first, second], *apart, ends))?;
                count += 1;
            }
        }
        scene.measured("meetings", count);
        Ok(())
    })
}

fn meet(scene: &mut Scene, runs: bool, verbs: [&'static str; 2], apart: u64, allowed: &[&str]) -> Result<()> {
    create(scene, "alice", "met")?.wait(scene.limit(CROWD))?.ok()?;
    if runs {
        scene.banger_long("alice", &["vm", "start", "met"])?.ok()?;
    }
    let mut orders = Vec::new();
    for (number, verb) in verbs.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(Duration::from_millis(apart));
        }
        orders.push(scene.start_banger("alice", &["vm", verb, "met"]));
    }
    let ends = together(scene, orders)?;
    for (verb, end) in verbs.iter().zip(&ends) {
        answered(verb, end)?;
    }
    truth::settled(scene)?;
    truth::is_told(scene)?;
    let state = truth::state(scene, "alice", "met")?.unwrap_or_else(|| "gone".to_owned());
    ensure!(allowed.contains(&state.as_str()), "afterwards it is {state}, expected one of {allowed:?}: {ends:?}");
    ensure!(ends.iter().any(|end| end.status.success()), "neither has won: {ends:?}");
    if state != "gone" {
        scene.banger_long("alice", &["vm", "delete", "met"])?.ok()?;
    }
    Ok(())
}

/// Done, or refused with a reason that names the VM.
fn answered(verb: &str, end: &Finished) -> Result<()> {
    let refused = end.status.code() == Some(1) && end.stderr.contains("met") && !end.stderr.contains("panicked");
    ensure!(end.status.success() || refused, "{verb} was not answered: {end}");
    Ok(())
}
