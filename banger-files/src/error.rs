//! What goes wrong with files.

use std::io;
use std::path::{Path, PathBuf};

/// Why files could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something about a path.
    #[error("{}: {source}", .path.display())]
    Path {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream itself.
    #[error("the stream ended badly: {0}")]
    Stream(#[source] io::Error),
    /// The stream ends before the archive does.
    #[error("the stream ended before the archive did")]
    Truncated,
    /// A name that leads out of the folder, or is none.
    #[error("{0:?} is not a name below the folder")]
    Name(String),
    /// Something else than the name that was asked for.
    #[error("the archive brings {0:?}, which nobody has asked for: nothing more of it is unpacked")]
    Unasked(String),
    /// A device, a pipe, a socket, or a form of tar that is not read.
    #[error("{0:?} is neither a file, a folder nor a link")]
    Kind(String),
    /// A link stands where a folder is needed.
    #[error("{0:?} leads through a link")]
    Link(String),
    /// More than whoever unpacks will take.
    #[error("it is more than {0}")]
    Limit(String),
    /// What no archive carries was asked for by its name.
    #[error("{} is a socket, a pipe or a device, which is not copied", .0.display())]
    Special(PathBuf),
    /// A device, pipe or socket has the name of what comes.
    #[error("{0:?} is a device, a pipe or a socket, which is not replaced")]
    InTheWay(String),
    /// The archive is whole, and lacks what could not be read: a line for each.
    #[error("{0}")]
    Incomplete(String),
    /// A file changed while it was read.
    #[error("{} changed while it was read: try again", .0.display())]
    Changed(PathBuf),
    /// It is being replaced already.
    #[error("{} is being prepared by another command: try again when that has ended", .0.display())]
    Busy(PathBuf),
    /// It is not what whoever replaces it has looked at.
    #[error("{} was changed while its new files were on their way: prepare it again", .0.display())]
    Meanwhile(PathBuf),
    /// Something is mounted in a folder that is replaced.
    #[error("{} is a file system of its own, which a prepare would empty: unmount it first", .0.display())]
    Mounted(PathBuf),
    /// The words of [`crate::program::run`].
    #[error("{0}")]
    Usage(String),
}

impl Error {
    pub(crate) fn path(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Path { path, source }
    }

    pub(crate) fn errno(path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Path { path, source: source.into() }
    }
}
