//! `nft flush ruleset` while a guest keeps trying: the table is the helper's own, and stands while
//! the helper lives. Without a helper root can remove it; then the helper's next start closes it
//! again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use super::frames::udp;
use super::guest::Guest;
use super::network::{HOST, Net, OUTSIDE, with_net};
use crate::suite::list::Outcome;
use crate::suite::peer::place::instead_of_the_daemon;
use crate::suite::scene::Scene;

const FLUSHES: usize = 20;
/// What else root could try on the table; each is refused.
const REFUSED: &[&str] = &[
    "delete table inet banger",
    "flush table inet banger",
    "flush chain inet banger guard",
    "delete chain inet banger guard",
    "add rule inet banger guard accept",
    "insert rule inet banger forward accept",
    "flush set inet banger live",
    "add element inet banger nat { 172.16.0.4 }",
    "delete table arp banger",
    "flush chain arp banger input",
];
/// Isolation is restored within about a second after the start of the helper's process, under KVM.
const RESTORED: Duration = Duration::from_millis(2500);
const ARRIVES: Duration = Duration::from_secs(2);
const TEXT: &str = "under-fire";
/// Between two rounds of the guest, so that the rest of the host has its turn.
const PAUSE: Duration = Duration::from_micros(500);

pub(super) fn flush(scene: &mut Scene) -> Result<Outcome> {
    instead_of_the_daemon(scene, true, |scene| {
        with_net(scene, |scene, net| {
            let stands = table(scene)?;
            scene.step("with the helper alive no flush opens anything", |scene| {
                let (sent, arrived) = under_fire(net, |_| {
                    for _ in 0..FLUSHES {
                        scene.root("nft flush ruleset")?;
                    }
                    for words in REFUSED {
                        let ended = scene.root_any(&format!("nft '{words}'"))?;
                        ensure!(!ended.status.success(), "`nft {words}` was not refused");
                    }
                    Ok(())
                })?;
                scene.measured("forbidden packets sent during flushes", sent);
                ensure!(sent > 500, "only {sent} packets were sent");
                ensure!(arrived == 0, "{arrived} of {sent} forbidden packets have arrived");
                ensure!(stands == table(scene)?, "the table has changed");
                Ok(())
            })?;
            scene.step("nor does the helper's death", |scene| {
                let (sent, arrived) = under_fire(net, |_| {
                    let pid = scene.main_pid("banger-priv.service")?;
                    scene.root(&format!("kill -KILL {pid}"))?;
                    serving(scene, Some(pid)).map(drop)
                })?;
                scene.measured("forbidden packets sent while it died and came back", sent);
                ensure!(arrived == 0, "{arrived} of {sent} forbidden packets have arrived");
                ensure!(stands == table(scene)?, "the table has changed");
                Ok(())
            })?;
            scene.step("flushed without a helper it is closed again by the helper's start", |scene| {
                let millis = closed_again(scene, net, "systemctl stop banger-priv.service; nft flush ruleset", || {
                    scene.root("systemctl start banger-priv.service").map(drop)
                })?;
                scene.measured("ms open after the helper's start", millis);
                ensure!(stands == table(scene)?, "the table is another one");
                Ok(())
            })?;
            scene.step("and by its restart after a kill and a flush in one", |scene| {
                let pid = scene.main_pid("banger-priv.service")?;
                let line = format!("kill -KILL {pid}; nft flush ruleset");
                let millis = closed_again(scene, net, &line, || serving(scene, Some(pid)))?;
                scene.measured("ms open after a kill and a flush", millis);
                Ok(())
            })?;
            net.helper.reconnect()?;
            scene.step("guests reach out as before", |scene| net.must_reach_out(|net| &net.alice, scene.limit(ARRIVES)))
        })
    })
}

/// Sends without a pause what must not arrive, while `work` is done; how much was sent, and how
/// much has arrived.
fn under_fire(net: &Net, work: impl FnOnce(&dyn Fn() -> usize) -> Result<()>) -> Result<(usize, usize)> {
    net.forget();
    let (ends, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut arrived = 0;
    let result = std::thread::scope(|scope| {
        let fire = scope.spawn(|| fire(&net.alice, &net.bob, &ends, &sent));
        let look = || {
            let arrived = net.arrived(&net.alice, TEXT);
            arrived.outside + arrived.host + arrived.guest
        };
        let result = work(&look);
        ends.store(true, Ordering::Relaxed);
        let fired = fire.join().ok().context("the guest's thread panicked")?;
        std::thread::sleep(Duration::from_millis(100));
        arrived = look();
        fired.and(result)
    });
    result?;
    Ok((sent.load(Ordering::Relaxed), arrived))
}

fn fire(from: &Guest, other: &Guest, ends: &AtomicBool, sent: &AtomicUsize) -> Result<()> {
    let packets =
        [udp(from.address, HOST, TEXT), udp(from.address, other.address, TEXT), udp(other.address, OUTSIDE, TEXT)];
    while !ends.load(Ordering::Relaxed) {
        for packet in &packets {
            from.send(packet)?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Opens with `line`, which must be seen to open; then `close` starts a helper. Milliseconds from
/// the start of its process to the last packet that arrived.
fn closed_again(scene: &Scene, net: &Net, line: &str, close: impl FnOnce() -> Result<()> + Send) -> Result<u128> {
    let (mut total, mut last) = (0, since_boot()?);
    under_fire(net, |look| {
        scene.root(line)?;
        total += look();
        std::thread::scope(|scope| {
            let closing = scope.spawn(close);
            let mut closed = None;
            while closed.is_none_or(|at: Instant| at.elapsed() < scene.limit(RESTORED)) {
                let seen = look();
                if seen > 0 {
                    (total, last) = (total + seen, since_boot()?);
                }
                if closed.is_none() && closing.is_finished() {
                    closed = Some(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            closing.join().ok().context("the closing thread panicked")?
        })
    })?;
    ensure!(total > 0, "the flush has opened nothing, so nothing was shown to be closed");
    let begun = scene.root("systemctl show -P ExecMainStartTimestampMonotonic banger-priv.service")?;
    let open = last.saturating_sub(Duration::from_micros(begun.trim().parse().context("when the helper started")?));
    ensure!(open <= scene.limit(RESTORED), "open for {} ms after the helper's start", open.as_millis());
    Ok(open.as_millis())
}

/// The clock by which systemd says when something started.
fn since_boot() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// Waits until another helper serves.
fn serving(scene: &Scene, before: Option<u32>) -> Result<()> {
    scene
        .wait_until("a new helper serves", Duration::from_secs(5), || {
            let state = scene.root_any("systemctl is-active banger-priv.service")?.stdout;
            let pid = scene.main_pid("banger-priv.service").ok();
            Ok((state.trim() != "active" || pid.is_none() || pid == before).then_some(state))
        })
        .map(drop)
}

/// The tables without the running numbers of their rules, and without the guests and users that
/// rules count: these come and go by themselves.
fn table(scene: &Scene) -> Result<String> {
    scene.root(
        "nft --stateless list table arp banger; nft --stateless list table inet banger | \
         sed -E '/^\tset (asked|flows|fragments|begun|towards) \\{$/,/^\t}$/ { /elements.*}$/d; /elements/,/}$/d }'",
    )
}
