//! A guest's files as a tree of git, made on the host.
//!
//! The guest says what may have changed and sends these files; the user's git adds them to a copy
//! of the tree that was prepared. A guest decides about names and bytes: names are checked here and
//! again by git, bytes go through the filters that the *prepared* tree and the user's configuration
//! ask for, never through those that a guest asks for.

use super::source::{Source, Workshop, entries};
use crate::error::explained;
use crate::remote::{self, Guest};
use anyhow::Context as _;
use banger_files::{Change, Limits, RECORDS, open_folder, parse_changes, unpack_only};
use banger_proto::model::{Workspace, WorkspaceMode};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// How much a guest may send: more than a day's work, and not the host's disk.
pub(crate) const DEFAULT_MOST: u64 = 2 << 30;
/// Files of one export.
const MAX_FILES: u64 = 1_000_000;
/// A path in a tree, bytes: PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// The guest's tree, in a workshop's store.
pub(crate) struct Gathered {
    pub(crate) source: Source,
    pub(crate) shop: Arc<Workshop>,
    pub(crate) tree: String,
    pub(crate) notes: Vec<String>,
}

/// Whether the guest's files are others than those that were prepared.
///
/// # Errors
/// As [`gather`].
pub(crate) async fn changed(guest: &Guest<'_>, workspace: &Workspace) -> anyhow::Result<bool> {
    Ok(gather(guest, workspace, DEFAULT_MOST).await?.tree != workspace.base_tree)
}

/// What a guest lists.
#[derive(Debug, Default)]
struct Listed {
    modified: BTreeSet<Vec<u8>>,
    added: BTreeSet<Vec<u8>>,
    deleted: BTreeSet<Vec<u8>>,
    notes: Vec<String>,
}

/// Makes the tree.
///
/// # Errors
/// When the host's repository is not there any more, when the guest sends more than `most` bytes,
/// or what git says.
pub(crate) async fn gather(guest: &Guest<'_>, workspace: &Workspace, most: u64) -> anyhow::Result<Gathered> {
    let source = Source::open(Path::new(&workspace.repo_root)).context("the repository cannot be used any more")?;
    let shop = Arc::new(Workshop::new(&source)?);
    base(guest, workspace, &source, &shop, most).await?;
    let folder = workspace.guest_path.as_str();
    let answer = remote::ask(guest, &["changes", folder], None).await?;
    let changes = parse_changes(&answer).context("the guest's list of changes is not understood")?;
    let mut listed = sort(changes);
    let git = shop.git_here(&source, "new", &workspace.base_tree);
    git.bytes(&["read-tree", &workspace.base_tree])?;
    let known: BTreeSet<Vec<u8>> = entries(&git.bytes(&["ls-files", "-z"])?).map(<[u8]>::to_vec).collect();
    leave_submodules(&mut listed, &source, &shop, workspace)?;
    if workspace.mode == WorkspaceMode::MetadataOnly && listed.added.iter().any(|path| known.contains(path)) {
        // No files were prepared, and the guest has checked them out: what is missing was removed.
        listed.deleted = known.difference(&listed.added).cloned().collect();
    }
    let new: BTreeSet<Vec<u8>> = listed.added.difference(&known).cloned().collect();
    if !new.is_empty() {
        rules(guest, workspace, &source, &shop, &listed).await?;
        for path in ignored(&source, &shop, workspace, &new)? {
            listed.added.remove(&path);
        }
    }
    let wanted: Vec<u8> = joined(listed.modified.iter().chain(&listed.added));
    fetch(guest, folder, &shop, wanted.clone(), most).await?;
    let (shop, source, base) = (Arc::clone(&shop), source, workspace.base_tree.clone());
    let work = move || {
        let git = shop.git_here(&source, "new", &base);
        git.bytes(&["read-tree", &base])?;
        let gone = joined(&listed.deleted);
        // By name alone: where a folder was may be a link now.
        let steps = [("--force-remove", gone), ("--replace", wanted)];
        for (how, list) in steps.into_iter().filter(|(_, list)| !list.is_empty()) {
            let said = git.output(&["update-index", "--add", "--remove", how, "-z", "--stdin"], &list)?;
            let text = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            anyhow::ensure!(said.status.success(), "git does not take the guest's files: {text}");
            listed.notes.extend(text.lines().map(str::to_owned));
        }
        let tree = git.text(&["write-tree"])?;
        Ok(Gathered { source, shop, tree, notes: listed.notes })
    };
    tokio::task::spawn_blocking(work).await.context("a thread ended")?
}

fn joined<'a>(paths: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    paths.into_iter().flat_map(|path| [path.as_slice(), b"\0"].concat()).collect()
}

/// The tree that was prepared: the host's repository has what was committed, the guest keeps the
/// rest. Whatever the guest sends, an object is what its name says, and the tree's name is in the
/// daemon's record.
async fn base(
    guest: &Guest<'_>,
    workspace: &Workspace,
    source: &Source,
    shop: &Arc<Workshop>,
    most: u64,
) -> anyhow::Result<()> {
    let complete = |shop: &Workshop| {
        let list = ["rev-list", "--objects", "--quiet", "--no-walk=unsorted", &workspace.base_tree];
        shop.git(source, "none").maybe(&list).map(|listed| listed.is_some())
    };
    if complete(shop)? {
        return Ok(());
    }
    let name = format!("{RECORDS}/base.pack");
    fetch(guest, &workspace.guest_path, shop, format!("{name}\0").into_bytes(), most).await?;
    let pack = shop.path("tree").join(&name);
    if pack.exists() {
        let mut index = shop.git(source, "none").command(&["index-pack", "--strict", "--stdin"]);
        index.stdin(std::fs::File::open(&pack)?);
        let done = index.output().map_err(super::git::not_started)?;
        anyhow::ensure!(done.status.success(), "git refuses what the guest kept of the prepared files");
        std::fs::remove_dir_all(shop.path("tree"))?;
        std::fs::create_dir(shop.path("tree"))?;
    }
    if complete(shop)? {
        return Ok(());
    }
    let message = format!("{} has no longer what was prepared", workspace.repo_root);
    Err(explained(message, "copy the files as they are: banger vm cp VM:PATH FOLDER"))
}

