//! A user's repository in a VM.

use crate::time::Timestamp;
use banger_policy::VmId;
use serde::{Deserialize, Serialize};

/// How much of a repository a VM gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceMode {
    /// One commit without its history, and the working tree as it is.
    #[default]
    ShallowOverlay,
    /// All branches and tags with their history, the working tree as it is, and the files of
    /// submodules.
    FullCopy,
    /// One commit without its history, and no files.
    MetadataOnly,
}

impl WorkspaceMode {
    /// As users write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ShallowOverlay => "shallow_overlay",
            Self::FullCopy => "full_copy",
            Self::MetadataOnly => "metadata_only",
        }
    }
}

/// What was prepared in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// The VM.
    pub vm_id: VmId,
    /// The path that was named on the host.
    pub source_path: String,
    /// The top folder of its repository.
    pub repo_root: String,
    /// The last part of that.
    pub repo_name: String,
    /// The folder in the guest.
    pub guest_path: String,
    /// How much was sent.
    pub mode: WorkspaceMode,
    /// HEAD of the host's repository then; `None` before its first commit.
    pub head_commit: Option<String>,
    /// The branch that was checked out on the host; `None` when HEAD was detached.
    pub current_branch: Option<String>,
    /// The branch in the guest; `None` when HEAD is detached there.
    pub branch_name: Option<String>,
    /// The commit on which the guest's branch begins.
    pub base_commit: Option<String>,
    /// The tree of what was sent, changes of the working tree included: exports are against it.
    pub base_tree: String,
    /// Untracked files were sent as well.
    pub include_untracked: bool,
    /// When.
    pub prepared_at: Timestamp,
}

/// No text of a [`Workspace`] is longer, bytes: PATH_MAX of Linux.
const MAX_TEXT: usize = 4096;
/// As JSON, bytes.
pub const MAX_WORKSPACE: usize = 16 * 1024;
/// And all that is not one of its texts: names of fields, id, time.
const NAMES_OF_FIELDS: usize = 1024;

impl Workspace {
    /// Whether it can be kept.
    ///
    /// # Errors
    /// Why not, as a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        let optional = [&self.head_commit, &self.current_branch, &self.branch_name, &self.base_commit];
        let texts = [&self.source_path, &self.repo_root, &self.repo_name, &self.guest_path, &self.base_tree];
        for text in texts.into_iter().chain(optional.into_iter().flatten()) {
            if text.is_empty() || text.len() > MAX_TEXT || text.contains('\0') {
                return Err("a text of the workspace is empty, too long or has a zero byte");
            }
        }
        let names = [&self.head_commit, &self.base_commit].into_iter().flatten().chain([&self.base_tree]);
        if !names.into_iter().all(|name| is_object(name)) {
            return Err("a name of a commit or tree in the workspace is not one of git's");
        }
        if !self.guest_path.starts_with('/') {
            return Err("the workspace's folder in the guest is not an absolute path");
        }
        // What JSON escapes takes six characters at most (RFC 8259 section 7).
        let escaped = |c: char| if c.is_control() || matches!(c, '"' | '\\') { 6 } else { c.len_utf8() };
        let texts = texts.into_iter().chain(optional.into_iter().flatten());
        let length: usize = texts.flat_map(|text| text.chars()).map(escaped).sum();
        if length > MAX_WORKSPACE - NAMES_OF_FIELDS {
            return Err("the record of the workspace is too long");
        }
        Ok(())
    }
}

/// SHA-1 or SHA-256 in lowercase digits, as git prints it (gitformat-pack(5)): nothing that git
/// takes for an option.
fn is_object(name: &str) -> bool {
    matches!(name.len(), 40 | 64) && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn workspace() -> Workspace {
        Workspace {
            vm_id: VmId::from_bytes([1; 32]).unwrap(),
            source_path: "/home/alice/tool".into(),
            repo_root: "/home/alice/tool".into(),
            repo_name: "tool".into(),
            guest_path: "/root/tool".into(),
            mode: WorkspaceMode::ShallowOverlay,
            head_commit: Some("a".repeat(40)),
            current_branch: None,
            branch_name: Some("main".into()),
            base_commit: Some("a".repeat(40)),
            base_tree: "b".repeat(40),
            include_untracked: false,
            prepared_at: Timestamp::from_unix(0),
        }
    }

    #[test]
    fn what_is_too_long_or_no_text_is_not_kept() {
        workspace().check().unwrap();
        for bad in [
            Workspace { guest_path: "tool".into(), ..workspace() },
            Workspace { guest_path: format!("/{}", "a".repeat(MAX_TEXT)), ..workspace() },
            Workspace { source_path: "a\0b".into(), ..workspace() },
            Workspace { base_commit: Some(String::new()), ..workspace() },
            Workspace { base_tree: "--output=/home/bob/file".into(), ..workspace() },
            Workspace { head_commit: Some("HEAD".into()), ..workspace() },
            Workspace { base_commit: Some("A".repeat(40)), ..workspace() },
            // As JSON, a control character has six bytes.
            Workspace { repo_root: "\x01".repeat(MAX_TEXT), ..workspace() },
        ] {
            bad.check().unwrap_err();
        }
    }

    #[test]
    fn a_mode_is_written_as_users_write_it() {
        for mode in [WorkspaceMode::ShallowOverlay, WorkspaceMode::FullCopy, WorkspaceMode::MetadataOnly] {
            assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{}\"", mode.as_str()));
        }
    }
}
