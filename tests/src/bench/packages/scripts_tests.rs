//! The packages' scripts, run in a folder that stands for the host, with programs that write down
//! what they are asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::stage::{STEPS, with_steps};

/// Folders of the host in the scripts, each with a counterpart in the test's.
const FOLDERS: [&str; 7] = ["/usr/lib/", "/usr/libexec/", "/run/", "/sys/", "/etc/", "/var/lib/", "/boot/"];
const PROGRAMS: [&str; 14] = [
    "banger",
    "deb-systemd-helper",
    "deb-systemd-invoke",
    "firewall-cmd",
    "ip",
    "modprobe",
    "networkctl",
    "nft",
    "nmcli",
    "sleep",
    "systemctl",
    "systemd-sysusers",
    "systemd-tmpfiles",
    "udevadm",
];

struct Host {
    dir: tempfile::TempDir,
    /// As root may have them in a shell.
    variables: Vec<(&'static str, &'static str)>,
}

struct Ended {
    good: bool,
    said: String,
}

impl Host {
    /// A host that runs and has the units of the package.
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap(), variables: Vec::new() };
        for program in PROGRAMS {
            host.program(program, "");
        }
        host.put("run/systemd/system/.keep", "");
        for unit in fs::read_dir(packaging("systemd")).unwrap() {
            host.put(&format!("usr/lib/systemd/system/{}", unit.unwrap().file_name().display()), "");
        }
        for script in ["host-firewall", "resolver-link"] {
            host.executable(&format!("usr/libexec/banger/{script}"), &logged(script, ""));
        }
        host.executable("usr/lib/systemd/systemd-sysctl", &logged("systemd-sysctl", ""));
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn executable(&self, path: &str, text: &str) {
        self.put(path, text);
        fs::set_permissions(self.at(path), PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// A program that writes its words down, and then does what `body` says.
    fn program(&self, name: &str, body: &str) {
        self.executable(&format!("programs/{name}"), &logged(name, body));
    }

    fn guests(&self, run: bool) {
        let events = "sys/fs/cgroup/system.slice/bangerd.service/vms/cgroup.events";
        self.put(events, if run { "populated 1\nfrozen 0\n" } else { "populated 0\nfrozen 0\n" });
    }

    /// `script`: such as `deb/prerm`; with `lines` behind it.
    fn run_with(&self, script: &str, words: &[&str], lines: &str) -> Ended {
        let steps = fs::read_to_string(packaging("scripts/steps.sh")).unwrap().replace("#SCHEMA#", "4");
        let text = if script.is_empty() { format!("set -e\n{STEPS}") } else { read(script) };
        let mut text = with_steps(&text, &steps).unwrap() + lines;
        let root = self.dir.path().display().to_string();
        for folder in FOLDERS {
            text = text.replace(folder, &format!("{root}{folder}"));
        }
        let mut command = Command::new("sh");
        command.args(["-c", &text, "script"]).args(words).envs(self.variables.iter().copied());
        let ended = command.env("PATH", format!("{root}/programs:/usr/bin:/bin")).env("ROOT", &root).output().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        Ended { good: ended.status.success(), said: String::from_utf8(said).unwrap() }
    }

    fn run(&self, script: &str, words: &[&str]) -> Ended {
        self.run_with(script, words, "")
    }

    /// What the programs were asked since the last time.
    fn log(&self) -> Vec<String> {
        let log = self.at("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        drop(fs::remove_file(log));
        text.lines().map(str::to_owned).collect()
    }
}

fn packaging(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(packaging(path)).unwrap()
}

fn logged(name: &str, body: &str) -> String {
    format!("#!/bin/sh\necho \"{name} $*\" >> \"$ROOT/log\"\n{body}\n")
}

/// The place of the first line that begins so.
fn place(log: &[String], start: &str) -> usize {
    let found = log.iter().position(|line| line.starts_with(start));
    found.unwrap_or_else(|| panic!("{start} is not in {log:#?}"))
}

#[test]
fn root_may_work_with_another_machine_and_the_package_is_this_ones() {
    let mut host = Host::new();
    host.variables = vec![("BANGER_HOST", "ssh://root@elsewhere"), ("BANGER_SOCKET", "/tmp/other.sock")];
    host.program("banger", "echo \"asks ${BANGER_HOST-} ${BANGER_SOCKET-the default}\" >> \"$ROOT/log\"");
    host.guests(true);
    assert!(host.run_with("", &[], "shut_down_guests || :\nkernel=/boot/k; import_kernel\n").good);
    let log = host.log();
    assert!(log.contains(&"asks local the default".to_owned()), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("elsewhere") || line.contains("other.sock")), "{log:#?}");
    // systemd's own variables (systemctl set-environment) may name one, too.
    let unit = read("systemd/banger-guests.service");
    assert!(
        unit.contains("exec /usr/bin/banger --host local vm stop") && unit.contains("UnsetEnvironment=BANGER_SOCKET")
    );
}

/// What a socket hears while the daemon is stopped must not start it: its files are being copied.
#[test]
fn only_the_socket_of_calls_starts_a_daemon_that_was_stopped() {
    let mut of_the_daemon = 0;
    for unit in fs::read_dir(packaging("systemd")).unwrap() {
        let path = unit.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let has = |line: &str| text.lines().any(|there| there == line);
        if !name.ends_with(".socket") || !has("Service=bangerd.service") {
            continue;
        }
        of_the_daemon += 1;
        let wanted: Vec<&str> = text.lines().filter(|line| line.starts_with("WantedBy=")).collect();
        assert!(has("PartOf=bangerd.service") && wanted == ["WantedBy=bangerd.service"], "{name}");
        // A disabled socket stays disabled.
        let daemon = read("systemd/bangerd.service");
        assert!(!daemon.lines().any(|line| line.starts_with("Wants=") && line.contains(&name)), "{name}");
        let steps = read("scripts/steps.sh");
        let start = steps.lines().find(|line| line.starts_with("START=")).unwrap();
        assert!(!start.contains(&name), "{name}");
    }
    assert_eq!(of_the_daemon, 2);
}

#[test]
fn an_upgrade_takes_the_socket_of_metrics_from_sockets_target_where_it_was_enabled() {
    for (script, words) in [("deb/postinst", ["configure", "0.1.0"].as_slice()), ("rpm/post", &["2"])] {
        let links = "etc/systemd/system";
        let (old, new) = (
            format!("{links}/sockets.target.wants/bangerd-metrics.socket"),
            format!("{links}/bangerd.service.wants/bangerd-metrics.socket"),
        );
        let host = Host::new();
        assert!(host.run(script, words).good);
        assert!(host.at(&new).symlink_metadata().is_err(), "{script}: it was disabled");
        host.put(&format!("{links}/sockets.target.wants/other"), "");
        symlink("/usr/lib/systemd/system/bangerd-metrics.socket", host.at(&old)).unwrap();
        assert!(host.run(script, words).good);
        assert!(host.at(&old).symlink_metadata().is_err() && host.at(&new).symlink_metadata().is_ok(), "{script}");
    }
}

const REMOVALS: [(&str, &str, &str); 2] =
    [("deb/prerm", "remove", "deb-systemd-invoke stop "), ("rpm/preun", "0", "systemctl stop ")];

#[test]
fn a_removal_stops_the_socket_with_the_daemon_and_the_helper_last() {
    for (script, word, stop) in REMOVALS {
        let host = Host::new();
        let ended = host.run(script, &[word]);
        assert!(ended.good, "{script}: {}", ended.said);
        let log = host.log();
        let daemon = place(&log, &format!("{stop}bangerd.socket"));
        assert!(log[daemon].ends_with(" bangerd.service"), "in one call: {log:#?}");
        assert!(place(&log, &format!("{stop}banger-guests.service")) < daemon, "{log:#?}");
        assert!(daemon < place(&log, &format!("{stop}banger-priv.socket")), "{log:#?}");
        place(&log, "systemctl clean --what=fdstore bangerd.service");
    }
}

/// KillMode=process: a guest whose start was at work outlives the daemon.
#[test]
fn a_guest_that_started_while_all_was_stopped_keeps_the_package() {
    for (script, word, stop) in REMOVALS {
        let host = Host::new();
        let events = "$ROOT/sys/fs/cgroup/system.slice/bangerd.service/vms";
        let begins = format!(
            "case \"$*\" in stop*bangerd.service) mkdir -p {events}; echo 'populated 1' > {events}/cgroup.events ;; esac"
        );
        host.program(stop.split(' ').next().unwrap(), &begins);
        let ended = host.run(script, &[word]);
        assert!(!ended.good && ended.said.contains("guests still run"), "{script}: {}", ended.said);
        let log = host.log();
        let start = place(&log, &stop.replace("stop", "start"));
        assert!(log[start].contains(" bangerd.socket ") && !log.iter().any(|line| line.contains("stop banger-priv")));
        assert!(start < place(&log, "banger vm stop --everyone"), "it is shut down like any other: {log:#?}");
        // And when that succeeds, the package goes.
        host.program("banger", &format!("rm -f {events}/cgroup.events"));
        host.program(stop.split(' ').next().unwrap(), "");
        assert!(host.run(script, &[word]).good);
    }
}

#[test]
fn what_a_start_has_left_is_removed_by_the_daemon_or_keeps_the_package() {
    let row = format!("run/banger-priv/{}", "ab".repeat(32));
    for (script, word, stop) in REMOVALS {
        let host = Host::new();
        host.put("run/banger-priv/.lock", "");
        host.put(&row, "{}");
        let ended = host.run(script, &[word]);
        assert!(!ended.good && ended.said.contains("doctor --leaks --fix"), "{script}: {}", ended.said);
        assert!(!host.log().iter().any(|line| line.contains("stop banger-priv")));
        // The daemon that is started once more sweeps.
        host.program(stop.split(' ').next().unwrap(), &format!("case \"$1\" in start) rm -f \"$ROOT/{row}\" ;; esac"));
        let ended = host.run(script, &[word]);
        assert!(ended.good, "{script}: {}", ended.said);
        place(&host.log(), &format!("{stop}banger-priv.socket"));
    }
}

/// `systemctl enable A B C` enables nothing when one of them is masked.
#[test]
fn each_unit_is_enabled_by_itself_and_at_an_upgrade_those_that_are_new() {
    let host = Host::new();
    host.program(
        "systemctl",
        "case \"$*\" in *'enable '*' '*' '*masked*) exit 1 ;; is-enabled*|*' is-enabled '*) exit 1 ;; esac",
    );
    let enabled = |host: &Host| -> Vec<String> {
        let log = host.log();
        let units = log.iter().filter_map(|line| line.strip_prefix("systemctl --quiet --no-reload enable "));
        units.map(str::to_owned).collect()
    };
    assert!(host.run("rpm/post", &["1"]).good);
    let all = enabled(&host);
    assert!(all.len() == 10 && all.iter().all(|unit| !unit.contains(' ')), "{all:?}");
    // An upgrade from a package that did not have the resolver's; the others are disabled.
    let unit = host.at("usr/lib/systemd/system/banger-resolver.service");
    fs::remove_file(&unit).unwrap();
    assert!(host.run("rpm/pre", &["2"]).good);
    fs::write(&unit, "").unwrap();
    assert!(host.run("rpm/post", &["2"]).good);
    assert_eq!(enabled(&host), ["banger-resolver.service"]);
    // Nobody knows what was there before: the administrator's choice is kept.
    assert!(host.run("rpm/post", &["2"]).good);
    assert_eq!(enabled(&host), Vec::<String>::new());
}

#[test]
fn firewalld_is_reloaded_only_when_it_does_not_have_the_zone() {
    let zone = read("host-firewall/firewalld-zone.xml");
    assert!(zone.contains("target=\"ACCEPT\"") && zone.contains("name=\"bgr-+\"") && zone.contains("<forward/>"));
    for (known, reloads) in [
        ("exit 112", true),
        ("printf 'banger\\n  target: default\\n  interfaces: \\n  forward: no\\n'", true),
        ("printf 'banger (active)\\n  target: ACCEPT\\n  interfaces: bgr-+\\n  forward: yes\\n'", false),
    ] {
        let host = Host::new();
        host.program("firewall-cmd", &format!("case \"$*\" in --info-zone=banger) {known} ;; esac"));
        assert!(host.run_with("", &[], "bring_up_host\n").good);
        let log = host.log();
        assert_eq!(log.iter().any(|line| line == "firewall-cmd --quiet --reload"), reloads, "{known}: {log:#?}");
    }
}

#[test]
fn a_purge_empties_a_file_system_of_its_own_and_leaves_it() {
    let host = Host::new();
    host.put("var/lib/banger/vms/a/disk", "x");
    host.put("run/banger/bangerd.sock", "");
    // As for a mount point.
    let busy = "case \"$*\" in */var/lib/banger|*/var/lib/banger' '*) /bin/rm -rf \"$ROOT\"/var/lib/banger/*; echo busy >&2; exit 1 ;; esac";
    host.program("rm", &format!("{busy}\nexec /bin/rm \"$@\""));
    host.program("rmdir", "case \"$*\" in */var/lib/banger) exit 1 ;; esac\nexec /bin/rmdir \"$@\"");
    let ended = host.run("deb/postrm", &["purge"]);
    assert!(ended.good, "{}", ended.said);
    assert_eq!(host.at("var/lib/banger").read_dir().unwrap().count(), 0);
    assert!(!host.at("run/banger").exists() && ended.said.contains("/var/lib/banger stays"), "{}", ended.said);
}

#[test]
fn root_writes_nothing_into_the_folder_of_the_daemon() {
    let host = Host::new();
    let mut header = vec![0_u8; 100];
    header[63] = 9;
    host.put("var/lib/banger/banger.db", "");
    fs::write(host.at("var/lib/banger/banger.db"), header).unwrap();
    let ended = host.run("deb/preinst", &["upgrade"]);
    let commands: Vec<&str> = ended.said.lines().map(str::trim).filter(|line| line.contains("/banger.db")).collect();
    let as_daemon = commands.iter().filter(|line| line.starts_with("runuser -u bangerd -- ")).count();
    assert!(!ended.good && as_daemon == 2 && commands.len() == 3, "{}", ended.said);
}

#[test]
fn a_host_that_does_not_run_is_not_said_to_forward_already() {
    let host = Host::new();
    assert!(host.run_with("", &[], "say_what_is_next\n").said.contains("ip_forward is now 1"));
    fs::remove_dir_all(host.at("run/systemd")).unwrap();
    assert!(host.run_with("", &[], "say_what_is_next\n").said.contains("ip_forward will be 1"));
}
