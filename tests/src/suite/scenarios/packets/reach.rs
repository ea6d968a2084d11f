//! How far a guest reaches in each network mode, and who reaches whom in a private network. What
//! must not pass in one mode is seen to pass in another.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use banger_policy::Digest;
use banger_policy::reach::{Mode, Reach, Target};

use super::frames::{Packet, ping, syn, udp, udp_to, udp6};
use super::guest::Guest;
use super::network::{CONTAINER, GATEWAY, HOST, METADATA, Net, OUTSIDE, PRIVATE, WORLD, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

const TIMES: usize = 5;
const ARRIVES: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_millis(150);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x51, 0, 0, 0, 0, 0, 2);
const ROUTED6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x52, 0, 0, 0, 0, 0, 2);

/// Which of the guests of [`Net`], by the order in which they were made.
const ALICES: usize = 0;
const BOBS: usize = 1;
const INWARD: usize = 2;

/// How often a packet of a guest has arrived anywhere.
fn arrivals(scene: &Scene, net: &Net, guest: fn(&Net) -> &Guest, packet: &Packet, text: &str) -> Result<usize> {
    net.forget();
    for _ in 0..TIMES {
        guest(net).send(packet)?;
    }
    std::thread::sleep(scene.limit(LATE));
    Ok(net.arrived(guest(net), text).total())
}

/// It arrives, or nothing of it does.
fn passes(scene: &Scene, net: &Net, guest: fn(&Net) -> &Guest, packet: &Packet, text: &str, is: bool) -> Result<()> {
    if is {
        scene.wait_until(&format!("{text} arrives"), ARRIVES, || {
            Ok((arrivals(scene, net, guest, packet, text)? == 0).then(|| "nothing".to_owned()))
        })?;
        return Ok(());
    }
    let arrived = arrivals(scene, net, guest, packet, text)?;
    ensure!(arrived == 0, "{text}: {arrived} of {TIMES} have arrived");
    Ok(())
}

fn bob(net: &Net) -> &Guest {
    &net.bob
}

fn to(net: &Net, destination: Ipv4Addr, text: &str) -> Packet {
    udp(net.bob.address, destination, text)
}

pub(super) fn modes(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            let mut kinds = 0;
            for (mode, world, private) in [
                (Mode::Nat, true, true),
                (Mode::Public, true, false),
                (Mode::None, false, false),
                (Mode::Nat, true, true),
            ] {
                scene.step(&format!("{mode}: the world {world}, private networks {private}"), |scene| {
                    net.let_reach(BOBS, Reach::of(mode))?;
                    passes(scene, net, bob, &to(net, WORLD, "world"), "world", world)?;
                    passes(scene, net, bob, &syn(net.bob.address, WORLD, 443, "syn-world"), "syn-world", world)?;
                    for address in PRIVATE {
                        let text = format!("private-{address}-");
                        passes(scene, net, bob, &to(net, address, &text), &text, private)?;
                    }
                    passes(
                        scene,
                        net,
                        bob,
                        &ping(net.bob.address, PRIVATE[0], "ping-private"),
                        "ping-private",
                        private,
                    )?;
                    passes(scene, net, bob, &to(net, CONTAINER, "container"), "container", private)?;
                    for (address, text) in [(METADATA, "metadata"), (HOST, "host"), (GATEWAY, "gateway")] {
                        passes(scene, net, bob, &to(net, address, text), text, false)?;
                    }
                    passes(scene, net, bob, &to(net, net.inward.address, "sideways"), "sideways", false)?;
                    passes(scene, net, bob, &udp6(ROUTED6, OUTSIDE6, "ipv6"), "ipv6", false)?;
                    kinds += PRIVATE.len() + 9;
                    Ok(())
                })?;
            }
            scene.measured("kinds of packets in four modes", kinds);
            Ok(())
        })
    })
}

fn allow(texts: &[&str]) -> Result<Reach> {
    let targets = texts.iter().map(|text| Target::try_from((*text).to_owned())).collect::<Result<_, _>>()?;
    Ok(Reach { mode: Mode::Allow, targets, group: None })
}

