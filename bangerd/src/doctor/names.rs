//! Whether names of VMs are answered, and whether the host's resolver asks for them.

use super::read;
use crate::net::ask::ask;
use crate::net::caller::Kernel;
use crate::vm::Context;
use banger_policy::distribution::Family;
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

pub(super) async fn checks(ctx: &Context, family: Family) -> Vec<Check> {
    let Some(listen) = ctx.config.now().dns.listen else {
        return vec![Check::pass("names of VMs", "off: listen in [dns] of /etc/banger/banger.toml")];
    };
    let there = |path: &str| Path::new(path).exists();
    let own = if ctx.names_port.is() {
        own(listen, ask(listen, KNOWN).await)
    } else {
        taken(listen, &Kernel::default().listeners(listen.into()), &set_listen(&ctx.paths.config, listen))
    };
    let servers = servers(&read("/etc/resolv.conf"), there("/run/systemd/resolve/stub-resolv.conf"));
    let mut answered = false;
    for server in &servers {
        answered = answered || ask(SocketAddrV4::new(*server, DNS_PORT), KNOWN).await == Some(RCODE::NoError);
    }
    let kind = Kind::of(there, &read("/etc/NetworkManager/NetworkManager.conf"));
    vec![own, resolver(listen, kind, answered, family)]
}

const OWN: &str = "names of VMs";

/// The daemon has the port.
fn own(listen: SocketAddrV4, said: Option<RCODE>) -> Check {
    if said == Some(RCODE::NoError) {
        return Check::pass(OWN, format!("<vm>.<user>.vm is answered by bangerd at {listen}"));
    }
    let found = format!("bangerd has {listen} and does not answer there");
    Check::warn(OWN, found, "sudo systemctl restart bangerd   # VMs go on running")
}

/// Another program has it, or did a moment ago: whoever asks there may be told anything.
fn taken(listen: SocketAddrV4, holders: &[u32], set_listen: &str) -> Check {
    let whose = match holders {
        [] => "nobody has that port now, and bangerd takes it within half a minute".to_owned(),
        uids => {
            let uids: Vec<String> = uids.iter().map(u32::to_string).collect();
            format!("a program of uid {} has that port, and may answer whatever it likes", uids.join(" and "))
        }
    };
    Check::fail(
        OWN,
        format!("bangerd cannot listen on {listen}: {whose}"),
        format!(
            "{set_listen} && sudo systemctl restart bangerd banger-resolver   # or end who has the port: sudo ss \
             -lutnp 'sport = :{}'",
            listen.port()
        ),
    )
}

/// The command that sets another port, for the file as it stands.
fn set_listen(config: &Path, listen: SocketAddrV4) -> String {
    let port = listen.port().checked_add(1).unwrap_or(LISTEN_LEAST);
    set_listen_in(&read(config), &config.display().to_string(), SocketAddrV4::new(*listen.ip(), port))
}

fn set_listen_in(text: &str, config: &str, new: SocketAddrV4) -> String {
    let has = |wanted: &dyn Fn(&str) -> bool| text.lines().map(str::trim_start).any(wanted);
    let line = format!("listen = \"{new}\"");
    if has(&|line| line.strip_prefix("listen").is_some_and(|rest| rest.trim_start().starts_with('='))) {
        format!("sudo sed -i 's/^[[:space:]]*listen[[:space:]]*=.*/{line}/' {config}")
    } else if text.lines().any(|line| line.starts_with("[dns]")) {
        format!("sudo sed -i '/^\\[dns\\]/a {line}' {config}")
    } else if has(&|line| line.starts_with("dns") || (line.starts_with('[') && line.contains("dns"))) {
        // Written in another way, which a person changes better.
        format!("sudo -e {config}")
    } else {
        format!("printf '\\n[dns]\\n{line}\\n' | sudo tee --append {config}")
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
    fn mends(self, listen: SocketAddrV4, family: Family) -> (String, &'static str) {
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
            Self::Unbound => {
                let folder = if family == Family::Fedora { "conf.d" } else { "unbound.conf.d" };
                let mend = format!(
                    "printf 'server:\\n do-not-query-localhost: no\\n domain-insecure: \"vm\"\\nforward-zone:\\n name: \
                     \"vm.\"\\n forward-addr: {address}@{port}\\n' | sudo tee /etc/unbound/{folder}/banger.conf && sudo \
                     systemctl restart unbound"
                );
                (mend, "unbound")
            }
            Self::Other => (format!("dig @{address} -p {port} VM.USER.vm   # or install systemd-resolved"), ""),
        }
    }
}

