//! The main job from end to end, as `make demo` shows it: alice, in group `banger`, without sudo
//! and not in group `kvm`.

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::report::print_line;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "demo",
    about: "a user without sudo boots a Debian microVM, uses it and removes it",
    setup: Setup::Vmm,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("a-user-without-sudo", demo)]
}

const SIZE: &[&str] = &["--vcpu", "1", "--memory", "512M", "--root-size", "1G", "--disk-size", "256M"];

fn demo(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    // Kept for alice's later VMs: her SSH key.
    scene.allow(Allow::anything(Kind::File, "/home/alice/.local*", "alice's SSH key for her VMs is made once"));

    scene.step("alice is in group banger, has no sudo, and may not open /dev/kvm", |scene| {
        let groups = scene.user("alice", "id -nG")?.ok()?.says("banger")?.does_not_say("kvm")?;
        print_line(&format!("       groups: {}", groups.stdout.trim()));
        scene.user("alice", "sudo -n true")?.refused(&[])?;
        ensure!(!scene.user("alice", "exec 3<>/dev/kvm")?.status.success(), "alice can open /dev/kvm");
        Ok(())
    })?;
    let kernel = scene.root("uname -r")?;
    shown(scene, "the host's kernel came with the package", &["kernel", "list"], &[kernel.trim()])?;
    let tar = "/srv/bench/debian.tar";
    shown(
        scene,
        "a Debian root file system",
        &["image", "import", tar, "--name", "debian", "--size", "1G"],
        &["imported debian"],
    )?;
    let run = [&["vm", "run", "--name", "demo", "--image", "debian"], SIZE, &["--", "uname", "-a"]].concat();
    shown(scene, "a VM, and a command in it", &run, &["Linux demo", "x86_64"])?;
    let write = "echo kept > /root/note && echo also > /etc/note && cat /etc/os-release";
    shown(scene, "a file on each disk", &["vm", "exec", "demo", "--", "sh", "-c", write], &["trixie"])?;
    shown(scene, "stop", &["vm", "stop", "demo"], &[])?;
    shown(scene, "start", &["vm", "start", "demo"], &[])?;
    shown(
        scene,
        "the files are still there",
        &["vm", "exec", "demo", "--", "cat", "/root/note", "/etc/note"],
        &["kept\nalso\n"],
    )?;
    shown(scene, "ssh, by the user's own client", &["vm", "ssh", "demo", "id", "-un"], &["root\n"])?;
    shown(scene, "list", &["vm", "list"], &["demo", "running", "debian"])?;
    shown(scene, "delete", &["vm", "delete", "demo"], &[])?;
    scene.banger("alice", &["vm", "list"])?.ok()?.does_not_say("demo")?;
    shown(scene, "the image too", &["image", "delete", "debian"], &[])?;
    scene.passed()
}

/// Runs `banger` as alice, shows what she would see, and looks for the words in it.
fn shown(scene: &mut Scene, title: &str, words: &[&str], expected: &[&str]) -> Result<()> {
    print_line(&format!("\nalice$ banger {}", words.join(" ")));
    scene.step(title, |scene| {
        let finished = scene.banger_long("alice", words)?;
        for line in finished.stderr.lines().chain(finished.stdout.lines()) {
            print_line(&format!("  {line}"));
        }
        let finished = finished.ok()?;
        for text in expected {
            ensure!(finished.stdout.contains(text), "{text:?} is not in what it printed: {finished}");
        }
        Ok(())
    })
}
