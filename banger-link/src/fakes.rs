#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
//! For tests of this crate and of the daemon: the guest's own agent behind a socket that speaks
//! Firecracker's vsock protocol.

use crate::keys::KeyPair;
use crate::link::Link;
use banger_guest::agent::Server;
use banger_proto::guest::{BootToken, GuestConfig};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// A guest, and the way into it.
#[derive(Debug)]
pub struct Guest {
    /// Knows the boot's token.
    pub link: Arc<Link>,
    /// The socket of its vsock.
    pub vsock: PathBuf,
    /// A relay for each connection; to abort it is to lose the connection.
    pub connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    _folder: tempfile::TempDir,
    accepting: JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A guest.
pub fn guest() -> Guest {
    let folder = tempfile::tempdir().unwrap();
    let vsock = folder.path().join("vsock.sock");
    let token = BootToken::new([1; 32]);
    let config = GuestConfig {
        hostname: "demo".into(),
        address: Ipv4Addr::new(172, 16, 0, 2),
        gateway: Ipv4Addr::new(172, 16, 0, 1),
        dns: Ipv4Addr::new(1, 1, 1, 1),
        authorized_keys: Vec::new(),
        host_key: KeyPair::generate("host").unwrap().private_pem().unwrap(),
        control_port: 10_001,
        token: token.clone(),
        root_device: "/dev/vda".into(),
        work_device: None,
        modules_device: None,
        reads: false,
        image: Default::default(),
    };
    let passwd = folder.path().join("passwd");
    std::fs::write(&passwd, format!("root:x:0:0::{}:/bin/bash\n", folder.path().display())).unwrap();
    let server = Arc::new(Server::with_passwd(&config, passwd).unwrap());
    let listener = UnixListener::bind(&vsock).unwrap();
    let connections: Arc<Mutex<Vec<JoinHandle<()>>>> = Arc::default();
    let kept = connections.clone();
    let accepting = tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            stream.write_all(b"OK 1073741824\n").await.unwrap();
            // A relay between, because ending it is what the loss of a connection looks like to
            // both.
            let (mut near, far) = tokio::net::UnixStream::pair().unwrap();
            let server = server.clone();
            match line.as_str() {
                "CONNECT 22\n" => drop(tokio::spawn(async move { server.serve(far).await })),
                "CONNECT 1022\n" => drop(tokio::spawn(async move { server.serve_command(far).await })),
                // Nobody listens there.
                _ => continue,
            }
            let relay = async move { drop(tokio::io::copy_bidirectional(&mut stream, &mut near).await) };
            kept.lock().unwrap().push(tokio::spawn(relay));
        }
    });
    let link = Arc::new(Link::new(vsock.clone(), token));
    Guest { link, vsock, connections, _folder: folder, accepting }
}
