//! The host's own rules: a DROP in its FORWARD chain does not keep guests in, nothing of it is
//! touched but for two marked rules, and what it forbids holds for guests too.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::frames::udp;
use super::network::{Net, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

/// What Docker and an administrator would have: chains and rules in two tables, a policy, and a
/// native table beside them.
const RULES: &str = "\
    $I -P FORWARD DROP; $I -N DOCKER; $I -N DOCKER-USER; $I -A DOCKER-USER -j RETURN; $I -A FORWARD -j DOCKER-USER; \
    $I -A FORWARD -o docker0 -j DOCKER; $I -A DOCKER -d 172.17.0.2/32 -p tcp --dport 80 -j ACCEPT; \
    $I -A INPUT -p tcp --dport 7 -j DROP; $I -t nat -N DOCKER; \
    $I -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE; \
    nft 'table inet foreign { set s { type ipv4_addr; elements = { 192.0.2.99 }; }; chain c { type filter hook forward priority 5; ip saddr @s drop; }; }'";
const UNDO: &str = "\
    $I -P FORWARD ACCEPT; for t in filter nat; do $I -t $t -F; $I -t $t -X; done; nft delete table inet foreign";

/// The packaged timer promises this; under emulation a run of it takes some time of its own.
const TIMER: Duration = Duration::from_secs(30);
const RUN: Duration = Duration::from_secs(2);
/// What is dropped does not come within this.
const DROPPED: Duration = Duration::from_millis(400);
const ARRIVES: Duration = Duration::from_secs(2);

const MARK: &str = "banger-static";

pub(super) fn nft(scene: &mut Scene) -> Result<Outcome> {
    let undo = format!("{UNDO}; for t in filter nat; do nft delete table ip $t; done");
    among_foreign_rules(scene, "iptables-nft -w 60", &undo, true)
}

pub(super) fn legacy(scene: &mut Scene) -> Result<Outcome> {
    let undo = format!("{UNDO}; modprobe -r iptable_nat iptable_filter");
    among_foreign_rules(scene, "iptables-legacy -w 60", &undo, false)
}

/// No run of the script is at work, and none comes.
const STILL: &str = "systemctl stop banger-host-firewall.timer; \
    while [ \"$(systemctl is-active banger-host-firewall.service)\" = activating ]; do sleep 0.2; done";

fn among_foreign_rules(scene: &mut Scene, iptables: &'static str, undo: &str, timer: bool) -> Result<Outcome> {
    let filled = |line: &str| line.replace("$I", iptables);
    instead_of_the_daemon(scene, true, |scene| {
        with_net(scene, |scene, net| {
            // Its own run of the script would come between the steps; so would one that it has
            // begun.
            scene.root(STILL)?;
            let result = scene
                .root(&format!("set -e; {}", filled(RULES)))
                .and_then(|_| through_foreign_rules(scene, net, iptables, timer));
            let undone = scene.root_any(&filled(undo));
            scene.root("systemctl start banger-host-firewall.timer")?;
            result?;
            undone?.ok().map(drop)
        })
    })
}

fn through_foreign_rules(scene: &mut Scene, net: &mut Net, iptables: &str, timer: bool) -> Result<()> {
    let before = foreign(scene, iptables)?;
    scene.step("the policy does drop", |scene| is_kept_in(scene, net))?;
    scene.step("the service lets guests out through it", |scene| {
        scene.root("systemctl start banger-host-firewall.service")?;
        net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))
    })?;
    scene.step("and to nobody else", |scene| {
        net.forget();
        net.alice.send(&udp(net.alice.address, net.bob.address, "sideways"))?;
        net.outside.udp.send_to(b"sideways", (net.alice.address, 9))?;
        std::thread::sleep(scene.limit(DROPPED));
        let arrived = net.arrived(&net.alice, "sideways");
        ensure!(arrived.guest == 0 && net.alice.heard("sideways") == 0, "{arrived:?}");
        Ok(())
    })?;
    scene.step("what the administrator forbids holds for guests", |scene| forbidden(scene, net, iptables))?;
    scene.step("a second run changes nothing", |scene| {
        let rules = scene.root(&format!("{iptables} -S"))?;
        scene.root("systemctl start banger-host-firewall.service")?;
        ensure!(rules == scene.root(&format!("{iptables} -S"))?, "the rules differ after a second run");
        ensure!(rules.matches(MARK).count() == 2, "not two marked rules:\n{rules}");
        Ok(())
    })?;
    scene.step("after -F FORWARD they come out again", |scene| {
        // What the host had there itself is flushed with ours, and is put back as its owner would.
        scene.root(&format!("{iptables} -F FORWARD"))?;
        is_kept_in(scene, net)?;
        if timer {
            by_the_timer(scene, net)?
        } else {
            scene.root("systemctl start banger-host-firewall.service").map(drop)?
        }
        net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
        scene
            .root(&format!("{iptables} -A FORWARD -j DOCKER-USER; {iptables} -A FORWARD -o docker0 -j DOCKER"))
            .map(drop)
    })?;
    scene.step("a restart of the helper and of our service leaves everything foreign as it was", |scene| {
        scene.root("systemctl restart banger-priv.service banger-host-firewall.service")?;
        net.helper.reconnect()?;
        net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
        same(&before, &foreign(scene, iptables)?)
    })?;
    scene.step("taken out, nothing of ours is left", |scene| {
        scene.root("/usr/libexec/banger/host-firewall remove")?;
        let left = scene.root("iptables-nft-save; iptables-legacy-save; true")?;
        ensure!(!left.contains(MARK) && !left.contains("bgr"), "left:\n{left}");
        same(&before, &foreign(scene, iptables)?)?;
        is_kept_in(scene, net)
    })
}

