//! Names of suites and scenarios. To add a suite: a file in `scenarios/`, and its name in [`all`].

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::scenarios;
use super::scene::Scene;
use crate::hostvm::Kind;

/// What must stand before a suite's first scenario; each step stands on the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Setup {
    /// The distribution alone; the package is not even built for it.
    Nothing,
    /// The distribution alone, with the package beside the suite.
    Package,
    /// The package is installed as shipped, and has imported the host's kernel; alice and bob are
    /// in group `banger`; nothing of the bench touches its units.
    Installed,
    /// And the VMM is in place.
    Vmm,
    /// And VMs can be started, in a VMM that boots nothing: the tiny image is imported.
    Still,
    /// And guests can boot.
    Guests,
    /// The same, in a host VM that has other programs with networks of their own.
    Neighbours,
}

impl Setup {
    /// Whether a suite may begin in a host VM that suites of this setup have left clean, instead of
    /// in one of its own.
    #[must_use]
    pub fn leads_to(self, next: Self) -> bool {
        // Below this, the suites install and remove the package themselves.
        self >= Self::Installed && next >= self && self.host() == next.host()
    }

    /// Which host VM it needs.
    #[must_use]
    pub const fn host(self) -> Kind {
        match self {
            Self::Neighbours => Kind::Neighbours,
            Self::Nothing | Self::Package | Self::Installed | Self::Vmm | Self::Still | Self::Guests => Kind::Plain,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Package => "package",
            Self::Installed => "installed",
            Self::Vmm => "vmm",
            Self::Still => "still",
            Self::Guests => "guests",
            Self::Neighbours => "neighbours",
        }
    }
}

/// How the host VM ends between the two parts of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// As an administrator does it.
    Clean,
    /// A power cut.
    Hard,
}

/// How a scenario (or its first part) ended, unless with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that it looked at was right.
    Passed,
    /// It could not run here, and why; never counted as passed.
    Skipped(String),
    /// It goes on with its second part after the host has rebooted.
    Reboot(Reboot),
}

type Part = Box<dyn Fn(&mut Scene) -> Result<Outcome>>;

/// One named scenario.
pub struct Scenario {
    /// Unique in its suite.
    pub name: String,
    pub(super) run: Part,
    pub(super) after_reboot: Option<Part>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Scenario {
    /// A scenario without a reboot.
    pub fn new(name: impl Into<String>, run: impl Fn(&mut Scene) -> Result<Outcome> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run), after_reboot: None }
    }

    /// A scenario whose first part ends with [`Outcome::Reboot`].
    pub fn across_reboot(
        name: impl Into<String>,
        run: impl Fn(&mut Scene) -> Result<Outcome> + 'static,
        after: impl Fn(&mut Scene) -> Result<Outcome> + 'static,
    ) -> Self {
        Self { name: name.into(), run: Box::new(run), after_reboot: Some(Box::new(after)) }
    }
}

/// Scenarios that share a host VM and its setup, run in order.
#[derive(Debug)]
pub struct Suite {
    /// What `make host-test SUITE=` takes.
    pub name: &'static str,
    /// One line for the list.
    pub about: &'static str,
    /// What must stand before.
    pub setup: Setup,
    /// The scenarios.
    pub scenarios: fn() -> Vec<Scenario>,
}

/// Every suite, in the order in which `make test` runs them: the bench's own control first.
#[must_use]
pub fn all() -> Vec<Suite> {
    vec![
        scenarios::inventory_control::SUITE,
        scenarios::root_disk::STORE,
        scenarios::install::SUITE,
        scenarios::package::SUITE,
        // From here on a host VM serves several, as long as nothing fails: setups only rise.
        scenarios::confinement::SUITE,
        scenarios::demo::SUITE,
        scenarios::docs::SUITE,
        scenarios::hostile_client::SUITE,
        scenarios::hostile_agent::SUITE,
        scenarios::helper_kills::SUITE,
        scenarios::undo::SUITE,
        scenarios::crowd::SUITE,
        scenarios::owners::SUITE,
        scenarios::remote::SUITE,
        scenarios::dns::SUITE,
        scenarios::packets::SUITE,
        scenarios::ports::SUITE,
        scenarios::lifecycle::SUITE,
        scenarios::using::SUITE,
        scenarios::commands::SUITE,
        scenarios::workspace::SUITE,
        scenarios::sessions::SUITE,
        scenarios::images::SUITE,
        scenarios::images::ODD,
        scenarios::root_disk::SUITE,
        scenarios::hostile_vmm::SUITE,
        scenarios::two_users::SUITE,
        scenarios::shares::SUITE,
        scenarios::crash::SUITE,
        scenarios::bad_input::SUITE,
        scenarios::faults::SUITE,
        scenarios::stops::SUITE,
        scenarios::services::SUITE,
    ]
}

/// Suites that run only when they are asked for.
#[must_use]
pub(super) fn on_request() -> Vec<Suite> {
    vec![
        scenarios::timings::SUITE,
        scenarios::first_steps::SUITE,
        scenarios::stops::LONG,
        scenarios::hostile_client::LONG,
        scenarios::crowd::LONG,
        scenarios::crowd::scale::SUITE,
        scenarios::services::LONG,
        scenarios::crash::BY_OPERATION,
        scenarios::root_disk::SIZES,
        scenarios::root_disk::LONG,
        scenarios::workspace::LARGE,
        scenarios::packets::NEIGHBOURS,
        // Until all of it has been seen to pass in the host VM.
        scenarios::clients::SUITE,
        scenarios::containers::SUITE,
        scenarios::pull::SUITE,
        scenarios::wedged::SUITE,
        scenarios::doctor::SUITE,
        scenarios::operating::SUITE,
    ]
}

/// The suite of that name; the error lists what there is.
pub fn find(name: &str) -> Result<Suite> {
    let mut known = Vec::new();
    for suite in all().into_iter().chain(on_request()) {
        if suite.name == name {
            return Ok(suite);
        }
        known.push(suite.name);
    }
    bail!("there is no suite {name:?}; there are: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn names_are_unique_and_every_suite_has_a_scenario() {
        let mut suites = BTreeSet::new();
        for suite in all().into_iter().chain(on_request()) {
            assert!(suites.insert(suite.name), "two suites are called {}", suite.name);
            let mut names = BTreeSet::new();
            for scenario in (suite.scenarios)() {
                assert!(
                    names.insert(scenario.name.clone()),
                    "{}: two scenarios are called {}",
                    suite.name,
                    scenario.name
                );
            }
            assert!(!names.is_empty(), "{} has no scenario", suite.name);
        }
    }

    #[test]
    fn a_host_is_handed_on_only_upwards_and_only_with_the_package_in_place() {
        for setup in Setup::value_variants() {
            assert_eq!(Setup::from_str(setup.word(), false).as_ref(), Ok(setup));
            assert!(!Setup::Guests.leads_to(*setup) || *setup == Setup::Guests);
        }
        assert!(Setup::Installed.leads_to(Setup::Vmm) && !Setup::Package.leads_to(Setup::Installed));
    }

    #[test]
    fn an_unknown_suite_is_answered_with_the_known_ones() {
        assert!(find("nonsense").is_err_and(|error| error.to_string().contains("inventory-control")));
    }
}