/// Drops what cannot be in a tree: the guest may say anything.
fn sort(changes: Vec<Change>) -> Listed {
    let mut listed = Listed::default();
    let odd = |path: &[u8], why: &str, notes: &mut Vec<String>| {
        notes.push(format!("{}: left out, because {why}", String::from_utf8_lossy(path)));
    };
    for change in changes {
        let (Change::Modified(path) | Change::Added(path) | Change::Deleted(path) | Change::Repository(path)) = &change;
        let part = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.eq_ignore_ascii_case(b".git");
        if path.len() > MAX_PATH || path.split(|byte| *byte == b'/').any(part) {
            odd(path, "it is no name of a file in a repository", &mut listed.notes);
            continue;
        }
        match change {
            Change::Modified(path) => drop(listed.modified.insert(path)),
            Change::Added(path) => drop(listed.added.insert(path)),
            Change::Deleted(path) => drop(listed.deleted.insert(path)),
            Change::Repository(path) => odd(&path, "it is a repository of its own", &mut listed.notes),
        }
    }
    listed
}

/// Files below a submodule are no part of the tree.
fn leave_submodules(
    listed: &mut Listed,
    source: &Source,
    shop: &Workshop,
    workspace: &Workspace,
) -> anyhow::Result<()> {
    if workspace.mode != WorkspaceMode::FullCopy {
        return Ok(());
    }
    let lines = shop.git(source, "none").bytes(&["ls-tree", "-r", "-z", &workspace.base_tree])?;
    for line in entries(&lines).filter(|line| line.starts_with(b"160000")) {
        let path = line.iter().position(|byte| *byte == b'\t').and_then(|tab| line.get(tab + 1..)).unwrap_or_default();
        let inside = [path, b"/"].concat();
        for list in [&mut listed.modified, &mut listed.added, &mut listed.deleted] {
            let before = list.len();
            list.retain(|file| !file.starts_with(&inside));
            if list.len() < before {
                let path = String::from_utf8_lossy(path);
                listed.notes.push(format!("{path} is a submodule: what was changed in it is left out"));
            }
        }
    }
    Ok(())
}

/// Brings the `.gitignore` files together: those that were prepared, and the guest's instead where
/// it has changed them.
async fn rules(
    guest: &Guest<'_>,
    workspace: &Workspace,
    source: &Source,
    shop: &Arc<Workshop>,
    listed: &Listed,
) -> anyhow::Result<()> {
    let is_rule = |path: &&Vec<u8>| *path == b".gitignore" || path.ends_with(b"/.gitignore");
    let git = shop.git_here(source, "new", &workspace.base_tree);
    let prepared = git.bytes(&["ls-files", "-z", "--", ":(glob)**/.gitignore"])?;
    let kept: Vec<u8> = entries(&prepared)
        .filter(|path| !listed.deleted.contains(*path) && !listed.modified.contains(*path))
        .flat_map(|path| [path, b"\0"].concat())
        .collect();
    if !kept.is_empty() {
        git.feed(&["checkout-index", "--quiet", "--force", "-z", "--stdin"], &kept)?;
    }
    let theirs = joined(listed.modified.iter().chain(&listed.added).filter(is_rule));
    if theirs.is_empty() {
        return Ok(());
    }
    /// Of rules; a file of patterns is small.
    const MOST: u64 = 64 << 20;
    fetch(guest, &workspace.guest_path, shop, theirs, MOST).await
}

/// Which of these paths the rules ignore, the user's own among them.
fn ignored(
    source: &Source,
    shop: &Workshop,
    workspace: &Workspace,
    paths: &BTreeSet<Vec<u8>>,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let git = shop.git_here(source, "none", &workspace.base_tree);
    let said = git.output(&["check-ignore", "--no-index", "-z", "--stdin"], &joined(paths))?;
    // 1: none of them.
    anyhow::ensure!(
        matches!(said.status.code(), Some(0 | 1)),
        "git does not say what is ignored: {}",
        String::from_utf8_lossy(&said.stderr).trim()
    );
    Ok(entries(&said.stdout).map(<[u8]>::to_vec).collect())
}

/// The named files of the guest into the workshop's tree.
async fn fetch(guest: &Guest<'_>, folder: &str, shop: &Arc<Workshop>, names: Vec<u8>, most: u64) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let asked: BTreeSet<Vec<u8>> = entries(&names).map(<[u8]>::to_vec).collect();
    let shop = Arc::clone(shop);
    let unpacking = move |from: &mut dyn std::io::Read| {
        let limits = Limits { bytes: most, entries: MAX_FILES, mask: 0 };
        unpack_only(from, &open_folder(&shop.path("tree"))?, limits, &asked)?;
        Ok(())
    };
    remote::fetch(guest, &["get", folder], None, names, unpacking).await.context("cannot get the guest's files")
}
