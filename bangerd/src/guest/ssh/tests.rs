#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
//! Against the guest's own SSH server, behind a socket that speaks Firecracker's vsock protocol.
use super::*;
use banger_guest::agent::Server;
use banger_proto::guest::GuestConfig;
use banger_proto::stream::Terminal;
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub(crate) struct Guest {
    pub(crate) session: Arc<Session>,
    pub(crate) connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// Notified: all connections stay open and carry nothing any more.
    pub(crate) stall: Arc<Notify>,
    _folder: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A guest that shows `shown` as its host key, and a session that expects `pinned`.
fn guest_with(shown: &KeyPair, pinned: &KeyPair, client: &KeyPair, known: &KeyPair) -> Guest {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock.sock");
    let config = GuestConfig {
        hostname: "demo".into(),
        address: Ipv4Addr::new(172, 16, 0, 2),
        gateway: Ipv4Addr::new(172, 16, 0, 1),
        dns: Ipv4Addr::new(1, 1, 1, 1),
        daemon_key: known.public_line().into(),
        authorized_keys: Vec::new(),
        host_key: shown.private_pem().unwrap(),
        control_port: 10_001,
        token: banger_proto::guest::BootToken::new([1; 32]),
        root_device: "/dev/vda".into(),
        work_device: None,
        image: Default::default(),
    };
    let passwd = folder.path().join("passwd");
    std::fs::write(&passwd, format!("root:x:0:0::{}:/bin/bash\n", folder.path().display())).unwrap();
    let server = Arc::new(Server::with_passwd(&config, passwd).unwrap());
    let listener = UnixListener::bind(&vsock).unwrap();
    let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
    let kept = connections.clone();
    let stall = Arc::new(Notify::new());
    let stalled = stall.clone();
    let accepting = tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!(line, "CONNECT 22\n");
            stream.write_all(b"OK 1073741824\n").await.unwrap();
            // A relay between, because ending it is what the loss of a connection looks like to both.
            let (mut near, far) = tokio::io::duplex(64 * 1024);
            let server = server.clone();
            tokio::spawn(async move { server.serve(far).await });
            let stall = stalled.clone();
            let relay = async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut stream, &mut near) => return,
                    () = stall.notified() => {}
                }
                std::future::pending::<()>().await;
                drop((stream, near));
            };
            kept.lock().unwrap().push(tokio::spawn(relay));
        }
    });
    let session = Arc::new(Session::new(vsock, pinned.public_line(), client).unwrap());
    Guest { session, connections, stall, _folder: folder, accepting }
}

pub(crate) fn guest() -> Guest {
    let (host, client) = (KeyPair::generate("host").unwrap(), KeyPair::generate("bangerd").unwrap());
    guest_with(&host, &host, &client, &client)
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Standard output, standard error, status.
async fn run(session: &Session, command: &[&str], input: &str) -> Result<(String, String, u8), SshError> {
    let words = words(command);
    let mut running = session.start(&Command { words: &words, env: &[], terminal: None }).await?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let Running { output, input: to_command, .. } = &mut running;
    // At once: a command like `cat` does not take input for ever when nobody takes its output.
    let sending = async {
        to_command.send(input.to_owned().into()).await?;
        to_command.end().await
    };
    let receiving = async {
        loop {
            match output.next().await? {
                Said::Output(bytes) => out.extend(bytes),
                Said::ErrorOutput(bytes) => err.extend(bytes),
                Said::Exit(status) => return Ok::<_, SshError>(status),
            }
        }
    };
    let (sent, status) = tokio::join!(sending, receiving);
    let status = status?;
    sent?;
    session.finished(running);
    Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), status))
}

