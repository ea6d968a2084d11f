//! The suites of `make test`, in two host VMs at a time: a scenario is one thing after the other,
//! and leaves most of a second core idle.

use std::collections::VecDeque;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::main::needs;
use super::product::{Needs, Product};
use super::session::{How, Suites, transcript};
use super::tally::Tally;
use crate::suite::{Random, Suite};

/// Host VMs at a time, if there are so many cores.
const LANES: usize = 2;

/// A suite that has ended.
pub(super) struct Ended {
    pub(super) name: &'static str,
    pub(super) tally: Result<Tally>,
    pub(super) took: Duration,
    /// Why it was begun again, if it was.
    pub(super) again: Option<&'static str>,
    /// What it printed.
    pub(super) text: String,
}

/// Runs all suites; `tell` hears of each when it has ended. Without `built` only those run that
/// need no package. None is begun after `until`: those that are left are told as skipped. Which
/// ones these are is another choice each run, since suites of one setup come in an order that is
/// drawn.
pub(super) fn run(suites: Vec<Suite>, product: &Product, built: bool, until: Instant, mut tell: impl FnMut(Ended)) {
    let suites = drawn(suites, How::draw());
    let lanes = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(LANES));
    let chains = Mutex::new(VecDeque::from(chains(suites, lanes)));
    let next = || chains.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (sender, ended) = channel();
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            let sender = sender.clone();
            // The thread lives as long as its host VM: QEMU ends with the thread that has started
            // it.
            scope.spawn(move || {
                while let Some(chain) = next() {
                    one_after_the_other(&chain, product, built, until, &sender);
                }
            });
        }
        drop(sender);
        ended.iter().for_each(&mut tell);
    });
}

/// Suites of the same setup in the order that the seed says.
fn drawn(mut suites: Vec<Suite>, seed: u64) -> Vec<Suite> {
    let mut random = Random::new(seed);
    suites.sort_by_cached_key(|suite| (suite.setup, random.below(usize::MAX)));
    suites
}

fn one_after_the_other(chain: &[Suite], product: &Product, built: bool, until: Instant, sender: &Sender<Ended>) {
    let mut runs = Suites::new(product, How { quiet: true, sample: Some(How::draw()) });
    for (index, suite) in chain.iter().enumerate() {
        let started = Instant::now();
        if started > until {
            let text = format!("skipped: {}: the time for suites is over; another run may draw it", suite.name);
            let ended = Ended { name: suite.name, tally: Ok(Tally::SKIP), took: Duration::ZERO, again: None, text };
            if sender.send(ended).is_err() {
                return;
            }
            continue;
        }
        eprintln!("bench: suite {} begins", suite.name);
        let run = || -> Result<Tally> {
            ensure!(built || needs(suite.setup) == Needs::Nothing, "not run: the package was not built");
            runs.run(suite, None, chain.get(index + 1))
        };
        let tally = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the bench panicked")));
        let ended = Ended {
            name: suite.name,
            tally,
            took: started.elapsed(),
            again: runs.again(),
            text: transcript(suite.name),
        };
        if sender.send(ended).is_err() {
            return;
        }
    }
}

/// Suites that hand their host VM on stay together, but for chains so long that the other lanes
/// would wait for them.
fn chains(suites: Vec<Suite>, lanes: usize) -> Vec<Vec<Suite>> {
    let longest = suites.len().div_ceil(lanes.max(1));
    let mut chains: Vec<Vec<Suite>> = Vec::new();
    for suite in suites {
        match chains.last_mut() {
            Some(chain)
                if chain.len() < longest && chain.last().is_some_and(|last| last.setup.leads_to(suite.setup)) =>
            {
                chain.push(suite);
            }
            _ => chains.push(vec![suite]),
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;

    #[test]
    fn the_draw_keeps_every_suite_and_the_order_of_setups() {
        let of = |seed| drawn(suite::all(), seed).iter().map(|suite| (suite.setup, suite.name)).collect::<Vec<_>>();
        let (one, other) = (of(1), of(2));
        assert!(one.is_sorted_by_key(|(setup, _)| *setup) && one != other);
        let sorted = |mut names: Vec<_>| {
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(one), sorted(other));
    }

    #[test]
    fn every_suite_is_in_one_chain_and_the_lanes_are_even() {
        for lanes in 1..4 {
            let chains = chains(suite::all(), lanes);
            let names: Vec<&str> = chains.iter().flatten().map(|suite| suite.name).collect();
            assert_eq!(names, suite::all().iter().map(|suite| suite.name).collect::<Vec<_>>());
            let longest = chains.iter().map(Vec::len).max();
            assert!(longest.is_some_and(|longest| longest <= names.len().div_ceil(lanes)), "{lanes} lanes");
        }
    }
}
