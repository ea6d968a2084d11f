//! The host's own DNAT, as Docker publishes ports with it: it leads no guest to where it could not
//! go itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::frames::{Packet, syn, udp_to};
use super::guest::Guest;
use super::network::{GATEWAY, HOST, METADATA, Net, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

/// Published on every address of the host, metadata given to somebody else, and an address of the
/// world that leads to another guest or to the host.
const RULES: &str = "nft 'table ip benchdnat { chain pre { type nat hook prerouting priority dstnat; \
    fib daddr type local udp dport 8080 dnat to 198.51.100.2:7777; fib daddr type local tcp dport 8080 dnat to 198.51.100.2:7777; \
    ip daddr 169.254.169.254 udp dport 8080 dnat to 198.51.100.2:7777; ip daddr 203.0.113.5 udp dport 8080 dnat to 198.51.100.2:7777; \
    ip daddr 203.0.113.6 udp dport 8080 dnat to 172.16.0.3:9; ip daddr 203.0.113.7 udp dport 8080 redirect to :7777; }; }'";
const UNDO: &str = "nft delete table ip benchdnat";

const TIMES: usize = 10;
const ARRIVES: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_millis(150);
const PUBLISHED: u16 = 8080;

const fn world(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

type Make = fn(&Guest, &str) -> Packet;

/// What, how it is sent, and whether it arrives from a tap that the firewall does not know: another
/// guest is guarded from that side too.
const KINDS: &[(&str, Make, bool)] = &[
    ("published on the LAN address", |guest, text| udp_to(guest.address, HOST, PUBLISHED, text), true),
    ("connection to one published on the LAN address", |guest, text| syn(guest.address, HOST, PUBLISHED, text), true),
    ("published on bridge_ip", |guest, text| udp_to(guest.address, GATEWAY, PUBLISHED, text), true),
    ("connection to one published on bridge_ip", |guest, text| syn(guest.address, GATEWAY, PUBLISHED, text), true),
    ("metadata redirected", |guest, text| udp_to(guest.address, METADATA, PUBLISHED, text), true),
    ("an address of the world redirected", |guest, text| udp_to(guest.address, world(5), PUBLISHED, text), true),
    (
        "an address of the world that is another guest",
        |guest, text| udp_to(guest.address, world(6), PUBLISHED, text),
        false,
    ),
    ("an address of the world that is the host", |guest, text| udp_to(guest.address, world(7), PUBLISHED, text), true),
];

pub(super) fn dnat(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            scene.root(RULES)?;
            let result = KINDS.iter().try_for_each(|(what, make, else_arrives)| {
                scene.step(what, |scene| nowhere(scene, net, what, *make, *else_arrives))
            });
            scene.measured("kinds of rewritten packets", KINDS.len());
            let undone = scene.root_any(UNDO);
            result?;
            undone?.ok().map(drop)
        })
    })
}

fn nowhere(scene: &mut Scene, net: &mut Net, what: &str, make: Make, else_arrives: bool) -> Result<()> {
    let text = format!("<{what}>");
    if else_arrives {
        net.forget();
        let mut arrived = 0;
        scene.wait_until("control: it arrives from a tap without the firewall", ARRIVES, || {
            net.control.send(&make(&net.control, &text))?;
            std::thread::sleep(Duration::from_millis(20));
            arrived += net.arrived(&net.control, &text).total();
            Ok((arrived == 0).then(|| "nothing has arrived".to_owned()))
        })?;
    }
    net.forget();
    for _ in 0..TIMES {
        net.alice.send(&make(&net.alice, &text))?;
    }
    std::thread::sleep(scene.limit(LATE));
    let arrived = net.arrived(&net.alice, &text);
    ensure!(arrived.total() == 0, "of {TIMES} packets: {arrived:?}");
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))
}
