//! The network of the VMs against the host's: forwarding, routes that overlap, the resolver, other
//! firewalls.

use super::read;
use crate::config::Config;
use banger_policy::net::Network;
use banger_proto::model::Check;
use std::net::Ipv4Addr;
use std::path::Path;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let there = |path: &str| Path::new(path).exists();
    vec![
        forwarding(&read("/proc/sys/net/ipv4/ip_forward")),
        link(&config.bridge_name, there(&format!("/sys/class/net/{}", config.bridge_name))),
        routes(config.network, &config.bridge_name, &read("/proc/net/route")),
        resolver(config.default_dns, config.network),
        other_firewalls(there),
        firewall_rules(there),
    ]
}

fn forwarding(value: &str) -> Check {
    if value.trim() == "1" {
        return Check::pass("forwarding", "net.ipv4.ip_forward is 1");
    }
    Check::fail(
        "forwarding",
        "net.ipv4.ip_forward is not 1: guests with --nat cannot reach out",
        "sudo sysctl --write net.ipv4.ip_forward=1   # and look for the file in /etc/sysctl.d that sets it to 0",
    )
}

fn link(name: &str, there: bool) -> Check {
    if there {
        return Check::pass("link of the VMs", name);
    }
    Check::fail("link of the VMs", format!("there is no {name}"), "sudo systemctl restart banger-priv")
}

/// `/proc/net/route` has addresses as 32 bits in the byte order of the host, in hexadecimal
/// (proc(5)).
fn routes(network: Network, bridge: &str, table: &str) -> Check {
    const NAME: &str = "routes";
    let ours = mask(network.prefix());
    let base = u32::from(network.gateway()) & ours;
    let clash = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok().map(u32::from_be);
        let (device, target, theirs) = (*fields.first()?, number(1)?, number(7)?);
        // The route to everywhere is no clash: a narrower one wins.
        let overlaps = theirs != 0 && target & ours & theirs == base & ours & theirs;
        // Taps have a route to their own guest each.
        let other = device != bridge && !device.starts_with("bgr");
        (overlaps && other).then(|| format!("{}/{} by {device}", Ipv4Addr::from(target), theirs.count_ones()))
    });
    let own = format!("{}/{}", Ipv4Addr::from(base), network.prefix());
    match clash {
        None => Check::pass(NAME, format!("none but banger's own leads into {own}")),
        Some(other) => Check::fail(
            NAME,
            format!("the network of the VMs, {own}, overlaps a route of this host: {other}"),
            "set bridge_ip in /etc/banger/banger.toml to a network that is free, then: sudo systemctl restart bangerd \
             banger-priv",
        ),
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(prefix))).unwrap_or(0)
}

fn resolver(address: Ipv4Addr, network: Network) -> Check {
    const NAME: &str = "resolver";
    let ours = mask(network.prefix());
    let inside = u32::from(address) & ours == u32::from(network.gateway()) & ours;
    if address.is_loopback() || address.is_unspecified() || inside {
        return Check::fail(
            NAME,
            format!("guests are told to ask {address}, which answers none of them"),
            "set default_dns in /etc/banger/banger.toml to a resolver that guests can reach, then: sudo systemctl \
             restart bangerd",
        );
    }
    Check::pass(NAME, format!("guests ask {address}"))
}

/// Who else makes rules here. Only firewalld needs something of banger's: a zone that lets guests
/// through.
fn other_firewalls(there: impl Fn(&str) -> bool) -> Check {
    const NAME: &str = "firewalls";
    let known = [
        ("Docker", "/sys/class/net/docker0"),
        ("libvirt", "/sys/class/net/virbr0"),
        ("firewalld", "/run/firewalld"),
        ("ufw", "/run/ufw.lock"),
        ("Tailscale", "/sys/class/net/tailscale0"),
    ];
    let here: Vec<&str> = known.iter().filter(|(_, sign)| there(sign)).map(|(name, _)| *name).collect();
    if here.contains(&"firewalld") && !there("/usr/lib/firewalld/zones/banger.xml") {
        return Check::fail(
            NAME,
            "firewalld runs, and the zone of banger is missing: it stops what guests send",
            "install the package banger again, then: sudo firewall-cmd --reload",
        );
    }
    match here.as_slice() {
        [] => Check::pass(NAME, "nobody else's is known to be here"),
        here => Check::pass(NAME, format!("also here: {}; their rules hold for guests too", here.join(", "))),
    }
}

