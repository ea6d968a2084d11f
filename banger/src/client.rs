//! The connection to the daemon: where it is, hello, calls and streams, and what to do when it is
//! not there.

use crate::error::{Explained, explained};
use crate::handover::{self, Received};
use crate::machine::{self, Address};
use crate::output::note;
use anyhow::Context as _;
use banger_proto::daemon::{DaemonClient, OpenStream};
use banger_proto::model::{ApiError, ErrorCode};
use banger_proto::stream::StreamRequest;
use banger_proto::transport::{self, DAEMON_LIMITS};
use banger_proto::wire::Purpose;
use nix::unistd::{Group, User, getuid};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tarpc::client::RpcError;
use tarpc::context::Context;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Where the package's socket unit listens.
const DEFAULT_SOCKET: &str = "/run/banger/bangerd.sock";
/// Another place, for a daemon that was started from a build folder.
pub(crate) const SOCKET_VARIABLE: &str = "BANGER_SOCKET";
/// Who may use the daemon.
pub(crate) const GROUP: &str = "banger";

/// How long the daemon may take to say hello: it may just be starting.
const HELLO: Duration = Duration::from_secs(20);
/// How long an ordinary call may take; what takes longer is a job.
const CALL: Duration = Duration::from_secs(30);
/// A daemon that is being restarted is back within a second; it gets three.
const RECONNECTS: u32 = 10;
const RECONNECT: Duration = Duration::from_millis(300);
/// After this, whoever waits for a daemon that says no hello is told.
const QUIET: Duration = Duration::from_secs(5);
/// And after this it is given up, however often it was tried.
const AGAIN: Duration = Duration::from_secs(30);
/// A daemon that is busy, or a user who asks too often, is waited for: half a minute.
const BUSY_TRIES: u32 = 60;
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// The daemon answers a watch after 30 s at the latest.
const WATCH: Duration = Duration::from_secs(45);

/// A connection to the daemon.
pub(crate) struct Client {
    pub(crate) rpc: DaemonClient,
    place: Place,
}

/// Where the daemon is.
enum Place {
    Socket(PathBuf),
    Machine(&'static Address),
}

/// A connection to a guest. The stream to the daemon beside it says that the VM is in use.
pub(crate) struct Opened {
    pub(crate) guest: UnixStream,
    /// None when both are one stream, over a relay.
    pub(crate) _daemon: Option<UnixStream>,
}

/// The context of an ordinary call.
pub(crate) fn soon() -> Context {
    within(CALL)
}

/// The context of a long poll.
pub(crate) fn watching() -> Context {
    within(WATCH)
}

fn within(time: Duration) -> Context {
    let mut context = Context::current();
    context.deadline = Instant::now().checked_add(time).unwrap_or(context.deadline);
    context
}

/// The daemon's socket.
pub(crate) fn socket_path() -> PathBuf {
    std::env::var_os(SOCKET_VARIABLE)
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), Into::into)
}

impl Client {
    /// # Errors
    /// With what to do: the daemon is not there, or this user may not use it.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let place = match machine::chosen() {
            Some(address) => Place::Machine(address),
            None => Place::Socket(socket_path()),
        };
        let stream = open(&place, Purpose::Calls).await?;
        let mut config = tarpc::client::Config::default();
        // More than this the daemon would not take up on one connection.
        config.max_in_flight_requests = DAEMON_LIMITS.max_in_flight;
        let rpc = DaemonClient::new(config, transport::client(stream, DAEMON_LIMITS)).spawn();
        Ok(Self { rpc, place })
    }

    /// The same a while after a loss: the daemon may be gone for a moment.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub(crate) async fn connect_again() -> anyhow::Result<Self> {
        let connecting = async {
            for _ in 0..RECONNECTS {
                if let Ok(client) = Self::connect().await {
                    return Ok(client);
                }
                sleep(RECONNECT).await;
            }
            Self::connect().await
        };
        let mut connecting = std::pin::pin!(connecting);
        if let Ok(connected) = timeout(QUIET, &mut connecting).await {
            return connected;
        }
        note("the connection to bangerd was lost; waiting for bangerd");
        timeout(AGAIN, connecting).await.unwrap_or_else(|_| {
            Err(explained(
                format!("bangerd does not answer within {} s", AGAIN.as_secs()),
                "see: systemctl status bangerd, journalctl -u bangerd",
            ))
        })
    }

    /// Opens a connection to a guest: to its agent for a command, or to its SSH server.
    ///
    /// # Errors
    /// The daemon's refusal, or a lost connection.
    pub(crate) async fn guest(&self, request: StreamRequest) -> anyhow::Result<Opened> {
        let (stream, _) = self.stream(request).await?;
        let relayed = matches!(self.place, Place::Machine(_));
        match handover::receive(&stream, relayed).await.map_err(lost)? {
            Received::Connection(guest) => Ok(Opened { guest, _daemon: Some(stream) }),
            Received::Here => Ok(Opened { guest: stream, _daemon: None }),
            Received::Refusal(why) => {
                let (message, hint) = why.split_once('\n').unwrap_or((&why, ""));
                Err(explained(message, hint))
            }
        }
    }

    /// Opens a byte stream. No job belongs to `logs`.
    ///
    /// # Errors
    /// The daemon's refusal, or a lost connection.
    pub(crate) async fn stream(&self, request: StreamRequest) -> anyhow::Result<(UnixStream, OpenStream)> {
        // Both at once: each is a way to the daemon and back, and neither needs the other. Of two
        // failures the refusal is told: it says why.
        let mut asking = Box::pin(answer(self.rpc.open_stream(soon(), request)));
        let mut opening = Box::pin(open(&self.place, Purpose::Stream));
        let (opened, mut stream) = tokio::select! {
            asked = &mut asking => (asked?, opening.await?),
            stream = &mut opening => (asking.await?, stream?),
        };
        stream.write_all(&opened.ticket.0).await.map_err(lost)?;
        Ok((stream, opened))
    }
}

