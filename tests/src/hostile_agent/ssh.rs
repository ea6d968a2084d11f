//! A server that has the VM's host key, since the guest's root has it, and abuses what a server may say after the login.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use banger_proto::guest::GuestConfig;
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream};
use russh::{Channel, ChannelId, Error};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// More than any connection may say.
const MANY: usize = 100_000;

type Trick = fn(&mut Session, ChannelId) -> Result<(), Error>;

/// By the word that is run in the VM. Each says afterwards that its command ended well, which the daemon must not come to hear; but for
/// `nothing`, which is the control.
pub(super) const TRICKS: &[(&str, Trick)] = &[
    ("nothing", |_, _| Ok(())),
    ("ssh-opens-session-channels", |on, _| many(|| on.channel_open_session().map(drop))),
    ("ssh-opens-agent-channels", |on, _| many(|| on.channel_open_agent().map(drop))),
    ("ssh-opens-x11-channels", |on, _| many(|| on.channel_open_x11("127.0.0.1", 1).map(drop))),
    ("ssh-opens-tcp-channels", |on, _| many(|| on.channel_open_direct_tcpip("h", 1, "h", 1).map(drop))),
    ("ssh-opens-unix-channels", |on, _| many(|| on.channel_open_direct_streamlocal("/x").map(drop))),
    ("ssh-opens-forwarded-tcp-channels", |on, _| many(|| on.channel_open_forwarded_tcpip("h", 1, "h", 1).map(drop))),
    ("ssh-opens-forwarded-unix-channels", |on, _| many(|| on.channel_open_forwarded_streamlocal("/x").map(drop))),
    ("ssh-debug-messages", |on, _| many(|| on.debug(true, "a message of no use to anybody", "en"))),
    ("ssh-keepalive-requests", |on, _| many(|| on.keepalive_request())),
    ("ssh-exit-statuses", |on, id| many(|| on.exit_status_request(id, 7))),
    ("ssh-flow-control-requests", |on, id| many(|| on.xon_xoff_request(id, true))),
];

fn many(mut again: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    (0..MANY).try_for_each(|_| again())
}

struct Hostile;

impl Handler for Hostile {
    type Error = Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Error> {
        let word = String::from_utf8_lossy(command);
        session.channel_success(id)?;
        if let Some((_, trick)) = TRICKS.iter().find(|(name, _)| word.trim_matches('\'') == *name) {
            trick(session, id)?;
        }
        session.exit_status_request(id, 0)?;
        session.close(id)
    }
}

/// Serves one connection of the daemon.
pub(super) fn serve(guest: &GuestConfig, stream: UnixStream) -> io::Result<()> {
    let key = PrivateKey::from_openssh(&guest.host_key).map_err(io::Error::other)?;
    let config = Config { keys: vec![key], auth_rejection_time: Duration::ZERO, ..Config::default() };
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut line = [0; 11];
        stream.read_exact(&mut line).await?;
        stream.write_all(b"OK 1073741824\n").await?;
        let session = run_stream(Arc::new(config), stream, Hostile).await.map_err(io::Error::other)?;
        session.await.map_err(io::Error::other)
    })
}
