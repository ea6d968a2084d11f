//! Daemon and helper of different releases, as on a host where only one of them was replaced: both
//! say so, VMs go on, and nothing but the one that is wrong needs to be changed back.

use std::io::{Read, Write, stdin};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use banger_proto::wire::{HELLO_BYTES, Hello, PROTOCOL_VERSION, Purpose, WireError};

use super::{DAEMON, HELPER, Life, no_unit_has_failed};
use crate::suite::guests::Guest;
use crate::suite::list::Outcome;
use crate::suite::peer::Json;
use crate::suite::peer::connection::{Connection, is_end};
use crate::suite::peer::place::{Who, role as program};
use crate::suite::scene::Scene;

/// A release that there never was.
const BUILD: &str = "999.0";
const NEWER: u16 = PROTOCOL_VERSION + 1;
const OLDER: u16 = PROTOCOL_VERSION - 1;

const FOLDER: &str = "/run/systemd/system/banger-priv.service.d";

/// What the programs of this suite do; see [`crate::suite::peer::roles`].
pub(in crate::suite) fn role(words: &[&str]) -> Result<Option<Json>> {
    match words {
        ["helper-of-version", version] => serve(version.parse()?),
        ["daemon-of-version", version] => call(version.parse()?).map(Some),
        _ => Ok(None),
    }
}

/// A helper of another release, as far as a daemon of ours sees it: it reads a hello, answers with
/// its own, and closes.
fn serve(version: u16) -> Result<Option<Json>> {
    // The socket comes as standard input: systemd.exec(5), StandardInput=socket.
    let listener = UnixListener::from(stdin().as_fd().try_clone_to_owned()?);
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut theirs = [0; HELLO_BYTES];
        // Whoever goes away meanwhile is not what this is about.
        if stream.read_exact(&mut theirs).is_ok() {
            let hello = Hello { version, purpose: Purpose::Calls, build: BUILD.to_owned() };
            let _ = stream.write_all(&hello.encode());
        }
    }
    Ok(None)
}

/// A daemon of another release, as far as a helper of ours sees it: which version the helper has,
/// and whether it closes.
fn call(version: u16) -> Result<Json> {
    let mut connection = Connection::silent()?;
    connection.write(&Hello { version, purpose: Purpose::Calls, build: BUILD.to_owned() }.encode())?;
    let mut bytes = [0; HELLO_BYTES];
    connection.socket().read_exact(&mut bytes)?;
    let hello = match Hello::decode(&bytes) {
        Ok(hello) => hello,
        Err(WireError::Version { theirs, build }) => Hello { version: theirs, purpose: Purpose::Calls, build },
        Err(error) => return Err(error.into()),
    };
    let rest = match connection.until_closed() {
        Ok(rest) => rest.len(),
        Err(error) if is_end(&error) => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(serde_json::json!({ "version": hello.version, "build": hello.build, "rest": rest }))
}

/// Puts a helper of that version into the packaged unit.
fn replace(scene: &Scene, version: u16) -> Result<()> {
    let drop_in = format!(
        "[Service]\nType=simple\nWatchdogSec=0\nNoExecPaths=\nExecPaths=\nStandardInput=socket\nStandardOutput=journal\n\
         ExecStart=\nExecStart={}\n",
        program(&format!("helper-of-version {version}"))?
    );
    std::fs::create_dir_all(FOLDER).with_context(|| format!("create {FOLDER}"))?;
    std::fs::write(format!("{FOLDER}/bench.conf"), drop_in).context("write the drop-in")?;
    scene.root(&format!("systemctl daemon-reload && systemctl restart {HELPER}")).map(drop)
}

fn put_back(scene: &Scene) -> Result<()> {
    scene.root(&format!("rm -rf {FOLDER} && systemctl daemon-reload && systemctl restart {HELPER}")).map(drop)
}

pub(super) fn helper(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "unmoved")?;
    let other = Guest::create(scene, "alice", "refused")?;
    guest.start_counter(scene)?;
    let life = Life::of(scene, &guest)?;
    for (version, title) in [(NEWER, "a helper of a newer version"), (OLDER, "a helper of an older version")] {
        let daemon = scene.main_pid(DAEMON)?;
        let replaced = replace(scene, version);
        let result = replaced.and_then(|()| differing(scene, title, version, (&guest, &life), &other));
        put_back(scene)?;
        result?;
        scene.step("both of one version again", |scene| {
            // The daemon that was restarted meanwhile is not restarted once more.
            let now = scene.main_pid(DAEMON)?;
            ensure!(now != daemon, "the daemon was not restarted while the helper was another");
            other.order(scene, "start")?.ok()?;
            other.shell(scene, "true")?.ok()?;
            other.order(scene, "stop")?.ok()?;
            ensure!(scene.main_pid(DAEMON)? == now, "the daemon had to be restarted");
            life.goes_on(scene, &guest)?;
            scene.root("banger doctor --leaks").map(drop)
        })?;
    }
    other.delete(scene)?;
    guest.delete(scene)?;
    no_unit_has_failed(scene)?;
    scene.passed()
}

