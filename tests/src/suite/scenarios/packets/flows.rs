//! Flows that were there before: of a VM that was deleted and of one without NAT any more. Nobody
//! hears of the next VM at that address, nor does it of them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Uid, setfsuid};

use super::frames::{PORT, udp, udp_to};
use super::guest::Guest;
use super::network::{ALICE, GATEWAY, Net, OUTSIDE, datagrams, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

const ARRIVES: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_millis(300);

pub(super) fn old_flows(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            let socket = of_alice()?;
            socket.connect((net.alice.address, PORT)).context("connect to alice's guest")?;
            let outside =
                scene.step("a flow of alice's to her guest and one of the guest through NAT live", |scene| {
                    from_the_host(scene, &net.alice, &socket, "host-first")?;
                    to_the_host(scene, &net.alice, &socket, "guest-first")?;
                    let from = through_nat(scene, net, |net| &net.alice, "nat-first")?;
                    answered(scene, net, |net| &net.alice, from, "answer-first")?;
                    Ok(from)
                })?;
            scene.step("her VM is deleted, and bob's next one has its address", |scene| {
                net.hand_alices_address_to_bob(scene)?;
                let flows = scene.root("cat /proc/net/nf_conntrack")?;
                let address = format!("={} ", net.alice.address);
                ensure!(!flows.contains(&address), "a flow of {address} is left:\n{flows}");
                Ok(())
            })?;
            scene.step("none of the old flows reaches it, and it reaches none of them", |scene| {
                net.forget();
                // Refused at once.
                let sent = socket.send(b"host-second");
                net.outside.udp.send_to(b"answer-second", outside)?;
                net.alice.send(&udp_to(net.alice.address, GATEWAY, port(&socket)?, "guest-second"))?;
                std::thread::sleep(scene.limit(LATE));
                ensure!(sent.is_err(), "the datagram of alice's old socket was let go");
                for text in ["host-second", "answer-second"] {
                    ensure!(net.alice.heard(text) == 0, "bob's guest has heard {text}");
                }
                ensure!(datagrams(&socket).is_empty(), "bob's guest has answered alice's old socket");
                // Last, so that no flow of it lets the answer in.
                net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))
            })?;
            scene.step("what came back through NAT comes no more when it is switched off", |scene| {
                let from = through_nat(scene, net, |net| &net.bob, "bob-first")?;
                answered(scene, net, |net| &net.bob, from, "bob-answer-first")?;
                net.bobs_nat(false)?;
                net.outside.udp.send_to(b"bob-answer-second", from)?;
                std::thread::sleep(scene.limit(LATE));
                ensure!(net.bob.heard("bob-answer-second") == 0, "an answer has come through");
                net.bobs_nat(true)?;
                net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))
            })
        })
    })
}

/// A socket of alice's: the rights with which it is opened are those of the thread.
fn of_alice() -> Result<UdpSocket> {
    let root = setfsuid(Uid::from_raw(ALICE));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    setfsuid(root);
    let socket = socket.context("open a socket as alice")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn port(socket: &UdpSocket) -> Result<u16> {
    Ok(socket.local_addr()?.port())
}

fn from_the_host(scene: &Scene, guest: &Guest, socket: &UdpSocket, text: &str) -> Result<()> {
    scene
        .wait_until("a datagram of the owner arrives", ARRIVES, || {
            socket.send(text.as_bytes())?;
            std::thread::sleep(Duration::from_millis(20));
            Ok((guest.heard(text) == 0).then(|| "nothing".to_owned()))
        })
        .map(drop)
}

fn to_the_host(scene: &Scene, guest: &Guest, socket: &UdpSocket, text: &str) -> Result<()> {
    guest.send(&udp_to(guest.address, GATEWAY, port(socket)?, text))?;
    scene
        .wait_until("and is answered", ARRIVES, || {
            let heard = datagrams(socket).iter().any(|(told, _)| told.contains(text));
            Ok((!heard).then(|| "nothing".to_owned()))
        })
        .map(drop)
}

/// A datagram of a guest to the world; from where the world has seen it come.
pub(super) fn through_nat(scene: &Scene, net: &Net, guest: fn(&Net) -> &Guest, text: &str) -> Result<SocketAddr> {
    guest(net).send(&udp(guest(net).address, OUTSIDE, text))?;
    let mut from = None;
    scene.wait_until("a datagram leaves through NAT", ARRIVES, || {
        from = datagrams(&net.outside.udp).into_iter().find(|(told, _)| told.contains(text)).map(|(_, from)| from);
        Ok(from.is_none().then(|| "nothing".to_owned()))
    })?;
    from.context("seen, and not seen")
}

pub(super) fn answered(scene: &Scene, net: &Net, guest: fn(&Net) -> &Guest, to: SocketAddr, text: &str) -> Result<()> {
    net.outside.udp.send_to(text.as_bytes(), to)?;
    scene
        .wait_until(
            "its answer comes back",
            ARRIVES,
            || Ok((guest(net).heard(text) == 0).then(|| "nothing".to_owned())),
        )
        .map(drop)
}
