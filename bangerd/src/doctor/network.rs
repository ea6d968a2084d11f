//! The network of the VMs against the host's: forwarding, the link, connection tracking, the
//! guests' resolver.

use super::read;
use crate::config::Config;
use banger_policy::limits::FLOWS_OF_USER;
use banger_policy::net::Network;
use banger_policy::reach::is_public;
use banger_proto::model::Check;
use std::net::Ipv4Addr;
use std::path::Path;

/// What the host must be able to track at least: what the guests of four users take with their
/// closed ones, and some of its own.
const TRACKED_FLOOR: u64 = 8 * FLOWS_OF_USER as u64;
/// Neighbours that the host must be able to keep at least: those of one user's flows, and as many
/// of others.
const NEIGHBOURS_FLOOR: u64 = 2 * FLOWS_OF_USER as u64;
/// What the mend sets, as the package does.
const NEIGHBOURS: u64 = 65_536;
/// What the mend sets at least, which is what Linux takes by itself on a host of 4 GiB.
const TRACKED: u64 = 262_144;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let there = |path: &str| Path::new(path).exists();
    vec![
        forwarding(&read("/proc/sys/net/ipv4/ip_forward")),
        link(&config.bridge_name, there(&format!("/sys/class/net/{}", config.bridge_name))),
        tracking(
            &read("/proc/sys/net/netfilter/nf_conntrack_max"),
            &read("/proc/sys/net/netfilter/nf_conntrack_count"),
        ),
        neighbours(&read("/proc/sys/net/ipv4/neigh/default/gc_thresh3")),
        resolver(config.default_dns, config.network),
    ]
}

fn forwarding(value: &str) -> Check {
    if value.trim() == "1" {
        return Check::pass("forwarding", "net.ipv4.ip_forward is 1");
    }
    Check::fail(
        "forwarding",
        "net.ipv4.ip_forward is not 1: no guest can reach out, whatever its --net or --allow says",
        "sudo sysctl --write net.ipv4.ip_forward=1   # and look for the file in /etc/sysctl.d that sets it to 0",
    )
}

fn link(name: &str, there: bool) -> Check {
    if there {
        return Check::pass("link of the VMs", name);
    }
    Check::fail("link of the VMs", format!("there is no {name}"), "sudo systemctl restart banger-priv")
}

/// When the table of connections is full, the kernel drops what begins a new one, whoever sends it.
fn tracking(most: &str, count: &str) -> Check {
    const NAME: &str = "connection tracking";
    // Without the module nothing is tracked.
    let (Ok(most), Ok(count)) = (most.trim().parse::<u64>(), count.trim().parse::<u64>()) else {
        return Check::pass(NAME, "not in use");
    };
    if most == 0 {
        return Check::pass(NAME, format!("{count} connections, without a limit"));
    }
    let full = count >= most.saturating_mul(4) / 5;
    if most >= TRACKED_FLOOR && !full {
        return Check::pass(NAME, format!("{count} of {most} connections"));
    }
    let why = if most < TRACKED_FLOOR {
        format!("nf_conntrack_max is {most}: too few beside the {FLOWS_OF_USER} that the guests of one user may have")
    } else {
        format!("{count} of {most} connections: when all are in use, nobody's new ones pass")
    };
    // At boot the setting is made before anything needs the module, unless the module is named,
    // too.
    Check::warn(
        NAME,
        why,
        format!(
            "echo nf_conntrack | sudo tee /etc/modules-load.d/zz-nf-conntrack.conf && \
             echo net.netfilter.nf_conntrack_max={} | sudo tee /etc/sysctl.d/zz-nf-conntrack.conf && \
             sudo sysctl --load=/etc/sysctl.d/zz-nf-conntrack.conf",
            most.saturating_mul(2).max(TRACKED)
        ),
    )
}