/// What to do when the daemon is not there as it should be. Most users may read neither journal nor
/// units.
pub(crate) const LOOK: &str = "banger doctor says what is wrong; an administrator finds more with: \
                               systemctl status bangerd.socket bangerd, journalctl -u bangerd";

/// A call that is made again while the daemon is busy, or its user has asked too often.
pub(crate) async fn patiently<T>(
    call: impl AsyncFn() -> Result<Result<T, ApiError>, RpcError>,
) -> Result<Result<T, ApiError>, RpcError> {
    for _ in 0..BUSY_TRIES {
        match call().await {
            Ok(Err(refused)) if refused.code == ErrorCode::Limit => {}
            Err(RpcError::Server(error)) if error.kind != io::ErrorKind::InvalidData => {}
            answered => return answered,
        }
        sleep(BUSY_PAUSE).await;
    }
    call().await
}

/// The daemon's answer to a call, with both kinds of failure made one.
///
/// # Errors
/// The daemon's refusal, or a lost connection.
pub(crate) async fn answer<T>(call: impl Future<Output = Result<Result<T, ApiError>, RpcError>>) -> anyhow::Result<T> {
    match call.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(refused)) => Err(anyhow::Error::new(Explained::from(refused))),
        Err(RpcError::DeadlineExceeded) => {
            Err(explained(format!("bangerd did not answer within {} s", CALL.as_secs()), LOOK))
        }
        Err(RpcError::Send(error)) => Err(anyhow::anyhow!("the request cannot be sent: {error}")),
        Err(RpcError::Server(error)) if error.kind == io::ErrorKind::InvalidData => {
            Err(explained(error.to_string(), "this is a defect of bangerd: please report it"))
        }
        Err(RpcError::Server(error)) => Err(explained(error.to_string(), "bangerd is busy: try again")),
        Err(error) => Err(lost(io::Error::other(error))),
    }
}

/// The connection ended in the middle of something.
pub(crate) fn lost(error: io::Error) -> anyhow::Error {
    let hint = format!("bangerd may have been restarted: try again; {LOOK}");
    explained(format!("the connection to bangerd was lost: {error}"), hint)
}

/// The daemon's socket on this machine, for a relay that says no hello of its own.
///
/// # Errors
/// With what to do: the daemon is not there, or this user may not use it.
pub(crate) async fn reach_socket() -> anyhow::Result<UnixStream> {
    let socket = socket_path();
    UnixStream::connect(&socket).await.map_err(|error| unreachable_daemon(&socket, &error))
}

async fn open(place: &Place, purpose: Purpose) -> anyhow::Result<UnixStream> {
    let mut stream = match place {
        Place::Machine(address) => machine::connect(address).await?,
        Place::Socket(socket) => {
            UnixStream::connect(socket).await.map_err(|error| unreachable_daemon(socket, &error))?
        }
    };
    let said = timeout(HELLO, transport::connect(&mut stream, purpose)).await;
    // systemd keeps the socket open for a daemon that cannot start.
    said.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| match error.kind() {
            // The version sentence says itself what to do.
            io::ErrorKind::InvalidData => anyhow::Error::new(error),
            io::ErrorKind::TimedOut => explained(
                format!("it does not answer within {} s: it may be failing to start", HELLO.as_secs()),
                LOOK,
            ),
            _ => explained(
                format!("bangerd closed the connection before it said hello ({error})"),
                "it does so when you have as many connections as a user may have (128): each vm exec, attach, logs -f and ssh holds one; an administrator finds more with: journalctl -u bangerd",
            ),
        })
        .with_context(|| match place {
            Place::Socket(_) => "cannot talk to bangerd".to_owned(),
            Place::Machine(address) => format!("cannot talk to bangerd on {address}"),
        })?;
    Ok(stream)
}

fn unreachable_daemon(socket: &Path, error: &io::Error) -> anyhow::Error {
    let place = socket.display();
    let (message, hint) = match error.kind() {
        io::ErrorKind::PermissionDenied => return not_admitted(socket),
        io::ErrorKind::NotFound => {
            (format!("there is no socket {place}"), format!("the service is not installed or not started; {LOOK}"))
        }
        io::ErrorKind::ConnectionRefused => {
            (format!("nobody listens on {place}"), format!("the service is not running; {LOOK}"))
        }
        _ => (format!("{place}: {error}"), LOOK.to_owned()),
    };
    explained(message, hint).context("cannot reach bangerd")
}

fn not_admitted(socket: &Path) -> anyhow::Error {
    let user = user_name();
    let listed = Group::from_name(GROUP).ok().flatten().is_some_and(|group| group.mem.contains(&user));
    let (message, hint) = if listed {
        (
            format!("you are in group {GROUP}, but this session began before that"),
            format!("log out and in again, or run: newgrp {GROUP}"),
        )
    } else {
        (
            format!("you are not in group {GROUP}"),
            format!("ask an administrator to run: usermod --append --groups {GROUP} {user}, then log in again"),
        )
    };
    explained(message, hint).context(format!("may not use {}", socket.display()))
}

/// The caller's login name, or the number when the user database has none.
pub(crate) fn user_name() -> String {
    let uid = getuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}
