//! What the real program prints without a daemon: help, and how it refuses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

fn banger() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_banger"));
    command.env("BANGER_SOCKET", "/nonexistent/bangerd.sock").env("HOME", "/nonexistent").env("COLUMNS", "100");
    command.stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    banger().args(arguments).output().unwrap()
}

/// Status, standard output and standard error, as a reader of the snapshot sees them.
fn shown(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = output.status.code().unwrap();
    format!("$ banger {}\n{}{}status {status}\n", arguments.join(" "), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help() {
    let pages: [&[&str]; 20] = [
        &["--help"],
        &["vm", "--help"],
        &["vm", "run", "--help"],
        &["vm", "exec", "--help"],
        &["vm", "ssh", "--help"],
        &["vm", "session", "--help"],
        &["vm", "session", "start", "--help"],
        &["vm", "session", "logs", "--help"],
        &["vm", "session", "send", "--help"],
        &["vm", "session", "attach", "--help"],
        &["vm", "cp", "--help"],
        &["vm", "workspace", "prepare", "--help"],
        &["vm", "workspace", "export", "--help"],
        &["image", "import", "--help"],
        &["kernel", "import", "--help"],
        &["vm", "stop", "--help"],
        &["vm", "chown", "--help"],
        &["image", "register", "--help"],
        &["image", "promote", "--help"],
        &["kernel", "share", "--help"],
    ];
    insta::assert_snapshot!(pages.map(shown).join("\n"));
}

#[test]
fn refusals_before_anybody_is_asked() {
    let refused: [&[&str]; 37] = [
        &["vm", "run", "-d", "--rm"],
        &["vm", "session", "start", "--name", "Bad_Name", "demo", "--", "true"],
        &["vm", "run", "--rm", "--keep-on-error"],
        &["vm", "run", "--rm", "--restart", "always"],
        &["vm", "set", "demo"],
        &["vm", "run", "--dry-run"],
        &["vm", "workspace", "prepare", "--dry-run", "--json", "demo"],
        &["vm", "run", "--branch", "x", "--", "true"],
        &["vm", "cp", "a", "b"],
        &["vm", "cp", "-", "-"],
        &["vm", "workspace", "export", "demo", "--diff", "--branch", "x"],
        &["vm", "workspace", "prepare", "demo", "--mode", "half"],
        &["vm", "workspace", "prepare", "demo", "--dry-run", "/nonexistent"],
        &["vm", "run", "--name", "Bad_Name"],
        &["vm", "create", "--image", "../etc/passwd"],
        &["vm", "create", "--memory", "lots"],
        &["vm", "create", "--memory", "1000B"],
        &["vm", "create", "--memory", "64M"],
        &["vm", "create", "--vcpu", "99"],
        &["vm", "create", "--disk-size", "129G"],
        &["vm", "create", "--overlay-size", "1K"],
        &["vm", "set", "--root-size", "127M", "demo"],
        &["vm", "kill", "--signal", "STOP", "demo"],
        &["vm", "exec", "-w", "srv", "demo", "--", "true"],
        &["vm", "exec", "-u", "a b", "demo", "--", "true"],
        &["vm", "exec", "-e", "=x", "demo", "--", "true"],
        &["vm", "run", "-u", "", "--", "true"],
        &["image", "import", "/nonexistent.tar", "--name", "a"],
        &["image", "import", "/usr", "--name", "a"],
        &["kernel", "import", "/nonexistent/vmlinuz"],
        &["image", "register", "--rootfs", "/nonexistent.ext4", "a"],
        &["image", "register", "--rootfs", "/usr", "a"],
        &["image", "register", "--rootfs", "/dev/null", "a"],
        &["image", "register", "--rootfs", "/usr", "--modules", "/lib/modules", "a"],
        &["image", "register", "--rootfs", "/usr", "--modules", "/lib/modules", "--kernel", "6.12", "a"],
        &["image", "register", "--rootfs", "/usr", "--kernel", "/boot/vmlinuz", "a@b"],
        &["image", "register", "--rootfs", "/usr", "--initrd", "/boot/initrd.img", "a"],
    ];
    insta::assert_snapshot!(refused.map(shown).join("\n"));
}

#[test]
fn no_daemon() {
    let commands: [&[&str]; 4] = [&["vm", "list"], &["version"], &["version", "--json"], &["vm", "run"]];
    insta::assert_snapshot!(commands.map(shown).join("\n"));
}

#[test]
fn nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let output = banger().env("BANGER_SOCKET", &socket).args(["ps"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("banger: cannot reach bangerd: nobody listens on"), "{text}");
    assert!(text.contains("systemctl status bangerd"), "{text}");
}

#[test]
fn a_stranger_is_told_how_to_get_in() {
    if !nix::unistd::getuid().is_root() {
        eprintln!("skipped: not root: only root can become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = folder.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    // The build folder may be closed to others, so the program is copied to where it can be run.
    let program = folder.path().join("banger");
    std::fs::copy(env!("CARGO_BIN_EXE_banger"), &program).unwrap();
    let output =
        Command::new(&program).args(["vm", "list"]).env("BANGER_SOCKET", &socket).uid(65534).gid(65534).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stderr).unwrap().replace(&socket.display().to_string(), "SOCKET");
    assert_eq!(
        text,
        "banger: may not use SOCKET: you are not in group banger\n  \
         ask an administrator to run: usermod --append --groups banger nobody, then log in again\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn completions_come_from_the_same_tree() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("root-size"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_news() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = banger().args(["completion", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(141), Vec::new()));
}
