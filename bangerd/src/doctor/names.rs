//! Whether names of VMs are answered, and whether the host's resolver asks for them.

use super::read;
use crate::config::dns::Dns;
use crate::net::ask::ask;
use banger_proto::model::Check;
use simple_dns::RCODE;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

/// A name that the daemon answers whoever asks, and nobody else in the world.
const KNOWN: &str = "doctor.vm";
/// Where systemd-resolved answers (systemd-resolved.service(8)).
const STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
const DNS_PORT: u16 = 53;
/// The first port that the daemon may listen on without privilege.
const LISTEN_LEAST: u16 = 1024;

pub(super) async fn checks(dns: &Dns) -> Vec<Check> {
    let Some(listen) = dns.listen else {
        return vec![Check::pass("names of VMs", "off: listen in [dns] of /etc/banger/banger.toml")];
    };
    let there = |path: &str| Path::new(path).exists();
    let own = own(listen, ask(listen, KNOWN).await);
    let servers = servers(&read("/etc/resolv.conf"), there("/run/systemd/resolve/stub-resolv.conf"));
    let mut answered = false;
    for server in &servers {
        answered = answered || ask(SocketAddrV4::new(*server, DNS_PORT), KNOWN).await == Some(RCODE::NoError);
    }
    let kind = Kind::of(there, &read("/etc/NetworkManager/NetworkManager.conf"));
    vec![own, resolver(listen, kind, answered)]
}

fn own(listen: SocketAddrV4, said: Option<RCODE>) -> Check {
    const NAME: &str = "names of VMs";
    match said {
        Some(RCODE::NoError) => Check::pass(NAME, format!("<vm>.<user>.vm is answered at {listen}")),
        _ => Check::warn(
            NAME,
            format!("nothing answers at {listen}: another program may have that port"),
            format!(
                "sudo sed -i 's/^listen = .*/listen = \"{}:{}\"/' /etc/banger/banger.toml && sudo systemctl restart \
                 bangerd banger-resolver   # or end who has the port: sudo ss -lutnp 'sport = :{}'",
                listen.ip(),
                listen.port().checked_add(1).unwrap_or(LISTEN_LEAST),
                listen.port()
            ),
        ),
    }
}

/// Resolvers on this host that programs ask. What is elsewhere is not asked for names of this host.
fn servers(resolv_conf: &str, resolved: bool) -> Vec<Ipv4Addr> {
    let named = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let local = named.filter_map(|server| server.trim().parse::<Ipv4Addr>().ok()).filter(Ipv4Addr::is_loopback);
    let mut servers: Vec<Ipv4Addr> = resolved.then_some(STUB).into_iter().chain(local).collect();
    servers.dedup();
    servers.truncate(3);
    servers
}

/// What answers programs of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Resolved,
    NetworkManager,
    Dnsmasq,
    Unbound,
    Other,
}

impl Kind {
    fn of(there: impl Fn(&str) -> bool, network_manager: &str) -> Self {
        let runs = |unit: &str| there(&format!("/sys/fs/cgroup/system.slice/{unit}.service"));
        let its_dnsmasq = network_manager.lines().any(|line| line.replace(' ', "") == "dns=dnsmasq");
        if there("/run/systemd/resolve/stub-resolv.conf") {
            Self::Resolved
        } else if its_dnsmasq && runs("NetworkManager") {
            Self::NetworkManager
        } else if runs("dnsmasq") {
            Self::Dnsmasq
        } else if runs("unbound") {
            Self::Unbound
        } else {
            Self::Other
        }
    }

    /// The commands that make it ask for names of VMs, and the user as whom it asks.
    fn mends(self, listen: SocketAddrV4) -> (String, &'static str) {
        let (address, port) = (listen.ip(), listen.port());
        let server = format!("echo 'server=/vm/{address}#{port}' | sudo tee");
        match self {
            Self::Resolved => ("sudo systemctl enable --now banger-resolver".into(), "systemd-resolve"),
            Self::NetworkManager => (
                format!("{server} /etc/NetworkManager/dnsmasq.d/banger.conf && sudo systemctl restart NetworkManager"),
                "dnsmasq",
            ),
            Self::Dnsmasq => {
                (format!("{server} /etc/dnsmasq.d/banger.conf && sudo systemctl restart dnsmasq"), "dnsmasq")
            }
            Self::Unbound => (
                format!(
                    "printf 'server:\\n do-not-query-localhost: no\\n domain-insecure: \"vm\"\\nforward-zone:\\n name: \
                     \"vm.\"\\n forward-addr: {address}@{port}\\n' | sudo tee /etc/unbound/unbound.conf.d/banger.conf && \
                     sudo systemctl restart unbound"
                ),
                "unbound",
            ),
            Self::Other => (format!("dig @{address} -p {port} VM.USER.vm   # or install systemd-resolved"), ""),
        }
    }
}

fn resolver(listen: SocketAddrV4, kind: Kind, answered: bool) -> Check {
    const NAME: &str = "names through the resolver";
    let (mends, user) = kind.mends(listen);
    let lets = format!("resolvers in [dns] of /etc/banger/banger.toml must have \"{user}\"");
    match (answered, kind) {
        (true, _) => Check::pass(NAME, format!("this host's resolver asks {listen} for names below vm; {lets}")),
        (false, Kind::Other) => Check::warn(NAME, "no resolver is known here that could ask for names of VMs", mends),
        (false, _) => Check::warn(NAME, format!("this host's resolver does not ask for names of VMs; {lets}"), mends),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_proto::model::CheckStatus::{Pass, Warn};

    const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 42069);

    #[test]
    fn a_daemon_that_answers_and_one_whose_port_is_taken() {
        assert_eq!(own(LISTEN, Some(RCODE::NoError)).status, Pass);
        for said in [None, Some(RCODE::NameError), Some(RCODE::Refused)] {
            let check = own(LISTEN, said);
            assert!(check.status == Warn && check.mend.contains(":42069"), "{check:?}");
        }
    }

    #[test]
    fn only_resolvers_of_this_host_are_asked() {
        let conf = "# a\nnameserver 192.0.2.1\nnameserver 127.0.0.1\nnameserver ::1\nsearch x\n nameserver 127.0.0.2\n";
        assert_eq!(servers(conf, false), [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)]);
        assert_eq!(servers("nameserver 192.0.2.1", false), Vec::<Ipv4Addr>::new());
        assert_eq!(servers("nameserver 127.0.0.53", true), [STUB]);
    }

    #[test]
    fn each_resolver_has_its_own_commands() {
        for (signs, network_manager, kind, command) in [
            (&["/run/systemd/resolve/stub-resolv.conf"][..], "", Kind::Resolved, "banger-resolver"),
            (&["NetworkManager.service"], "[main]\ndns = dnsmasq\n", Kind::NetworkManager, "NetworkManager/dnsmasq.d"),
            (&["NetworkManager.service", "dnsmasq.service"], "[main]\n", Kind::Dnsmasq, "server=/vm/127.0.0.1#42069"),
            (&["unbound.service"], "", Kind::Unbound, "127.0.0.1@42069"),
            (&[], "", Kind::Other, "dig @127.0.0.1 -p 42069"),
        ] {
            let found = Kind::of(|path| signs.iter().any(|sign| path.ends_with(sign)), network_manager);
            let check = resolver(LISTEN, found, false);
            assert!(found == kind && check.status == Warn && check.mend.contains(command), "{check:?}");
            assert_eq!(resolver(LISTEN, found, true).status, Pass);
        }
    }
}