fn resolver(listen: SocketAddrV4, kind: Kind, answered: bool, family: Family) -> Check {
    const NAME: &str = "names through the resolver";
    let (mends, user) = kind.mends(listen, family);
    let lets = format!("resolvers in [dns] of /etc/banger/banger.toml must have \"{user}\"");
    match (answered, kind) {
        (true, _) => Check::pass(NAME, format!("this host's resolver asks {listen} for names below vm; {lets}")),
        (false, Kind::Other) => Check::warn(NAME, "no resolver is known here that could ask for names of VMs", mends),
        (false, _) => Check::warn(NAME, format!("this host's resolver does not ask for names of VMs; {lets}"), mends),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 42069);

    #[test]
    fn a_daemon_that_answers_and_one_that_has_its_port_and_does_not() {
        assert_eq!(own(LISTEN, Some(RCODE::NoError)).status, Pass);
        for said in [None, Some(RCODE::NameError), Some(RCODE::Refused)] {
            let check = own(LISTEN, said);
            assert!(check.status == Warn && check.mend.contains("restart bangerd"), "{check:?}");
        }
    }

    #[test]
    fn whoever_has_the_port_is_named_and_what_they_answer_does_not_count() {
        let check = taken(LISTEN, &[1001], "set");
        assert!(check.status == Fail && check.detail.contains("uid 1001 has that port"), "{check:?}");
        assert!(check.mend.starts_with("set && sudo systemctl restart bangerd"), "{check:?}");
        assert_eq!(taken(LISTEN, &[], "set").status, Fail);
        let world = crate::vm::tests::World::new();
        let ctx = &world.life().vms.ctx;
        let checks = world.life().runtime.block_on(checks(ctx, Family::Debian));
        assert_eq!(checks[0].status, Fail, "no names are served in this world: {checks:?}");
    }

    /// Each is typed into a shell, on a file of that content.
    #[test]
    fn the_command_for_another_port_changes_the_file_as_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("banger.toml");
        for text in [
            "",
            "log_level = \"info\"\n",
            "[dns]\nresolvers = []\n[publish]\n",
            "[dns]\nlisten = \"127.0.0.1:42069\" # here\n",
            "[dns]\n  listen=\'127.0.0.1:42069\'\n[publish]\nnetworks = []\n",
        ] {
            std::fs::write(&file, text).unwrap();
            let command = set_listen_in(text, file.to_str().unwrap(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, 42070));
            let ended = std::process::Command::new("sh").args(["-c", &command.replace("sudo ", "")]).status().unwrap();
            let read = crate::config::load(&file, true).unwrap();
            assert!(ended.success() && read.dns.said() == "127.0.0.1:42070", "{text:?}: {command}");
        }
        let other = set_listen_in("dns = { listen = \"off\" }", "/etc/banger/banger.toml", LISTEN);
        assert_eq!(other, "sudo -e /etc/banger/banger.toml");
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
            (&["unbound.service"], "", Kind::Unbound, "127.0.0.1@42069\\n' | sudo tee /etc/unbound/conf.d/banger.conf"),
            (&[], "", Kind::Other, "dig @127.0.0.1 -p 42069"),
        ] {
            let found = Kind::of(|path| signs.iter().any(|sign| path.ends_with(sign)), network_manager);
            let check = resolver(LISTEN, found, false, Family::Fedora);
            assert!(found == kind && check.status == Warn && check.mend.contains(command), "{check:?}");
            assert_eq!(resolver(LISTEN, found, true, Family::Fedora).status, Pass);
        }
    }
}
