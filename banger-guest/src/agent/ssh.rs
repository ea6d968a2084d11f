//! One SSH connection: who is it, and which of its channels becomes what.
//!
//! russh calls this handler in the connection's own task, so nothing here may wait for a command or
//! a peer: a channel that is started runs in a task of its own. Requests must be answered here,
//! because russh remembers only whether the *latest* request of a channel wants an answer.

use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

use super::duplex::Pressure;
use super::exec::{Asked, Request};
use super::pty::Terminal;
use super::reverse::{Listeners, Place};
use super::server::Shared;
use super::{forward, session};

/// The only user who logs in: a guest is its owner's, who is root there.
const USER: &str = "root";
/// Channels that a connection may have open without having started anything on them.
const MAX_WAITING: usize = 64;
/// Variables that a user's client may set, as in Debian's sshd_config.
const ENVIRONMENT: [&str; 3] = ["LANG", "TERM", "COLORTERM"];
const MAX_VARIABLES: usize = 512;

pub(super) struct Connection {
    shared: Arc<Shared>,
    pressure: Pressure,
    authenticated: Option<oneshot::Sender<()>>,
    waiting: HashMap<ChannelId, Waiting>,
    listeners: Listeners,
}

/// A session channel on which nothing runs yet.
struct Waiting {
    channel: Channel<Msg>,
    terminal: Option<Terminal>,
    environment: Vec<(String, String)>,
}

impl Waiting {
    /// What an environment request says; false when it is not taken.
    fn take(&mut self, name: &str, value: &str) -> bool {
        let taken = accepted(name) && !value.contains('\0') && self.environment.len() < MAX_VARIABLES;
        if taken {
            self.environment.push((name.to_owned(), value.to_owned()));
        }
        taken
    }
}

impl Connection {
    /// The receiver hears of a successful login.
    pub(super) fn new(shared: Arc<Shared>, pressure: Pressure) -> (Self, oneshot::Receiver<()>) {
        let (authenticated, login) = oneshot::channel();
        let listeners = Listeners::default();
        (Self { shared, pressure, authenticated: Some(authenticated), waiting: HashMap::new(), listeners }, login)
    }

    fn admits(&self, user: &str, key: &PublicKey) -> Auth {
        if user == USER && self.shared.keys.admits(key) { Auth::Accept } else { Auth::reject() }
    }

    fn start(&mut self, id: ChannelId, command: Option<&[u8]>, session: &mut Session) -> Result<(), russh::Error> {
        let Some(waiting) = self.waiting.remove(&id) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let request = Request {
            asked: Asked::Login(command.map(<[u8]>::to_vec)),
            terminal: waiting.terminal,
            environment: waiting.environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            tables: Arc::clone(&self.shared.tables),
        };
        let (channel, pressure) = (waiting.channel, self.pressure.clone());
        let shared = Arc::clone(&self.shared);
        tokio::spawn(session::run(channel, session.handle(), request, shared, pressure));
        Ok(())
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.admits(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.admits(user, key.public_key))
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(authenticated) = self.authenticated.take() {
            let _ = authenticated.send(());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.waiting.len() >= MAX_WAITING {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.waiting.insert(channel.id(), Waiting { channel, terminal: None, environment: Vec::new() });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        tokio::spawn(forward::tcp(channel, host.to_owned(), port, reply, self.pressure.clone()));
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        tokio::spawn(forward::unix(channel, path.to_owned(), reply, self.pressure.clone()));
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.listeners.open_port(address, port, session.handle(), self.pressure.clone()).await.is_ok())
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.listeners.close(&Place::Port(address.to_owned(), port)))
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.listeners.open_socket(path, session.handle(), self.pressure.clone()).is_ok())
    }

    async fn cancel_streamlocal_forward(&mut self, path: &str, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.listeners.close(&Place::Socket(path.to_owned())))
    }

    async fn agent_request(&mut self, id: ChannelId, session: &mut Session) -> Result<bool, Self::Error> {
        let Some(waiting) = self.waiting.get_mut(&id) else { return Ok(false) };
        let Ok(socket) = self.listeners.open_agent(session.handle(), self.pressure.clone()) else { return Ok(false) };
        waiting.environment.push(("SSH_AUTH_SOCK".to_owned(), socket));
        Ok(true)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return session.channel_failure(id);
        };
        waiting.terminal = Some(Terminal::new(term, (columns, rows, width, height), modes));
        session.channel_success(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let taken = self.waiting.get_mut(&id).is_some_and(|waiting| waiting.take(name, value));
        if taken { session.channel_success(id) } else { session.channel_failure(id) }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, None, session)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, Some(command), session)
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        if name == "sftp"
            && let Some(program) = super::exec::sftp_server()
        {
            return self.start(id, Some(program.as_bytes()), session);
        }
        session.channel_failure(id)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        // A running session hears of it through its channel.
        if let Some(terminal) = self.waiting.get_mut(&id).and_then(|waiting| waiting.terminal.as_mut()) {
            terminal.resize((columns, rows, width, height));
        }
        session.channel_success(id)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.waiting.remove(&id);
        Ok(())
    }
}

fn accepted(name: &str) -> bool {
    let usual = ENVIRONMENT.contains(&name) || name.starts_with("LC_");
    usual && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn only_harmless_variables_are_accepted() {
        for name in ["LANG", "LC_ALL"] {
            assert!(accepted(name), "{name:?}");
        }
        for name in ["LD_PRELOAD", "PATH", "lang", "LANGUAGE", "", "LC_=x", "LC_\0", "=user"] {
            assert!(!accepted(name), "{name:?}");
        }
    }
}
