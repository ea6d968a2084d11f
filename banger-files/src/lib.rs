//! Files between host and guest, as tar streams.
//!
//! Used by the command line on the host and by the guest's agent, which runs [`program::run`] when
//! it is asked for a command whose first word is [`COMMAND`]: an image need not have tar, git or a
//! shell. Unpacking never leaves the folder that it was given and makes nothing but files, folders
//! and links: the bytes may come from a hostile guest. Nothing here knows of the daemon or decides
//! what may be copied.
#![forbid(unsafe_code)]

mod error;
mod manifest;
mod pack;
mod place;
pub mod program;
mod raw;
mod replace;
#[cfg(test)]
mod tests;
mod unpack;

pub use error::Error;
pub use manifest::{Change, parse_changes};
pub use pack::{Left, Packer};
pub use place::{Kind, Look};
pub use unpack::{Limits, Unpacked, open_folder, unpack, unpack_named, unpack_only, unpack_own};

/// The first word of a command that the agent runs itself. No program is called so: it is no name
/// of a path's folder.
pub const COMMAND: &str = "@banger";
/// The folder of a prepared workspace's `.git` in which its own records are.
pub const RECORDS: &str = ".git/banger";
/// What `state` says of a path where nothing is, or an empty folder.
pub const FREE: &str = "free";
/// In [`RECORDS`], written by the host when no files are sent: the paths of the prepared tree, each
/// with a zero byte after it.
pub const UNSENT: &str = "unsent";
