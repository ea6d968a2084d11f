//! The agent as a server: what all connections share, and one connection over any stream.
//!
//! Used by the agent with vsock streams; tests give it others.

use banger_proto::guest::{BootToken, GuestConfig};
use russh::keys::PrivateKey;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::duplex::{Duplex, Pressure};
use super::exec::Tables;
use super::keys::Keys;
use super::sessions::Sessions;
use super::ssh::Connection;
use super::startups::{Place, Startups};
use crate::init_kind::InitKind;
use crate::sys::signals;

/// An OpenSSH client offers every key of its user's agent, one attempt each.
const AUTH_ATTEMPTS: usize = 32;
/// A connection that has not authenticated by then is closed.
const LOGIN_GRACE: Duration = Duration::from_secs(30);

/// Commands of `vm exec` at a time. Each takes up to a mebibyte while its client or its own reader
/// stands still.
pub(super) const COMMANDS: usize = 256;

/// Packets of input that wait for a slow command.
const BUFFERED_PACKETS: usize = 4;

/// Few algorithms, and cheap ones: whoever reaches the port may ask for a key exchange, and one
/// over a large prime group takes a second of the agent's only thread. OpenSSH has had all of these
/// since 6.5, and the first since 9.9. Users' keys may be of any kind.
fn algorithms() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ];
    const CIPHERS: &[cipher::Name] = &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM];
    Preferred {
        kex: Cow::Borrowed(KEX),
        cipher: Cow::Borrowed(CIPHERS),
        // Both ciphers authenticate by themselves; the protocol wants a name here.
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::default()
    }
}

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input, by which init gives the configuration.
    #[error("cannot read the configuration")]
    ReadConfig(#[source] io::Error),
    /// The configuration is not what this program understands.
    #[error("cannot understand the configuration")]
    ParseConfig(#[source] serde_json::Error),
    /// The VM's host key is no OpenSSH private key.
    #[error("the host key is not usable")]
    HostKey(#[source] russh::keys::ssh_key::Error),
    /// The async runtime does not start.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// No socket for SSH connections.
    #[error("cannot listen on vsock")]
    Listen(#[source] io::Error),
    /// PID 1 ends all processes, and the guest goes on: the supervisor starts the agent again.
    #[error("systemd begins anew (soft-reboot)")]
    SoftReboot,
    /// Signal handlers cannot be set up.
    #[error("cannot take signals")]
    Signals(#[source] io::Error),
}

/// The server of a guest: SSH, and commands.
#[derive(Debug)]
pub struct Server {
    config: Arc<russh::server::Config>,
    shared: Arc<Shared>,
    startups: Arc<Startups>,
}

/// What connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) keys: Keys,
    /// What commands are looked up in.
    pub(super) tables: Arc<Tables>,
    pub(super) sessions: Arc<Sessions>,
    /// What the daemon proves itself with.
    pub(super) token: BootToken,
    /// For commands at a time.
    pub(super) places: Arc<Semaphore>,
    /// The process groups of those that run; and has it a terminal?
    commands: Mutex<HashMap<i32, bool>>,
}

impl Server {
    /// Takes host key and authorised keys from the configuration.
    ///
    /// # Errors
    /// When the host key cannot be used.
    pub fn new(config: &GuestConfig) -> Result<Self, Error> {
        Self::with_passwd(config, "/etc/passwd".into())
    }

    /// As [`Server::new`], with another table of users: outside a guest, the login shell of whoever
    /// runs a test would run its profile, which is not the test's to run or to interrupt.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with_passwd(config: &GuestConfig, passwd: PathBuf) -> Result<Self, Error> {
        Self::with_sessions(config, passwd, Sessions::new)
    }

    /// The same with folders of its own for sessions, whose processes run the program that is
    /// named.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn with_sessions_below(
        config: &GuestConfig,
        passwd: PathBuf,
        folder: &Path,
        program: PathBuf,
    ) -> Result<Self, Error> {
        Self::with_sessions(config, passwd, |tables| Sessions::below(folder, program, tables))
    }

    pub(super) fn with_sessions(
        config: &GuestConfig,
        passwd: PathBuf,
        sessions: impl FnOnce(Arc<Tables>) -> Sessions,
    ) -> Result<Self, Error> {
        let host_key = PrivateKey::from_openssh(&config.host_key).map_err(Error::HostKey)?;
        let keys = Keys::new(&config.authorized_keys);
        let mut methods = MethodSet::empty();
        methods.push(MethodKind::PublicKey);
        let ssh = russh::server::Config {
            server_id: SshId::Standard(concat!("SSH-2.0-banger_", env!("CARGO_PKG_VERSION")).into()),
            methods,
            // Only keys are accepted, and they cannot be guessed: a delay would only slow down
            // users who have many.
            auth_rejection_time: Duration::ZERO,
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: AUTH_ATTEMPTS,
            keys: vec![host_key],
            // An open shell may be silent for days.
            inactivity_timeout: None,
            preferred: algorithms(),
            channel_buffer_size: BUFFERED_PACKETS,
            ..Default::default()
        };
        let tables = Arc::new(Tables { passwd, image: config.image.clone() });
        let shared = Shared {
            keys,
            sessions: Arc::new(sessions(Arc::clone(&tables))),
            tables,
            token: config.token.clone(),
            places: Arc::new(Semaphore::new(COMMANDS)),
            commands: Mutex::default(),
        };
        Ok(Self { config: Arc::new(ssh), shared: Arc::new(shared), startups: Arc::default() })
    }

    /// Who is on the way to a login.
    pub(super) fn startups(&self) -> &Arc<Startups> {
        &self.startups
    }

    /// Serves one connection to the commands' port.
    pub async fn serve_command<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        super::command::serve(stream, Arc::clone(&self.shared)).await;
    }

    /// Commands of `vm exec` and `vm ssh`, and sessions, that run.
    pub(super) fn open_commands(&self) -> u32 {
        let commands = self.shared.commands().len();
        u32::try_from(commands.saturating_add(self.shared.sessions.running())).unwrap_or(u32::MAX)
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Serves one SSH connection from the host until it ends. Its errors concern only that
    /// connection.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some(place) = self.startups.host() {
            self.serve_from(stream, place).await;
        }
    }

    /// The same with a place that is taken already. It is given back after the login.
    pub(super) async fn serve_from<S>(&self, stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pressure = Pressure::default();
        let stream = Duplex::new(stream, pressure.clone());
        let (connection, authenticated) = Connection::new(Arc::clone(&self.shared), pressure);
        let started = russh::server::run_stream(Arc::clone(&self.config), stream, connection);
        let Ok(Ok(mut session)) = tokio::time::timeout(LOGIN_GRACE, started).await else {
            return;
        };
        let handle = session.handle();
        let login = async {
            let late = tokio::time::timeout(LOGIN_GRACE, authenticated).await.is_err();
            drop(place);
            if late {
                let reason = russh::Disconnect::ByApplication;
                let _ = handle.disconnect(reason, "no login in time".into(), "en".into()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = &mut session => {}
            () = login => {}
        }
    }

    /// Tells every running command that the guest ends: by SIGHUP where it has a terminal, and by
    /// SIGTERM where it has none, since a service reloads on SIGHUP.
    pub(super) fn end_commands(&self) {
        for (group, terminal) in self.shared.commands().iter() {
            let _ = signals::send(-group, if *terminal { libc::SIGHUP } else { libc::SIGTERM });
            let _ = signals::send(-group, libc::SIGCONT);
        }
    }

    /// The process groups of those that run.
    pub(super) fn groups(&self) -> BTreeSet<i32> {
        self.shared.commands().keys().copied().collect()
    }

    /// Starts the sessions that are to run in this guest.
    pub(super) fn resume_sessions(&self, init: InitKind) {
        tokio::spawn(super::sessions::resume(Arc::clone(&self.shared.sessions), init));
    }

    /// Asks all sessions to end, and waits until they have and their logs and statuses are on the
    /// disk, at most `bound`.
    pub(super) async fn end_sessions(&self, bound: Duration) {
        let _ = tokio::time::timeout(bound, self.shared.sessions.end_all()).await;
    }

    /// Waits until no command runs, at most `bound`.
    pub(super) async fn wait_for_commands(&self, bound: Duration) {
        let none_left = async {
            while !self.shared.commands().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(bound, none_left).await;
    }
}

impl Shared {
    /// Counts a command as running until the result is dropped, which must be right after it is
    /// reaped: later its number may be another's.
    pub(super) fn running(self: &Arc<Self>, group: i32, terminal: bool) -> Running {
        self.commands().insert(group, terminal);
        Running { group, shared: Arc::clone(self) }
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<i32, bool>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running command: the process group of its own that it leads.
#[derive(Debug)]
pub(super) struct Running {
    group: i32,
    shared: Arc<Shared>,
}

impl Running {
    /// Sends a signal to the whole group.
    pub(super) fn signal(&self, number: i32) {
        let _ = signals::send(-self.group, number);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.commands().remove(&self.group);
    }
}
