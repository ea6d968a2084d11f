//! Published ports: who reaches them, and that they come back. The guest's server is its SSH
//! server, which each image has; for bytes in bulk, busybox's `nc`.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::suite::guests::Guest;
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "ports",
    about: "ports of guests on the host: who reaches them, and that they come back",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("a-port-is-its-owners-until-it-is-public", whose),
        Scenario::new("a-port-comes-back-and-says-when-it-cannot", comes_back),
        Scenario::new("a-thousand-connections-leave-nothing-behind", many),
        Scenario::new("bytes-in-bulk", bulk),
    ]
}

/// Bytes of one transfer.
const BULK: u64 = 64 << 20;

/// Publishes what is wanted; the host's port.
fn publish(scene: &Scene, vm: &str, words: &[&str]) -> Result<u64> {
    let words = [&["vm", "publish", "--json", vm], words].concat();
    let told = scene.banger("alice", &words)?.ok()?.json()?;
    told.pointer("/0/host_port").and_then(serde_json::Value::as_u64).with_context(|| format!("no port in {told}"))
}

fn hears(scene: &Scene, user: &str, port: u64) -> Result<bool> {
    let line = format!("socat -T 4 - TCP:127.0.0.1:{port},connect-timeout=4 </dev/null 2>/dev/null | head -c 4");
    Ok(scene.user(user, &line)?.stdout.contains("SSH-"))
}

fn hears_in_time(scene: &Scene, user: &str, port: u64) -> Result<()> {
    let what = format!("{user} reaches the published port {port}");
    let tried = scene.wait_until(&what, Duration::from_secs(15), || {
        Ok((!hears(scene, user, port)?).then(|| "no answer".to_owned()))
    });
    tried.map(drop)
}

fn whose(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "web")?;
    let port = publish(scene, "web", &["22"])?;
    hears_in_time(scene, "alice", port)?;
    ensure!(!hears(scene, "bob", port)?, "bob reaches alice's port");
    ensure!(
        scene.root(&format!("socat -T 4 - TCP:127.0.0.1:{port} </dev/null | head -c 4"))?.contains("SSH-"),
        "root does not"
    );
    let public = publish(scene, "web", &["--public", "22"])?;
    hears_in_time(scene, "bob", public)?;
    // Nothing is listened on beyond loopback, nor on the VMs' side, unless that is said.
    scene.banger("alice", &["vm", "publish", "web", "0.0.0.0:0:22"])?.refused(&["--public"])?;
    scene.banger("alice", &["vm", "publish", "--public", "web", "172.16.0.1:0:22"])?.refused(&["VMs' side"])?;
    // Who has a port is told to its owner only.
    let other = Guest::create(scene, "alice", "other")?;
    scene.banger("alice", &["vm", "publish", "other", &format!("{port}:80")])?.refused(&["your VM web"])?;
    let bobs = Guest::create(scene, "bob", "bobs")?;
    let told = scene.banger("bob", &["vm", "publish", "bobs", &format!("{port}:80")])?.refused(&["another user"])?;
    ensure!(!told.stderr.contains("web"), "{told}");
    scene.banger("bob", &["vm", "unpublish", "web", "--all"])?.refused(&["no such VM"])?;
    scene.banger("alice", &["vm", "show", "web"])?.ok()?.says(&format!("127.0.0.1:{port} -> 22/tcp"))?;
    scene.banger("alice", &["vm", "ports", "web"])?.ok()?.says(&format!("127.0.0.1:{port}"))?;
    scene.banger("alice", &["vm", "unpublish", "web", &port.to_string()])?.ok()?;
    ensure!(!hears(scene, "alice", port)?, "an unpublished port is open");
    hears_in_time(scene, "alice", public)?;
    for guest in [&guest, &other, &bobs] {
        guest.delete(scene)?;
    }
    ensure!(!hears(scene, "alice", public)?, "the port of a deleted VM is open");
    scene.passed()
}

