//! Commands in guests, terminals, ssh, several VMs in one command: what users do all day, byte for
//! byte.

mod refused;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::inventory::{Allow, Kind};
use crate::suite::Run;
use crate::suite::command::Finished;
use crate::suite::guests::{Guest, TINY, names};
use crate::suite::list::{Outcome, Scenario, Setup, Suite};
use crate::suite::scene::Scene;

pub(in crate::suite) const SUITE: Suite = Suite {
    name: "using",
    about: "exec, terminals, ssh, several VMs in one command, and what their networks refuse",
    setup: Setup::Guests,
    scenarios,
};

fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("words-and-streams-are-exact", exact),
        Scenario::new("a-terminal-is-one-and-ctrl-c-reaches-the-guest", terminal),
        Scenario::new("ssh-refuses-a-key-that-is-not-the-pinned-one", pinned),
        Scenario::new("several-names-in-one-command", several),
        Scenario::new("a-vm-is-made-another", made_another),
        Scenario::new("refused", refused::refused),
        Scenario::new("what-a-vm-uses-is-not-deleted", in_use),
        Scenario::new("flags-that-contradict-make-nothing", contradictions),
        Scenario::new("outside-the-group", outside),
        Scenario::new("a-guest-that-dies-silently", silent),
    ]
}

fn exact(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "exact")?;
    let words = ["vm", "exec", "exact", "--", "printf", "%s|", "a b", "c'd", "e\"f", "$HOME", "*", "", "\\n", "ü"];
    scene.banger("alice", &words)?.ok()?.says("a b|c'd|e\"f|$HOME|*||\\n|ü|")?;
    scene.banger("alice", &["vm", "exec", "exact", "--", "nonesuch"])?.exits(127)?;
    let line = "head -c 8000000 /dev/urandom > bytes && banger vm exec exact -- cat < bytes | cmp - bytes; status=$?; rm bytes; exit $status";
    scene.user("alice", &format!("cd && {line}"))?.ok()?;
    // The reader goes first: no message, no command left in the guest.
    let head = scene.user("alice", "banger vm exec exact -- yes | head -n 1")?.ok()?;
    ensure!(head.stdout == "y\n" && head.stderr.is_empty(), "a closed pipe is no error: {head}");
    scene
        .wait_until("the command has ended in the guest", Duration::from_secs(10), || {
            let left = guest.shell(scene, "ps | grep '[y]es$' || :")?.ok()?.stdout;
            Ok((!left.is_empty()).then_some(left))
        })
        .map(drop)?;
    guest.delete(scene)?;
    scene.passed()
}

fn terminal(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "typed")?;
    let line = "stty cols 101 rows 37; banger vm exec typed -- sh -c 'tty; stty size; exit 5'";
    let run = Run::start_on_terminal(Some("alice"), line)?;
    run.wait(scene.limit(Duration::from_secs(15)))?.exits(5)?.says("/dev/pts/")?.says("37 101")?;
    // Ctrl-C belongs to the guest's command, not to the client.
    let mut run =
        Run::start_on_terminal(Some("alice"), "banger vm exec typed -- sh -c 'echo begun; sleep 100; echo missed'")?;
    run.until_it_says("begun", scene.limit(Duration::from_secs(15)))?;
    run.type_in("\x03")?;
    let ended = run.wait(scene.limit(Duration::from_secs(15)))?.exits(130)?.says("begun")?.does_not_say("missed")?;
    ensure!(ended.took < scene.limit(Duration::from_secs(10)), "{ended}");
    guest.delete(scene)?;
    scene.passed()
}

/// Whoever answers in the guest's place has another key, and is not spoken to.
fn pinned(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    scene.allow(Allow::anything(Kind::File, "/home/alice/.local*", "alice's SSH key for her VMs is made once"));
    let guest = Guest::run(scene, "alice", "pinned")?;
    let said = scene.banger_long("alice", &["vm", "ssh", "pinned", "--", "hostname; exit 7"])?.exits(7)?;
    ensure!(said.stdout.trim() == "pinned", "{said}");
    ensure!(!said.stderr.contains("authenticity"), "ssh asked to trust on first use: {said}");
    // The same by the name that alice's own ssh knows, whatever she has for all hosts.
    scene.allow(Allow::anything(Kind::File, "/home/alice/.ssh*", "ssh-config makes the folder of alice's ssh"));
    let all_hosts = "mkdir -p -m 700 ~/.ssh && printf 'Host *\\n User bob\\n RequestTTY force\\n' > ~/.ssh/config";
    scene.user("alice", &format!("{all_hosts} && banger ssh-config --install"))?.ok()?;
    let said = scene.user("alice", "ssh pinned.banger 'hostname; exit 7' < /dev/null")?.exits(7)?;
    ensure!(said.stdout.trim() == "pinned", "{said}");
    let key = format!("/var/lib/banger/vms/{}/host_key", guest.id);
    scene.root(&format!("test -s {key} && runuser -u bangerd -- sh -c 'rm {key}'"))?;
    // The daemon makes a new one, which it pins from now on; the guest that runs still has the old.
    scene.root("systemctl restart bangerd.service")?;
    scene.banger_long("alice", &["vm", "ssh", "pinned", "--", "hostname"])?.refused(&[])?;
    scene.user("alice", "ssh pinned.banger hostname < /dev/null")?.refused(&[])?;
    guest.delete(scene)?;
    let left = scene.user("alice", "banger ssh-config --uninstall >&2 && head -n 1 ~/.ssh/config")?.ok()?;
    ensure!(left.stdout == "Host *\n", "the user's own lines are not alone: {left}");
    scene.passed()
}

