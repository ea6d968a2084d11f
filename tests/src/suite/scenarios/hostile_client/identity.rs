//! Who is let in: the daemon's uid, alive, in the daemon's own cgroup. Nobody else, however close.

use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_proto::helper::HelperRequest;

use super::played;
use crate::suite::list::Outcome;
use crate::suite::peer::connection::Connection;
use crate::suite::peer::helper::{Helper, Told, reply_word};
use crate::suite::peer::place::{Who, instead_of_the_daemon};
use crate::suite::peer::{Json, vm};
use crate::suite::report::print_line;
use crate::suite::scene::Scene;

/// Connections whose maker is dead before the helper looks.
const DEAD: u32 = 40;

/// Who knocks, and what comes of it.
fn callers() -> Vec<(Who, &'static str)> {
    let vm_cgroup = format!("vms/1001/{}", "b7".repeat(32));
    vec![
        // The control: without it everything below could be refused for another reason.
        (Who::daemon(), "NotYours"),
        (Who::daemon().with_user("alice"), "no connection"),
        (Who::daemon().with_user("alice").with_group("bangerd"), "closed"),
        (Who::daemon().with_user("bangerd").with_group("nogroup"), "no connection"),
        (Who::daemon().with_user("root"), "closed"),
        (Who::outside("root"), "closed"),
        (Who::outside("bangerd"), "closed"),
        (Who::outside("alice").with_group("bangerd"), "closed"),
        (Who::below("bangerd", "vms/x"), "closed"),
        (Who::below("bangerd", &vm_cgroup), "closed"),
        (Who::below("bangerd", "vms/daemon"), "closed"),
        (Who::below("bangerd", "daemon/below"), "closed"),
        (Who::below("bangerd", "daemon2"), "closed"),
        (Who::below("bangerd", "."), "closed"),
        (Who::outside("bangerd").with_leaf("bangerd.service/daemon"), "closed"),
        (Who::daemon(), "NotYours"),
    ]
}

pub(super) fn identity(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        for (who, expected) in callers() {
            scene.step(&format!("{who}: {expected}"), |scene| {
                let told = played(scene, &who, "knock")?;
                ensure!(told.as_str() == Some(expected), "{told}, expected {expected:?}");
                Ok(())
            })?;
        }
        scene.step("who was refused is refused again", |scene| {
            let told = played(scene, &Who::below("bangerd", "vms/x"), "knock-twice")?;
            ensure!(told.as_str() == Some("closed"), "{told}");
            Ok(())
        })?;
        scene.step("a peer that is dead after its connect is not served, and keeps nobody out", |scene| {
            let told = played(scene, &Who::daemon(), &format!("die {DEAD}"))?;
            scene.measured("connections of the dead", &told);
            scene.wait_until("the daemon is let in after them", Duration::from_secs(5), || {
                let told = played(scene, &Who::daemon(), "knock")?;
                Ok((told.as_str() != Some("NotYours")).then(|| told.to_string()))
            })?;
            Ok(())
        })?;
        scene.step(
            "a second process is kept out while the first is connected, and the first is served on",
            |scene| {
                let mut first = Helper::open()?;
                first.ok(&HelperRequest::List { after: None })?;
                let told = played(scene, &Who::daemon(), "knock")?;
                ensure!(told.as_str() == Some("closed"), "the second: {told}");
                let still = first.told(&HelperRequest::List { after: None })?;
                ensure!(matches!(still, Told::Reply(Ok(_))), "the first: {still:?}");
                drop(first);
                scene.wait_until("the second is let in afterwards", Duration::from_secs(5), || {
                    let told = played(scene, &Who::daemon(), "knock")?;
                    Ok((told.as_str() != Some("NotYours")).then(|| told.to_string()))
                })?;
                Ok(())
            },
        )?;
        scene.step("each refusal is in the journal with its rule", |scene| {
            let journal = scene.journal("banger-priv.service")?;
            for rule in ["other-uid", "outside-daemon-cgroup", "second-connection"] {
                ensure!(
                    journal.contains(&format!("verdict=denied rule={rule}")),
                    "no {rule} in the journal:\n{journal}"
                );
            }
            Ok(())
        })
    })
}

/// The roles of this file.
pub(in crate::suite) fn play(words: &[&str]) -> Result<Option<Json>> {
    Ok(Some(match words {
        ["knock"] => knock()?.into(),
        ["knock-twice"] => {
            let first = knock()?;
            ensure!(first == "closed", "the first knock: {first}");
            knock()?.into()
        }
        ["die", times] => die(times.parse()?)?.into(),
        ["die-now"] => {
            let connection = Connection::silent().context("connect")?;
            print_line("connected");
            drop(connection);
            std::process::exit(0)
        }
        _ => return Ok(None),
    }))
}

/// Asks for something harmless; the code of the answer, or how it was refused.
fn knock() -> Result<String> {
    let vm = vm(250)?;
    let mut connection = match Connection::open() {
        Ok(connection) => connection,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok("no connection".to_owned()),
        Err(error) if crate::suite::peer::connection::is_end(&error) => return Ok("closed".to_owned()),
        Err(error) => return Err(error).context("knock"),
    };
    connection.call(1, HelperRequest::Identity { vm })?;
    match connection.reply()? {
        None => Ok("closed".to_owned()),
        Some(reply) => reply_word(&reply),
    }
}

/// Children that connect and are dead at once.
fn die(times: u32) -> Result<u32> {
    for _ in 0..times {
        let program = std::env::current_exe().context("find this program")?;
        let output = Command::new(program).args(["peer", "die-now"]).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success() && output.stdout == b"connected\n", "a child ended with {}", output.status);
    }
    Ok(times)
}
