//! Programs beside ours that make rules: whoever starts first, reloads or stops, guests with NAT
//! reach out and nobody else's guest, by packets. A neighbour that the host VM does not have is
//! skipped aloud.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::frames::udp;
use super::network::{HOST, Net, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

const ARRIVES: Duration = Duration::from_secs(2);
/// What is dropped does not come within this.
const DROPPED: Duration = Duration::from_millis(400);
/// The packaged timer's promise, and a run of the script under load.
const TIMER: Duration = Duration::from_secs(40);

/// A neighbour, by what an administrator types. SSH, by which the bench comes in, stays open.
struct Neighbour {
    /// Prints something where it is installed.
    installed: &'static str,
    start: &'static str,
    reload: &'static str,
    stop: &'static str,
    undo: &'static str,
}

const UFW: Neighbour = Neighbour {
    installed: "command -v ufw || true",
    start: "ufw allow 22/tcp && ufw --force enable",
    reload: "ufw reload",
    stop: "ufw --force disable",
    undo: "ufw --force reset; rm -f /etc/ufw/*.rules.2*; /usr/lib/ufw/ufw-init flush-all; \
        for f in ip ip6; do nft delete table $f filter; done; true",
};

/// Its file begins with `flush ruleset`, as Debian's does.
const NFTABLES: Neighbour = Neighbour {
    installed: "command -v nft || true",
    start: "nft 'flush ruleset; table inet host { chain forward { type filter hook forward priority 0; policy accept; }; }'",
    reload: "nft 'flush ruleset; table inet host { chain forward { type filter hook forward priority 0; policy accept; }; }'",
    stop: "nft flush ruleset",
    undo: "true",
};

/// A script of an administrator, as many hosts have it.
const IPTABLES: Neighbour = Neighbour {
    installed: "command -v iptables || true",
    start: "iptables -F; iptables -P FORWARD DROP",
    reload: "iptables -F; iptables -X; iptables -P FORWARD DROP",
    stop: "iptables -P FORWARD ACCEPT; iptables -F",
    undo: "nft delete table ip filter; true",
};

const DOCKER: Neighbour = Neighbour {
    installed: "command -v dockerd || true",
    start: "systemctl start docker.service",
    reload: "systemctl restart docker.service",
    stop: "systemctl stop docker.service docker.socket",
    undo: "ip link delete docker0; for t in filter nat; do for f in ip ip6; do nft delete table $f $t; done; done; true",
};

pub(super) fn ufw(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, &UFW)
}

pub(super) fn nftables(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, &NFTABLES)
}

pub(super) fn iptables(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, &IPTABLES)
}

pub(super) fn docker(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, &DOCKER)
}

fn beside(scene: &mut Scene, neighbour: &Neighbour) -> Result<Outcome> {
    let found = scene.root(neighbour.installed)?;
    if found.trim().is_empty() {
        return Ok(Outcome::Skipped(format!("`{}` finds nothing in the host VM", neighbour.installed)));
    }
    instead_of_the_daemon(scene, true, |scene| {
        with_net(scene, |scene, net| {
            let result = cells(scene, net, neighbour);
            let undone = scene.root(neighbour.undo);
            result?;
            undone.map(drop)
        })
    })
}

fn cells(scene: &mut Scene, net: &mut Net, neighbour: &Neighbour) -> Result<()> {
    scene.step("before it", holds(net))?;
    scene.root(neighbour.start)?;
    scene.step("it starts after us", holds(net))?;
    scene.root("systemctl restart banger-priv.service banger-host-firewall.service")?;
    net.helper.reconnect()?;
    scene.step("we start after it", holds(net))?;
    scene.root(neighbour.reload)?;
    scene.step("it reloads", holds(net))?;
    scene.root(neighbour.stop)?;
    scene.step("it stops", holds(net))
}

/// A cell of the matrix. The rules in the host's chain come back by the timer; what keeps guests
/// apart must hold from the first packet on.
fn holds(net: &mut Net) -> impl FnOnce(&mut Scene) -> Result<()> {
    move |scene| {
        kept_apart(scene, net)?;
        let mut last = String::new();
        let waited = scene
            .wait_until("guests reach out", TIMER, || {
                let seen = net.reaches_out(|net| &net.alice, scene.limit(DROPPED))?;
                last = format!("{seen:?}");
                Ok((seen != Ok(HOST)).then(|| last.clone()))
            })
            .with_context(|| format!("the last try: {last}"))?;
        net.must_reach_out(|net| &net.bob, scene.limit(ARRIVES))?;
        scene.measured("seconds until guests reached out", format!("{:.1}", waited.as_secs_f64()));
        kept_apart(scene, net)
    }
}

/// Neither another guest nor the host hears a guest, and the world begins nothing with it.
fn kept_apart(scene: &Scene, net: &Net) -> Result<()> {
    net.forget();
    for target in [net.bob.address, net.inward.address, HOST] {
        net.alice.send(&udp(net.alice.address, target, "sideways"))?;
    }
    net.outside.udp.send_to(b"sideways", (net.alice.address, 9)).context("from outside")?;
    std::thread::sleep(scene.limit(DROPPED));
    let arrived = net.arrived(&net.alice, "sideways");
    ensure!(arrived.guest == 0 && arrived.host == 0 && net.alice.heard("sideways") == 0, "{arrived:?}");
    Ok(())
}
