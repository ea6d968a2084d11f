//! Who else makes rules and networks on this host, what that means for guests, and what to do.
//! Only the helper may read rules, so it is by what everybody may see: links, cgroups of units that
//! run, and files of configuration.

use super::read;
use banger_policy::distribution::Family;
use banger_proto::model::Check;
use std::path::Path;

const TIMER: &str = "/etc/systemd/system/timers.target.wants/banger-host-firewall.timer";
/// What `systemctl mask` makes of them (systemctl(1)).
const MASKS: [&str; 2] =
    ["/etc/systemd/system/banger-host-firewall.timer", "/etc/systemd/system/banger-host-firewall.service"];
const ZONE: &str = "/usr/lib/firewalld/zones/banger.xml";
/// Links of VPNs by name: tun(4), WireGuard, Tailscale and others that name theirs so.
const VPN_NAMES: [&str; 6] = ["tun", "wg", "tailscale", "ppp", "nordlynx", "proton"];

/// What of the host is looked at.
struct Host<'a> {
    family: Family,
    there: &'a dyn Fn(&str) -> bool,
    /// Whether the timer or its service is masked: then what enables it has no effect.
    masked: bool,
    /// Names of all links.
    links: Vec<String>,
    ufw: String,
    /// The main routing table, as in `/proc/net/route`.
    routes: String,
}

pub(super) fn checks(family: Family) -> Vec<Check> {
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
    let there = |path: &str| Path::new(path).exists();
    let masked = MASKS.iter().any(|unit| std::fs::read_link(unit).is_ok_and(|link| link == Path::new("/dev/null")));
    let host =
        Host { family, there: &there, masked, links, ufw: read("/etc/ufw/ufw.conf"), routes: read("/proc/net/route") };
    host.checks()
}

