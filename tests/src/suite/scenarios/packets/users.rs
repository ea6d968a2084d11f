//! Who on the host itself may send to a guest: its owner, the daemon and root.

use anyhow::{Result, ensure};

use super::frames;
use super::guest::Guest;
use super::network::{Net, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

/// User, and whether alice's and bob's guest may hear of them.
const USERS: &[(&str, bool, bool)] = &[
    ("root", true, true),
    ("bangerd", true, true),
    ("alice", true, false),
    ("bob", false, true),
    ("carol", false, false),
    ("nobody", false, false),
];

pub(super) fn local_users(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, false, |scene| {
        with_net(scene, |scene, net| {
            for (number, (user, alices, bobs)) in (1_u16..).zip(USERS) {
                scene.step(&format!("{user}: alice's guest {alices}, bob's {bobs}"), |scene| {
                    hears(scene, net, |net| &net.alice, user, number, *alices)?;
                    hears(scene, net, |net| &net.bob, user, number, *bobs)
                })?;
            }
            Ok(())
        })
    })
}

/// A datagram, one by way of the interface's name, and a connection, which never comes about: the
/// guests answer no segment.
fn hears(scene: &Scene, net: &Net, guest: fn(&Net) -> &Guest, user: &str, number: u16, expected: bool) -> Result<()> {
    let guest = guest(net);
    let (address, tap, port) = (guest.address, &guest.tap, 20_000 + number);
    guest.forget();
    scene.root_any(&format!(
        "runuser -u {user} -- sh -c 'timeout 1 socat -u /dev/null TCP:{address}:{port} & \
         echo datagram-of-{user} | socat -u - UDP-SENDTO:{address}:9; \
         echo device-of-{user} | socat -u - UDP-SENDTO:{address}:9,so-bindtodevice={tap}; wait'"
    ))?;
    let frames = guest.take();
    let texts = ["datagram", "device"].map(|kind| {
        let text = format!("{kind}-of-{user}");
        frames.iter().filter(|frame| frames::carries(frame, &text)).count()
    });
    let segments = frames.iter().filter(|frame| frame.get(36..38) == Some(&port.to_be_bytes())).count();
    let right = if expected { texts == [1, 1] && segments > 0 } else { texts == [0, 0] && segments == 0 };
    ensure!(right, "{user} to {tap}: {texts:?} datagrams, {segments} segments have arrived");
    Ok(())
}
