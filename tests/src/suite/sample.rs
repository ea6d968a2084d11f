//! What a sampled run takes of a suite: `make test` has an hour for everything, and each run
//! another choice. A suite that is named is run whole.

use super::list::{Scenario, Suite};
use super::report::print_line;

/// Suites of which a sampled run takes so many scenarios.
const SAMPLED: &[(&str, usize)] = &[
    ("inventory-control", 4),
    ("confinement", 3),
    ("hostile-client", 4),
    ("undo", 3),
    ("crowd", 2),
    ("owners", 2),
    ("dns", 1),
    ("doctor", 4),
    ("operating", 1),
    ("packets", 2),
    ("ports", 2),
    ("docs", 1),
    ("lifecycle", 4),
    ("using", 3),
    ("workspace", 2),
    ("sessions", 2),
    ("crash", 4),
    ("bad-input", 3),
    ("faults", 2),
    ("services", 2),
    ("stops", 1),
    ("images", 1),
    ("odd-images", 3),
    ("two-users", 1),
    ("shares", 1),
];

/// A sample by itself, and therefore in every sample.
const ALWAYS: &str = "kill-matrix";

/// The scenarios of a run, in the suite's order: all of them, or those that the seed chooses.
pub(super) fn scenarios(suite: &Suite, seed: Option<u64>) -> Vec<Scenario> {
    let mut all = (suite.scenarios)();
    let wanted = SAMPLED.iter().find(|(name, _)| *name == suite.name).map(|(_, count)| *count);
    let (Some(seed), Some(wanted)) = (seed, wanted) else { return all };
    let mut random = Random(seed);
    let count = all.len();
    while all.len() > wanted {
        let index = random.below(all.len());
        if all.get(index).is_some_and(|scenario| scenario.name != ALWAYS) {
            all.remove(index);
        }
    }
    print_line(&format!("  a sample with seed {seed}: {} of {count} scenarios", all.len()));
    all
}

/// Numbers that a seed determines: SplitMix64.
#[derive(Debug)]
pub struct Random(pub(super) u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound.max(1) as u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anyhow::Result;

    use super::super::list::find;
    use super::*;

    fn names(suite: &str, seed: Option<u64>) -> Result<Vec<String>> {
        Ok(scenarios(&find(suite)?, seed).into_iter().map(|scenario| scenario.name).collect())
    }

    #[test]
    fn every_scenario_has_its_turn_and_a_named_suite_is_whole() -> Result<()> {
        for (suite, count) in SAMPLED {
            let all = names(suite, None)?;
            assert!(all.len() > *count, "{suite} has no more than its sample");
            let mut seen = BTreeSet::new();
            for seed in 0..100 {
                let chosen = names(suite, Some(seed))?;
                assert_eq!((chosen.len(), &chosen), (*count, &names(suite, Some(seed))?), "{suite}: the seed decides");
                assert!(!all.contains(&ALWAYS.to_owned()) || chosen.contains(&ALWAYS.to_owned()));
                seen.extend(chosen);
            }
            assert_eq!(seen, all.into_iter().collect(), "{suite}");
        }
        assert_eq!(names("hostile-vmm", Some(1))?, names("hostile-vmm", None)?);
        Ok(())
    }
}
