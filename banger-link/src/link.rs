//! The way into a running guest: connections to its agent's ports, through the VMM's vsock socket.
//!
//! One [`Link`] per running VM, kept by its actor. The daemon opens a connection, proves itself to
//! the agent, and hands the connection over to the user's own process. Of what a guest says, the
//! daemon reads the VMM's line and an answer of two bytes, or one for a list of keys; each within a
//! time.

use banger_proto::command::{Answer, Opening, PORT, Purpose, VERSION};
use banger_proto::guest::{BootToken, SSH_PORT};
use rustix::net::RecvFlags;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// How long the VMM and the agent may take to answer. A host under load starves a guest for
/// seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// A VMM gives a connection up that the guest's kernel has not agreed to for two seconds
/// (Firecracker's `CONN_REQUEST_TIMEOUT_MS`), and closes it as it closes one that was refused. A
/// refusal takes the guest no time: whatever took this long is asked once more.
const GIVEN_UP: Duration = Duration::from_secs(1);
/// The VMM's answer is `OK <port>`, bytes.
const MAX_ANSWER: usize = 64;
/// Connections to one guest that are not answered yet. A guest that lets them wait holds up its own
/// user and nothing else.
const STARTUPS: usize = 16;

/// Why there is no connection to a guest.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The VMM does not offer the vsock.
    #[error("cannot connect to the VMM by {}: {source}", path.display())]
    Vmm {
        /// The vsock device's socket.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The VMM is there; nobody in the guest listens.
    #[error("nobody listens in the guest: its agent does not run, or is of an earlier version of banger ({0})")]
    NoAgent(String),
    /// The agent closed the connection, or says what no agent says.
    #[error("{}", unanswered(.0))]
    Agent(#[source] io::Error),
    /// It was started before an upgrade.
    #[error("the guest's agent speaks version {theirs} of the protocol, and this banger version {VERSION}")]
    Version {
        /// The agent's.
        theirs: u8,
    },
    /// The agent has no place left.
    #[error("the guest's agent serves as many commands as it can")]
    Busy,
    /// Nothing for too long.
    #[error("{silent} within {} s", PATIENCE.as_secs())]
    Silent {
        /// Who.
        silent: Layer,
    },
    /// A line is no key to the guest.
    #[error("the guest did not take the keys")]
    Keys,
    /// Its `/etc/hosts` cannot be written.
    #[error("the guest did not take the names of its private network")]
    Names,
}

/// Who of a guest is silent, from the host inwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The daemon did not come to it: others wait for the same guest.
    Turn,
    /// A VMM connects when the guest's kernel has agreed.
    Machine,
    /// The kernel has connected.
    Agent,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Turn => write!(f, "{STARTUPS} connections wait for the guest already, and it answered none"),
            Self::Machine => f.write_str("the VM stands still: neither its VMM nor the guest's kernel answered"),
            Self::Agent => f.write_str("the guest's kernel answers, and its agent did not"),
        }
    }
}

impl LinkError {
    /// Would a restart of the VM help? It has the agent of the present version.
    #[must_use]
    pub fn is_old(&self) -> bool {
        matches!(self, Self::NoAgent(_) | Self::Version { .. })
    }
}

/// The way into one guest.
#[derive(Debug)]
pub struct Link {
    vsock: PathBuf,
    token: BootToken,
    startups: Semaphore,
    patience: Duration,
    given_up: Duration,
}

impl Link {
    /// `token` is that of the present boot.
    #[must_use]
    pub fn new(vsock: PathBuf, token: BootToken) -> Self {
        Self { vsock, token, startups: Semaphore::new(STARTUPS), patience: PATIENCE, given_up: GIVEN_UP }
    }

    /// A raw connection to the guest's SSH server, for a client that speaks SSH itself.
    ///
    /// # Errors
    /// [`LinkError`] when VMM or guest do not answer.
    pub async fn ssh(&self) -> Result<UnixStream, LinkError> {
        within(self.deadline(), Layer::Machine, self.connect(SSH_PORT)).await
    }

    /// A connection on which the agent waits for one command ([`banger_proto::command`]).
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn command(&self) -> Result<UnixStream, LinkError> {
        self.open(Purpose::Command).await
    }

    /// A connection on which the agent says how the guest is ([`banger_proto::inside`]).
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn inside(&self) -> Result<UnixStream, LinkError> {
        self.open(Purpose::Inside).await
    }

    /// A connection on which the guest answers one request about its sessions
    /// ([`banger_proto::session`]).
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn session(&self) -> Result<UnixStream, LinkError> {
        self.open(Purpose::Session).await
    }