fn several(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guests = [Guest::create(scene, "alice", "one")?, Guest::create(scene, "alice", "two")?];
    // One bad name does not stop the good ones, and the exit status says so.
    scene.banger_long("alice", &["vm", "start", "one", "nonesuch", "two", "one"])?.refused(&["nonesuch"])?;
    for guest in &guests {
        guest.is(scene, "running")?;
    }
    scene.step("in one private network they find each other by name", |scene| by_name(scene, &guests))?;
    scene.banger_long("alice", &["vm", "kill", "one", "two"])?.ok()?;
    for guest in &guests {
        guest.is(scene, "stopped")?;
    }
    scene.banger_long("alice", &["vm", "delete", "one", "two", "one"])?.ok()?;
    ensure!(names(scene, "alice")?.is_empty());
    scene.passed()
}

fn by_name(scene: &mut Scene, guests: &[Guest; 2]) -> Result<()> {
    let [one, two] = guests;
    let limit = Duration::from_secs(10);
    let knows = |guest: &Guest, line: &str| {
        scene.wait_until(&format!("{} knows {line:?}", guest.name), limit, || {
            let hosts = guest.shell(scene, "cat /etc/hosts")?.ok()?.stdout;
            let told: Vec<&str> = hosts.lines().filter_map(|line| line.strip_suffix(" # banger network")).collect();
            let so = told.len() == usize::from(!line.is_empty()) && told.iter().all(|told| told.ends_with(line));
            Ok((!so).then_some(hosts))
        })
    };
    for guest in guests {
        knows(guest, "")?;
        scene.banger("alice", &["vm", "set", guest.name, "--network", "lab"])?.ok()?;
    }
    knows(one, " two two.alice.vm")?;
    knows(two, " one one.alice.vm")?;
    one.shell(scene, "ping -c 1 -w 10 two && ping -c 1 -w 10 two.alice.vm")?.ok()?;
    two.shell(scene, "ping -c 1 -w 10 one")?.ok()?;
    scene.banger("alice", &["vm", "set", "two", "--network", "none"])?.ok()?;
    knows(one, "")?;
    knows(two, "").map(drop)
}

type Set<'a> = dyn Fn(&Scene, &[&str]) -> Result<Finished> + 'a;

/// Each network mode while it runs, as the user sees it and as it stands in the firewall.
fn reaches_another(scene: &Scene, set: &Set<'_>, address: &str) -> Result<()> {
    let stands =
        |name: &str, what: &str| Ok::<_, anyhow::Error>(scene.root(&format!("nft list {name}"))?.contains(what));
    let shown = |field: &str| -> Result<String> {
        let record = scene.banger("alice", &["vm", "show", "another", "--json"])?.ok()?.json()?;
        Ok(record.pointer(field).map(ToString::to_string).unwrap_or_default())
    };
    set(scene, &["--net", "public"])?.ok()?;
    ensure!(stands("set inet banger public", address)?, "{address} does not reach the internet");
    ensure!(!stands("set inet banger anywhere", address)?, "{address} reaches private networks");
    set(scene, &["--allow", "192.0.2.0/24", "--allow", "198.51.100.7:443/tcp", "--network", "lab"])?.ok()?;
    ensure!(!stands("set inet banger public", address)?, "{address} still reaches the internet");
    ensure!(stands("set inet banger ranges", &format!("{address} . 192.0.2.0/24"))?, "the range is not there");
    ensure!(
        stands("set inet banger ports", &format!("{address} . 198.51.100.7 . tcp . 443"))?,
        "the port is not there"
    );
    let list = r#"["192.0.2.0/24","198.51.100.7/32:443/tcp"]"#;
    ensure!(shown("/network/allow")? == list, "{}", shown("/network/allow")?);
    scene.banger("alice", &["vm", "show", "another"])?.ok()?.says("198.51.100.7/32:443/tcp")?.says("lab")?;
    set(scene, &["--net", "nat", "--allow", "192.0.2.1"])?.refused(&["allow", "nat"])?;
    set(scene, &["--allow", "169.254.169.254"])?.refused(&["169.254.169.254", "never"])?;
    set(scene, &["--net", "none", "--network", "none"])?.ok()?;
    ensure!(shown("/network/private")? == "null", "it is still in a private network");
    ensure!(!stands("table inet banger", &format!("{address} . 192.0.2.0/24"))?, "the list is still there");
    Ok(())
}

