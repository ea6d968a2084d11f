//! What the guest's own git says: what is under version control there, and the guest's commits.
//!
//! It runs in the guest as the image's user, because git refuses a repository of another user. Its
//! answers decide about files of the guest only. An image need not have git.

use super::gather::{Gathered, MAX_FILES};
use super::git::Git;
use super::listed::bounded;
use super::prepare::look;
use crate::error::explained;
use crate::remote::{self, Guest};
use crate::work;
use anyhow::Context as _;
use banger_proto::model::{Workspace, WorkspaceMode};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// The lines of `git ls-files --debug` about each file.
const LINES: usize = 5;
/// Of what git says there, for a note.
const SAID: usize = 200;
/// How long git in the guest may take to list its index.
const PATIENCE: Duration = Duration::from_secs(120);
/// The first lines of what `git bundle create` makes (gitformat-bundle(5)).
const BUNDLES: [&[u8]; 2] = [b"# v2 git bundle\n", b"# v3 git bundle\n"];

/// The guest's index.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// What is under version control.
    pub(super) tracked: BTreeSet<Vec<u8>>,
    /// Files that are not there and were not removed: a sparse checkout leaves them out, or no file
    /// was sent and they were never checked out.
    pub(super) absent: BTreeSet<Vec<u8>>,
}

/// Asks for the index; `None` when git does not answer.
///
/// # Errors
/// When the guest does not answer.
pub(super) async fn index(guest: &Guest<'_>, workspace: &Workspace) -> anyhow::Result<Option<Index>> {
    // Nothing is to be seen there, so no program of the guest's need watch its files.
    let mut words = vec!["git", "-c", "core.fsmonitor=false", "ls-files", "-t", "-z"];
    // Of a file that git has written or seen, the index has the time. The host's git, which made
    // the index, has seen none.
    let unsent = workspace.mode == WorkspaceMode::MetadataOnly;
    words.extend(unsent.then_some("--debug"));
    let asking = remote::output_of(guest, &words, Some(workspace.guest_path.as_str()), remote::MAX_CHANGES);
    // What stands still there is no answer either: nothing but a few names depends on it.
    let Ok(answered) = timeout(PATIENCE, asking).await else { return Ok(None) };
    let (ran, answer) = answered?;
    if ran.status != 0 {
        return Ok(None);
    }
    work::begin(move || {
        bounded(&answer, MAX_FILES)?;
        Ok(Some(parse(&answer, if unsent { LINES } else { 0 })))
    })
    .await?
}

/// `TAG PATH`, a zero byte, and so many lines about that file.
fn parse(answer: &[u8], lines: usize) -> Index {
    let mut index = Index::default();
    let mut parts = answer.split(|byte| *byte == 0);
    let mut file = parts.next().unwrap_or_default();
    for part in parts {
        let ends = part.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let end = ends.take(lines).last().unwrap_or(0);
        let (facts, next) = part.split_at(end);
        if let (Some(tag), Some(path)) = (file.first(), file.get(2..)) {
            index.tracked.insert(path.to_vec());
            // `S` is SKIP-WORKTREE (git-ls-files(1), -t).
            if *tag == b'S' || facts.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == b"mtime: 0:0") {
                index.absent.insert(path.to_vec());
            }
        }
        file = next;
    }
    index
}

/// The guest's own commits.
pub(super) enum Theirs {
    /// Its HEAD is what was prepared, or it has none.
    None,
    /// In the workshop, the last of them being this one.
    At(String),
    /// They are not to be had, and the user is told this. Their files are in the tree all the same.
    Left(String),
}

/// They have no commit in common with the one that was prepared: a branch of them would have no
/// history.
const UNRELATED: &str = "the guest's commits do not follow the one that was prepared (amended there?): the branch has \
                         what they changed as one commit";

/// What is told when git in the guest `did` not do it.
fn left(did: &str, said: &str) -> Theirs {
    let said: String = said.lines().next().unwrap_or_default().chars().take(SAID).collect();
    let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
    Theirs::Left(format!("git in the guest {did}{said}: what commits there changed is one commit of the branch"))
}

fn too_many(most: u64) -> anyhow::Error {
    explained(
        format!("the guest's commits are more than {} MiB", most >> 20),
        "allow more with --max-size, or export without --branch, which sends files only",
    )
}

