//! What leaves a guest: nothing spoofed, nothing to the host, to another guest or to metadata
//! services, no IPv6; and what must get through does.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::frames::{self, Packet, arp, neighbour_solicitation, ping, syn, udp, udp_to, udp6};
use super::guest::Guest;
use super::network::{GATEWAY, HOST, METADATA, Net, OUTSIDE, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

/// Each packet is sent this often.
const TIMES: usize = 10;
/// What was let through has arrived within this, under KVM.
const ARRIVES: Duration = Duration::from_secs(2);
/// And this long is waited for what must not.
const LATE: Duration = Duration::from_millis(150);

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ROUTED: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x52, 0, 0, 0, 0, 0, 2);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x51, 0, 0, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x51, 0, 0, 0, 0, 0, 2);

/// Makes a packet of the guest that sends it, with a text.
type Make = fn(&Guest, &str) -> Packet;

/// A packet that must not get anywhere.
struct Forbidden {
    what: &'static str,
    make: Make,
    /// The same packet from a tap that the firewall does not know gets somewhere. Not for what the
    /// kernel refuses by itself: its own addresses as a source, and what leads to a guest, which
    /// the firewall guards on its other side too.
    else_arrives: bool,
}

const fn forbidden(what: &'static str, make: Make) -> Forbidden {
    Forbidden { what, make, else_arrives: true }
}

const fn refused_twice(what: &'static str, make: Make) -> Forbidden {
    Forbidden { what, make, else_arrives: false }
}

const BOBS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

const FORBIDDEN: &[Forbidden] = &[
    forbidden("source of a stranger", |_, text| udp(STRANGER, OUTSIDE, text)),
    forbidden("source of another guest", |_, text| udp(BOBS, OUTSIDE, text)),
    forbidden("source of another guest, to the host", |_, text| udp(BOBS, HOST, text)),
    refused_twice("source of the host", |_, text| udp(HOST, OUTSIDE, text)),
    refused_twice("source of the gateway", |_, text| udp(GATEWAY, OUTSIDE, text)),
    refused_twice("source zero", |_, text| udp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, text)),
    forbidden("ping with the source of a stranger", |_, text| ping(STRANGER, OUTSIDE, text)),
    forbidden("to the gateway", |guest, text| udp(guest.address, GATEWAY, text)),
    forbidden("to the host's other address", |guest, text| udp(guest.address, HOST, text)),
    forbidden("to the host's own uplink", |guest, text| udp(guest.address, Ipv4Addr::new(10, 0, 2, 15), text)),
    forbidden("ping to the gateway", |guest, text| ping(guest.address, GATEWAY, text)),
    forbidden("ssh to the gateway", |guest, text| syn(guest.address, GATEWAY, 22, text)),
    forbidden("ssh to the host", |guest, text| syn(guest.address, HOST, 22, text)),
    forbidden("DNS to the gateway", |guest, text| udp_to(guest.address, GATEWAY, 53, text)),
    forbidden("broadcast", |guest, text| udp(guest.address, Ipv4Addr::BROADCAST, text)),
    forbidden("multicast", |guest, text| udp(guest.address, Ipv4Addr::new(224, 0, 0, 1), text)),
    forbidden("to the metadata service", |guest, text| udp(guest.address, METADATA, text)),
    forbidden("connection to the metadata service", |guest, text| syn(guest.address, METADATA, 80, text)),
    refused_twice("to another guest", |guest, text| udp(guest.address, BOBS, text)),
    refused_twice("ping to another guest", |guest, text| ping(guest.address, BOBS, text)),
    refused_twice("connection to another guest", |guest, text| syn(guest.address, BOBS, 22, text)),
    forbidden("IPv6 to the host", |_, text| udp6(ROUTED, HOST6, text)),
    forbidden("IPv6 to the world", |_, text| udp6(ROUTED, OUTSIDE6, text)),
    forbidden("link-local IPv6 to the host", |_, text| udp6(LINK_LOCAL, HOST6, text)),
    forbidden("IPv6 neighbour solicitation", |guest, _| neighbour_solicitation(guest.mac, LINK_LOCAL, ROUTER)),
];

pub(super) fn isolation(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            scene.step("a guest with NAT reaches out, with the host's address, and is answered", |scene| {
                net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
                net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))
            })?;
            scene.step("and by ping", |scene| pings_out(scene, net))?;
            for case in FORBIDDEN {
                scene.step(case.what, |scene| nowhere(scene, net, case))?;
            }
            scene.measured("kinds of forbidden packets", FORBIDDEN.len());
            scene.step("foreign hardware addresses and ARP lead nothing astray", |scene| lies(scene, net))?;
            scene.step("without NAT nothing leaves; nor without a bound process", |scene| {
                stays(scene, net, |net| &net.inward)?;
                stays(scene, net, |net| &net.unbound)
            })?;
            scene.step("the world outside reaches no guest that has not asked", |scene| unasked(scene, net))?;
            scene.step("nor does anything leave a tap whose VMM has ended, whoever has opened it", |scene| {
                left_behind(scene, net)
            })
        })
    })
}

fn pings_out(scene: &Scene, net: &mut Net) -> Result<()> {
    net.forget();
    net.alice.send(&ping(net.alice.address, OUTSIDE, "ping-out"))?;
    scene
        .wait_until("the echo comes back", ARRIVES, || {
            Ok((net.alice.heard("ping-out") == 0).then(|| "no echo".to_owned()))
        })
        .map(drop)
}