/// When the table of neighbours is full, nobody finds a new one, the gateway of the host included.
fn neighbours(most: &str) -> Check {
    const NAME: &str = "neighbour table";
    match most.trim().parse::<u64>() {
        Ok(most) if most < NEIGHBOURS_FLOOR => Check::warn(
            NAME,
            format!(
                "net.ipv4.neigh.default.gc_thresh3 is {most}: too few beside the {FLOWS_OF_USER} addresses that the \
                 guests of one user may send to"
            ),
            format!(
                "printf 'net.ipv4.neigh.default.gc_thresh2 = {}\\nnet.ipv4.neigh.default.gc_thresh3 = {NEIGHBOURS}\\n' | \
                 sudo tee /etc/sysctl.d/zz-neighbours.conf && sudo sysctl --load=/etc/sysctl.d/zz-neighbours.conf",
                NEIGHBOURS / 2
            ),
        ),
        Ok(most) => Check::pass(NAME, format!("room for {most}")),
        Err(_) => Check::pass(NAME, "not known"),
    }
}

/// The command that puts lines into the configuration in the place of keys that stand before its
/// first section.
pub(super) fn set(lines: &str, keys: &[&str]) -> String {
    let gone: String = keys.iter().map(|key| format!(" -e '/^{key} *=/d'")).collect();
    format!("sudo sed -i{gone} -e '1i {lines}' /etc/banger/banger.toml")
}

fn resolver(address: Ipv4Addr, network: Network) -> Check {
    const NAME: &str = "resolver";
    let public = set("default_dns = \"1.1.1.1\"", &["default_dns"]) + " && sudo systemctl reload bangerd";
    if address.is_loopback() || address.is_unspecified() || network.contains(address) {
        return Check::fail(
            NAME,
            format!("guests are told to ask {address}, which answers none of them"),
            public + "   # or another resolver that guests can reach",
        );
    }
    if !is_public(address) {
        return Check::warn(
            NAME,
            format!("guests ask {address}, which VMs with --net public cannot reach: it is no public address"),
            public + "   # or give such VMs another mode",
        );
    }
    Check::pass(NAME, format!("guests ask {address}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    fn network() -> Network {
        Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap()
    }

    #[test]
    fn a_host_that_does_not_forward() {
        assert_eq!((forwarding("1\n").status, forwarding("0\n").status, forwarding("").status), (Pass, Fail, Fail));
        assert_eq!((link("br-fc", true).status, link("br-fc", false).status), (Pass, Fail));
    }

    #[test]
    fn connections_that_the_host_can_track() {
        // The module is not loaded.
        assert_eq!(tracking("", "").status, Pass);
        for (most, count, status) in [
            ("262144\n", "60\n", Pass),
            ("65536\n", "52427\n", Pass),
            ("65536\n", "52428\n", Warn),
            ("65535\n", "0\n", Warn),
            // No limit (__nf_conntrack_alloc in net/netfilter/nf_conntrack_core.c).
            ("0\n", "300000\n", Pass),
            ("262144\n", "262144\n", Warn),
        ] {
            assert_eq!(tracking(most, count).status, status, "{most} {count}");
        }
        let mends = |most, count, set: &str| tracking(most, count).mend.contains(&format!("_max={set} |"));
        assert!(mends("1000", "10", "262144") && mends("262144", "250000", "524288"));
        assert!(tracking("1000", "10").detail.contains("is 1000"));
    }

    #[test]
    fn neighbours_that_the_host_can_keep() {
        for (most, status) in [("65536\n", Pass), ("16384\n", Pass), ("16383\n", Warn), ("1024\n", Warn), ("", Pass)] {
            assert_eq!(neighbours(most).status, status, "{most}");
        }
        assert!(neighbours("1024\n").mend.contains("gc_thresh3 = 65536"));
    }

    #[test]
    fn a_resolver_that_answers_no_guest() {
        assert_eq!(resolver(Ipv4Addr::new(1, 1, 1, 1), network()).status, Pass);
        assert_eq!(resolver(Ipv4Addr::new(10, 0, 0, 53), network()).status, Warn);
        for address in [[127, 0, 0, 53], [0, 0, 0, 0], [172, 16, 0, 1]] {
            assert_eq!(resolver(address.into(), network()).status, Fail, "{address:?}");
        }
    }
}
