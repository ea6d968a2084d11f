//! Routes of the host that lead into the network of the VMs, and networks that are free instead.
//! Read from `/proc/net`, where both are a page of text: `route` has the main table with its
//! devices, `fib_trie` has all tables, those of VPNs above all.

use banger_policy::id::DEVICE_PREFIX;
use banger_policy::net::Network;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

const ROUTES: &str = "/proc/net/route";
const TABLES: &str = "/proc/net/fib_trie";
/// How often it is looked whether a route has come: VPNs come and go.
const LOOK: Duration = Duration::from_secs(60);
/// Networks that are proposed, in this order: seldom used by routers, container engines and VPNs.
/// With the prefix of the configuration.
const PROPOSALS: [[u8; 4]; 8] = [
    [172, 31, 0, 1],
    [10, 213, 0, 1],
    [10, 87, 0, 1],
    [192, 168, 213, 1],
    [172, 27, 0, 1],
    [10, 155, 0, 1],
    [192, 168, 87, 1],
    [172, 23, 0, 1],
];

/// A route, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    target: Ipv4Addr,
    prefix: u8,
    via: Via,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Via {
    Device(String),
    /// Of another routing table than the main one; which device it names cannot be read.
    Table(String),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ", self.target, self.prefix)?;
        match &self.via {
            Via::Device(device) => write!(f, "by {device}"),
            Via::Table(table) => write!(f, "in routing table {table}"),
        }
    }
}

impl Route {
    /// Does it lead to this address?
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = mask(self.prefix);
        address.to_bits() & mask == self.target.to_bits() & mask
    }

    /// The one address that it leads to, when it is in the main table: there the host's own route
    /// to a guest has no place beside it.
    pub(crate) fn only(&self) -> Option<Ipv4Addr> {
        (self.prefix == 32 && matches!(self.via, Via::Device(_))).then_some(self.target)
    }

    /// Is there an address in both? The route to everywhere is no clash: a narrower one wins.
    /// Neither are its two halves, by which a VPN takes its place.
    fn overlaps(&self, network: Network) -> bool {
        let common = mask(self.prefix) & mask(network.prefix());
        self.prefix > 1 && self.target.to_bits() & common == network.gateway().to_bits() & common
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}

/// All routes of this host but banger's own.
pub(crate) fn routes(bridge: &str) -> Vec<Route> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    parse(bridge, &read(ROUTES), &read(TABLES))
}

/// Those that lead into the network.
pub(crate) fn clashes(network: Network, bridge: &str) -> Vec<Route> {
    clashing(network, &routes(bridge))
}

pub(crate) fn clashing(network: Network, routes: &[Route]) -> Vec<Route> {
    routes.iter().filter(|route| route.overlaps(network)).cloned().collect()
}

/// One beside the network, in the same 65,536 addresses: the rest of these may be somebody's whom
/// the host reaches by its route to everywhere.
pub(crate) fn near(network: Network, routes: &[Route]) -> Option<&Route> {
    let half = |address: Ipv4Addr| address.to_bits() >> 16;
    let beside = |route: &&Route| route.prefix >= 16 && half(route.target) == half(network.gateway());
    routes.iter().find(beside)
}

/// A network of the same size that no route leads into.
pub(crate) fn proposal(network: Network, routes: &[Route]) -> Option<Network> {
    let candidates = PROPOSALS.iter().filter_map(|gateway| Network::new((*gateway).into(), network.prefix()).ok());
    candidates.into_iter().find(|free| !routes.iter().any(|route| route.overlaps(*free)))
}

/// From the texts of both files (proc(5)).
pub(crate) fn parse(bridge: &str, main: &str, tables: &str) -> Vec<Route> {
    let main = main.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 32 bits in the byte order of the host, in hexadecimal.
        let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok().map(u32::from_be);
        let device = (*fields.first()?).to_owned();
        let (target, mask) = (Ipv4Addr::from(number(1)?), number(7)?);
        let prefix = u8::try_from(mask.count_ones()).ok()?;
        // Taps have a route to their own guest each.
        let other = device != bridge && !device.starts_with(DEVICE_PREFIX);
        other.then_some(Route { target, prefix, via: Via::Device(device) })
    });
    main.chain(other_tables(tables)).collect()
}

/// A tree of prefixes for each table. A leaf is a line with its address, and a line for each route
/// to it: `/24 link UNICAST`. The tables of the kernel's own are called by name, the others by
/// number.
fn other_tables(text: &str) -> Vec<Route> {
    let (mut table, mut leaf, mut found) = (None, None, Vec::new());
    for line in text.lines() {
        let line_starts_table = !line.starts_with(' ');
        if line_starts_table {
            table = line.strip_prefix("Id ").map(|rest| rest.trim_end_matches(':').to_owned());
        } else if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            leaf = address.trim().parse::<Ipv4Addr>().ok();
        } else if let (Some(table), Some(target)) = (&table, leaf)
            && let Some(rest) = line.trim_start().strip_prefix('/')
            // A "throw" sends to the next table, as if there were no route.
            && !rest.ends_with("THROW")
            && let Some(prefix) = rest.split_whitespace().next().and_then(|prefix| prefix.parse().ok())
        {
            found.push(Route { target, prefix, via: Via::Table(table.clone()) });
        }
    }
    found
}

