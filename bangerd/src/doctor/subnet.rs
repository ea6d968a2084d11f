//! The network of the VMs: routes of the host that lead into it, and VMs that still run with an
//! address of another one.

use crate::db::VmRow;
use crate::net::subnet::{self, Route};
use crate::vm::Context;
use banger_policy::lifecycle::State;
use banger_policy::net::Network;
use banger_proto::model::Check;

pub(super) async fn checks(ctx: &Context) -> Vec<Check> {
    let config = ctx.config.now();
    let rows = ctx.db.vms(None, None, u32::MAX).await.unwrap_or_default();
    vec![
        routes(config.network, &subnet::routes(&config.bridge_name)),
        addresses(config.network, &rows),
        free_addresses(config.network, rows.len()),
    ]
}

fn routes(network: Network, routes: &[Route]) -> Check {
    const NAME: &str = "routes";
    let own = shown(network);
    let clashes = subnet::clashing(network, routes);
    let near = subnet::near(network, routes);
    let Some(first) = clashes.first().or(near) else {
        return Check::pass(NAME, format!("none but banger's own leads into {own}"));
    };
    let more = if clashes.len() > 1 { format!(", and {} more", clashes.len() - 1) } else { String::new() };
    let free = subnet::proposal(network, routes);
    let change = free.map_or_else(
        // Every private network of this host's routes is taken: that is to be decided by somebody.
        || "$EDITOR /etc/banger/banger.toml   # bridge_ip must be in a network that is free; then".to_owned(),
        |free| {
            let lines = format!("bridge_ip = \"{}\"\\ncidr = {}", free.gateway(), free.prefix());
            super::network::set(&lines, &["bridge_ip", "cidr"]) + " &&"
        },
    );
    let mend = format!(
        "{change} sudo systemctl restart banger-priv bangerd   # VMs that run keep their addresses until \
         `banger vm restart`"
    );
    if clashes.is_empty() {
        let found = format!(
            "this host has a network beside that of the VMs, {own}: {first}. If others are reached at such addresses by \
             the default route, they are not any more"
        );
        return Check::warn(NAME, found, mend);
    }
    Check::fail(NAME, format!("the network of the VMs, {own}, overlaps a route of this host: {first}{more}"), mend)
}

/// Any user may ask: how many, and not which.
fn addresses(network: Network, rows: &[VmRow]) -> Check {
    const NAME: &str = "addresses of VMs";
    let elsewhere = |row: &&VmRow| {
        let address = row.mirror.guest_ip;
        row.state == State::Running && address.is_some_and(|address| network.index_of(address).is_none())
    };
    match rows.iter().filter(elsewhere).count() {
        0 => Check::pass(NAME, format!("all in {}", shown(network))),
        count => Check::warn(
            NAME,
            format!("{count} of the VMs that run have an address of an earlier network, which they keep for this run"),
            "banger vm restart VM   # its owner sees the address with: banger vm show VM",
        ),
    }
}

/// Each VM has one, whether it runs or not.
fn free_addresses(network: Network, taken: usize) -> Check {
    const NAME: &str = "free addresses";
    let all = usize::from(network.guests());
    if taken < all.saturating_mul(4) / 5 {
        return Check::pass(NAME, format!("VMs have {taken} of {all}"));
    }
    // At least four times as wide, where the network's first address stays the first.
    let mut wider = (16..network.prefix().saturating_sub(1)).rev();
    let wider = wider.find_map(|prefix| Network::new(network.gateway(), prefix).ok());
    Check::warn(
        NAME,
        format!("VMs have {taken} of {all}, also those that do not run: without a free one nobody can make a VM"),
        wider.map_or_else(
            || {
                "banger vm list --all   # delete what nobody needs, or choose another bridge_ip with a smaller cidr"
                    .into()
            },
            |wider| {
                super::network::set(&format!("cidr = {}", wider.prefix()), &["cidr"])
                    + " && sudo systemctl restart banger-priv bangerd   # VMs keep their addresses"
            },
        ),
    )
}

