//! What can go wrong on the way into a guest.

use std::io;
use std::path::PathBuf;

/// Why the guest's SSH server could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The VMM does not offer the vsock.
    #[error("cannot connect to the guest by {}: {source}", path.display())]
    Socket {
        /// The vsock device's socket.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The VMM is there, the guest's server is not.
    #[error("the guest does not answer on its SSH port: {0}")]
    NoAnswer(String),
    /// Another server than this VM's.
    #[error("the guest shows another host key than this VM's")]
    HostKey,
    /// The server does not know the daemon's key.
    #[error("the guest does not accept the daemon's key")]
    Denied,
    /// The protocol.
    #[error("the SSH connection to the guest failed: {0}")]
    Protocol(#[source] russh::Error),
    /// Nothing for too long.
    #[error("the guest did not answer within {seconds} s while {doing}")]
    TimedOut {
        /// What was done.
        doing: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// A request was refused.
    #[error("the guest refused {0}")]
    Refused(&'static str),
    /// The connection ended before the command did.
    #[error("the connection to the guest was lost before the command ended")]
    Lost,
    /// No program can get such an argument.
    #[error("a word of the command contains a NUL character")]
    Nul,
    /// The guest's words.
    #[error("the guest did not take the keys: {0}")]
    Keys(String),
}

impl From<russh::Error> for SshError {
    fn from(error: russh::Error) -> Self {
        match error {
            russh::Error::UnknownKey => Self::HostKey,
            other => Self::Protocol(other),
        }
    }
}
