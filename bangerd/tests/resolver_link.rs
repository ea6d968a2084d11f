//! The packaged script that tells systemd-resolved of the names of VMs, with a `resolvectl` that
//! writes down what it is asked.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const SCRIPT: &str = include_str!("../../packaging/resolver/resolver-link");

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `active`: whether resolved runs.
    fn new(active: bool, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("resolvectl", &format!("#!/bin/sh\necho \"$*\" >> {}/asked\n", dir.path().display()));
        program("systemctl", if active { "#!/bin/sh\nexit 0\n" } else { "#!/bin/sh\nexit 3\n" });
        let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin\n";
        assert!(SCRIPT.contains(path), "a fixed PATH");
        let bangerd = "BANGERD=/usr/libexec/banger/bangerd\n";
        assert!(SCRIPT.contains(bangerd), "the daemon's program says what its configuration is");
        let script = SCRIPT.replace(path, &format!("PATH={}:/usr/bin:/bin\n", dir.path().display()));
        program("script", &script.replace(bangerd, concat!("BANGERD=", env!("CARGO_BIN_EXE_bangerd"), "\n")));
        std::fs::write(dir.path().join("banger.toml"), config).unwrap();
        Self { dir }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(at("script"));
        command.args(arguments).env("BANGER_CONFIG", at("banger.toml")).output().unwrap()
    }

    fn asked(&self, arguments: &[&str]) -> Vec<String> {
        let ended = self.run(arguments);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let asked = std::fs::read_to_string(self.dir.path().join("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}

#[test]
fn resolved_is_told_of_one_domain_on_one_link_and_never_globally() {
    // `lo` stands for the link.
    let config = "bridge_name = \"lo\"\n[dns]\nlisten = \"127.0.0.1:5300\" # here\n";
    let asked = Bench::new(true, config).asked(&[]);
    for line in ["dns lo 127.0.0.1:5300", "domain lo ~vm", "default-route lo no", "dnssec lo no", "dnsovertls lo no"] {
        assert!(asked.iter().any(|asked| asked == line), "{line}: {asked:?}");
    }
    assert!(asked.iter().all(|line| line.split(' ').nth(1) == Some("lo")), "{asked:?}");
}

/// Whatever bangerd understands counts.
#[test]
fn the_configuration_may_be_written_in_any_way() {
    for config in [
        "bridge_name = 'lo'\n[dns] # names\nlisten = '127.0.0.1:5300'\n",
        "bridge_name = \"\"\"lo\"\"\"\ndns = { listen = \"127.0.0.1:5300\", resolvers = [] }\n",
        "bridge_name = \"lo\"\ndns.listen = \"127.0.0.1:5300\"\n",
        "\"bridge_name\" = \"l\\u006f\"\n[ dns ]\n\"listen\" = \"127.0.0.1:5300\"\n",
    ] {
        let asked = Bench::new(true, config).asked(&[]);
        assert!(asked.contains(&"dns lo 127.0.0.1:5300".to_owned()), "{config}: {asked:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_said_and_nobody_is_told_a_guess() {
    let bench = Bench::new(true, "bridge_name = \"lo\"\n[dns]\nlisten = 5300\n");
    let ended = bench.run(&[]);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("line 3"), "{said}");
    assert!(!bench.dir.path().join("asked").exists());
}

#[test]
fn without_the_section_it_is_the_default() {
    let asked = Bench::new(true, "bridge_name = \"lo\"\n").asked(&["assert"]);
    assert!(asked.contains(&"dns lo 127.0.0.1:42069".to_owned()), "{asked:?}");
}

#[test]
fn off_and_remove_take_it_back() {
    let off = "bridge_name = \"lo\"\n[dns]\nlisten = \"off\"\n";
    assert_eq!(Bench::new(true, off).asked(&[]), ["revert lo"]);
    assert_eq!(Bench::new(true, "bridge_name = \"lo\"\n").asked(&["remove"]), ["revert lo"]);
}

#[test]
fn a_resolver_that_does_not_run_and_a_link_that_is_not_there_are_left_alone() {
    assert!(Path::new("/sys/class/net/lo").exists());
    assert_eq!(Bench::new(false, "bridge_name = \"lo\"\n").asked(&[]), Vec::<String>::new());
    assert_eq!(Bench::new(true, "bridge_name = \"br-none\"\n").asked(&[]), Vec::<String>::new());
}