/// The unit that keeps guests' packets from a `DROP` of the host's own FORWARD chain.
fn firewall_rules(there: impl Fn(&str) -> bool) -> Check {
    const NAME: &str = "host firewall";
    if there("/etc/systemd/system/timers.target.wants/banger-host-firewall.timer") {
        return Check::pass(NAME, "banger-host-firewall.timer looks after the FORWARD chain");
    }
    Check::warn(
        NAME,
        "banger-host-firewall.timer is not enabled: Docker or ufw may stop what guests send",
        "sudo systemctl enable --now banger-host-firewall.timer banger-host-firewall.service",
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    const HEADER: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

    fn network() -> Network {
        Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap()
    }

    /// A line as the kernel writes it.
    fn route(device: &str, target: [u8; 4], mask: [u8; 4]) -> String {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        format!("{device}\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n", word(target), word(mask))
    }

    #[test]
    fn a_host_that_does_not_forward() {
        assert_eq!((forwarding("1\n").status, forwarding("0\n").status, forwarding("").status), (Pass, Fail, Fail));
        assert_eq!((link("br-fc", true).status, link("br-fc", false).status), (Pass, Fail));
    }

    #[test]
    fn routes_that_overlap() {
        let default = route("eth0", [0, 0, 0, 0], [0, 0, 0, 0]);
        let own = route("br-fc", [172, 16, 0, 0], [255, 255, 255, 0]) + &route("bgr-ab", [172, 16, 0, 2], [255; 4]);
        let lan = route("eth0", [192, 168, 1, 0], [255, 255, 255, 0]);
        assert_eq!(routes(network(), "br-fc", &format!("{HEADER}{default}{own}{lan}")).status, Pass);
        for (device, target, mask, words) in [
            ("tun0", [172, 16, 0, 0], [255, 240, 0, 0], "172.16.0.0/12 by tun0"),
            ("docker0", [172, 16, 0, 0], [255, 255, 0, 0], "172.16.0.0/16 by docker0"),
            ("wg0", [172, 16, 0, 7], [255, 255, 255, 255], "172.16.0.7/32 by wg0"),
        ] {
            let check = routes(network(), "br-fc", &format!("{HEADER}{own}{}", route(device, target, mask)));
            assert!(check.status == Fail && check.detail.ends_with(words), "{check:?}");
        }
        assert_eq!(routes(network(), "br-fc", "").status, Pass);
    }

    #[test]
    fn a_resolver_that_answers_no_guest() {
        assert_eq!(resolver(Ipv4Addr::new(1, 1, 1, 1), network()).status, Pass);
        for address in [[127, 0, 0, 53], [0, 0, 0, 0], [172, 16, 0, 1]] {
            assert_eq!(resolver(address.into(), network()).status, Fail, "{address:?}");
        }
    }

    #[test]
    fn firewalls_beside_ours() {
        assert_eq!(other_firewalls(|_| false).status, Pass);
        let docker = other_firewalls(|path| path.ends_with("docker0"));
        assert!(docker.status == Pass && docker.detail.contains("Docker"), "{docker:?}");
        assert_eq!(other_firewalls(|path| path.contains("/run/firewalld")).status, Fail);
        assert_eq!(other_firewalls(|path| path.contains("firewalld")).status, Pass);
        assert_eq!((firewall_rules(|_| true).status, firewall_rules(|_| false).status), (Pass, Warn));
    }
}