#[tokio::test(flavor = "multi_thread")]
async fn words_input_output_and_status_arrive() {
    let guest = guest();
    let run = async |command: &[&str], input: &str| run(&guest.session, command, input).await.unwrap();
    assert_eq!(run(&["sh", "-c", "exit 42"], "").await.2, 42);
    assert_eq!(run(&["printf", "%s|", "a b", "", "it's", "$HOME"], "").await.0, "a b||it's|$HOME|");
    assert_eq!(run(&["sh", "-c", "echo out; echo err >&2"], "").await, ("out\n".into(), "err\n".into(), 0));
    assert_eq!(run(&["cat"], &"x".repeat(5_000_000)).await.0.len(), 5_000_000);
    assert_eq!(run(&["sh", "-c", "kill -TERM $$"], "").await.2, 143);
    assert_eq!(run(&["banger-no-such-command"], "").await.2, 127);
    assert_eq!(guest.connections.lock().unwrap().len(), 1, "one connection is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_command_does_not_wait_for_a_stalled_one() {
    let guest = guest();
    let endless = words(&["yes"]);
    let stalled = guest.session.start(&Command { words: &endless, env: &[], terminal: None }).await.unwrap();
    // Nobody reads `yes`.
    assert_eq!(run(&guest.session, &["true"], "").await.unwrap().2, 0);
    assert_eq!(guest.connections.lock().unwrap().len(), 2);
    stalled.hang_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again() {
    let guest = guest();
    assert_eq!(run(&guest.session, &["true"], "").await.unwrap().2, 0);
    for connection in guest.connections.lock().unwrap().iter() {
        connection.abort();
    }
    assert_eq!(run(&guest.session, &["true"], "").await.unwrap().2, 0);
    let endless = words(&["sleep", "1000"]);
    let mut running = guest.session.start(&Command { words: &endless, env: &[], terminal: None }).await.unwrap();
    for connection in guest.connections.lock().unwrap().iter() {
        connection.abort();
    }
    assert!(matches!(running.output.next().await, Err(SshError::Lost)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_callers_size_and_follows_it() {
    let guest = guest();
    let terminal = Terminal { term: "xterm".into(), cols: 91, rows: 33 };
    let script = words(&[
        "sh",
        "-c",
        "stty size; echo $TERM; trap 'stty size; exit 7' WINCH; echo set; while :; do sleep 0.1; done",
    ]);
    let env = [("LANG".to_owned(), "C".to_owned())];
    let command = Command { words: &script, env: &env, terminal: Some(&terminal) };
    let mut running = guest.session.start(&command).await.unwrap();
    let mut seen = String::new();
    let status = loop {
        match running.output.next().await.unwrap() {
            Said::Output(bytes) => {
                seen.push_str(&String::from_utf8_lossy(&bytes));
                if seen.ends_with("set\r\n") {
                    running.input.resize(100, 40).await.unwrap();
                }
            }
            Said::ErrorOutput(_) => {}
            Said::Exit(status) => break status,
        }
    };
    assert_eq!((seen.as_str(), status), ("33 91\r\nxterm\r\nset\r\n40 100\r\n", 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_key_or_an_unknown_client_is_refused() {
    let key = || KeyPair::generate("k").unwrap();
    let (host, other, client) = (key(), key(), key());
    let wrong_host = guest_with(&other, &host, &client, &client);
    assert!(matches!(run(&wrong_host.session, &["true"], "").await, Err(SshError::HostKey)));
    let unknown = guest_with(&host, &host, &client, &other);
    assert!(matches!(run(&unknown.session, &["true"], "").await, Err(SshError::Denied)));
    let nobody = Session::new("/nonexistent".into(), host.public_line(), &client).unwrap();
    assert!(matches!(nobody.raw().await, Err(SshError::Socket { .. })));
    let nul = words(&["a\0b"]);
    let known = guest_with(&host, &host, &client, &client);
    let refused = known.session.start(&Command { words: &nul, env: &[], terminal: None }).await;
    assert!(matches!(refused, Err(SshError::Nul)));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_keys_are_replaced() {
    let guest = guest();
    let alice = KeyPair::generate("alice").unwrap();
    let vsock = guest.session.vsock.clone();
    let hers = Session::new(vsock, &guest.session.pinned.to_openssh().unwrap(), &alice).unwrap();
    assert!(matches!(run(&hers, &["true"], "").await, Err(SshError::Denied)));
    guest.session.set_authorized_keys(&[alice.public_line().to_owned()]).await.unwrap();
    assert_eq!(run(&hers, &["true"], "").await.unwrap().2, 0);
    assert!(hers.set_authorized_keys(&[]).await.is_err(), "only the daemon's key may");
    let bad = guest.session.set_authorized_keys(&["not a key".to_owned()]).await;
    assert!(matches!(bad, Err(SshError::Keys(_))), "{bad:?}");
    guest.session.set_authorized_keys(&[]).await.unwrap();
    let later = Session::new(guest.session.vsock.clone(), &guest.session.pinned.to_openssh().unwrap(), &alice).unwrap();
    assert!(matches!(run(&later, &["true"], "").await, Err(SshError::Denied)));
}

#[tokio::test]
async fn a_vmm_without_a_server_says_so_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    let closing = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
    assert!(matches!(connect::raw(Path::new(&path)).await, Err(SshError::NoAnswer(_) | SshError::Socket { .. })));
    closing.await.unwrap();
}