/// Brings the guest's own commits into the workshop, fewer than `most` bytes of them.
pub(super) async fn commits(
    guest: &Guest<'_>,
    workspace: &Workspace,
    gathered: &Gathered,
    most: u64,
) -> anyhow::Result<Theirs> {
    const LINE: u64 = 4096;
    let folder = workspace.guest_path.as_str();
    let words = ["git", "rev-parse", "--verify", "--quiet", "HEAD^{commit}"];
    let (ran, head) = remote::output_of(guest, &words, Some(folder), LINE).await?;
    let head = String::from_utf8_lossy(&head).trim().to_owned();
    let is_name = head.len() == workspace.base_tree.len() && head.bytes().all(|byte| byte.is_ascii_hexdigit());
    if ran.status != 0 || !is_name {
        // There is no commit, no git, or nothing that git may read. The agent reads the files.
        let changed = look(guest, folder).await?.refs_changed;
        return Ok(if changed { left("does not name its last commit", &ran.errors) } else { Theirs::None });
    }
    if workspace.base_commit.as_ref() == Some(&head) {
        return Ok(Theirs::None);
    }
    let bundle = gathered.shop.path("bundle");
    let not = workspace.base_commit.as_ref().map(|base| format!("^{base}"));
    let mut words = vec!["git", "bundle", "create", "--quiet", "-", "HEAD"];
    words.extend(not.as_deref());
    let to = bundle.clone();
    let (ran, ()) = remote::receive(guest, &words, Some(folder), Vec::new(), move |from| {
        let mut file = std::fs::File::create(&to)?;
        let copied = std::io::copy(&mut from.take(most), &mut file)?;
        if copied < most { Ok(()) } else { Err(too_many(most)) }
    })
    .await?;
    if ran.status != 0 {
        return Ok(left("does not give its commits", &ran.errors));
    }
    let git = gathered.shop.git(&gathered.source, "none").for_guests();
    let git = [
        "transfer.fsckObjects=true",
        "fetch.fsckObjects=true",
        "protocol.allow=never",
        "protocol.file.allow=always",
        "fetch.recurseSubmodules=false",
        "fetch.writeCommitGraph=false",
    ]
    .into_iter()
    .fold(git, Git::set);
    let base = workspace.base_commit.clone();
    let fetching = move || {
        if !is_bundle(&bundle)? {
            return Ok(left("gives something else than its commits", ""));
        }
        let path = bundle.to_str().context("the folder's path is not UTF-8")?;
        let words =
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--refmap=", path];
        git.bytes(&[&words[..], &["HEAD"]].concat()).context("git refuses the guest's commits")?;
        if git.maybe(&["cat-file", "-e", &format!("{head}^{{commit}}")])?.is_none() {
            return Ok(left("has another last commit by now", ""));
        }
        let Some(base) = base else { return Ok(Theirs::At(head)) };
        let related = git.output(&["merge-base", &base, &head], b"")?.status.success();
        Ok(if related { Theirs::At(head) } else { Theirs::Left(UNRELATED.to_owned()) })
    };
    work::begin(fetching).await?
}

/// Whether it begins like a bundle. To git, any other file is a path: one with `gitdir: tree/x` in
/// it is the repository that the guest has put there, whose configuration and alternates would be
/// obeyed.
fn is_bundle(path: &Path) -> anyhow::Result<bool> {
    let mut begins = Vec::new();
    std::fs::File::open(path)?.take(BUNDLES[0].len() as u64).read_to_end(&mut begins)?;
    Ok(BUNDLES.contains(&begins.as_slice()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn only_a_bundle_is_given_to_git() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle");
        let texts: [(&[u8], bool); 6] = [
            (b"# v2 git bundle\n0123 HEAD\n", true),
            (b"# v3 git bundle\n@object-format=sha256\n", true),
            (b"gitdir: tree/x\n", false),
            (b"# v2 git bundle", false),
            (b" # v2 git bundle\n", false),
            (b"", false),
        ];
        for (text, is) in texts {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_bundle(&path).unwrap(), is, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn an_index_is_read_as_git_lists_it() {
        let facts = |mtime: &str| {
            format!("  ctime: 1:2\n  mtime: {mtime}\n  dev: 1\tino: 2\n  uid: 0\tgid: 0\n  size: 2\tflags: 0\n")
        };
        let text = format!("H a\nb\0{}H never\0{}S sparse\0{}", facts("1:0"), facts("0:0"), facts("3:4"));
        let index = parse(text.as_bytes(), LINES);
        let names = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<BTreeSet<_>>();
        assert_eq!(index.tracked, names(&["a\nb", "never", "sparse"]));
        assert_eq!(index.absent, names(&["never", "sparse"]));
        let index = parse(b"H a\0S b\nc\0", 0);
        assert_eq!((index.tracked, index.absent), (names(&["a", "b\nc"]), names(&["b\nc"])));
        assert!(parse(b"", LINES).tracked.is_empty());
    }
}
