//! The user's repository in a VM: prepare, and what became of it back to the host.
//!
//! Used by `vm workspace`, `vm run PATH` and `vm exec`. The host's repository is read with the
//! user's rights, by the user's own git, and only `export --branch` writes to it. What a guest
//! sends is data: see [`gather`].

mod export;
mod gather;
mod git;
pub(crate) mod identity;
pub(crate) mod kept;
mod listed;
mod prepare;
mod repository;
mod source;
#[cfg(test)]
mod tests;
mod theirs;

pub(crate) use export::{Export, What, export};
pub(crate) use gather::DEFAULT_MOST;
pub(crate) use prepare::{Place, Wanted, look, prepare, ready};

use banger_proto::model::Workspace;
use std::path::Path;

/// The beginning of a commit's name, for people.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// The commit that the host's HEAD is now, when that is another one than was prepared. Whatever
/// cannot be known is no news.
pub(crate) fn moved(workspace: &Workspace) -> Option<String> {
    let root = Path::new(&workspace.repo_root);
    if !root.is_dir() {
        return None;
    }
    let now = git::Git::within(root).maybe(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).ok()??;
    (Some(&now) != workspace.head_commit.as_ref()).then_some(now)
}
