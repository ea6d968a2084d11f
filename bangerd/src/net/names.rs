//! Addresses of the names in VMs' lists of destinations: asked of the host's own resolver, off the
//! threads of the daemon's tasks, a few at once for each user; and what is remembered of the
//! answers.
//!
//! Whoever owns a name chooses its addresses. So one that is not of the public internet counts for
//! nothing: no name leads into a private network, to the host, to a guest, or to a metadata
//! service.

use crate::turns::Places;
use banger_policy::network::{HostName, Place, VmNetwork};
use banger_policy::reach::{MAX_TARGETS, Protocol, Range, Target, is_public};
use futures::future::join_all;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};
use tokio::time::timeout;

/// Names of one user that are asked for at once.
const AT_ONCE: usize = 4;
/// How long the resolver may take for a name, and all names of a VM together at its start. What has
/// not come by then is asked for again with the next refresh.
const LIMIT: Duration = Duration::from_secs(5);
/// How long an address counts after its name was last seen to have it, up to an answer without it:
/// names of large services take turns with their addresses, and a guest keeps one as long as its
/// own resolver says.
const KEEP: Duration = Duration::from_secs(600);
/// Addresses of one name.
const ADDRESSES: usize = 64;
const DNS: u16 = 53;

/// A resolver.
pub(crate) trait Resolver: Send + Sync + fmt::Debug {
    /// The name's IPv4 addresses. May block for long.
    ///
    /// # Errors
    /// The resolver's.
    fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>>;
}

/// The host's own, as every program of the host has it.
#[derive(Debug)]
struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>> {
        let four = |address: IpAddr| if let IpAddr::V4(address) = address { Some(address) } else { None };
        Ok((name, 0).to_socket_addrs()?.filter_map(|socket| four(socket.ip())).collect())
    }
}

/// What was answered about some names: no address of one that could not be resolved. A name that is
/// missing was not answered.
pub(crate) type Found = Vec<(HostName, Vec<Ipv4Addr>)>;

/// Looks names up.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    resolver: Arc<dyn Resolver>,
    places: Arc<Places>,
    limit: Duration,
}

impl Names {
    pub(crate) fn of_the_host() -> Self {
        Self::of(Arc::new(HostResolver))
    }

    pub(crate) fn of(resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, places: Arc::new(Places::new(AT_ONCE)), limit: LIMIT }
    }

    /// The addresses of a user's names, as far as they are found while somebody waits for them.
    pub(crate) async fn look_up(&self, owner: u32, names: Vec<HostName>) -> Found {
        let asked = names.into_iter().map(|name| timeout(self.limit, self.one(owner, name)));
        join_all(asked).await.into_iter().filter_map(|found| found.ok().flatten()).collect()
    }

    /// The same when nobody waits: each name in its turn, so that none of which the resolver says
    /// nothing keeps another from being asked for.
    pub(crate) async fn refresh(&self, owner: u32, names: Vec<HostName>) -> Found {
        join_all(names.into_iter().map(|name| self.one(owner, name))).await.into_iter().flatten().collect()
    }

    async fn one(&self, owner: u32, name: HostName) -> Option<(HostName, Vec<Ipv4Addr>)> {
        let place = self.places.of(owner).acquire_owned().await.ok()?;
        let resolver = Arc::clone(&self.resolver);
        let resolved = tokio::task::spawn_blocking(move || {
            // Until the resolver answers: a wait that was given up frees no place.
            let _place = place;
            let found = resolver.resolve(name.as_str());
            let found = found.inspect_err(|error| tracing::debug!("a name of a list is not resolved: {error}"));
            (name, found.unwrap_or_default())
        });
        timeout(self.limit, resolved).await.ok()?.ok()
    }
}

/// What is known of a VM's names.
#[derive(Debug, Default)]
pub(crate) struct Known {
    addresses: BTreeMap<HostName, BTreeMap<Ipv4Addr, Instant>>,
    /// When it was first asked for.
    since: Option<Instant>,
}