fn differing(
    scene: &mut Scene,
    title: &str,
    version: u16,
    (guest, life): (&Guest, &Life),
    other: &Guest,
) -> Result<()> {
    let versions = [format!("protocol version {version} (build {BUILD})"), format!("{PROTOCOL_VERSION} here")];
    let words = [versions[0].as_str(), &versions[1], "different releases"];
    scene.step(&format!("{title}: the user is told what to do"), |scene| {
        let refused = other.order(scene, "start")?.refused(&words)?;
        ensure!(refused.stderr.contains("systemctl restart banger-priv bangerd"), "{refused}");
        Ok(())
    })?;
    scene.step("doctor says so too", |scene| {
        let doctor = scene.root_any("banger doctor")?;
        ensure!(!doctor.status.success(), "{doctor}");
        // doctor's command opens a socket again that was masked for a while, too.
        let command = "systemctl restart banger-priv.socket banger-priv bangerd";
        ensure!(words.iter().chain([&command]).all(|word| doctor.stdout.contains(word)), "{doctor}");
        Ok(())
    })?;
    scene.step("the VM that runs goes on, also over a restart of the daemon", |scene| {
        let counted = guest.counter(scene)?;
        scene.root(&format!("systemctl restart {DAEMON}"))?;
        life.goes_on(scene, guest)?;
        let now = guest.counter(scene)?;
        ensure!(now > counted, "the counter stands at {now}, and was {counted}");
        Ok(())
    })
}

/// The other way round. No daemon of another version exists to be run; what it would do is say
/// hello, from the daemon's place.
pub(super) fn daemon(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "unmoved")?;
    let life = Life::of(scene, &guest)?;
    let helper = scene.main_pid(HELPER)?;
    scene.root("systemctl stop bangerd.socket bangerd.service")?;
    let result = scene.step("the helper says its version, and takes nothing", |scene| {
        for version in [NEWER, OLDER] {
            let told = played(version)?;
            let said = told.get("version").and_then(Json::as_u64);
            ensure!(said == Some(PROTOCOL_VERSION.into()) && told.get("rest") == Some(&0.into()), "{version}: {told}");
        }
        // A daemon of our own version is let in: the order below.
        let refused = scene.journal(HELPER)?.matches("rule=protocol").count();
        ensure!(refused == 2, "{refused} refusals in the helper's journal, expected 2");
        Ok(())
    });
    scene.root("systemctl start bangerd.socket bangerd.service")?;
    result?;
    life.goes_on(scene, &guest)?;
    ensure!(scene.main_pid(HELPER)? == helper, "the helper was restarted");
    guest.order(scene, "restart")?.ok()?;
    guest.delete(scene)?;
    scene.passed()
}

fn played(version: u16) -> Result<Json> {
    let child = Who::daemon().start(&program(&format!("daemon-of-version {version}"))?)?;
    let output = child.wait_with_output().context("wait for the daemon of another version")?;
    if !output.status.success() {
        bail!("the daemon of version {version} ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("what the daemon of another version said")
}
