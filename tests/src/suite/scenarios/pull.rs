//! An image that is in a registry: Debian's docker-registry on the host's loopback, filled by
//! podman and skopeo, and a user who has nothing of it yet.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "pull",
    about: "an image of a registry is run from a cold cache, and again without a byte",
    setup: Setup::Neighbours,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("from-a-registry", from_a_registry)]
}

const NAME: &str = "localhost:5000/debian:13";
/// Debian's own configuration asks for a password.
const START: &str = "printf '%s\n' 'version: 0.1' 'storage: {filesystem: {rootdirectory: /var/tmp/bench-registry}}' \
    'http: {addr: \"127.0.0.1:5000\"}' > /srv/bench/registry.yml; \
    systemd-run --quiet --collect --unit bench-registry docker-registry serve /srv/bench/registry.yml";
const STOP: &str = "systemctl stop bench-registry.service; rm -rf /var/tmp/bench-registry /srv/bench/registry.yml";
/// podman's own storage is only in the way: it is in a folder that goes.
const FILL: &str = "set -e; work=$(mktemp -d /var/tmp/bench-pull.XXXXXX); cd $work; \
    podman() { command podman --root $work/root --runroot $work/run --storage-driver vfs \"$@\"; }; \
    podman import --quiet --change 'ENV GREETING=hello' --change 'WORKDIR /srv' /srv/bench/debian.tar bench/debian:13; \
    podman save --quiet --output debian-13.tar bench/debian:13; podman rmi --force bench/debian:13 >/dev/null; \
    skopeo copy --quiet --insecure-policy --dest-tls-verify=false docker-archive:debian-13.tar docker://localhost:5000/debian:13; \
    cd /; rm -rf $work";
/// Minutes under emulation.
const FILLED: Duration = Duration::from_secs(150);

/// Blobs and manifests that were asked for so far.
fn asked(scene: &Scene) -> Result<(u64, u64)> {
    let count = |what: &str| -> Result<u64> {
        let log = scene.journal("bench-registry.service")?;
        let get = format!("\"GET /v2/debian/{what}/");
        Ok(u64::try_from(log.lines().filter(|line| line.contains(&get)).count())?)
    };
    Ok((count("blobs")?, count("manifests")?))
}

fn from_a_registry(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    for path in ["/home/alice/.cache*", "/home/bob/.cache*", "/dev/shm/libpod_lock"] {
        scene.allow(Allow::anything(Kind::File, path, "what the engine and the command line keep"));
    }
    scene.step("a registry that has Debian", |scene| {
        scene.root(START)?;
        scene.wait_until("it answers", Duration::from_secs(10), || {
            let answer = scene.root_any("curl -sf http://localhost:5000/v2/")?;
            Ok((!answer.status.success()).then(|| answer.to_string()))
        })?;
        scene.start_root(FILL)?.wait(scene.limit(FILLED))?.ok().map(drop)
    })?;
    let run = ["vm", "run", "--detach", "--image", NAME, "--memory", "512M", "--root-size", "1G", "--disk-size", "64M"];
    let (blobs, _) = asked(scene)?;
    scene.step("one command from a cold cache", |scene| {
        scene.user("alice", "rm -rf ~/.cache/banger")?.ok()?;
        let words = [&run[..], &["--name", "first"]].concat();
        let ran = scene.start_banger("alice", &words)?.wait(scene.limit(FILLED))?.ok()?;
        ensure!(ran.stdout == "first\n" && ran.stderr.contains("pulled"), "{ran}");
        Ok(())
    })?;
    let first = Guest::known(scene, "alice", "first")?;
    let line = "cat /etc/debian_version; pwd; echo $GREETING";
    first.shell(scene, line)?.ok()?.says("13")?.says("/srv\nhello\n")?;
    let (after, manifests) = asked(scene)?;
    ensure!(after > blobs, "the registry was asked for {after} blobs, and before for {blobs}");
    scene.step("again: nothing is downloaded and nothing sent", |scene| {
        let stored = "find /var/lib/banger/images -printf '%i %s %p\\n' | sort | sha256sum";
        let before = scene.root(stored)?;
        let words = [&run[..], &["--name", "second"]].concat();
        scene.banger_long("alice", &words)?.ok()?;
        ensure!(asked(scene)? == (after, manifests), "the registry was asked again");
        ensure!(scene.root(stored)? == before, "images have changed");
        let again = scene.banger("alice", &["image", "pull", NAME])?.ok()?;
        again.says("up to date")?;
        ensure!(asked(scene)?.0 == after, "a pull of what is there asked for blobs");
        Ok(())
    })?;
    scene.step("another user pulls it, and runs it under the same name", |scene| {
        let words = [&run[..], &["--name", "bobs"]].concat();
        scene.start_banger("bob", &words)?.wait(scene.limit(FILLED))?.ok()?;
        Guest::known(scene, "bob", "bobs")?.delete(scene)
    })?;
    scene.step("what cannot be pulled makes no VM, and says why", |scene| {
        let none = ["vm", "run", "--detach", "--name", "none", "--image", "localhost:5000/debian:99"];
        scene.banger("alice", &none)?.refused(&["has no image"])?;
        scene.root(STOP)?;
        let gone = ["vm", "run", "--detach", "--name", "none", "--image", "localhost:5000/other:1"];
        scene.banger("alice", &gone)?.refused(&["cannot connect"])?;
        scene.banger("alice", &["vm", "show", "none"])?.refused(&["none"]).map(drop)
    })?;
    first.delete(scene)?;
    Guest::known(scene, "alice", "second")?.delete(scene)?;
    for user in ["alice", "bob"] {
        scene.banger(user, &["image", "delete", NAME])?.ok()?;
    }
    scene.user("alice", "banger image cache prune; rm -rf ~/.cache/banger")?.ok()?;
    scene.user("bob", "rm -rf ~/.cache/banger")?.ok()?;
    scene.passed()
}
