//! `--host`: the real program at both ends, with a script in the place of ssh.

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// What the other machine is like.
const WORKS: &str = r#"exec "$@""#;

struct Machine {
    fake: Fake,
    folder: tempfile::TempDir,
}

impl Machine {
    /// `far` runs where the words for the other machine stand in `$@`.
    fn new(fake: Fake, far: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Self { fake, folder };
        std::fs::create_dir(machine.at("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_banger"), machine.at("bin/banger")).unwrap();
        // ssh's options, as far as they are used, end with `-- machine`.
        let script = format!(
            "#!/bin/sh\n\
             echo \"$@\" >> {log}\n\
             case \" $* \" in *' -O check '*) test -e {control}; exit ;; esac\n\
             case \" $* \" in *' -N '*) touch {control}; exit ;; esac\n\
             while [ \"$1\" != -- ]; do shift; done\n\
             shift 2\n\
             PATH={bin}:$PATH BANGER_SOCKET={socket} BANGER_HOST=ssh://never.example\n\
             export PATH BANGER_SOCKET BANGER_HOST\n\
             {far}\n",
            log = machine.at("log").display(),
            control = machine.at("control").display(),
            bin = machine.at("bin").display(),
            socket = machine.fake.socket().display(),
        );
        std::fs::write(machine.at("ssh"), script).unwrap();
        std::fs::set_permissions(machine.at("ssh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn banger(&self, arguments: &[&str]) -> Command {
        let words = [&["--host", "ssh://alice@far.example:2222"], arguments].concat();
        let mut command = self.fake.banger(&words);
        command.env("BANGER_SSH", self.at("ssh")).env("XDG_RUNTIME_DIR", self.folder.path());
        command.env("BANGER_SOCKET", "/nonexistent/socket");
        command
    }

    fn said(&self, arguments: &[&str]) -> String {
        all(&self.banger(arguments).output().unwrap())
    }
}

#[test]
fn calls_streams_and_commands_cross_one_login() {
    let machine = Machine::new(demo(), WORKS);
    assert_eq!(machine.said(&["vm", "list"]), all(&machine.fake.banger(&["vm", "list"]).output().unwrap()));
    let logs = machine.said(&["vm", "logs", "demo"]);
    assert_eq!(logs, all(&machine.fake.banger(&["vm", "logs", "demo"]).output().unwrap()));
    let ended = machine.banger(&["vm", "exec", "-n", "demo", "--", "exit", "42"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(42), "{}", all(&ended));
    let log = std::fs::read_to_string(machine.at("log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains(" -N ")).count(), 1, "one login serves all: {log}");
    assert!(log.lines().all(|line| line.contains("-l alice -p 2222 -- far.example")), "{log}");
}

#[test]
fn what_the_daemon_refuses_comes_back_as_here() {
    let machine = Machine::new(demo(), WORKS);
    for words in [&["vm", "exec", "-n", "nobody", "--", "true"][..], &["vm", "show", "nobody"]] {
        assert_eq!(machine.said(words), all(&machine.fake.banger(words).output().unwrap()), "{words:?}");
    }
}

#[test]
fn input_reaches_a_command_there() {
    let machine = Machine::new(demo(), WORKS);
    let run = |mut command: Command| {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&vec![b'x'; 40_000]).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), output.stdout)
    };
    let words = ["vm", "exec", "demo", "--", "cat"];
    let (status, bytes) = run(machine.banger(&words));
    assert_eq!((status, bytes.len()), (Some(0), 40_000));
}

#[test]
fn each_failure_has_its_own_words() {
    for (far, said) in [
        ("exit 255", "ssh failed"),
        ("exit 127", "banger is not installed there"),
        ("exit 2", "the banger there knows no --host"),
        ("echo hello; exit 0", "something else answers there: hello"),
        ("exit 0", "ended there without a word"),
        ("BANGER_SOCKET=/nonexistent exec \"$@\"", "there is no socket /nonexistent"),
    ] {
        let machine = Machine::new(demo(), far);
        let text = machine.said(&["vm", "list"]);
        let place = "cannot reach bangerd on ssh://alice@far.example:2222";
        assert!(text.contains(place) && text.contains(said) && text.ends_with("status Some(1)\n"), "{far}: {text}");
    }
}

#[test]
fn what_the_other_machine_says_beside_the_connection_steers_no_terminal() {
    let machine = Machine::new(demo(), r#"printf '\033[2Jwords\n' >&2; exec "$@""#);
    let mut program = machine.banger(&[]);
    // Our own colours are no words of the other machine.
    program.env("NO_COLOR", "1");
    let Some(shown) = terminal::on_a_terminal(&program, "--host ssh://alice@far.example:2222 vm list") else { return };
    assert!(shown.contains("words\n") && shown.contains("demo") && !terminal::steers(&shown), "{shown:?}");
    // What ssh says stands above our own words.
    let failed = Machine::new(demo(), "echo no route >&2; exit 255").said(&["vm", "list"]);
    assert!(failed.starts_with("no route\nbanger: "), "{failed}");
}

#[test]
fn a_name_is_used_and_an_option_is_no_name() {
    let machine = Machine::new(demo(), WORKS);
    let here = |words: &[&str]| {
        let mut command = machine.fake.banger(words);
        command.env("BANGER_SSH", machine.at("ssh")).env("XDG_RUNTIME_DIR", machine.folder.path());
        all(&command.env("BANGER_SOCKET", "/nonexistent/socket").output().unwrap())
    };
    assert!(here(&["context", "add", "far", "ssh://far.example"]).ends_with("status Some(0)\n"));
    assert!(here(&["vm", "list"]).contains("/nonexistent/socket"), "not in use yet");
    assert!(here(&["--host", "far", "vm", "list"]).contains("demo"));
    here(&["context", "use", "far"]);
    assert!(here(&["vm", "list"]).contains("demo"));
    assert!(here(&["context", "list"]).contains("* far  ssh://far.example"));
    assert!(here(&["--host", "local", "vm", "list"]).contains("/nonexistent/socket"));
    for bad in ["ssh://-oProxyCommand=touch", "nobody", "ssh://a b"] {
        let text = here(&["--host", bad, "vm", "list"]);
        assert!(text.starts_with("banger: ") && text.ends_with("status Some(1)\n"), "{text}");
    }
    here(&["context", "remove", "far"]);
    assert!(here(&["vm", "list"]).contains("/nonexistent/socket"));
}
