//! The daemon's SSH client into a guest.
//!
//! One [`Session`] per running VM, kept by its actor and used by the daemon's streams. It keeps one
//! connection and takes it for one command at a time; a command beside another gets a connection of its
//! own, because russh gives a channel's window back when data arrives, not when it is used: a reader that
//! stalls would stop everything else on its connection. The host key is pinned: no trust on first use.

mod command;
mod connect;
mod error;
mod meter;

pub use command::{Command, Input, Output, Running, Said};
pub use error::SshError;

use super::keys::{self, KeyError, KeyPair};
use banger_proto::guest::KEYS_SUBSYSTEM;
use connect::{Connection, accepted, within};
use russh::Channel;
use russh::ChannelMsg;
use russh::client::Msg;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::PublicKey;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Connections to one guest that are on their way to a login. A guest that lets them wait holds up its own
/// user and nothing else.
const STARTUPS: usize = 8;
/// What a guest says about keys it does not take, bytes.
const MAX_COMPLAINT: usize = 512;

/// The way into one guest. Connects when it is first used, and again when the connection is lost.
#[derive(Debug)]
pub struct Session {
    vsock: PathBuf,
    pinned: PublicKey,
    client: Arc<PrivateKey>,
    kept: Mutex<Option<Connection>>,
    startups: Semaphore,
}

impl Session {
    /// `host_key` is the public line of the VM's host key.
    ///
    /// # Errors
    /// [`KeyError::Public`] when that is no key.
    pub fn new(vsock_path: PathBuf, host_key: &str, client: &KeyPair) -> Result<Self, KeyError> {
        let pinned = keys::public(host_key)?;
        let (kept, startups) = (Mutex::new(None), Semaphore::new(STARTUPS));
        Ok(Self { vsock: vsock_path, pinned, client: client.private(), kept, startups })
    }

    /// A raw connection to the guest's SSH server, for a client that speaks SSH itself.
    ///
    /// # Errors
    /// [`SshError`] when the VMM or the guest does not answer.
    pub async fn raw(&self) -> Result<UnixStream, SshError> {
        connect::raw(&self.vsock).await
    }

    /// Starts a command. Give the connection back with [`Session::finished`] when it has ended, else
    /// [`Running::hang_up`].
    ///
    /// # Errors
    /// [`SshError`]. After [`SshError::Lost`] and [`SshError::TimedOut`] the command may have begun.
    pub async fn start(&self, command: &Command<'_>) -> Result<Running, SshError> {
        if command.words.iter().any(|word| word.contains('\0')) {
            return Err(SshError::Nul);
        }
        let (connection, channel) = self.channel().await?;
        match Running::start(connection, channel, command).await {
            Ok(running) => Ok(running),
            // The guest's answer is an answer.
            Err((error @ SshError::Refused(_), kept)) => {
                self.keep(kept);
                Err(error)
            }
            // Not tried once more over another connection: it would run twice.
            Err((error, lost)) => {
                lost.close().await;
                Err(error)
            }
        }
    }

    /// A channel of the kept connection, or of a new one when that is no more.
    async fn channel(&self) -> Result<(Connection, Channel<Msg>), SshError> {
        if let Some(kept) = self.take() {
            match kept.channel().await {
                Ok(channel) => return Ok((kept, channel)),
                Err(_) => kept.close().await,
            }
        }
        let fresh = self.open().await?;
        let channel = fresh.channel().await?;
        Ok((fresh, channel))
    }

    /// A command has ended; its connection may serve the next one.
    pub fn finished(&self, running: Running) {
        self.keep(running.connection);
    }

    /// Replaces the keys of users that the guest lets in, one OpenSSH public key a line.
    ///
    /// # Errors
    /// [`SshError::Keys`] with the guest's words.
    pub async fn set_authorized_keys(&self, lines: &[String]) -> Result<(), SshError> {
        let connection = match self.take() {
            Some(kept) => kept,
            None => self.open().await?,
        };
        let mut done = send_keys(&connection, lines).await;
        if matches!(done, Err(SshError::Lost | SshError::Protocol(_))) {
            // The kept connection may have been a dead one.
            let fresh = self.open().await?;
            done = send_keys(&fresh, lines).await;
            self.keep(fresh);
        } else {
            self.keep(connection);
        }
        done
    }

    async fn open(&self) -> Result<Connection, SshError> {
        let turn = async { self.startups.acquire().await.map_err(|_| SshError::Lost) };
        let _turn = within("waiting for other connections", turn).await?;
        Connection::open(&self.vsock, &self.pinned, &self.client).await
    }

    fn take(&self) -> Option<Connection> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.filter(|connection| !connection.is_closed())
    }

    fn keep(&self, connection: Connection) {
        if !connection.is_closed() {
            // One is enough; dropping the other closes it.
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        }
    }
}

async fn send_keys(connection: &Connection, lines: &[String]) -> Result<(), SshError> {
    let mut channel = connection.channel().await?;
    channel.request_subsystem(true, KEYS_SUBSYSTEM).await?;
    accepted(&mut channel, "the keys").await?;
    within("sending keys", async {
        let mut text = lines.join("\n");
        text.push('\n');
        channel.data_bytes(text.into_bytes()).await?;
        channel.eof().await?;
        let (mut status, mut complaint) = (None, Vec::new());
        loop {
            match channel.wait().await {
                Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(exit_status),
                Some(ChannelMsg::ExtendedData { data, .. }) if complaint.len() < MAX_COMPLAINT => {
                    complaint.extend_from_slice(&data);
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        match status {
            Some(0) => Ok(()),
            Some(_) => {
                complaint.truncate(MAX_COMPLAINT);
                Err(SshError::Keys(banger_vmm::console::clean(&String::from_utf8_lossy(&complaint))))
            }
            None => Err(SshError::Lost),
        }
    })
    .await
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
