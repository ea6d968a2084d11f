//! One SSH connection to a guest: vsock, pinned host key, the daemon's own key.

use super::SshError;
use russh::client::{self, Handle, Msg};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Disconnect};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use banger_proto::guest::SSH_PORT;

/// The only user of a guest's agent.
const USER: &str = "root";
/// The VMM's own answer: `OK <port>` and a newline.
const MAX_ANSWER: usize = 32;
/// Each step of a connection. An emulated guest under load takes seconds for a key exchange.
const STEP_WAIT: Duration = Duration::from_secs(30);

/// Bounds one step.
pub(super) async fn within<T>(
    doing: &'static str,
    step: impl Future<Output = Result<T, SshError>>,
) -> Result<T, SshError> {
    match timeout(STEP_WAIT, step).await {
        Ok(done) => done,
        Err(_) => Err(SshError::TimedOut { doing, seconds: STEP_WAIT.as_secs() }),
    }
}

/// Connects to the guest's SSH port by Firecracker's protocol for host-initiated connections
/// (docs/vsock.md of Firecracker): `CONNECT <port>`, answered by `OK <port>`.
pub(super) async fn raw(vsock: &Path) -> Result<UnixStream, SshError> {
    within("connecting", async {
        let socket = |source| SshError::Socket { path: vsock.to_owned(), source };
        let mut stream = UnixStream::connect(vsock).await.map_err(socket)?;
        stream.write_all(format!("CONNECT {SSH_PORT}\n").as_bytes()).await.map_err(socket)?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the newline is the server's.
        while answer.last() != Some(&b'\n') {
            match stream.read_u8().await {
                Ok(byte) if answer.len() < MAX_ANSWER => answer.push(byte),
                Ok(_) => return Err(SshError::NoAnswer("the VMM answers too much".into())),
                Err(error) => return Err(SshError::NoAnswer(error.to_string())),
            }
        }
        if answer.starts_with(b"OK ") {
            return Ok(stream);
        }
        Err(SshError::NoAnswer(String::from_utf8_lossy(&answer).trim().to_owned()))
    })
    .await
}

/// Accepts one host key and no other.
pub(super) struct Pin(PublicKey);

impl client::Handler for Pin {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data() == self.0.key_data(),
            PublicKeyOrCertificate::Certificate(_) => false,
        })
    }
}

/// An authenticated connection.
pub(super) struct Connection {
    handle: Handle<Pin>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("closed", &self.handle.is_closed()).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) async fn open(vsock: &Path, pinned: &PublicKey, key: &Arc<PrivateKey>) -> Result<Self, SshError> {
        let stream = raw(vsock).await?;
        let handle = within("agreeing on keys", async {
            let config = Arc::new(client::Config::default());
            Ok(client::connect_stream(config, stream, Pin(pinned.clone())).await?)
        });
        let mut connection = Self { handle: handle.await? };
        let login = within("logging in", async {
            let key = PrivateKeyWithHashAlg::new(key.clone(), None);
            Ok(connection.handle.authenticate_publickey(USER, key).await?)
        });
        if login.await?.success() { Ok(connection) } else { Err(SshError::Denied) }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    pub(super) async fn channel(&self) -> Result<Channel<Msg>, SshError> {
        within("opening a channel", async { Ok(self.handle.channel_open_session().await?) }).await
    }

    /// Ends it now: what runs on it is hung up by the agent.
    pub(super) async fn close(self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        let _ = timeout(Duration::from_secs(1), goodbye).await;
    }
}

/// The answer to a request that wanted one.
pub(super) async fn accepted(channel: &mut Channel<Msg>, what: &'static str) -> Result<(), SshError> {
    within(what, async {
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => return Ok(()),
                Some(ChannelMsg::Failure) => return Err(SshError::Refused(what)),
                Some(ChannelMsg::Close) | None => return Err(SshError::Lost),
                // Window adjustments and the like.
                Some(_) => {}
            }
        }
    })
    .await
}