/// Sends it from alice's guest: it must arrive nowhere and be answered by nobody, while what is
/// sent after it on the same wire does arrive.
fn nowhere(scene: &mut Scene, net: &mut Net, case: &Forbidden) -> Result<()> {
    net.forget();
    let text = format!("<{}>", case.what);
    for _ in 0..TIMES {
        net.alice.send(&(case.make)(&net.alice, &text))?;
    }
    std::thread::sleep(LATE);
    let arrived = net.arrived(&net.alice, &text);
    ensure!(arrived.total() == 0, "of {TIMES} packets: {arrived:?}");
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
    if !case.else_arrives {
        return Ok(());
    }
    net.forget();
    for _ in 0..TIMES {
        net.control.send(&(case.make)(&net.control, &text))?;
    }
    let mut arrived = 0;
    scene.wait_until("it gets through from a tap without the firewall", ARRIVES, || {
        arrived += net.arrived(&net.control, &text).total();
        Ok((arrived == 0).then(|| "nothing has arrived".to_owned()))
    })?;
    Ok(())
}

/// Names that a guest invents, and how many.
const INVENTED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FLOOD: u32 = 3000;

/// A guest takes another's hardware address and claims its and the gateway's IP address: what is
/// meant for the other goes on to the other alone.
fn lies(scene: &Scene, net: &mut Net) -> Result<()> {
    net.forget();
    for claimed in [net.bob.address, GATEWAY, OUTSIDE] {
        for mac in [net.alice.mac, net.bob.mac] {
            for operation in [1, 2] {
                let claim = arp(operation, mac, claimed, GATEWAY);
                net.alice.send_frame(&frames::to_all(mac, &claim))?;
                net.alice.send(&claim)?;
            }
        }
    }
    let packet = udp(net.alice.address, OUTSIDE, "with-bobs-mac");
    net.alice.send_frame(&frames::ethernet(
        super::guest::mac_of(&net.alice.tap)?,
        net.bob.mac,
        packet.ether_type,
        &packet.bytes,
    ))?;
    // To another station on the wire: not for the host.
    net.alice.send_frame(&frames::ethernet(
        [2; 6],
        net.alice.mac,
        packet.ether_type,
        &udp(net.alice.address, OUTSIDE, "other-station").bytes,
    ))?;
    // In more names than the host remembers neighbours (`gc_thresh3`).
    for number in 0..FLOOD {
        let invented = Ipv4Addr::from_bits(INVENTED.to_bits() + number);
        net.alice.send(&arp(1, net.alice.mac, invented, GATEWAY))?;
    }
    let believed = scene.root("ip neigh show to 10.77.0.0/16 | wc -l")?;
    ensure!(
        believed.trim() == "0",
        "the host has made neighbours of {} of {FLOOD} invented addresses",
        believed.trim()
    );
    net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))?;
    let (to_bob, answers) = (net.bob.heard("back-"), net.alice.heard("back-"));
    ensure!(to_bob == 1 && answers == 0, "of the answer to bob's guest {to_bob} came there and {answers} to alice's");
    let neighbours = scene.root(&format!("ip neigh show dev {}", net.bob.tap))?;
    ensure!(!neighbours.contains("06:00:00:00:00:01"), "the host believes alice's guest about bob's:\n{neighbours}");
    let seen = net.outside.seen();
    ensure!(
        !seen.iter().any(|frame| frames::carries(frame, "other-station")),
        "a frame for another station was routed"
    );
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))
}

fn stays(scene: &Scene, net: &mut Net, guest: fn(&Net) -> &Guest) -> Result<()> {
    net.forget();
    for to in [OUTSIDE, METADATA, HOST, GATEWAY, BOBS] {
        for _ in 0..TIMES {
            guest(net).send(&udp(guest(net).address, to, "stays"))?;
        }
    }
    std::thread::sleep(LATE);
    let arrived = net.arrived(guest(net), "stays");
    ensure!(arrived.total() == 0, "{}: {arrived:?}", guest(net).tap);
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))
}

/// All VMMs are of one uid, so each can open any tap that is idle: also one that was another's a
/// moment ago, with an address and NAT.
fn left_behind(scene: &Scene, net: &mut Net) -> Result<()> {
    net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))?;
    net.end_bobs_process()?;
    let mut count = 0;
    let open = scene.wait_until("nothing leaves it any more", ARRIVES, || {
        count += 1;
        Ok(net.reaches_out(|net| &net.bob, scene.limit(LATE))?.ok().map(|from| format!("exchange {count}, as {from}")))
    })?;
    stays(scene, net, |net| &net.bob)?;
    ensure!(open < scene.limit(Duration::from_millis(500)), "it was open for {open:?}");
    Ok(())
}

/// The world knows the way and sends; with the host's own packets as the proof that the tap
/// receives.
fn unasked(scene: &Scene, net: &mut Net) -> Result<()> {
    net.forget();
    for to in [net.alice.address, net.bob.address] {
        for _ in 0..TIMES {
            net.outside.udp.send_to(b"unasked", (to, 9))?;
        }
    }
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for guest in [&net.alice, &net.bob] {
        scene.wait_until("root's own packet arrives", ARRIVES, || {
            socket.send_to(b"of-root", (guest.address, 9))?;
            std::thread::sleep(Duration::from_millis(20));
            Ok((guest.heard("of-root") == 0).then(|| "nothing".to_owned()))
        })?;
        ensure!(guest.heard("unasked") == 0, "{} has received what it had not asked for", guest.tap);
    }
    Ok(())
}
