//! The way of a newcomer, on one terminal: from `apt install` to a shell in a guest. What the
//! terminal shows becomes `docs/first-steps.cast` (`make record`).

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::recording::Recording;
use crate::suite::report::print_line;
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "first-steps",
    about: "from apt install to a shell in a guest, on one terminal that is recorded",
    setup: Setup::Vmm,
    scenarios: || vec![Scenario::new("from-apt-install-to-a-shell-in-a-guest", walk)],
};

/// Before each line of the recording in what the suite prints.
pub const CAST: &str = "cast ";

/// The prompts, by which the end of a command is known.
const HOST: &str = "host# ";
const ALICE: &str = "alice@banger-host";
const GUEST: &str = "root@demo";

/// An installation imports the host's kernel.
const LONG: Duration = Duration::from_secs(150);

/// What is typed, and the prompt that comes next.
const STEPS: &[(&str, &str)] = &[
    ("apt install ./banger.deb", HOST),
    ("install -m 0755 firecracker /usr/local/bin/", HOST),
    ("usermod --append --groups banger alice", HOST),
    ("banger doctor | grep -v PASS", HOST),
    ("su - alice", ALICE),
    ("banger image import debian.tar --name debian --size 1G", ALICE),
    ("banger vm run --name demo --image debian --memory 512M --root-size 1G --disk-size 256M", GUEST),
    ("uname -nr; id -un", GUEST),
    ("exit", ALICE),
    ("banger vm list", ALICE),
    ("banger vm delete demo", ALICE),
    ("exit", HOST),
];

fn walk(scene: &mut Scene) -> Result<Outcome> {
    scene.step("a host as it is before banger", |scene| {
        // It has to begin where a newcomer does: what the bench has set up goes, but for what its
        // VMM needs of the unit.
        for kind in Kind::ALL {
            scene.allow(Allow::anything(kind, "*", "the package is removed, and installed anew"));
        }
        scene.root("DEBIAN_FRONTEND=noninteractive dpkg --purge banger && rm -rf /etc/banger")?;
        scene.root("gpasswd --delete alice banger; gpasswd --delete bob banger")?;
        scene.root("cp /srv/bench/banger.deb /srv/bench/firecracker /root/")?;
        scene.root("install -o alice -g alice -m 0644 /srv/bench/debian.tar /home/alice/debian.tar").map(drop)
    })?;
    let mut terminal = Recording::start(&format!("env PS1='{HOST}' bash --norc --noprofile -i"))?;
    terminal.wait_for(HOST, scene.limit(Duration::from_secs(10)))?;
    for (line, prompt) in STEPS {
        scene.step(line, |scene| {
            terminal.type_line(line)?;
            let shown = terminal.wait_for(prompt, scene.limit(LONG))?;
            ensure!(!shown.contains("FAIL ") && !shown.contains("command not found"), "{shown}");
            Ok(())
        })?;
        if *prompt == GUEST && line.starts_with("banger vm run") {
            scene.measured(
                "minutes from apt install to a shell",
                format!("{:.1}", terminal.elapsed().as_secs_f64() / 60.0),
            );
        }
    }
    terminal.type_line("exit")?;
    for line in terminal.end("banger: from apt install to a shell in a guest (host and guest are emulated)")? {
        print_line(&format!("{CAST}{line}"));
    }
    scene.passed()
}
