//! Images of other kinds than the tiny tar: one with its own init, an OCI layout of two layers,
//! file systems of ext4 that are taken as they are, and what people's images bring that a machine
//! of one's own does not expect.

mod layout;
mod odd;
mod registered;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use self::layout::Layout;
use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "images",
    about: "an image that boots its own systemd; an OCI layout with whiteouts; a file system that is registered",
    setup: Setup::Guests,
    scenarios,
};

/// Each boots a guest of its own.
pub(in crate::suite) const ODD: Suite = Suite {
    name: "odd-images",
    about: "images with odd inits, users, links and settings boot, answer and stop",
    setup: Setup::Guests,
    scenarios: odd::scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("debian-boots-its-own-systemd", own_systemd),
        Scenario::new("oci-layout-with-whiteout", oci_layout),
        Scenario::new("registered", registered::registered),
    ]
}

const SIZE: &[&str] = &["--vcpu", "1", "--memory", "512M", "--root-size", "1G", "--disk-size", "64M"];

fn own_systemd(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.step("import", |scene| {
        let words = ["image", "import", "/srv/bench/debian-systemd.tar", "--name", "systemd", "--size", "1G"];
        scene.banger_long("alice", &words)?.ok().map(drop)
    })?;
    let words = [&["vm", "run", "--detach", "--name", "own-init", "--image", "systemd"], SIZE].concat();
    scene.step("boot", |scene| scene.banger_long("alice", &words)?.ok().map(drop))?;
    let guest = Guest::known(scene, "alice", "own-init")?;
    scene.step("systemd is PID 1 and comes up with the agent beside it", |scene| {
        guest.shell(scene, "cat /proc/1/comm")?.ok()?.says("systemd")?;
        // It waits 90 s for the device of its serial getty when its udev is slow, which it is in an
        // emulated guest.
        scene.wait_until("systemd is up in the guest", Duration::from_secs(75), || {
            let state = guest.shell(scene, "systemctl is-system-running; :")?.ok()?.stdout;
            Ok((!["running", "degraded"].contains(&state.trim())).then_some(state))
        })?;
        guest.shell(scene, "hostname && findmnt -n -o FSTYPE /root")?.ok()?.says("own-init")?.says("ext4").map(drop)
    })?;
    scene.step("a clean stop is systemd's own", |scene| {
        let stopped = guest.order(scene, "stop")?.ok()?;
        guest.is(scene, "stopped")?;
        // The product itself warns when it had to end the guest. What the guest's kernel says last
        // depends on the VMM: one that offers no way to power off makes it halt.
        ensure!(!stopped.stderr.contains("warning:"), "systemd has not gone down by itself: {stopped}");
        Ok(())
    })?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "systemd"])?.ok()?;
    scene.passed()
}

fn oci_layout(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let folder = Path::new("/srv/bench/oci");
    Layout::over(Path::new("/srv/bench/tiny.tar"))
        .file("etc/upper", 0o644, b"upper\n")
        .file("etc/.wh.bench-release", 0o644, b"")
        .file("odd/.wh..wh..opq", 0o644, b"")
        .file("odd/only this", 0o644, b"x")
        .write(folder)?;
    let words = ["image", "import", "/srv/bench/oci", "--name", "layered", "--size", "512M"];
    scene.banger_long("alice", &words)?.ok()?;
    fs::remove_dir_all(folder)?;
    let words = [&["vm", "run", "--detach", "--name", "layered", "--image", "layered"], SIZE].concat();
    scene.banger_long("alice", &words)?.ok()?;
    let guest = Guest::known(scene, "alice", "layered")?;
    guest.shell(scene, "cat /etc/upper")?.ok()?.says("upper")?;
    guest.shell(scene, "test ! -e /etc/bench-release && test -e /etc/passwd")?.ok()?;
    guest.shell(scene, "ls /odd")?.ok()?.says("only this")?.does_not_say("owned by others")?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "layered"])?.ok()?;
    scene.passed()
}
