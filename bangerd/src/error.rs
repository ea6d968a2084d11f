//! Why the daemon does not start, and how errors of its parts become what a user reads.

use banger_policy::Peer;
use banger_policy::quota::Exceeded;
use banger_proto::model::{ApiError, ErrorCode, MAX_ERROR, cut};
use std::error::Error;
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
    #[error("the runtime folder {} is too deep: a VM's socket path would have {longest} of at most 107 bytes", .path.display())]
    RuntimeTooDeep { path: PathBuf, longest: usize },
    /// A folder of the daemon's own.
    #[error("cannot make the folder {}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    /// The database.
    #[error("cannot open the database")]
    Database(#[from] crate::db::DbError),
    /// The socket.
    #[error("cannot listen on {}", .path.display())]
    Listen { path: PathBuf, source: io::Error },
    /// The descriptors that systemd passed.
    #[error("systemd passed {0} sockets, one was expected: look at bangerd.socket")]
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
    /// The runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        // Some errors repeat their source in their own message.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    // Also for the journal: a line of a log is one line.
    cut(text, MAX_ERROR).replace('\n', " ")
}

/// Did the host's disk run full somewhere below this error?
pub(crate) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A failed step for a user: `what: why`, with the code that a full disk has of its own.
pub(crate) fn failed(what: &str, error: &(dyn Error + 'static)) -> ApiError {
    if is_full(error) {
        return no_space(format!("{what}: the host's disk is full"));
    }
    ApiError::new(ErrorCode::OperationFailed, format!("{what}: {}", chain(error)))
}

/// The host's disk is full.
pub(crate) fn no_space(message: String) -> ApiError {
    ApiError::new(ErrorCode::NoSpace, message).hint(
        "Ask for smaller disks with --root-size and --disk-size, delete what is not needed (`banger vm delete`, `banger image delete`), or free space on the file system of /var/lib.",
    )
}

/// A user would have too much.
pub(crate) fn over_limit(peer: &Peer, why: &Exceeded) -> ApiError {
    let hint = format!(
        "Remove what you no longer need, or ask an administrator (root, or a member of group banger-admin) to set `{}` under \
         [limits.users.{}] in /etc/banger/banger.toml.",
        why.what().key(),
        peer.name
    );
    ApiError::new(ErrorCode::Limit, why.to_string()).hint(hint)
}

/// The daemon's own records failed.
pub(crate) fn internal(error: &dyn Error) -> ApiError {
    tracing::error!(error = chain(error), "internal error");
    ApiError::new(ErrorCode::Internal, format!("the daemon could not keep its records: {}", chain(error)))
        .hint("See `journalctl -u bangerd`.")
}
