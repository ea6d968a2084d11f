//! Why the daemon does not start.

use crate::db::DbError;
use std::io;
use std::path::PathBuf;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The command line.
    #[error("{0}; `bangerd --help` lists what there is")]
    Usage(String),
    /// The configuration is there but cannot be read, or was named and is not there.
    #[error("cannot read the configuration {}", .path.display())]
    ConfigRead { path: PathBuf, source: io::Error },
    /// The configuration is wrong.
    #[error("{}, {place}: {why}", .path.display())]
    Config { path: PathBuf, place: String, why: String },
    /// The log filter.
    #[error("log_level {0:?} is neither a level nor a filter")]
    LogLevel(String),
    /// Sockets of VMs would not fit their address.
    #[error(transparent)]
    RuntimeTooDeep(#[from] crate::paths::RuntimeTooDeep),
    /// A folder of the daemon's own.
    #[error("cannot make the folder {}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    /// The database.
    #[error("cannot open the database")]
    Database(#[from] DbError),
    /// The socket.
    #[error("cannot listen on {}", .path.display())]
    Listen { path: PathBuf, source: io::Error },
    /// The descriptors that systemd passed.
    #[error(
        "systemd passed {0} sockets; expected is one of bangerd.socket, and at most one of bangerd-metrics.socket and of bangerd-refused.socket: see `systemctl cat bangerd.socket bangerd-metrics.socket bangerd-refused.socket`, or install the package again"
    )]
    Inherited(usize),
    /// The cgroup tree.
    #[error("cannot find the daemon's cgroup")]
    Cgroup(#[source] io::Error),
    /// The key to the guests.
    #[error("cannot make or read the daemon's ssh key")]
    Key(#[from] banger_link::keys::KeyError),
    /// The key that names the folders of sockets.
    #[error("cannot make or read {}", .path.display())]
    SocketKey { path: PathBuf, source: io::Error },
    /// Which boot of the host this is.
    #[error("cannot read the host's boot id")]
    BootId(#[source] io::Error),
    /// Its memory could be read by other processes of its user.
    #[error("cannot close the daemon's memory to its own user")]
    Dumpable(#[source] nix::Error),
    /// The signal of a reload.
    #[error("cannot listen for SIGHUP")]
    Signal(#[source] io::Error),
    /// A level that was checked and could not be set.
    #[error("cannot set the log level")]
    LogFilter(#[source] tracing_subscriber::reload::Error),
    /// The runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

impl StartError {
    /// Whether only a person can mend it, so that another start would fail in the same way.
    pub(crate) fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::Usage(_)
                | Self::ConfigRead { .. }
                | Self::Config { .. }
                | Self::LogLevel(_)
                | Self::Database(DbError::Newer { .. } | DbError::PreRelease { .. } | DbError::Damaged { .. })
        )
    }
}
