//! The firewall, proved with packets and not with the text of its rules: counted where they arrive,
//! in three network namespaces.
//!
//! Every kind of packet that must not get through from a guest is also sent from a tap that the
//! firewall does not know, and gets through there.

mod dnat;
mod flows;
mod flush;
mod foreign;
mod frames;
mod guest;
mod isolation;
mod neighbours;
mod network;
mod reach;
mod users;

pub(in crate::suite) use guest::Guest;

use crate::suite::list::{Scenario, Setup, Suite};

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "packets",
    about: "what a guest can send and receive, with packets: spoofing, isolation, network modes, private networks, users, old flows, the host's DNAT, foreign rules, flushes",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("isolation", isolation::isolation),
        Scenario::new("local-users", users::local_users),
        Scenario::new("old-flows", flows::old_flows),
        Scenario::new("dnat", dnat::dnat),
        Scenario::new("modes", reach::modes),
        Scenario::new("lists", reach::lists),
        Scenario::new("private-networks", reach::private_networks),
        Scenario::new("foreign-rules-nft", foreign::nft),
        Scenario::new("foreign-rules-legacy", foreign::legacy),
        Scenario::new("flush", flush::flush),
    ]
}

/// Takes a restart of the services and turns of the timer in each cell.
pub(in crate::suite) const NEIGHBOURS: Suite = Suite {
    name: "neighbours",
    about: "guests reach out and stay apart beside whoever else makes networks and rules, in every order",
    setup: Setup::Neighbours,
    scenarios: neighbours,
};

fn neighbours() -> Vec<Scenario> {
    let matrix = neighbours::ALL.iter();
    let matrix = matrix.map(|one| Scenario::new(one.name, |scene| neighbours::beside(scene, one)));
    matrix.chain([Scenario::new("named-by-doctor", neighbours::named_by_doctor)]).collect()
}
