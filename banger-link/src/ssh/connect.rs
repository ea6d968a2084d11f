//! One SSH connection to a guest: vsock, pinned host key, the daemon's own key.
//!
//! The server is the guest's, and nothing it says is worth more than its own commands' output. It may open
//! no channel, every packet is small, and what it sends beside output is metered ([`Meter`]): a guest that
//! does not keep to that loses the connection.

use super::SshError;
use super::meter::{Meter, Metered};
use russh::client::{self, ChannelOpenHandle, Handle, Msg, Session};
use russh::keys::ssh_key::{Algorithm, PublicKey};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure, Disconnect, Preferred, cipher, compression, kex, mac};
use std::borrow::Cow;
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

/// The largest packet of output that the agent is told to send.
const MAX_PACKET: u32 = 32 * 1024;
/// Packets of output that wait for a slow reader. russh gives a window back as soon as data arrives, so this,
/// and not the window, is what bounds how much of a guest's output lies in memory.
const BUFFERED_PACKETS: usize = 2;
/// Channels that a guest may try to open on one connection before that ends.
const OPEN_ATTEMPTS: u32 = 8;

/// Few algorithms, and cheap ones: a guest may ask for another key exchange whenever it likes, and one over a
/// large prime group takes a second of a thread. The agent is of our own making and knows all of these.
fn algorithms() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::EXTENSION_SUPPORT_AS_CLIENT,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    ];
    const CIPHERS: &[cipher::Name] = &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM];
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(&[Algorithm::Ed25519]),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(CIPHERS),
        // Both ciphers authenticate by themselves; the protocol wants a name here.
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

fn config() -> client::Config {
    client::Config {
        preferred: algorithms(),
        maximum_packet_size: MAX_PACKET,
        channel_buffer_size: BUFFERED_PACKETS,
        ..client::Config::default()
    }
}

/// Accepts one host key and no other, and from the server that has it nothing but output.
pub(super) struct Guarded {
    pinned: PublicKey,
    meter: Arc<Meter>,
    opened: u32,
}

impl Guarded {
    /// A guest has nothing to open at the daemon. A server that goes on trying is not our agent.
    async fn refuse(&mut self, reply: ChannelOpenHandle) -> Result<(), russh::Error> {
        self.opened += 1;
        if self.opened > OPEN_ATTEMPTS {
            return Err(russh::Error::Disconnect);
        }
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    fn output(&self, data: &[u8]) -> Result<(), russh::Error> {
        self.meter.output(data.len());
        if data.len() > MAX_PACKET as usize { Err(russh::Error::Disconnect) } else { Ok(()) }
    }
}

impl client::Handler for Guarded {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data() == self.pinned.key_data(),
            PublicKeyOrCertificate::Certificate(_) => false,
        })
    }

    async fn data(&mut self, _: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        self.output(data)
    }

    async fn extended_data(&mut self, _: ChannelId, _: u32, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        self.output(data)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.refuse(reply).await
    }
}

/// An authenticated connection.
pub(super) struct Connection {
    handle: Handle<Guarded>,
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
            let meter = Arc::new(Meter::default());
            let stream = Metered::new(stream, meter.clone());
            let guarded = Guarded { pinned: pinned.clone(), meter, opened: 0 };
            Ok(client::connect_stream(Arc::new(config()), stream, guarded).await?)
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