    /// Replaces the keys of users that the guest lets in, one OpenSSH public key a line.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_authorized_keys(&self, lines: &[String]) -> Result<(), LinkError> {
        if self.replace(Purpose::Keys, lines).await? { Ok(()) } else { Err(LinkError::Keys) }
    }

    /// Replaces the names by which the guest finds the other VMs of its private network, a line of
    /// `/etc/hosts` each.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn set_names(&self, lines: &[String]) -> Result<(), LinkError> {
        if self.replace(Purpose::Names, lines).await? { Ok(()) } else { Err(LinkError::Names) }
    }

    /// Whether the agent took the list.
    async fn replace(&self, purpose: Purpose, lines: &[String]) -> Result<bool, LinkError> {
        let list = lines.join("\n").into_bytes();
        let mut stream = self.open(purpose).await?;
        let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let answered = async {
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&list).await?;
            stream.read_u8().await
        };
        let answered = async { answered.await.map_err(LinkError::Agent) };
        Ok(within(self.deadline(), Layer::Agent, answered).await? == 0)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// One deadline for all of it, so that who is silent is whom the time ran out with.
    async fn open(&self, purpose: Purpose) -> Result<UnixStream, LinkError> {
        let deadline = self.deadline();
        let turn = async { self.startups.acquire().await.map_err(|closed| LinkError::Agent(io::Error::other(closed))) };
        let _turn = within(deadline, Layer::Turn, turn).await?;
        let mut stream = within(deadline, Layer::Machine, self.connect(PORT)).await?;
        let opening = Opening { purpose, token: self.token.clone() }.encode();
        let proved = async {
            stream.write_all(&opening).await?;
            Answer::read(&mut stream).await
        };
        let proved = async { proved.await.map_err(LinkError::Agent) };
        match within(deadline, Layer::Agent, proved).await? {
            Answer::Open => Ok(stream),
            Answer::Version(theirs) => Err(LinkError::Version { theirs }),
            Answer::Busy => Err(LinkError::Busy),
        }
    }

    /// As often as the VMM gives the guest up, so that how long a starved guest has is decided
    /// here.
    async fn connect(&self, port: u32) -> Result<UnixStream, LinkError> {
        let mut given_up = false;
        loop {
            let asked = Instant::now();
            match self.connect_once(port).await {
                Err(LinkError::NoAgent(_)) if asked.elapsed() >= self.given_up => given_up = true,
                // The VMM was there a moment ago, and has ended.
                Err(LinkError::Vmm { .. }) if given_up => {
                    return Err(LinkError::Agent(io::ErrorKind::UnexpectedEof.into()));
                }
                result => return result,
            }
        }
    }

    /// As Firecracker's docs/vsock.md has it, "Host-Initiated Connections".
    async fn connect_once(&self, port: u32) -> Result<UnixStream, LinkError> {
        let vmm = |source| vmm(&self.vsock, source);
        let mut stream = UnixStream::connect(&self.vsock).await.map_err(vmm)?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(vmm)?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            match more_of_line(&mut stream).await {
                Ok(part) if answer.len() + part.len() <= MAX_ANSWER => answer.extend(part),
                Ok(_) => return Err(LinkError::NoAgent("the VMM answers too much".into())),
                // A port on which nobody listens.
                Err(error) => return Err(LinkError::NoAgent(error.to_string())),
            }
        }
        if answer.starts_with(b"OK ") {
            return Ok(stream);
        }
        Err(LinkError::NoAgent(banger_vmm::console::clean(&String::from_utf8_lossy(&answer))))
    }
}

/// Takes what has come of a line, and nothing of what follows it: that is the guest's.
async fn more_of_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut come = [0; MAX_ANSWER + 1];
    let peek = || Ok(rustix::net::recv(&*stream, &mut come, RecvFlags::PEEK)?.0);
    let count = stream.async_io(Interest::READABLE, peek).await?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let come = come.get(..count).unwrap_or_default();
    let length = come.iter().position(|byte| *byte == b'\n').map_or(count, |newline| newline + 1);
    let mut part = vec![0; length];
    stream.read_exact(&mut part).await?;
    Ok(part)
}

/// A connection that ends is what a user sees of a guest that the daemon gives up meanwhile.
fn unanswered(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "the guest ended, or its agent closed the connection, before it answered".into();
    }
    format!("the guest's agent does not answer as it should: {error}")
}

fn vmm(vsock: &Path, source: io::Error) -> LinkError {
    LinkError::Vmm { path: vsock.to_owned(), source }
}

async fn within<T>(
    deadline: Instant,
    silent: Layer,
    work: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout_at(deadline, work).await.unwrap_or(Err(LinkError::Silent { silent }))
}

#[cfg(test)]
mod tests;