/// In the chain that Docker leaves to administrators, or behind our rules: both hold. A rule that
/// ends the chain for everybody stays the last.
fn forbidden(scene: &Scene, net: &mut Net, iptables: &str) -> Result<()> {
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
    scene.root(&format!("{iptables} -I DOCKER-USER -d 198.51.100.2 -j DROP"))?;
    is_kept_in(scene, net)?;
    scene.root("systemctl start banger-host-firewall.service")?;
    is_kept_in(scene, net)?;
    scene.root(&format!("{iptables} -D DOCKER-USER -d 198.51.100.2 -j DROP"))?;
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
    scene.root(&format!("{iptables} -A FORWARD -s 172.16.0.0/24 -d 198.51.100.2 -j DROP"))?;
    scene.root("systemctl start banger-host-firewall.service")?;
    is_kept_in(scene, net)?;
    scene.root(&format!("{iptables} -D FORWARD -s 172.16.0.0/24 -d 198.51.100.2 -j DROP"))?;
    scene.root(&format!("{iptables} -A FORWARD -j REJECT"))?;
    scene.root("systemctl start banger-host-firewall.service")?;
    net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES))?;
    let rules = scene.root(&format!("{iptables} -S FORWARD"))?;
    ensure!(rules.lines().last().is_some_and(|rule| rule.contains("REJECT")), "the last is not the last:\n{rules}");
    scene.root(&format!("{iptables} -D FORWARD -j REJECT; systemctl start banger-host-firewall.service")).map(drop)
}

/// Once the timer's own turn is waited for.
fn by_the_timer(scene: &mut Scene, net: &mut Net) -> Result<()> {
    scene.root("systemctl start banger-host-firewall.timer")?;
    let mut last = String::new();
    let waited = scene.wait_until("guests come out again", Duration::from_secs(15), || {
        let seen = net.reaches_out(|net| &net.alice, Duration::from_millis(500))?;
        last = format!("{seen:?} missing");
        Ok(seen.is_err().then(|| last.clone()))
    })?;
    scene.root("systemctl stop banger-host-firewall.timer")?;
    scene.measured("seconds until the timer has let guests out again", format!("{:.1}", waited.as_secs_f64()));
    let limit = TIMER + scene.limit(RUN);
    if waited > limit {
        bail!("after {} s, expected within {} s", waited.as_secs(), limit.as_secs());
    }
    Ok(())
}

fn is_kept_in(scene: &Scene, net: &mut Net) -> Result<()> {
    let seen = net.reaches_out(|net| &net.alice, scene.limit(DROPPED))?;
    ensure!(seen == Err("the question"), "a guest came out although FORWARD drops: {seen:?}");
    Ok(())
}

/// Everything in the host's rules that is not ours; both programs must be able to read it.
fn foreign(scene: &Scene, iptables: &str) -> Result<String> {
    scene.root("iptables-nft -S; iptables-nft -t nat -S")?;
    scene.root(&format!("{iptables} -S"))?;
    scene.root(&format!(
        "{{ {iptables} -S; {iptables} -t nat -S; }} | grep -v {MARK}; nft list table inet foreign; \
         nft list tables | grep -v -e ' banger' -e 'ip nat' -e 'ip filter'; true"
    ))
}

fn same(before: &str, after: &str) -> Result<()> {
    ensure!(before == after, "foreign rules were:\n{before}\nand are:\n{after}");
    Ok(())
}