/// Says in the log when a route into the network is there, and when it comes or goes. After the
/// first look it waits until a VM `runs`: only that one's packets could go astray.
pub(crate) fn watch<F>(network: Network, bridge: String, runs: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        let mut known = Vec::new();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let bridge = bridge.clone();
            let look = tokio::task::spawn_blocking(move || clashes(network, &bridge));
            let Ok(now) = look.await else { continue };
            for line in news(network, &known, &now) {
                tracing::warn!("{line}");
            }
            known = now;
            runs().await;
        }
    });
}

fn news(network: Network, known: &[Route], now: &[Route]) -> Vec<String> {
    let ours = format!("the network of the VMs ({}/{})", network.gateway(), network.prefix());
    let new = now.iter().filter(|route| !known.contains(route)).map(|route| {
        format!("a route of this host leads into {ours}: {route}; `banger doctor` says how to choose another network")
    });
    let gone = known.iter().filter(|route| !now.contains(route));
    new.chain(gone.map(|route| format!("no longer in {ours}: {route}"))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    pub(crate) const HEADER: &str =
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
    /// As the kernel writes it, with a table of a VPN.
    const TRIE: &str = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 172.16.0.0\n        /24 link UNICAST\nLocal:\n  |-- 127.0.0.1\n     /32 host LOCAL\nId 52:\n  +-- 0.0.0.0/0 2 0 2\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 172.16.0.0\n        /20 universe UNICAST\n        /28 universe THROW\n     |-- 100.64.0.9\n        /32 universe UNICAST\n";

    fn network() -> Network {
        Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap()
    }

    /// A line as the kernel writes it.
    pub(crate) fn route(device: &str, target: [u8; 4], mask: [u8; 4]) -> String {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        format!("{device}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", word(target), word(mask))
    }

    #[test]
    fn routes_of_other_tables_clash_too() {
        let routes = parse("br-fc", HEADER, TRIE);
        let said: Vec<String> = clashing(network(), &routes).iter().map(Route::to_string).collect();
        assert_eq!(said, ["172.16.0.0/20 in routing table 52"]);
        assert!(routes.iter().any(|route| route.contains([100, 64, 0, 9].into())));
        assert!(clashing(Network::new([10, 1, 2, 1].into(), 24).unwrap(), &routes).is_empty());
    }

    #[test]
    fn a_route_to_one_address_is_told_from_others() {
        let text = format!(
            "{HEADER}{}{}",
            route("wg0", [172, 16, 0, 7], [255; 4]),
            route("tun0", [172, 16, 0, 0], [255, 255, 0, 0])
        );
        let only: Vec<Ipv4Addr> = parse("br-fc", &text, TRIE).iter().filter_map(Route::only).collect();
        assert_eq!(only, [Ipv4Addr::new(172, 16, 0, 7)], "that of another table is in nobody's way");
    }

    #[test]
    fn a_network_is_proposed_that_no_route_leads_into() {
        let taken = |target, mask| parse("br-fc", &format!("{HEADER}{}", route("tun0", target, mask)), "");
        let gateway = |routes: &[Route]| proposal(network(), routes).map(Network::gateway);
        assert_eq!(gateway(&[]), Some([172, 31, 0, 1].into()));
        let lan = taken([172, 16, 0, 0], [255, 240, 0, 0]);
        let free = gateway(&lan).unwrap();
        assert!(!lan.iter().any(|route| route.contains(free)), "{free}");
        // The halves of a VPN that takes everything are no clash: narrower routes win.
        let half = |first| taken([first, 0, 0, 0], [128, 0, 0, 0]);
        let halves: Vec<Route> = half(0).into_iter().chain(half(128)).collect();
        assert!(clashing(network(), &halves).is_empty() && gateway(&halves).is_some());
        assert!(!clashing(network(), &taken([128, 0, 0, 0], [192, 0, 0, 0])).is_empty(), "a quarter is one");
        for wide in 16..=30 {
            let network = Network::new(Ipv4Addr::new(172, 16, 0, 1), wide).unwrap();
            assert!(proposal(network, &lan).is_some(), "{wide}");
        }
    }

    #[test]
    fn a_clash_is_said_once_and_its_end_too() {
        let now = clashing(network(), &parse("br-fc", HEADER, TRIE));
        assert_eq!((news(network(), &[], &now).len(), news(network(), &now, &now).len()), (1, 0));
        assert!(news(network(), &now, &[])[0].contains("no longer"));
    }
}
