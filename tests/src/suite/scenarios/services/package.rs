//! The package under running VMs: an upgrade and a downgrade touch none; a removal shuts them down
//! first, or does not happen.

use anyhow::{Result, ensure};

use super::{DAEMON, HELPER, Life, no_unit_has_failed};
use crate::inventory::{Allow, Inventory, Kind};
use crate::suite::guests::Guest;
use crate::suite::list::Outcome;
use crate::suite::scene::Scene;

const SHIPPED: &str = "/srv/bench/banger.deb";
const NEWER: &str = "/srv/bench/newer.deb";
/// The end of each program of the newer package; what stands behind an ELF file's last section is
/// not loaded.
const MARK: &str = "bench-newer";

fn dpkg(words: &str) -> String {
    format!("DEBIAN_FRONTEND=noninteractive dpkg {words}")
}

pub(super) fn upgrade(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "upgraded")?;
    guest.start_counter(scene)?;
    let life = Life::of(scene, &guest)?;
    scene.step("a package of a higher version with other programs", |scene| {
        scene.root(&format!(
            "cd /srv/bench && rm -rf newer && dpkg-deb --raw-extract {SHIPPED} newer && \
             sed -i 's/^Version: .*/Version: 999-1/' newer/DEBIAN/control && \
             for p in bin/banger lib/banger/bangerd lib/banger/banger-priv; do printf {MARK} >> newer/usr/$p; done && \
             dpkg-deb --root-owner-group -Znone --build newer {NEWER} && rm -rf newer"
        ))
    })?;
    let result = change(scene, &guest, &life);
    scene.root(&format!("rm {NEWER}"))?;
    result?;
    guest.delete(scene)?;
    scene.passed()
}

fn change(scene: &mut Scene, guest: &Guest, life: &Life) -> Result<()> {
    for (title, package, newer) in [("upgrade", NEWER, true), ("downgrade", SHIPPED, false)] {
        scene.step(title, |scene| {
            let counted = guest.counter(scene)?;
            let pids = (scene.main_pid(DAEMON)?, scene.main_pid(HELPER)?);
            scene.root(&dpkg(&format!("--install {package}")))?;
            life.goes_on(scene, guest)?;
            let now = guest.counter(scene)?;
            ensure!(now > counted, "the counter stands at {now}, and was {counted}");
            ensure!(
                pids.0 != scene.main_pid(DAEMON)? && pids.1 != scene.main_pid(HELPER)?,
                "a service was not restarted"
            );
            for unit in [DAEMON, HELPER] {
                runs_what_is_installed(scene, unit, newer)?;
            }
            no_unit_has_failed(scene)?;
            if newer {
                // Daemon and helper speak to each other: a VM begins and ends.
                Guest::run(scene, "bob", "fresh")?.delete(scene)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn runs_what_is_installed(scene: &Scene, unit: &str, newer: bool) -> Result<()> {
    let exe = format!("/proc/{}/exe", scene.main_pid(unit)?);
    let path = scene.root(&format!("readlink {exe}"))?;
    ensure!(!path.contains("(deleted)"), "{unit} runs a program that is no longer installed: {path}");
    let end = scene.root(&format!("tail --bytes {} {exe} | tr -cd '[:print:]'", MARK.len()))?;
    ensure!((end == MARK) == newer, "{unit} runs the other package's program: it ends with {end:?}");
    Ok(())
}

pub(super) fn removal(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::altered(Kind::Link, "br-fc", "the package was removed and installed: its link was made anew"));
    let guest = Guest::run(scene, "alice", "kept")?;
    let life = Life::of(scene, &guest)?;
    scene.step("guests that cannot be shut down keep the package where it is", |scene| {
        // Nobody can ask the guest: the daemon does not answer.
        scene.root("systemctl stop bangerd.socket bangerd.service")?;
        let refused = scene.root_any(&dpkg("--remove banger"))?;
        let refused = refused.refused(&["guests still run", "banger vm stop --everyone", "banger vm kill"])?;
        ensure!(refused.stderr.contains("banger vm list --all"), "{refused}");
        ensure!(status(scene)? == "installed", "the package is {} after a refused removal", status(scene)?);
        // dpkg has the package put everything back, its sockets included.
        life.goes_on(scene, &guest)?;
        no_unit_has_failed(scene)
    })?;
    let removed = scene.step("else they are shut down cleanly, and it goes", |scene| {
        guest.shell(scene, "echo root > /var/kept; echo work > /root/kept")?.ok()?;
        scene.root(&dpkg("--remove banger"))?;
        ensure!(status(scene)? == "config-files", "the package is {} after its removal", status(scene)?);
        let inventory = Inventory::take()?;
        let ours = |name: &str, detail: &str| {
            [
                "/bangerd.service",
                "/run/banger",
                "/usr/libexec/banger/",
                "bgr",
                "br-fc",
                "BANGER-",
                "inet banger",
                "arp banger",
                &guest.id,
            ]
            .iter()
            .any(|mark| name.contains(mark) || detail.contains(mark))
        };
        let kinds =
            [Kind::Link, Kind::Dm, Kind::Loop, Kind::Nft, Kind::Iptables, Kind::Process, Kind::Cgroup, Kind::Socket];
        for kind in kinds {
            if let Some((name, detail)) = inventory.of(kind).find(|(name, detail)| ours(name, detail)) {
                anyhow::bail!("after the removal there is still a {kind}: {name} ({detail})");
            }
        }
        Ok(())
    });
    scene.root(&dpkg(&format!("--install {SHIPPED}")))?;
    removed?;
    scene.step("installed again: the VM is there, with what it wrote last", |scene| {
        guest.is(scene, "stopped")?;
        guest.order(scene, "start")?.ok()?;
        let kept = guest.shell(scene, "cat /var/kept /root/kept")?.ok()?;
        ensure!(kept.stdout == "root\nwork\n", "the removal lost fresh writes: {kept}");
        guest.delete(scene)
    })?;
    scene.passed()
}

fn status(scene: &Scene) -> Result<String> {
    scene.root("dpkg-query --show --showformat '${db:Status-Status}' banger")
}