pub(super) fn lists(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            scene.step("a list lets pass what it names and nothing else", |scene| {
                net.let_reach(BOBS, allow(&["198.51.100.2/32:7777/udp", "10.77.0.0/16"])?)?;
                net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))?;
                passes(scene, net, bob, &to(net, PRIVATE[0], "in-the-range"), "in-the-range", true)?;
                let port = |port, text: &str| udp_to(net.bob.address, OUTSIDE, port, text);
                passes(scene, net, bob, &port(7778, "other-port"), "other-port", false)?;
                passes(
                    scene,
                    net,
                    bob,
                    &syn(net.bob.address, OUTSIDE, 7777, "other-protocol"),
                    "other-protocol",
                    false,
                )?;
                passes(scene, net, bob, &ping(net.bob.address, OUTSIDE, "ping"), "ping", false)?;
                passes(scene, net, bob, &to(net, PRIVATE[1], "out-of-range"), "out-of-range", false)?;
                passes(scene, net, bob, &to(net, WORLD, "world"), "world", false)
            })?;
            scene.step("a list of everything leads neither to the host nor to metadata nor to a guest", |scene| {
                net.let_reach(BOBS, allow(&["0.0.0.0/0"])?)?;
                passes(scene, net, bob, &to(net, WORLD, "world"), "world", true)?;
                for (address, text) in [(METADATA, "metadata"), (HOST, "host"), (GATEWAY, "gateway")] {
                    passes(scene, net, bob, &to(net, address, text), text, false)?;
                }
                passes(scene, net, bob, &to(net, net.inward.address, "sideways"), "sideways", false)
            })?;
            scene.step("an answer to what was taken off the list comes no more", |scene| {
                let from = super::flows::through_nat(scene, net, bob, "list-first")?;
                super::flows::answered(scene, net, bob, from, "list-answer-first")?;
                net.let_reach(BOBS, allow(&["10.77.0.0/16"])?)?;
                net.outside.udp.send_to(b"list-answer-second", from)?;
                std::thread::sleep(scene.limit(LATE));
                ensure!(net.bob.heard("list-answer-second") == 0, "an answer has come through");
                passes(scene, net, bob, &to(net, PRIVATE[0], "still-allowed"), "still-allowed", true)
            })
        })
    })
}

pub(super) fn private_networks(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            let lab = Reach { group: Some(Digest::from_bytes([7; 32])?), ..Reach::default() };
            let alices: fn(&Net) -> &Guest = |net| &net.alice;
            let inward: fn(&Net) -> &Guest = |net| &net.inward;
            let between = |scene: &Scene, net: &Net, is: bool| -> Result<()> {
                let (one, other) = (net.alice.address, net.inward.address);
                passes(scene, net, alices, &udp(one, other, "there"), "there", is)?;
                passes(scene, net, inward, &udp(other, one, "back"), "back", is)
            };
            scene.step("two VMs of one user do not reach each other", |scene| between(scene, net, false))?;
            scene.step("in one private network they do", |scene| {
                net.let_reach(ALICES, lab.clone())?;
                between(scene, net, false).context("one of the two is in it")?;
                net.let_reach(INWARD, lab.clone())?;
                between(scene, net, true)
            })?;
            scene.step("another user's VM is never in it, whatever the helper is told", |scene| {
                net.let_reach(BOBS, lab.clone())?;
                for other in [net.alice.address, net.inward.address] {
                    passes(scene, net, bob, &to(net, other, "stranger"), "stranger", false)?;
                    passes(
                        scene,
                        net,
                        alices,
                        &udp(net.alice.address, net.bob.address, "to-stranger"),
                        "to-stranger",
                        false,
                    )?;
                }
                between(scene, net, true)
            })?;
            scene.step("the network leads nowhere else, and carries no IPv6", |scene| {
                for (address, text) in [(OUTSIDE, "outside"), (HOST, "host"), (METADATA, "metadata")] {
                    passes(scene, net, alices, &udp(net.alice.address, address, text), text, false)?;
                }
                passes(scene, net, alices, &udp6(ROUTED6, OUTSIDE6, "ipv6"), "ipv6", false)
            })?;
            scene.step("who leaves is out at once", |scene| {
                net.let_reach(INWARD, Reach::default())?;
                between(scene, net, false)
            })
        })
    })
}