/// Sizes while it is stopped, the network while it runs; the file on the disk that grew is still
/// there.
fn made_another(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "another")?;
    guest.shell(scene, "echo kept > /root/file")?.ok()?;
    let set = |scene: &Scene, flags: &[&str]| scene.banger("alice", &[&["vm", "set", "another"], flags].concat());
    set(scene, &["--memory", "300M"])?.refused(&["another", "running", "vm stop another"])?;
    set(scene, &["--nat", "on"])?.ok()?.says("changed another")?;
    let address =
        guest.record(scene)?.pointer("/runtime/guest_ip").and_then(serde_json::Value::as_str).map(str::to_owned);
    let address = address.context("no address")?;
    let leaves = |scene: &Scene| Ok::<_, anyhow::Error>(scene.root("nft list set inet banger nat")?.contains(&address));
    ensure!(leaves(scene)?, "{address} is not let out");
    set(scene, &["--nat", "off"])?.ok()?;
    ensure!(!leaves(scene)?, "{address} is still let out");
    reaches_another(scene, &set, &address)?;
    guest.order(scene, "stop")?.ok()?;
    set(scene, &["--disk-size", "32M"])?.refused(&["only grows", "64M"])?;
    set(scene, &["--memory", "320M", "--vcpu", "2", "--disk-size", "256M"])?.ok()?;
    guest.order(scene, "start")?.ok()?;
    let seen =
        guest.shell(scene, "nproc; cat /root/file; df -k /root | tail -n 1; grep MemTotal /proc/meminfo")?.ok()?;
    let number = |line: usize, word: usize| -> Result<u64> {
        let found = seen.stdout.lines().nth(line).and_then(|line| line.split_whitespace().nth(word));
        found.with_context(|| seen.to_string())?.parse().with_context(|| seen.to_string())
    };
    ensure!(seen.stdout.lines().next() == Some("2") && seen.stdout.lines().nth(1) == Some("kept"), "{seen}");
    ensure!(number(2, 1)? > 200 << 10, "the file system has not grown: {seen}");
    ensure!(number(3, 1)? > 256 << 10, "it has the memory that it had: {seen}");
    guest.delete(scene)?;
    scene.passed()
}

fn in_use(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::create(scene, "alice", "user")?;
    // Whose VM uses it is told to administrators.
    scene.root_any("banger image delete tiny")?.refused(&["tiny", "alice/user"])?;
    // It is shared: users may use it, not remove it.
    for user in ["alice", "bob"] {
        scene.banger(user, &["image", "delete", "tiny"])?.refused(&["tiny", "shared"])?.does_not_say("alice/user")?;
    }
    // Alice's own name for the same bytes is hers, and its content outlives it as long as somebody
    // uses it.
    let words = ["image", "import", "--name", "mine", "--size", "512M", "/srv/bench/tiny.tar"];
    scene.banger_long("alice", &words)?.ok()?;
    scene
        .banger("bob", &["vm", "create", "--name", "x", "--image", "mine"])?
        .refused(&["there is no image mine here"])?;
    scene.banger("bob", &["image", "list"])?.ok()?.does_not_say("mine")?;
    scene.banger("alice", &["image", "delete", "mine"])?.refused(&["used by VM user"])?;
    guest.delete(scene)?;
    scene.banger("alice", &["image", "delete", "mine"])?.ok()?;
    scene.passed()
}

fn contradictions(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let words = [&["vm", "run", "--name", "both"], TINY, &["--detach", "--rm"]].concat();
    scene.banger("alice", &words)?.refused(&["-d"])?;
    ensure!(names(scene, "alice")?.is_empty(), "a VM was made");
    scene.passed()
}

fn outside(scene: &mut Scene) -> Result<Outcome> {
    scene.banger("carol", &["vm", "list"])?.refused(&["group banger", "carol"])?;
    // Nobody but the daemon speaks to the helper, root's group members included.
    let line = "socat -u OPEN:/dev/null UNIX-CONNECT:/run/banger/priv.sock";
    scene.user("alice", line)?.refused(&["Permission denied"])?;
    scene.passed()
}

/// No announcement, no end of the VMM: only what the kernel says last on the console, or its
/// silence.
fn silent(scene: &mut Scene) -> Result<Outcome> {
    scene.allow_database_growth();
    let guest = Guest::run(scene, "alice", "silent")?;
    let _ = guest.shell(scene, "(sleep 0.5; echo o > /proc/sysrq-trigger) >/dev/null 2>&1 &")?;
    let took = guest.becomes(scene, "stopped", &["power"], Duration::from_secs(5))?;
    scene.measured("seconds until the list told the truth", format!("{:.1}", took.as_secs_f64()));
    guest.delete(scene)?;
    scene.passed()
}
