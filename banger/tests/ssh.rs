//! Stock `ssh` with what `ssh-config` prints, and `vm ssh`, through the real program to the real
//! agent; the daemon between is a fake one, and the guest is this machine.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod fake;

use banger_policy::lifecycle::State;
use banger_proto::guest::{BootToken, GuestConfig};
use fake::{Fake, vm};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

struct World {
    fake: Fake,
    home: PathBuf,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_here(program: &str) -> bool {
    let here = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !here {
        eprintln!("skipped: there is no {program}");
    }
    here
}

impl World {
    fn new() -> Option<Self> {
        if !is_here("ssh") {
            return None;
        }
        let fake = Fake::start(vec![vm("demo", State::Running)]);
        let home = fake.socket().parent().unwrap().to_owned();
        let key = |name: &str| {
            let path = home.join(name);
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
            assert!(made.unwrap().success());
            (fs::read_to_string(&path).unwrap(), fs::read_to_string(path.with_extension("pub")).unwrap())
        };
        let (host_key, public) = key("host");
        key("another");
        let config = GuestConfig {
            hostname: "demo".into(),
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            dns: Ipv4Addr::LOCALHOST,
            authorized_keys: Vec::new(),
            host_key,
            control_port: 0,
            token: BootToken::new([1; 32]),
            root_device: String::new(),
            work_device: None,
            modules_device: None,
            reads: false,
            image: Default::default(),
        };
        let passwd = home.join("passwd");
        fs::write(&passwd, format!("root:x:0:0::{}:/bin/sh\n", home.display())).unwrap();
        fake.state().agent = Some((config, public, passwd));
        let world = Self { fake, home };
        let printed = world.fake.banger(&["ssh-config"]).output().unwrap();
        assert!(printed.status.success(), "{}", text(&printed.stderr));
        fs::write(world.home.join("ours"), printed.stdout).unwrap();
        world.all_hosts("");
        Some(world)
    }

    /// What the user has in a `Host *` below our Include.
    fn all_hosts(&self, below: &str) {
        let ours = self.home.join("ours");
        fs::write(self.config(), format!("Include \"{}\"\nHost *\n    {below}\n", ours.display())).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.home.join("config")
    }

    fn env<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("BANGER_SOCKET", self.fake.socket()).env("HOME", &self.home);
        command.env_remove("XDG_DATA_HOME").env_remove("SSH_AUTH_SOCK").current_dir(&self.home)
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        self.env(ssh.arg("-F").arg(self.config()).args(arguments));
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ssh
    }
}

/// With bytes on its standard input.
fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.spawn().unwrap();
    // A program that reads nothing may be gone.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

fn all(output: &Output) -> String {
    format!("{:?}: {}{}", output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_vm_is_a_host_whatever_the_user_has_for_all_hosts() {
    let Some(world) = World::new() else { return };
    for below in [
        "",
        "RemoteCommand tmux attach",
        "RequestTTY force",
        "SessionType none",
        "StdinNull yes",
        "PubkeyAuthentication no",
        "PreferredAuthentications password,keyboard-interactive",
        "KbdInteractiveAuthentication yes",
        "HostKeyAlgorithms ssh-rsa",
        "PubkeyAcceptedAlgorithms rsa-sha2-512",
        "Ciphers aes128-cbc",
        "MACs hmac-sha1",
        "KexAlgorithms diffie-hellman-group14-sha256",
        "ProxyJump nowhere.invalid",
        "HostName nowhere.invalid",
        "HostKeyAlias other",
        "RevokedHostKeys /nonexistent",
        "CanonicalizeHostname always",
        "Compression yes",
        "RemoteForward 127.0.0.1:1 127.0.0.1:1\n    ExitOnForwardFailure yes",
    ] {
        world.all_hosts(below);
        let output = fed(world.ssh(&["demo.banger", "cat; echo err >&2; exit 3"]), b"hello");
        let said = all(&output);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), "hello".into()), "{below}: {said}");
        assert!(text(&output.stderr).ends_with("err\n"), "{below}: {said}");
    }
}