impl Known {
    /// Takes in what was found, and forgets what is old and what `network` no longer names.
    pub(crate) fn learn(&mut self, network: &VmNetwork, found: Found, now: Instant) {
        self.since.get_or_insert(now);
        for (name, addresses) in found {
            let known = self.addresses.entry(name).or_default();
            known.extend(addresses.into_iter().filter(|address| is_public(*address)).map(|address| (address, now)));
            known.retain(|_, seen| now.saturating_duration_since(*seen) < KEEP);
        }
        let names = network.names();
        self.addresses.retain(|name, _| names.contains(&name));
        for known in self.addresses.values_mut() {
            while known.len() > ADDRESSES {
                let oldest = known.iter().min_by_key(|(_, seen)| **seen).map(|(address, _)| *address);
                oldest.map(|address| known.remove(&address));
            }
        }
    }

    /// Has each name of the list been found, or been asked for so long that what it led to before
    /// counts no more? Until then, a daemon that has just begun knows less than the helper does.
    pub(crate) fn is_whole(&self, network: &VmNetwork, now: Instant) -> bool {
        let known = |name| self.addresses.get(name).is_some_and(|known| !known.is_empty());
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= KEEP)
            || network.names().into_iter().all(known)
    }

    /// What the guest may reach of its list: the ranges, of each name the addresses that are known,
    /// and, when there are names, its resolver's port of DNS. Never more than the helper takes;
    /// when there is too much, each name loses as many.
    pub(crate) fn targets(&self, network: &VmNetwork, resolver: Ipv4Addr) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut named = Vec::new();
        for entry in &network.allow {
            match &entry.place {
                Place::Range(range) => targets.extend(entry.targets(*range)),
                Place::Name(name) => named.push((entry, self.addresses.get(name))),
            }
        }
        if !named.is_empty() {
            let range = Range::one(resolver);
            targets.extend(Protocol::ALL.map(|protocol| Target { range, service: Some((protocol, DNS)) }));
        }
        for nth in 0..ADDRESSES {
            for (entry, known) in &named {
                if let Some((address, _)) = known.and_then(|known| known.iter().nth(nth)) {
                    targets.extend(entry.targets(Range::one(*address)));
                }
            }
        }
        targets.truncate(MAX_TARGETS);
        targets
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_policy::network::NetworkRequest;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn network(words: &[&str]) -> VmNetwork {
        let allow = Some(words.iter().map(|word| (*word).to_owned()).collect());
        VmNetwork::default().changed(&NetworkRequest { allow, ..NetworkRequest::default() }).unwrap()
    }

    fn found(network: &VmNetwork, addresses: &[[u8; 4]]) -> Found {
        let addresses: Vec<Ipv4Addr> = addresses.iter().copied().map(Ipv4Addr::from).collect();
        network.names().into_iter().map(|name| (name.clone(), addresses.clone())).collect()
    }

    fn texts(known: &Known, network: &VmNetwork) -> Vec<String> {
        known.targets(network, Ipv4Addr::new(1, 1, 1, 1)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_found_yet_is_no_reason_to_take_anything_away_for_a_while() {
        let network = network(&["example.org", "example.net"]);
        let (mut known, begun) = (Known::default(), Instant::now());
        assert!(!known.is_whole(&network, begun));
        let one = found(&network, &[[9, 9, 9, 9]]).into_iter().take(1).collect();
        known.learn(&network, one, begun);
        assert!(!known.is_whole(&network, begun + KEEP / 2), "the other is not found");
        assert!(known.is_whole(&network, begun + KEEP), "and counts no more");
        known.learn(&network, found(&network, &[[9, 9, 9, 9]]), begun + KEEP / 2);
        assert!(known.is_whole(&network, begun + KEEP / 2));
    }

    #[test]
    fn a_name_leads_to_no_private_address() {
        let network = network(&["example.org:443/tcp"]);
        let mut known = Known::default();
        let hostile =
            [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254], [172, 16, 0, 1], [100, 100, 100, 200], [9, 9, 9, 9]];
        known.learn(&network, found(&network, &hostile), Instant::now());
        assert_eq!(texts(&known, &network), ["1.1.1.1/32:53/tcp", "1.1.1.1/32:53/udp", "9.9.9.9/32:443/tcp"]);
    }

    #[test]
    fn the_resolver_is_reached_only_when_there_are_names() {
        let known = Known::default();
        assert_eq!(texts(&known, &network(&["10.0.0.0/8:22"])), ["10.0.0.0/8:22/tcp", "10.0.0.0/8:22/udp"]);
        assert_eq!(texts(&known, &network(&["example.org"])), ["1.1.1.1/32:53/tcp", "1.1.1.1/32:53/udp"]);
    }

    #[test]
    fn an_address_counts_for_a_while_after_it_was_last_seen() {
        let network = network(&["example.org"]);
        let (mut known, begin) = (Known::default(), Instant::now());
        known.learn(&network, found(&network, &[[9, 9, 9, 9]]), begin);
        known.learn(&network, found(&network, &[[8, 8, 8, 8]]), begin + KEEP / 2);
        assert_eq!(texts(&known, &network)[2..], ["8.8.8.8/32", "9.9.9.9/32"]);
        // Names that are not resolved for a while are no reason to cut anything, and neither is one
        // that is not answered at all, however long.
        known.learn(&network, found(&network, &[]), begin + KEEP - Duration::from_secs(1));
        known.learn(&network, Vec::new(), begin + 9 * KEEP);
        assert_eq!(texts(&known, &network).len(), 4);
        known.learn(&network, found(&network, &[]), begin + KEEP);
        assert_eq!(texts(&known, &network)[2..], ["8.8.8.8/32"]);
        known.learn(&VmNetwork::default(), Vec::new(), begin + KEEP);
        assert_eq!(known.addresses.len(), 0, "nothing is kept of a name that is not in the list any more");
    }

    #[test]
    fn however_many_addresses_a_name_has_others_have_room() {
        let words: Vec<String> = (0..64).map(|n| format!("n{n}.example.org:443")).collect();
        let network = network(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let mut known = Known::default();
        let many: Vec<[u8; 4]> = (0..200).map(|n| [9, 9, 9, n]).collect();
        known.learn(&network, found(&network, &many), Instant::now());
        assert!(known.addresses.values().all(|known| known.len() == ADDRESSES));
        assert_eq!(texts(&known, &network).len(), MAX_TARGETS);
    }

    /// Answers after a while, and counts who waits.
    #[derive(Debug, Default)]
    struct Slow {
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Resolver for Slow {
        fn resolve(&self, _: &str) -> io::Result<Vec<Ipv4Addr>> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            self.now.fetch_sub(1, Ordering::SeqCst);
            Ok(vec![Ipv4Addr::new(9, 9, 9, 9)])
        }
    }

    /// Says nothing for long about names that begin with "dead".
    #[derive(Debug)]
    struct Lame;

    impl Resolver for Lame {
        fn resolve(&self, name: &str) -> io::Result<Vec<Ipv4Addr>> {
            if name.starts_with("dead") {
                std::thread::sleep(Duration::from_millis(400));
            }
            Ok(vec![Ipv4Addr::new(9, 9, 9, 9)])
        }
    }

    #[tokio::test]
    async fn names_that_the_resolver_does_not_answer_keep_no_other_from_being_asked_for() {
        let names = Names { limit: Duration::from_millis(50), ..Names::of(Arc::new(Lame)) };
        let words: Vec<String> = (0..AT_ONCE).map(|n| format!("dead{n}.example.org")).collect();
        let words = words.iter().map(String::as_str).chain(["registry.example.org"]).collect::<Vec<_>>();
        let all: Vec<HostName> = network(&words).names().into_iter().cloned().collect();
        let found = |found: Found| found.iter().map(|(name, _)| name.as_str().to_owned()).collect::<Vec<_>>();
        for _ in 0..2 {
            assert_eq!(found(names.refresh(1, all.clone()).await), ["registry.example.org"]);
        }
        // A start does not wait so long.
        assert!(found(names.look_up(1, all).await).len() <= 1);
    }

    #[tokio::test]
    async fn one_user_asks_a_few_at_once_and_keeps_nobody_waiting() {
        let slow = Arc::new(Slow::default());
        let names = Names::of(Arc::clone(&slow) as Arc<dyn Resolver>);
        let words: Vec<String> = (0..20).map(|n| format!("n{n}.example.org")).collect();
        let network = network(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let all: Vec<HostName> = network.names().into_iter().cloned().collect();
        let one = all[..1].to_vec();
        let (his, hers) = tokio::join!(names.look_up(1, all), names.look_up(2, one));
        assert_eq!((his.len(), hers.len()), (20, 1));
        assert!(slow.most.load(Ordering::SeqCst) <= AT_ONCE + 1);
    }
}
