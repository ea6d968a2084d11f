//! The agent's SSH server against the stock OpenSSH client, over TCP on the loopback.
//!
//! Needs `ssh` and `ssh-keygen`; without them each test says that it is skipped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use guest::{Guest, text};
use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that compress badly and repeat nowhere near.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends while it reads: what comes back for it.
fn answer_to(child: &mut Child, sent: &[u8]) -> Vec<u8> {
    let (mut stdin, copy) = (child.stdin.take().unwrap(), sent.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut received = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    received
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn alive(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    status.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_command_has_its_output_errors_and_status() {
    let Some(guest) = Guest::start() else { return };
    let output = guest.ssh(&[], &["echo out; echo err >&2; exit 42"]).output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(text(&output), "out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let output = guest.ssh(&[], &["/no/such/command"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
}

#[test]
fn a_command_has_a_login_environment() {
    let Some(guest) = Guest::start() else { return };
    let mut ssh = guest.ssh(&["-o", "SendEnv=LC_TEST", "-o", "SendEnv=SECRET"], &["env"]);
    let output = ssh.env("LC_TEST", "a b").env("SECRET", "x").output().unwrap();
    let environment = text(&output);
    let has = |line: &str| environment.lines().any(|other| other == line);
    assert!(has("USER=root") && has("LOGNAME=root") && has("LC_TEST=a b"), "{environment}");
    assert!(!environment.contains("SECRET"));
    let output = guest.ssh(&[], &["echo $0; cut -d' ' -f6 /proc/$$/stat; echo $$"]).output().unwrap();
    let lines: Vec<String> = text(&output).lines().map(|line| line.trim().to_owned()).collect();
    assert!(lines[0].starts_with('-'), "no login shell: {lines:?}");
    assert_eq!(lines[1], lines[2], "no session of its own");
}

#[test]
fn a_terminal_has_the_size_of_the_client_and_follows_it() {
    let Some(guest) = Guest::start() else { return };
    let shown = in_terminal("stty rows 33 cols 101;", &guest.ssh(&["-tt"], &["'stty size; tty; echo $TERM'"]));
    assert!(shown.contains("33 101"), "{shown}");
    assert!(shown.contains("/dev/pts/") && shown.contains("vt100"), "{shown}");
    let started = guest.path("started");
    let remote = format!(
        "'stty size; trap \"stty size; exit\" WINCH; touch {}; for i in $(seq 100); do sleep 0.2; done'",
        started.display()
    );
    let resize = format!(
        "stty rows 20 cols 70; t=$(tty); (until [ -e {} ]; do sleep 0.1; done; stty rows 41 cols 99 < $t) &",
        started.display()
    );
    let shown = in_terminal(&resize, &guest.ssh(&["-tt"], &[&remote]));
    assert!(shown.contains("20 70") && shown.contains("41 99"), "{shown}");
}

/// What a command shows in a terminal of its own, which `script` makes and `prepare` sets up.
fn in_terminal(prepare: &str, command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let line = format!("{prepare} {}", words.join(" "));
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "vt100").output().unwrap();
    text(&output)
}

#[test]
fn fifty_megabytes_come_back_unchanged() {
    let Some(guest) = Guest::start() else { return };
    let sent = noise(50 * 1024 * 1024);
    let mut child = guest.ssh(&[], &["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let received = answer_to(&mut child, &sent);
    assert!(child.wait().unwrap().success());
    assert_eq!(received.len(), sent.len());
    assert!(received == sent);
}

#[test]
fn a_command_that_reads_nothing_holds_up_nothing() {
    let Some(guest) = Guest::start() else { return };
    let control = guest.path("mux");
    let master_option = format!("ControlPath={}", control.display());
    let mut master = guest.ssh(&["-N", "-o", "ControlMaster=yes", "-o", &master_option], &[]).spawn().unwrap();
    wait_for("the master connection", || control.exists());
    let mut idle = guest.ssh(&["-o", &master_option], &["sleep 60"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = idle.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&noise(20 * 1024 * 1024)));
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let output = guest.ssh(&["-o", &master_option], &["echo still here"]).output().unwrap();
    assert_eq!(text(&output), "still here\n");
    assert!(begin.elapsed() < Duration::from_secs(10));
    idle.kill().unwrap();
    idle.wait().unwrap();
    master.kill().unwrap();
    master.wait().unwrap();
    let _ = writer.join().unwrap();
}

#[test]
fn twenty_commands_at_once() {
    let Some(guest) = Guest::start() else { return };
    let children: Vec<_> = (0..20)
        .map(|at| {
            let command = format!("sleep 0.2; echo {at}; exit {at}");
            guest.ssh(&[], &[&command]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (at, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output).trim(), at.to_string());
        assert_eq!(output.status.code(), i32::try_from(at).ok());
    }
}

#[test]
fn a_client_that_goes_away_leaves_what_ignores_that() {
    let Some(guest) = Guest::start() else { return };
    let (pids, done) = (guest.path("pids"), guest.path("done"));
    let line = format!("trap '' HUP; echo $$ > {}; sleep 4; touch {}", pids.display(), done.display());
    for flags in [&[][..], &["-tt"]] {
        let mut child = guest.ssh(flags, &[&line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_for("the start", || fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')));
        child.kill().unwrap();
        child.wait().unwrap();
        // Such as nohup(1), and a package manager in the middle of its work.
        wait_for("its own end", || done.exists());
        let pid = fs::read_to_string(&pids).unwrap();
        wait_for("that it is reaped", || !std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
        fs::remove_file(&pids).unwrap();
        fs::remove_file(&done).unwrap();
    }
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let Some(guest) = Guest::start() else { return };
    let pids = guest.path("pids");
    let command = format!("sleep 300 & echo $$ $! > {}; sleep 300", pids.display());
    let mut child = guest.ssh(&[], &[&command]).spawn().unwrap();
    wait_for("the start", || fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')));
    let both = fs::read_to_string(&pids).unwrap();
    assert!(both.split_whitespace().all(alive));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the end of both processes", || !both.split_whitespace().any(alive));
}

#[test]
fn a_terminal_passes_signals_and_ends_with_its_client() {
    let Some(guest) = Guest::start() else { return };
    let mut child = guest
        .ssh(&["-tt"], &["trap 'echo got-it; exit 7' INT; echo ready; while :; do sleep 0.1; done"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = [0; 5];
    stdout.read_exact(&mut shown).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"\x03").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("got-it"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    let output = guest.ssh(&[], &["kill -KILL $$"]).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
}

#[test]
fn only_authorised_keys_of_root_come_in() {
    let Some(guest) = Guest::start() else { return };
    let comes_in = |user: &str, key: &str| {
        let mut ssh = guest.ssh_as(user, key);
        ssh.args(["127.0.0.1", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(comes_in("root", "user"));
    assert!(!comes_in("root", "other") && !comes_in("nobody", "user"));
    assert!(guest.set_keys("rubbish\n").is_err());
    assert!(comes_in("root", "user"));
    guest.set_keys(&fs::read_to_string(guest.path("other.pub")).unwrap()).unwrap();
    assert!(comes_in("root", "other") && !comes_in("root", "user"));
}

#[test]
fn a_port_is_forwarded_both_ways() {
    let Some(guest) = Guest::start() else { return };
    let echo = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let target = format!("localhost:{}", echo.local_addr().unwrap().port());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = echo.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut child = guest.ssh(&["-W", &target], &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let sent = noise(3 * 1024 * 1024);
    let received = answer_to(&mut child, &sent);
    assert!(received == sent);
    assert!(child.wait().unwrap().success());
    serving.join().unwrap();
}

/// Answers each connection with what it was sent first.
fn echo() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut reader, &mut stream);
        }
    });
    port
}

fn echoes(mut stream: impl Read + Write) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"ping"
}

#[test]
fn a_port_of_the_guest_leads_to_the_client_as_long_as_it_is_there() {
    let Some(guest) = Guest::start() else { return };
    // Free a moment ago.
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let connect = || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    // Asked for all addresses, it listens on the loopback alone.
    let target = format!("*:{port}:127.0.0.1:{}", echo());
    let mut child = guest.ssh(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", &target], &[]).spawn().unwrap();
    wait_for("the port", || connect().is_ok());
    assert!(std::net::TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).is_err(), "on another address");
    let streams: Vec<_> = (0..20).map(|_| connect().unwrap()).collect();
    assert!(streams.into_iter().all(echoes), "twenty at once");
    let taken = guest.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", &target], &["true"]).output().unwrap();
    assert!(!taken.status.success(), "the port of another is refused");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("its end", || connect().is_err());
    // One that the guest chooses is said to the client.
    let target = format!("0:127.0.0.1:{}", echo());
    let said = guest.ssh(&["-R", &target], &["true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("Allocated port"), "{said:?}");
}

#[test]
fn a_socket_of_the_guest_leads_to_the_client_and_is_removed() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(guest) = Guest::start() else { return };
    let socket = guest.path("listens");
    let target = format!("{}:127.0.0.1:{}", socket.display(), echo());
    let mut child = guest.ssh(&["-N", "-R", &target], &[]).spawn().unwrap();
    wait_for("the socket", || socket.exists());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(echoes(std::os::unix::net::UnixStream::connect(&socket).unwrap()));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("its end", || !socket.exists());
    fs::write(&socket, "kept").unwrap();
    let taken = guest.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", &target], &["true"]).output().unwrap();
    assert!(!taken.status.success() && fs::read_to_string(&socket).unwrap() == "kept");
}

#[test]
fn the_clients_agent_is_there_when_the_client_says_so() {
    let Some(guest) = Guest::start() else { return };
    let socket = guest.path("agent");
    let mut agent = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the agent", || socket.exists());
    let with_agent = |flags: &[&str], line: &str| {
        let mut ssh = guest.ssh(flags, &[line]);
        text(&ssh.env("SSH_AUTH_SOCK", &socket).output().unwrap())
    };
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(guest.path("other")).env("SSH_AUTH_SOCK", &socket);
    assert!(add.status().unwrap().success());
    assert_eq!(with_agent(&[], "echo [$SSH_AUTH_SOCK]"), "[]\n");
    let shown = with_agent(&["-A"], "ssh-add -l; echo $SSH_AUTH_SOCK; stat -c %a $(dirname $SSH_AUTH_SOCK)");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].contains("other (ED25519)") && lines[2] == "700", "{shown}");
    let folder = std::path::Path::new(lines[1]).parent().unwrap().to_owned();
    wait_for("its end", || !folder.exists());
    agent.kill().unwrap();
    agent.wait().unwrap();
}
