//! Services are restarted, upgraded, removed and shut down with the host: what that means for VMs
//! that run.

mod package;
mod reboot;
mod restarts;
mod versions;
mod writer;

use anyhow::{Result, ensure};

use crate::suite::guests::Guest;
use crate::suite::list::{Reboot, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) use versions::role;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "services",
    about: "restarts and other versions under running VMs; shutdown and power cut of the host",
    setup: Setup::Guests,
    scenarios,
};

/// What takes too long for every run.
pub(in crate::suite) const LONG: Suite = Suite {
    name: "services-long",
    about: "upgrade and removal of the package under a running VM; a hundred restarts of each service under a guest that writes",
    setup: Setup::Guests,
    scenarios: || {
        vec![
            // Installing a package takes longer under emulation than most scenarios.
            Scenario::new("package-upgrade-under-a-running-vm", package::upgrade),
            Scenario::new("package-removal-with-a-running-vm", package::removal),
            Scenario::new("a-hundred-restarts-under-a-writing-guest", |scene| restarts::under_load(scene, 100)),
        ]
    },
};

const DAEMON: &str = "bangerd.service";
const HELPER: &str = "banger-priv.service";

fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("restarts-under-a-writing-guest", |scene| restarts::under_load(scene, 5)),
        Scenario::new("helper-of-another-version", versions::helper),
        Scenario::new("daemon-of-another-version", versions::daemon),
    ];
    for (name, how) in [("host-shutdown-stops-guests-cleanly", Reboot::Clean), ("host-power-cut", Reboot::Hard)] {
        all.push(Scenario::across_reboot(
            name,
            move |scene| reboot::before(scene, how),
            move |scene| reboot::after(scene, how),
        ));
    }
    all
}

/// What must never change while a guest runs on.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    boot: String,
    vmm: u32,
}

impl Life {
    fn of(scene: &Scene, guest: &Guest) -> Result<Self> {
        Ok(Self { boot: guest.boot_id(scene)?, vmm: guest.vmm(scene)? })
    }

    /// The same boot of the same guest in the same process; listed as running, and commands reach
    /// it.
    fn goes_on(&self, scene: &Scene, guest: &Guest) -> Result<()> {
        guest.is(scene, "running")?;
        let now = Self::of(scene, guest)?;
        ensure!(now == *self, "{} was started again: {self:?} is now {now:?}", guest.name);
        Ok(())
    }
}

fn no_unit_has_failed(scene: &Scene) -> Result<()> {
    let failed = scene.root("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "failed units:\n{failed}");
    for unit in [DAEMON, HELPER] {
        let journal = scene.journal(unit)?;
        for words in ["Failed with result", "repeated too quickly", "panicked"] {
            ensure!(!journal.contains(words), "{unit}: {words:?} in its journal:\n{journal}");
        }
    }
    Ok(())
}