#[test]
fn another_host_key_is_refused_and_so_is_a_vm_that_is_not_there() {
    let Some(world) = World::new() else { return };
    let right = world.fake.state().agent.clone();
    if let Some((_, public, _)) = &mut world.fake.state().agent {
        *public = fs::read_to_string(world.home.join("another.pub")).unwrap();
    }
    // The user's own settings know the key that the guest has: they are not asked.
    let theirs = fs::read_to_string(world.home.join("host.pub")).unwrap();
    let (known, command) = (world.home.join("known"), world.home.join("known.sh"));
    fs::write(&known, format!("demo.banger {theirs}")).unwrap();
    fs::write(&command, format!("#!/bin/sh\ncat {}\n", known.display())).unwrap();
    fs::set_permissions(&command, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for below in [
        String::new(),
        "StrictHostKeyChecking no".to_owned(),
        format!("UserKnownHostsFile {}", known.display()),
        format!("GlobalKnownHostsFile {}", known.display()),
        format!("KnownHostsCommand {}", command.display()),
    ] {
        world.all_hosts(&below);
        let output = fed(world.ssh(&["demo.banger", "echo in"]), b"");
        assert!(output.status.code() == Some(255) && output.stdout.is_empty(), "{below}: {}", all(&output));
        assert!(all(&output).contains("Host key verification failed"), "{below}: {}", all(&output));
    }
    world.fake.state().agent = right;
    let output = fed(world.ssh(&["nobody.banger", "echo in"]), b"");
    assert!(all(&output).contains("banger: cannot reach the ssh server of nobody: no VM nobody"), "{}", all(&output));
    // An administrator's way to another user's: the daemon is asked for it by the word of the
    // command line.
    let output = fed(world.ssh(&["demo.al.ice.banger", "echo in"]), b"");
    assert!(all(&output).contains("no VM al.ice/demo"), "{}", all(&output));
}

#[test]
fn ports_are_forwarded_and_connections_shared() {
    let Some(world) = World::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream.unwrap().write_all(b"pong"));
        }
    });
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let control = world.home.join("control");
    let control = control.to_str().unwrap();
    let forward = format!("{free}:{target}");
    let mut master = world.ssh(&["-M", "-S", control, "-N", "-L", &forward, "demo.banger"]).spawn().unwrap();
    let mut got = String::new();
    for _ in 0..200 {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", free)) {
            stream.read_to_string(&mut got).unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(got, "pong");
    let logins = || world.fake.state().calls.iter().filter(|call| call.starts_with("ssh ")).count();
    let before = logins();
    let output = fed(world.ssh(&["-S", control, "demo.banger", "cat"]), b"shared");
    assert_eq!((text(&output.stdout), logins()), ("shared".into(), before), "{}", all(&output));
    assert!(fed(world.ssh(&["-S", control, "-O", "exit", "demo.banger"]), b"").status.success());
    master.wait().unwrap();
}

#[test]
fn programs_above_ssh_need_no_more_than_the_name() {
    let Some(world) = World::new() else { return };
    let (config, home) = (world.config().display().to_string(), world.home.display().to_string());
    fs::write(world.home.join("file"), "content").unwrap();
    // `-O`: the protocol that needs no sftp server.
    let mut scp = Command::new("scp");
    let output = world.env(scp.args(["-O", "-F", &config, "demo.banger:file", "copy"])).output().unwrap();
    assert_eq!(fs::read_to_string(world.home.join("copy")).unwrap_or_default(), "content", "{}", all(&output));
    if is_here("rsync") {
        let mut rsync = Command::new("rsync");
        let output = world.env(rsync.args(["-e", &format!("ssh -F {config}"), "demo.banger:file", "copy2"])).output();
        let output = output.unwrap();
        assert_eq!(fs::read_to_string(world.home.join("copy2")).unwrap_or_default(), "content", "{}", all(&output));
    }
    if Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok() {
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
            let output = world.env(git.env("GIT_SSH_COMMAND", format!("ssh -F {config}"))).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", all(&output));
        };
        git(&["init", "-q", "repo"]);
        git(&["-C", "repo", "commit", "-q", "--allow-empty", "-m", "first"]);
        git(&["clone", "-q", &format!("ssh://demo.banger{home}/repo"), "clone"]);
        assert!(world.home.join("clone/.git").is_dir());
    }
}

#[test]
fn vm_ssh_logs_in() {
    let Some(world) = World::new() else { return };
    for words in [&["demo"][..], &["demo.banger"], &["demo", "-T", "-o", "PasswordAuthentication=yes"]] {
        let mut banger = world.fake.banger(&[&["vm", "ssh"], words, &["echo $((6*7)); exit 5"]].concat());
        let output = world.env(&mut banger).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(5), "42\n".into()), "{}", all(&output));
    }
    let output = world.env(&mut world.fake.banger(&["vm", "ssh", "nobody"])).output().unwrap();
    assert_eq!(text(&output.stderr), "banger: cannot log in to nobody: no VM nobody\n  see: banger vm list\n");
}
