//! Input that is wrong gets an error that says so, in words for the person who typed it, and leaves
//! nothing.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::suite::command::Finished;
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "bad-input",
    about: "wrong names, sizes, kernels, archives, configuration and hosts are refused clearly",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("command-line", command_line),
        Scenario::new("kernels", kernels),
        Scenario::new("archives", archives),
        Scenario::new("unknown-configuration-key", unknown_key),
        Scenario::new("no-kvm", no_kvm),
        Scenario::new("helper-not-running", no_helper),
        Scenario::new("old-protocol-version", old_protocol),
        Scenario::new("full-disk-at-create", full_disk_at_create),
        Scenario::new("full-disk-under-a-running-vm", full_disk_under_vm),
        Scenario::new("guest-that-never-gets-ready", never_ready),
    ]
}

fn command_line(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    fn run<'a>(words: &[&'a str]) -> Vec<&'a str> {
        [&["vm", "run", "--detach"], words].concat()
    }
    for (words, said) in [
        (run(&["--name", "Big-Name", "--image", "tiny"]), "Big-Name"),
        (run(&["--name=-edge", "--image", "tiny"]), "-edge"),
        (run(&["--name", "ok", "--image", "tiny", "--memory", "12Q"]), "12Q"),
        (run(&["--name", "ok", "--image", "tiny", "--memory", "0"]), "0"),
        (run(&["--name", "ok", "--image", "tiny", "--disk-size=-1G"]), "-1G"),
        (run(&["--name", "ok", "--image", "tiny", "--root-size", "129G"]), "129G"),
        (run(&["--name", "ok", "--image", "nonesuch"]), "nonesuch"),
        (run(&["--name", "ok", "--image", "tiny", "--kernel", "nonesuch"]), "nonesuch"),
        (run(&["--name", "ok", "--image", "tiny", "--vcpu", "0"]), "0"),
        (vec!["vm", "start", "nonesuch"], "nonesuch"),
        (vec!["image", "delete", "nonesuch"], "nonesuch"),
    ] {
        scene.banger("alice", &words)?.refused(&[said])?;
        ensure!(names(scene, "alice")?.is_empty(), "{words:?} has left a VM");
    }
    scene.passed()
}

fn kernels(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("mkdir -p /srv/bad/empty; chmod 755 /srv/bad; echo hello > /srv/bad/text; head -c 2000000 $(ls /boot/vmlinuz-* | tail -n 1) > /srv/bad/truncated; head -c 3000000 /dev/urandom > /srv/bad/noise; chmod 644 /srv/bad/text /srv/bad/truncated /srv/bad/noise")?;
    for path in ["/srv/bad/text", "/srv/bad/truncated", "/srv/bad/noise", "/srv/bad/missing", "/srv/bad"] {
        scene.banger_long("alice", &["kernel", "import", "--name", "bad", path])?.refused(&[path])?;
    }
    let real = scene.root("ls /boot/vmlinuz-* | tail -n 1")?;
    scene
        .banger_long("alice", &["kernel", "import", "--name", "bad", "--modules", "/srv/bad/empty", real.trim()])?
        .refused(&["modules"])?;
    scene.banger("alice", &["kernel", "list"])?.ok()?.does_not_say("bad")?;
    scene.root("rm -r /srv/bad")?;
    scene.passed()
}

fn archives(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("mkdir -p /srv/bad; head -c 300000 /srv/bench/tiny.tar > /srv/bad/truncated.tar; echo hello > /srv/bad/text.tar; head -c 100000 /dev/urandom > /srv/bad/noise.tar; : > /srv/bad/empty.tar; chmod -R a+rX /srv/bad")?;
    for name in ["truncated.tar", "text.tar", "noise.tar", "empty.tar", "missing.tar"] {
        let path = format!("/srv/bad/{name}");
        scene.banger_long("alice", &["image", "import", "--name", "bad", &path])?.refused(&[&path])?;
    }
    // Larger than the file system that is asked for.
    scene
        .banger_long("alice", &["image", "import", "--name", "bad", "--size", "1M", "/srv/bench/tiny.tar"])?
        .refused(&["tiny.tar"])?;
    scene.banger("alice", &["image", "list"])?.ok()?.does_not_say("bad")?;
    scene.root("rm -r /srv/bad")?;
    scene.passed()
}

fn unknown_key(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("cp -a /etc/banger/banger.toml /srv/bench/kept.toml; sed -i '1i bridge_nmae = \"x\"' /etc/banger/banger.toml; systemctl restart --no-block bangerd.service")?;
    let told = scene.wait_until("the journal names key and line", Duration::from_secs(10), || {
        let journal = scene.journal("bangerd.service")?;
        Ok((!journal.contains("bridge_nmae")).then_some(journal))
    });
    scene.root("cp -a /srv/bench/kept.toml /etc/banger/banger.toml; rm /srv/bench/kept.toml; systemctl restart bangerd.service")?;
    told?;
    scene.banger("alice", &["vm", "list"])?.ok()?;
    scene.passed()
}

fn no_kvm(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("mv /dev/kvm /dev/kvm.away")?;
    let words = [&["vm", "run", "--detach", "--name", "nokvm"], TINY].concat();
    let refused = scene.banger_long("alice", &words).and_then(|finished| finished.refused(&["/dev/kvm"]));
    let doctor = scene.banger_long("alice", &["doctor"]);
    scene.root("mv /dev/kvm.away /dev/kvm")?;
    refused?;
    doctor?.refused(&[]).or_else(|_| anyhow::bail!("doctor says that all is well without /dev/kvm"))?;
    remove_if_there(scene, "nokvm")?;
    scene.passed()
}

