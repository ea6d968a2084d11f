//! `--host`: carol, who may not use banger here, uses it as bob over the host's own sshd.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "remote",
    about: "the command line over ssh: commands, files, ssh to a guest, one login, who may not",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("as-bob-over-ssh", over_ssh)]
}

/// A login lasts for a minute after its last use.
const LOGIN_ENDS: Duration = Duration::from_secs(90);
const BOB: &str = "banger --host ssh://bob@localhost";

fn over_ssh(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    for path in ["/home/carol/*", "/home/bob/*", "/etc/shadow*", "/tmp/*"] {
        scene.allow(Allow::anything(Kind::File, path, "keys and known hosts of the two users, and copied files"));
    }
    // Without PAM, sshd lets nobody in whose account has no password at all.
    scene.root(
        "usermod -p '*' bob; cd /home/carol; rm -rf .ssh; runuser -u carol -- sh -c 'mkdir -m 0700 .ssh; \
         ssh-keygen -q -t ed25519 -N \"\" -f .ssh/id_ed25519; ssh-keyscan -t ed25519 localhost > .ssh/known_hosts 2>/dev/null'; \
         install -d -o bob -g bob -m 0700 /home/bob/.ssh; \
         install -o bob -g bob -m 0600 .ssh/id_ed25519.pub /home/bob/.ssh/authorized_keys",
    )?;
    let done = with_logins(scene);
    scene.root(
        "runuser -u carol -- ssh -S /home/carol/.ssh/banger/%C -O exit bob@localhost 2>/dev/null || :; \
         rm -rf /home/carol/.ssh /home/bob/.ssh; usermod -p '!' bob",
    )?;
    done?;
    scene.passed()
}

fn with_logins(scene: &mut Scene) -> Result<()> {
    let carol = |scene: &Scene, line: &str| scene.user("carol", &format!("cd; {BOB} {line}"));
    scene.step("a list, and what a stranger sees", |scene| {
        carol(scene, "vm list")?.ok()?;
        scene.banger("carol", &["vm", "list"])?.refused(&["group banger"]).map(drop)
    })?;
    let guest = Guest::run(scene, "bob", "far")?;
    scene.step("a command: both directions, its end and its status", |scene| {
        let ended = carol(scene, "vm exec far -- sh -c 'wc -c; exit 42' < /bin/busybox")?.exits(42)?;
        let bytes = scene.root("stat -c %s /bin/busybox")?;
        ensure!(ended.stdout.trim() == bytes.trim(), "{ended}");
        Ok(())
    })?;
    scene.step("files, which are carol's here", |scene| {
        carol(scene, "vm cp /etc/passwd far:copy")?.ok()?;
        carol(scene, "vm cp far:copy back")?.ok()?;
        scene.root("cmp /etc/passwd /home/carol/back").map(drop)
    })?;
    scene.step("ssh to the guest, through both", |scene| carol(scene, "vm ssh far exit 7")?.exits(7).map(drop))?;
    scene.step("one login serves all, and ends by itself", |scene| {
        let logins = "pgrep --uid bob --exact sshd-session | wc -l";
        ensure!(scene.root(logins)?.trim() == "1", "not one login");
        scene.wait_until("the login ends", LOGIN_ENDS, || {
            let left = scene.root(logins)?;
            Ok((left.trim() != "0").then_some(left))
        })?;
        Ok(())
    })?;
    scene.step("what fails says where", |scene| {
        let wrong = "banger --host ssh://nobody@localhost vm list";
        scene.user("carol", wrong)?.refused(&["ssh cannot log in"])?;
        scene.user("carol", "banger --host ssh://-oProxyCommand=id vm list")?.refused(&["no address"])?;
        Ok(())
    })?;
    guest.delete(scene)
}