impl Host<'_> {
    fn checks(&self) -> Vec<Check> {
        let found: Vec<Check> =
            [self.docker(), self.podman(), self.ufw(), self.firewalld(), self.nftables(), self.libvirt(), self.vpn()]
                .into_iter()
                .flatten()
                .collect();
        let none =
            found.is_empty().then(|| Check::pass("neighbours", "nobody is known here who makes rules or networks"));
        none.into_iter().chain(found).chain([self.timer()]).collect()
    }

    fn there(&self, path: &str) -> bool {
        (self.there)(path)
    }

    /// The cgroup of a unit is there as long as a process of the unit is.
    fn runs(&self, unit: &str) -> bool {
        self.there(&format!("/sys/fs/cgroup/system.slice/{unit}.service"))
    }

    fn link(&self, name: &str) -> bool {
        self.links.iter().any(|link| link == name)
    }

    /// Whoever drops at the end of the FORWARD chain needs our rules in that chain.
    fn drops(&self, name: &'static str, what: &str) -> Check {
        if self.timer_is_enabled() {
            return Check::pass(
                name,
                format!("{what}; banger-host-firewall.timer keeps guests' packets from its drop"),
            );
        }
        Check::warn(
            name,
            format!("{what}, and banger-host-firewall.timer is not enabled: guests may not reach out"),
            self.enable_timer(),
        )
    }

    fn timer_is_enabled(&self) -> bool {
        self.there(TIMER) && !self.masked
    }

    fn enable_timer(&self) -> String {
        let units = "banger-host-firewall.timer banger-host-firewall.service";
        let enable = format!("sudo systemctl enable --now {units}");
        if self.masked { format!("sudo systemctl unmask {units} && {enable}") } else { enable }
    }

    fn docker(&self) -> Option<Check> {
        let here = self.runs("docker") || self.link("docker0");
        here.then(|| {
            self.drops(
                "neighbour Docker",
                "drops what is forwarded; guests with --net nat may reach its containers unless a rule in DOCKER-USER drops it",
            )
        })
    }

    fn podman(&self) -> Option<Check> {
        let here = self.link("podman0") || self.links.iter().any(|link| link.starts_with("cni-podman"));
        here.then(|| {
            Check::pass(
                "neighbour podman",
                "guests with --net nat may reach its containers, those with --net public do not; `iptables -I FORWARD -i bgr-+ -o podman+ -j DROP` keeps them apart",
            )
        })
    }

    fn ufw(&self) -> Option<Check> {
        let on = self.ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes"));
        on.then(|| self.drops("neighbour ufw", "drops what is forwarded; `ufw route` rules hold for guests too"))
    }

    fn firewalld(&self) -> Option<Check> {
        const NAME: &str = "neighbour firewalld";
        // Its folder in /run stays when it has ended.
        self.runs("firewalld").then(|| {
            if self.there(ZONE) {
                return Check::pass(NAME, "the zone banger lets guests' packets through");
            }
            Check::fail(
                NAME,
                "firewalld runs, and the zone of banger is missing: it stops what guests send",
                format!("{} && sudo firewall-cmd --reload", self.family.reinstall()),
            )
        })
    }

    fn nftables(&self) -> Option<Check> {
        let on = |unit: &str| {
            ["sysinit", "multi-user"]
                .iter()
                .any(|target| self.there(&format!("/etc/systemd/system/{target}.target.wants/{unit}.service")))
        };
        (on("nftables") || on("netfilter-persistent")).then(|| {
            self.drops(
                "neighbour nftables",
                "loads rules of its own; while banger-priv runs, a flush leaves banger's table",
            )
        })
    }

    fn libvirt(&self) -> Option<Check> {
        let here = self.link("virbr0") || self.runs("libvirtd") || self.runs("virtnetworkd");
        here.then(|| {
            Check::pass(
                "neighbour libvirt",
                "guests with --net nat may reach its routed networks, those with --net public do not; `iptables -I FORWARD -i bgr-+ -o virbr+ -j DROP` keeps them apart",
            )
        })
    }

    /// A VPN is a route like any other: whether it leads into the network of the VMs, another check
    /// says.
    fn vpn(&self) -> Option<Check> {
        let is_vpn = |link: &str| {
            VPN_NAMES.iter().any(|name| {
                link.strip_prefix(name).is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '-'))
            })
        };
        let links: Vec<&str> = self.links.iter().map(String::as_str).filter(|link| is_vpn(link)).collect();
        let first = links.first()?;
        let everything = self.routes.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace();
            fields.next().is_some_and(|device| links.contains(&device))
                && fields.next() == Some("00000000")
                && ["00000000", "00000080", "80000000"].contains(&fields.nth(5).unwrap_or_default())
        });
        if everything {
            return Some(Check::warn(
                "neighbour VPN",
                format!(
                    "all of the host's traffic goes through {first}: that of guests with --nat too, and a VPN that lets through only what the host itself sends stops it"
                ),
                format!(
                    "banger vm exec VM -- ping -c 1 1.1.1.1   # if nothing comes back, allow forwarding from bgr-* to {first} in the VPN's settings"
                ),
            ));
        }
        Some(Check::pass(
            "neighbour VPN",
            format!("{}: guests with --nat reach what the host reaches", links.join(", ")),
        ))
    }

    /// The unit that keeps guests' packets from a `DROP` of the host's own FORWARD chain.
    fn timer(&self) -> Check {
        const NAME: &str = "host firewall";
        if self.timer_is_enabled() {
            return Check::pass(NAME, "banger-host-firewall.timer looks after the FORWARD chain");
        }
        Check::warn(
            NAME,
            "banger-host-firewall.timer is not enabled: Docker or ufw may stop what guests send",
            self.enable_timer(),
        )
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{self, Fail, Pass, Warn};

    /// How the check of that name is on a host with these files and links.
    fn said(name: &str, files: &[&str], links: &[&str], ufw: &str, routes: &str) -> Option<CheckStatus> {
        check(name, files, links, ufw, routes).map(|check| check.status)
    }

    fn check(name: &str, files: &[&str], links: &[&str], ufw: &str, routes: &str) -> Option<Check> {
        let there = |path: &str| files.iter().any(|file| path.ends_with(file));
        let links = links.iter().map(|link| (*link).to_owned()).collect();
        let host = Host {
            family: Family::Debian,
            there: &there,
            masked: files.contains(&"masked"),
            links,
            ufw: ufw.to_owned(),
            routes: routes.to_owned(),
        };
        let found = host.checks();
        found.iter().for_each(|check| assert_eq!(check.mend.is_empty(), check.status == Pass, "{check:?}"));
        found.into_iter().find(|check| check.name == name)
    }

    const TIMER_FILE: &str = "banger-host-firewall.timer";

    #[test]
    fn whoever_drops_needs_the_timer() {
        for (name, files, links, ufw) in [
            ("neighbour Docker", &["docker.service"][..], &[][..], ""),
            ("neighbour Docker", &[], &["docker0"], ""),
            ("neighbour ufw", &[], &[], "# x\nENABLED=yes\n"),
            ("neighbour nftables", &["sysinit.target.wants/nftables.service"], &[], ""),
        ] {
            assert_eq!(said(name, files, links, ufw, ""), Some(Warn), "{name}");
            let with: Vec<&str> = files.iter().copied().chain([TIMER_FILE]).collect();
            assert_eq!(said(name, &with, links, ufw, ""), Some(Pass), "{name}");
        }
        assert_eq!(said("neighbour ufw", &[], &[], "ENABLED=no\n", ""), None);
        assert_eq!(said("host firewall", &[], &[], "", ""), Some(Warn));
        let masked = check("host firewall", &[TIMER_FILE, "masked"], &[], "", "").unwrap();
        assert!(masked.status == Warn && masked.mend.starts_with("sudo systemctl unmask banger-host"), "{masked:?}");
    }

    #[test]
    fn neighbours_that_some_guests_may_reach() {
        assert_eq!(said("neighbours", &[TIMER_FILE], &["lo", "eth0", "br-fc", "bgr-ab", "tunnel"], "", ""), Some(Pass));
        for (name, link) in [("neighbour podman", "podman0"), ("neighbour libvirt", "virbr0")] {
            assert_eq!(said(name, &[TIMER_FILE], &["lo", link], "", ""), Some(Pass), "{name}");
            assert_eq!(said("neighbours", &[TIMER_FILE], &[link], "", ""), None);
        }
        for (name, link) in
            [("neighbour Docker", "docker0"), ("neighbour podman", "podman0"), ("neighbour libvirt", "virbr0")]
        {
            let check = check(name, &[TIMER_FILE], &[link], "", "").unwrap();
            assert!(check.detail.contains("guests with --net nat may reach its"), "{check:?}");
        }
    }

    #[test]
    fn firewalld_needs_the_zone() {
        let runs = "system.slice/firewalld.service";
        assert_eq!(said("neighbour firewalld", &[runs], &[], "", ""), Some(Fail));
        assert_eq!(said("neighbour firewalld", &[runs, "zones/banger.xml"], &[], "", ""), Some(Pass));
        assert_eq!(said("neighbour firewalld", &["/run/firewalld"], &[], "", ""), None, "it ran once");
    }

    #[test]
    fn a_vpn_that_takes_everything_is_said() {
        use crate::net::subnet::tests::{HEADER, route};
        let lan = route("eth0", [0, 0, 0, 0], [0, 0, 0, 0]);
        let part = format!("{HEADER}{lan}{}", route("wg0", [10, 8, 0, 0], [255, 255, 255, 0]));
        assert_eq!(said("neighbour VPN", &[], &["wg0"], "", &part), Some(Pass));
        for mask in [[0, 0, 0, 0], [128, 0, 0, 0]] {
            let all = format!("{HEADER}{lan}{}", route("tun0", [0, 0, 0, 0], mask));
            assert_eq!(said("neighbour VPN", &[], &["tun0"], "", &all), Some(Warn), "{mask:?}");
        }
        assert_eq!(said("neighbour VPN", &[], &["wgx", "tunl"], "", ""), None);
        assert!(said("neighbour VPN", &[], &["tailscale0"], "", "").unwrap() == Pass);
    }
}
