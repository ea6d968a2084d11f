#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
//! For tests of this crate and of the daemon: the guest's own SSH server behind a socket that speaks
//! Firecracker's vsock protocol.

use crate::keys::KeyPair;
use crate::ssh::Session;
use banger_guest::agent::Server;
use banger_proto::guest::GuestConfig;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A guest, and a session with it.
#[derive(Debug)]
pub struct Guest {
    /// Expects the guest's host key.
    pub session: Arc<Session>,
    /// A relay for each connection; to abort it is to lose the connection.
    pub connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// Notified: all connections stay open and carry nothing any more.
    pub stall: Arc<Notify>,
    _folder: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A guest that shows `shown` as its host key, and a session that expects `pinned`.
pub(crate) fn guest_with(shown: &KeyPair, pinned: &KeyPair, client: &KeyPair, known: &KeyPair) -> Guest {
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

/// A guest whose host key is the one that the session expects.
pub fn guest() -> Guest {
    let (host, client) = (KeyPair::generate("host").unwrap(), KeyPair::generate("bangerd").unwrap());
    guest_with(&host, &host, &client, &client)
}

/// Owned, as a command has them.
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