/// Address of the network, and prefix.
fn shown(network: Network) -> String {
    let first = network.gateway().to_bits().saturating_sub(1);
    format!("{}/{}", std::net::Ipv4Addr::from_bits(first), network.prefix())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::net::subnet::parse;
    use crate::net::subnet::tests::{HEADER, route};
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};
    use std::net::Ipv4Addr;

    fn network() -> Network {
        Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap()
    }

    #[test]
    fn routes_that_overlap() {
        let default = route("eth0", [0, 0, 0, 0], [0, 0, 0, 0]);
        let own = route("br-fc", [172, 16, 0, 0], [255, 255, 255, 0]) + &route("bgr-ab", [172, 16, 0, 2], [255; 4]);
        let lan = route("eth0", [192, 168, 1, 0], [255, 255, 255, 0]);
        let check = |text: &str| routes(network(), &parse("br-fc", text, ""));
        assert_eq!(check(&format!("{HEADER}{default}{own}{lan}")).status, Pass);
        for (device, target, mask, words) in [
            ("tun0", [172, 16, 0, 0], [255, 240, 0, 0], "172.16.0.0/12 by tun0"),
            ("docker0", [172, 16, 0, 0], [255, 255, 0, 0], "172.16.0.0/16 by docker0"),
            ("wg0", [172, 16, 0, 7], [255, 255, 255, 255], "172.16.0.7/32 by wg0"),
        ] {
            let check = check(&format!("{HEADER}{own}{}", route(device, target, mask)));
            assert!(check.status == Fail && check.detail.ends_with(words), "{check:?}");
            // What is proposed can be pasted, and is free itself.
            let ip = check.mend.split('"').nth(1).unwrap().parse().unwrap();
            let free = Network::new(ip, 24).unwrap();
            assert!(check.mend.contains("cidr = 24") && check.mend.contains("systemctl restart"), "{check:?}");
            let table = format!("{HEADER}{own}{}", route(device, target, mask));
            assert_eq!(routes(free, &parse("br-fc", &table, "")).status, Pass);
        }
        assert_eq!(check("").status, Pass);
        // A part of a company's 172.16.0.0/16: the other parts are behind its router.
        let beside = check(&format!("{HEADER}{own}{}", route("eth0", [172, 16, 40, 0], [255, 255, 255, 0])));
        assert!(beside.status == Warn && beside.detail.contains("172.16.40.0/24 by eth0"), "{beside:?}");
    }

    #[test]
    fn addresses_that_come_to_an_end() {
        for (taken, status) in [(0, Pass), (201, Pass), (202, Warn), (253, Warn), (300, Warn)] {
            assert_eq!(free_addresses(network(), taken).status, status, "{taken}");
        }
        assert!(free_addresses(network(), 253).mend.contains("cidr = 22"));
        // Where the first address of the network is not that of a wider one, and at the widest.
        for (gateway, prefix) in [([172, 16, 5, 1], 24), ([172, 16, 0, 1], 16)] {
            let network = Network::new(gateway.into(), prefix).unwrap();
            assert!(free_addresses(network, 65_000).mend.starts_with("banger vm list --all"), "{gateway:?}");
        }
    }

    #[test]
    fn a_vm_with_an_address_of_another_network_is_counted() {
        let world = crate::vm::tests::World::new();
        world.running("demo");
        let ctx = &world.life().vms.ctx;
        let rows = world.life().runtime.block_on(ctx.db.vms(None, None, 9)).unwrap();
        assert_eq!(addresses(network(), &rows).status, Pass);
        let later = addresses(Network::new(Ipv4Addr::new(10, 9, 0, 1), 24).unwrap(), &rows);
        assert!(
            later.status == Warn && later.detail.starts_with("1 of") && !later.detail.contains("demo"),
            "{later:?}"
        );
    }
}