fn comes_back(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run_with(scene, "alice", "back", &["-p", "22"])?;
    let record = guest.record(scene)?;
    let port = record.pointer("/published/0/host_port").and_then(serde_json::Value::as_u64);
    let port = port.with_context(|| format!("no port in {record}"))?;
    hears_in_time(scene, "alice", port)?;
    scene.root("kill -9 $(systemctl show -P MainPID bangerd.service)")?;
    hears_in_time(scene, "alice", port)?;
    scene.banger_long("alice", &["vm", "restart", "back"])?.ok()?;
    hears_in_time(scene, "alice", port)?;
    scene.banger_long("alice", &["vm", "stop", "back"])?.ok()?;
    ensure!(!hears(scene, "alice", port)?, "the port of a stopped VM is open");
    let mut thief =
        scene.start_user("bob", &format!("socat TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork /dev/null"))?;
    scene
        .wait_until("bob's program listens", Duration::from_secs(10), || {
            let seen = scene.root(&format!("ss -Hlnt 'sport = :{port}'"))?;
            Ok(seen.is_empty().then(|| "not yet".to_owned()))
        })
        .map(drop)?;
    let told = scene.banger_long("alice", &["vm", "start", "back"])?.ok()?;
    ensure!(told.stderr.contains("is not published"), "no warning: {told}");
    guest.is(scene, "running")?;
    scene.banger("alice", &["vm", "show", "back"])?.ok()?.says("another program of this host has the port")?;
    ensure!(!thief.has_ended()?, "bob's program has ended");
    thief.signal(nix::sys::signal::Signal::SIGKILL)?;
    // It has run for as long as the start took.
    drop(thief.wait(scene.limit(Duration::from_secs(60)))?);
    scene.root(&format!("pkill -KILL -u bob -f TCP-LISTEN:{port} || :"))?;
    guest.delete(scene)?;
    scene.passed()
}

fn descriptors(scene: &Scene) -> Result<usize> {
    Ok(scene.root(&format!("ls /proc/{}/fd | wc -l", scene.main_pid("bangerd.service")?))?.trim().parse()?)
}

/// The suite is root, who may use each port.
fn many(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "many")?;
    let port = publish(scene, "many", &["22"])?;
    hears_in_time(scene, "alice", port)?;
    let before = descriptors(scene)?;
    let mut open = Vec::new();
    for _ in 0..1000 {
        let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port)?))?;
        stream.set_read_timeout(Some(scene.limit(Duration::from_secs(5))))?;
        open.push(stream);
    }
    let during = descriptors(scene)?;
    let answered = open.first_mut().is_some_and(|stream| matches!(stream.read(&mut [0; 4]), Ok(4)));
    ensure!(answered, "the first of a thousand connections is not answered");
    scene.banger("alice", &["vm", "list"])?.ok()?;
    drop(open);
    scene.measured("descriptors with 1000 connections", during);
    scene
        .wait_until("the daemon's descriptors are what they were", Duration::from_secs(20), || {
            let now = descriptors(scene)?;
            Ok((now > before + 8).then(|| format!("{now}, and {before} before")))
        })
        .map(drop)?;
    guest.delete(scene)?;
    scene.passed()
}

fn bulk(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "bulk")?;
    let record = guest.record(scene)?;
    let address = record.pointer("/runtime/guest_ip").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let port = publish(scene, "bulk", &["9000"])?;
    let mut took = Vec::new();
    for to in [format!("{address}:9000"), format!("127.0.0.1:{port}")] {
        let send = format!("banger vm exec -n bulk -- sh -c 'head -c {BULK} /dev/zero | nc -l -p 9000'");
        let sender = scene.start_user("alice", &send)?;
        guest.shell(scene, "until netstat -lnt 2>/dev/null | grep -q :9000; do sleep 1; done")?.ok()?;
        let began = Instant::now();
        let received = scene.user("alice", &format!("socat -u TCP:{to} - | wc -c"))?.ok()?;
        took.push(began.elapsed().as_secs_f64());
        ensure!(received.stdout.trim() == BULK.to_string(), "{to}: {received}");
        drop(sender.wait(scene.limit(Duration::from_secs(20)))?);
    }
    if let [direct, relayed] = took[..] {
        scene.measured("throughput through the port, of the direct way's", format!("{:.2}", direct / relayed));
    }
    guest.delete(scene)?;
    scene.passed()
}
