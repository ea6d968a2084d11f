#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use super::*;
use crate::agent::Server;
use banger_proto::command;
use banger_proto::guest::{BootToken, GuestConfig};
use russh::keys::ssh_key::{Algorithm, LineEnding};
use russh::keys::{PrivateKey, key};
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::sleep;

const SOON: Duration = Duration::from_secs(20);

struct Guest {
    server: Arc<Server>,
    folder: tempfile::TempDir,
}

pub(in crate::agent) fn token() -> BootToken {
    BootToken::new([1; 32])
}

pub(in crate::agent) fn config() -> GuestConfig {
    let host_key = PrivateKey::random(&mut key::safe_rng(), Algorithm::Ed25519).unwrap();
    GuestConfig {
        hostname: "demo".into(),
        address: Ipv4Addr::new(172, 16, 0, 2),
        gateway: Ipv4Addr::new(172, 16, 0, 1),
        dns: Ipv4Addr::new(1, 1, 1, 1),
        authorized_keys: Vec::new(),
        host_key: host_key.to_openssh(LineEnding::LF).unwrap().to_string(),
        control_port: 10_001,
        token: token(),
        root_device: "/dev/vda".into(),
        work_device: None,
        modules_device: None,
        reads: false,
        image: Default::default(),
    }
}

fn guest() -> Guest {
    let folder = tempfile::tempdir().unwrap();
    let passwd = folder.path().join("passwd");
    std::fs::write(&passwd, format!("root:x:0:0::{}:/bin/sh\n", folder.path().display())).unwrap();
    Guest { server: Arc::new(Server::with_passwd(&config(), passwd).unwrap()), folder }
}

impl Guest {
    fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = Arc::clone(&self.server);
        tokio::spawn(async move { server.serve_command(theirs).await });
        ours
    }

    async fn open(&self) -> UnixStream {
        let mut stream = self.connect();
        let opening = Opening { purpose: Purpose::Command, token: token() };
        stream.write_all(&opening.encode()).await.unwrap();
        assert_eq!(Answer::read(&mut stream).await.unwrap(), Answer::Open);
        stream
    }

    async fn start(&self, start: Start) -> UnixStream {
        let mut stream = self.open().await;
        ToGuest::Start(Box::new(start)).write(&mut stream).await.unwrap();
        stream
    }

    async fn sh(&self, script: &str) -> UnixStream {
        self.start(words(&["sh", "-c", script])).await
    }
}

fn words(words: &[&str]) -> Start {
    Start { words: words.iter().map(|word| word.as_bytes().to_vec()).collect(), ..Start::default() }
}

fn on_a_terminal(script: &str) -> Start {
    let terminal = command::Terminal { term: "dumb".into(), cols: 80, rows: 24, modes: vec![(53, 0)] };
    Start { terminal: Some(terminal), ..words(&["sh", "-c", script]) }
}

async fn next(stream: &mut UnixStream) -> FromGuest {
    timeout(SOON, FromGuest::read(stream)).await.unwrap().unwrap().unwrap()
}

/// Standard output, standard error, last frame.
async fn all(stream: &mut UnixStream) -> (Vec<u8>, Vec<u8>, FromGuest) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match next(stream).await {
            FromGuest::Output(bytes) => out.extend(bytes),
            FromGuest::ErrorOutput(bytes) => err.extend(bytes),
            FromGuest::Started | FromGuest::Credit(_) => {}
            last => return (out, err, last),
        }
    }
}