fn no_helper(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.root("systemctl stop banger-priv.socket banger-priv.service")?;
    let words = [&["vm", "run", "--detach", "--name", "nohelper"], TINY].concat();
    let refused = scene.banger_long("alice", &words).and_then(|finished| finished.refused(&["banger-priv"]));
    let list = scene.banger("alice", &["vm", "list"]).and_then(Finished::ok);
    scene.root("systemctl start banger-priv.socket banger-priv.service")?;
    refused?;
    list?;
    remove_if_there(scene, "nohelper")?;
    let guest = Guest::run(scene, "alice", "helped")?;
    guest.delete(scene)?;
    scene.passed()
}

/// A start that failed may leave the VM in state `error`, with its reason, for the user to look at.
fn remove_if_there(scene: &Scene, name: &str) -> Result<()> {
    if names(scene, "alice")?.iter().any(|known| known == name) {
        scene.banger_long("alice", &["vm", "delete", name])?.ok()?;
    }
    Ok(())
}

/// A hello of another version gets an answer or a closed door, never a hang; the daemon goes on.
fn old_protocol(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let pid = scene.main_pid("bangerd.service")?;
    for hello in ["BANGER\\000\\000\\000\\000\\000\\000", "GET / HTTP/1.0\\r\\n\\r\\n", ""] {
        let line = format!("printf '{hello}' | timeout 20 socat -t 15 - UNIX-CONNECT:/run/banger/bangerd.sock");
        let finished = scene.user("alice", &line)?;
        ensure!(finished.status.code() != Some(124), "the daemon holds a wrong hello open: {finished}");
    }
    ensure!(scene.main_pid("bangerd.service")? == pid, "the daemon did not survive a wrong hello");
    scene.banger("alice", &["vm", "list"])?.ok()?;
    scene.passed()
}

fn full_disk_at_create(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    fill(scene)?;
    let words =
        ["vm", "run", "--detach", "--name", "nospace", "--image", "tiny", "--memory", "256M", "--root-size", "4G"];
    let refused =
        scene.banger_long("alice", &words).and_then(|finished| finished.refused(&["reserve", "512 MiB", "12305 MiB"]));
    let import = ["image", "import", "--name", "nospace", "--size", "512M", "/srv/bench/tiny.tar"];
    let not_imported =
        scene.banger_long("alice", &import).and_then(|finished| finished.refused(&["reserve", "512 MiB"]));
    scene.root("rm /var/lib/filler")?;
    refused?;
    not_imported?;
    remove_if_there(scene, "nospace")?;
    scene.passed()
}

/// The root disk's room is reserved at create: a host that fills up later cannot destroy it.
fn full_disk_under_vm(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "reserved")?;
    fill(scene)?;
    let written =
        guest.shell(scene, "dd if=/dev/urandom of=/var/blob bs=1M count=32 && sync && md5sum /var/blob > /var/sum");
    let state = scene.root(&format!("dmsetup status bgr-{} || dmsetup status", &guest.id));
    scene.root("rm /var/lib/filler")?;
    written?.ok()?;
    ensure!(!state?.contains("Invalid"), "the snapshot became invalid");
    guest.order(scene, "restart")?.ok()?;
    guest.shell(scene, "md5sum -c /var/sum")?.ok()?;
    guest.delete(scene)?;
    scene.passed()
}

/// Fills the host's file system but for a little, which the daemon's database may still need.
fn fill(scene: &Scene) -> Result<()> {
    scene.root("fallocate -l $(( $(df --output=avail -B1 /var/lib | tail -n 1) - 4194304 )) /var/lib/filler").map(drop)
}

/// The VMM is stopped as soon as its console has said something: the agent never reports. Bounded,
/// with the console's last lines, and everything undone.
fn never_ready(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    // The least that a guest of this host needs, and some more: the default would make this the
    // longest scenario of all.
    let seconds = scene.limit(READY).as_secs();
    let change = format!("s/^guest_ready_timeout = .*/guest_ready_timeout = \"{seconds}s\"/");
    scene.root(&format!("cp -a {CONFIG} {KEPT}; sed -i '{change}' {CONFIG}; systemctl restart bangerd.service"))?;
    let ended = given_up(scene);
    scene.root(&format!("cp -a {KEPT} {CONFIG}; rm {KEPT}; systemctl restart bangerd.service"))?;
    ended?;
    scene.passed()
}

const CONFIG: &str = "/etc/banger/banger.toml";
const KEPT: &str = "/srv/bench/kept.toml";
/// The wait for a guest that does not come, under KVM.
const READY: Duration = Duration::from_secs(5);

fn given_up(scene: &mut Scene) -> Result<()> {
    let words = [&["vm", "run", "--detach", "--keep-on-error", "--name", "silent"], TINY].concat();
    let run = scene.start_banger("alice", &words)?;
    // Its handles are written when all but the guest is done: stopped before that, another step of
    // the start would fail.
    let stop = "test -s /var/lib/banger/vms/*/handles.json && cat /var/lib/banger/vms/*/console.log | grep -q . && \
        cat /sys/fs/cgroup/system.slice/bangerd.service/vms/*/*/cgroup.procs | grep . | xargs kill -STOP";
    scene.wait_until("the guest's kernel speaks", Duration::from_secs(20), || {
        Ok((!scene.root_any(stop)?.status.success()).then(|| "an empty console".to_owned()))
    })?;
    let finished = run.wait(scene.limit(READY * 6))?.refused(&["silent"])?;
    scene.measured("seconds until it was given up", format!("{:.0}", finished.took.as_secs_f64()));
    let console = scene.root("cat /var/lib/banger/vms/*/console.log")?;
    let last = console.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    ensure!(finished.stderr.contains(last), "the console's last line {last:?} is not in the error: {finished}");
    scene.banger_long("alice", &["vm", "delete", "silent"])?.ok().map(drop)
}