/// The first line of standard output.
async fn line(stream: &mut UnixStream) -> String {
    loop {
        match next(stream).await {
            FromGuest::Output(bytes) => return String::from_utf8(bytes).unwrap().trim().to_owned(),
            FromGuest::Started => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn tell(stream: &mut UnixStream, frame: ToGuest) {
    timeout(SOON, frame.write(stream)).await.unwrap().unwrap();
}

async fn ends(pid: &str) -> bool {
    let process = format!("/proc/{pid}");
    for _ in 0..200 {
        if !Path::new(&process).exists() {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test]
async fn a_command_has_its_input_outputs_and_status() {
    let guest = guest();
    let mut stream = guest.sh("cat; echo err >&2; exit 42").await;
    tell(&mut stream, ToGuest::Input(b"hello".to_vec())).await;
    tell(&mut stream, ToGuest::InputEnd).await;
    assert_eq!(all(&mut stream).await, (b"hello".to_vec(), b"err\n".to_vec(), FromGuest::Exited(42)));
    let mut stream = guest.sh("kill -SYS $$").await;
    assert_eq!(all(&mut stream).await.2, FromGuest::Killed(31));
    let mut stream = guest.start(words(&["no-such-program"])).await;
    let FromGuest::Refused(127, why) = all(&mut stream).await.2 else { panic!("started") };
    assert!(why.contains("no-such-program"), "{why}");
}

#[tokio::test]
async fn a_program_that_its_user_may_not_execute_is_passed_over() {
    use std::os::unix::fs::PermissionsExt as _;
    let guest = guest();
    let is_root = nix::unistd::geteuid().is_root();
    // Only root runs commands of others. Whoever is not root may not execute what only others may.
    let (user, hidden) = if is_root { (Some("65534".to_owned()), 0o700) } else { (None, 0o001) };
    let make = |folder: &str, mode| {
        let folder = guest.folder.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let program = folder.join("tool");
        std::fs::write(&program, "#!/bin/sh\necho second\n").unwrap();
        for (path, mode) in [(&folder, 0o755), (&program, mode)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        folder.into_os_string().into_string().unwrap()
    };
    let (one, two) = (make("one", hidden), make("two", 0o755));
    std::fs::set_permissions(guest.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = |path: String| Start {
        env: vec![(b"PATH".to_vec(), path.into_bytes())],
        user: user.clone(),
        ..words(&["tool"])
    };
    let mut stream = guest.start(start(format!("{one}:{two}:/usr/bin:/bin"))).await;
    assert_eq!(all(&mut stream).await, (b"second\n".to_vec(), Vec::new(), FromGuest::Exited(0)));
    let mut stream = guest.start(start(format!("{one}:/usr/bin:/bin"))).await;
    let FromGuest::Refused(126, why) = all(&mut stream).await.2 else { panic!("started") };
    assert!(why.contains(&format!("{one}/tool")), "{why}");
}

#[tokio::test]
async fn texts_are_bytes() {
    let guest = guest();
    let mut start = words(&["sh", "-c", "printf '%s|%s' \"$1\" \"$LC_TEST\"; pwd", "sh"]);
    start.words.push(vec![0xff, b' ', 0x80]);
    start.env = vec![(b"LC_TEST".to_vec(), vec![0xfe])];
    start.working_dir = Some(b"/".to_vec());
    let mut stream = guest.start(start).await;
    assert_eq!(all(&mut stream).await.0, b"\xff \x80|\xfe/\n");
    let mut nul = words(&["true"]);
    nul.words.push(vec![0]);
    let refused = all(&mut guest.start(nul).await).await.2;
    assert!(matches!(&refused, FromGuest::Refused(126, why) if why.contains("NUL")), "{refused:?}");
    // 1 MB of arguments, as `xargs` may give.
    let mut many = words(&["sh", "-c", "echo $#", "sh"]);
    many.words.extend(std::iter::repeat_n(vec![b'x'; 10_000], 100));
    assert_eq!(all(&mut guest.start(many).await).await.0, b"100\n");
}

#[tokio::test]
async fn a_signal_arrives_while_output_stands_still() {
    let guest = guest();
    let mut stream = guest.sh("trap 'kill $!; exit 3' INT; echo $$; yes & wait").await;
    assert!(!line(&mut stream).await.is_empty());
    // Nobody reads; every buffer is full soon.
    sleep(Duration::from_millis(300)).await;
    tell(&mut stream, ToGuest::Signal(2)).await;
    assert_eq!(all(&mut stream).await.2, FromGuest::Exited(3));
}

#[tokio::test]
async fn input_is_taken_as_far_as_there_is_credit_and_given_on_in_order() {
    let guest = guest();
    let mut stream = guest.sh("sleep 0.3; cat").await;
    let sent: Vec<u8> = (0..251).cycle().take(8 * WINDOW + 17).collect();
    let (mut credit, mut at, mut received) = (WINDOW, 0, Vec::new());
    loop {
        while at < sent.len() && credit > 0 {
            let count = credit.min(10_000).min(sent.len() - at);
            tell(&mut stream, ToGuest::Input(sent[at..at + count].to_vec())).await;
            (at, credit) = (at + count, credit - count);
            if at == sent.len() {
                tell(&mut stream, ToGuest::InputEnd).await;
            }
        }
        match next(&mut stream).await {
            FromGuest::Output(bytes) => received.extend(bytes),
            FromGuest::Credit(bytes) => credit += usize::try_from(bytes).unwrap(),
            FromGuest::Started => {}
            last => break assert_eq!(last, FromGuest::Exited(0)),
        }
        assert!(credit <= WINDOW);
    }
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn who_sends_more_than_the_credit_is_hung_up() {
    let guest = guest();
    let mut stream = guest.sh("echo $$; exec sleep 1000").await;
    let pid = line(&mut stream).await;
    for _ in 0..WINDOW / 32_768 {
        tell(&mut stream, ToGuest::Input(vec![0; 32_768])).await;
    }
    assert!(!ends_soon(&pid).await, "it has used its credit and no more");
    // What lies in the pipe is taken, too: 256 KiB.
    for _ in 0..9 {
        tell(&mut stream, ToGuest::Input(vec![0; 32_768])).await;
    }
    assert!(ends(&pid).await);
}

async fn ends_soon(pid: &str) -> bool {
    sleep(Duration::from_millis(300)).await;
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_child_that_holds_the_streams_does_not_delay_the_end() {
    let guest = guest();
    let mut stream = guest.sh("sleep 300 & echo $!").await;
    let (out, _, last) = all(&mut stream).await;
    let pid: i32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    assert_eq!(last, FromGuest::Exited(0));
    crate::sys::signals::send(pid, libc::SIGKILL).unwrap();
    // One that floods them.
    let mut stream = guest.sh("yes & echo $! >&2; sleep 0.2").await;
    let (_, err, last) = all(&mut stream).await;
    assert_eq!(last, FromGuest::Exited(0));
    assert!(ends(String::from_utf8(err).unwrap().trim()).await, "nobody reads what it writes");
}

#[tokio::test]
async fn what_was_written_before_the_end_arrives() {
    let guest = guest();
    let done = guest.folder.path().join("done");
    let script = format!("head -c 65000 /dev/zero; head -c 65000 /dev/zero >&2; : > {}", done.display());
    let mut stream = guest.sh(&script).await;
    while !done.exists() {
        sleep(Duration::from_millis(5)).await;
    }
    let (out, err, last) = all(&mut stream).await;
    assert_eq!((out.len(), err.len(), last), (65_000, 65_000, FromGuest::Exited(0)));
}

#[tokio::test]
async fn a_client_that_goes_away_hangs_its_command_up() {
    let guest = guest();
    for start in [words(&["sh", "-c", "echo $$; exec sleep 1000"]), on_a_terminal("echo $$; exec sleep 1000")] {
        let mut stream = guest.start(start).await;
        let pid = line(&mut stream).await;
        drop(stream);
        assert!(ends(&pid).await);
    }
    // As `nohup` does it.
    let mut stream = guest.sh("trap '' HUP; echo $$; exec sleep 1000").await;
    let pid = line(&mut stream).await;
    drop(stream);
    assert!(!ends_soon(&pid).await, "it wanted to live on");
    crate::sys::signals::send(pid.parse().unwrap(), libc::SIGKILL).unwrap();
    assert!(ends(&pid).await, "it is waited for");
}

#[tokio::test]
async fn a_command_that_has_closed_its_input_goes_on() {
    let guest = guest();
    let mut stream = guest.sh("exec <&-; echo closed; sleep 0.3; exit 5").await;
    assert_eq!(line(&mut stream).await, "closed");
    for _ in 0..4 {
        tell(&mut stream, ToGuest::Input(vec![0; 1000])).await;
    }
    tell(&mut stream, ToGuest::InputEnd).await;
    assert_eq!(all(&mut stream).await.2, FromGuest::Exited(5));
}

#[tokio::test]
async fn a_terminal_has_its_size_and_an_end_of_input() {
    let guest = guest();
    let mut stream = guest.start(on_a_terminal("stty size; read line; stty size; cat; echo done $TERM")).await;
    assert_eq!(line(&mut stream).await, "24 80");
    tell(&mut stream, ToGuest::Resize(100, 40)).await;
    tell(&mut stream, ToGuest::Input(b"go\nhalf a line".to_vec())).await;
    tell(&mut stream, ToGuest::InputEnd).await;
    let (out, _, last) = all(&mut stream).await;
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("40 100") && out.contains("half a line") && out.contains("done dumb"), "{out}");
    assert_eq!(last, FromGuest::Exited(0));
}

#[tokio::test]
async fn who_does_not_know_the_token_gets_no_answer() {
    let guest = guest();
    for bytes in [
        Opening { purpose: Purpose::Command, token: BootToken::new([2; 32]) }.encode(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: somebody in the guest\r\nAccept: */*\r\n\r\n".to_vec(),
    ] {
        let mut stream = guest.connect();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert!(answer.is_empty(), "{answer:?}");
    }
    let mut newer = Opening { purpose: Purpose::Command, token: token() }.encode();
    newer[4] = VERSION + 1;
    let mut stream = guest.connect();
    stream.write_all(&newer).await.unwrap();
    assert_eq!(Answer::read(&mut stream).await.unwrap(), Answer::Version(VERSION));
}

#[tokio::test]
async fn there_are_so_many_places_and_a_lost_client_gives_its_own_back() {
    let guest = guest();
    let mut held = Vec::new();
    let refused = loop {
        let mut stream = guest.connect();
        let opening = Opening { purpose: Purpose::Command, token: token() };
        stream.write_all(&opening.encode()).await.unwrap();
        match Answer::read(&mut stream).await.unwrap() {
            Answer::Open => held.push(stream),
            other => break other,
        }
    };
    assert!(refused == Answer::Busy && held.len() > 100, "{}", held.len());
    drop(held);
    sleep(Duration::from_millis(100)).await;
    drop(guest.open().await);
}
