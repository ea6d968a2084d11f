//! A guest's files as a tree of git, made on the host.
//!
//! The guest says what may have changed and sends these files; the user's git adds them to a copy
//! of the tree that was prepared. A guest decides about names and bytes: names are checked here and
//! again by git, bytes go through the filters that the *prepared* tree and the user's configuration
//! ask for, never through those that a guest asks for.

use super::git::Git;
use super::source::{Source, Workshop, entries};
use crate::error::explained;
use crate::remote::{self, Guest};
use crate::work;
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
/// Things that the user is told one by one; of more, how many they are.
const MAX_NOTES: usize = 50;
/// A path in a tree, bytes: PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// The guest's tree, in a workshop's store.
pub(crate) struct Gathered {
    pub(crate) source: Source,
    pub(crate) shop: Arc<Workshop>,
    pub(crate) tree: String,
    pub(crate) notes: Notes,
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
    /// Folders with a repository of their own, which are not looked into.
    repositories: BTreeSet<Vec<u8>>,
    notes: Notes,
}

impl Listed {
    /// Whether a path lies in a folder that was not looked into.
    fn is_hidden(&self, path: &[u8]) -> bool {
        let mut folders =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| path.get(..at));
        folders.any(|folder| self.repositories.contains(folder))
    }
}

/// What the user is told: a guest may cause any number of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    told: Vec<String>,
    more: usize,
}

impl Notes {
    pub(crate) fn push(&mut self, text: impl FnOnce() -> String) {
        if self.told.len() < MAX_NOTES {
            self.told.push(text());
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn into_texts(self) -> Vec<String> {
        let more = (self.more > 0).then(|| format!("and {} more like these", self.more));
        self.told.into_iter().chain(more).collect()
    }
}

/// Makes the tree.
///
/// # Errors
/// When the host's repository is not there any more, when the guest sends more than `most` bytes,
/// or what git says.
pub(crate) async fn gather(guest: &Guest<'_>, workspace: &Workspace, most: u64) -> anyhow::Result<Gathered> {
    // What was built may be of users whose files the image's user cannot read.
    let guest = &guest.as_root();
    let root = workspace.repo_root.clone();
    let opened = work::begin(move || {
        let source = Source::open(Path::new(&root)).context("the repository cannot be used any more")?;
        let shop = Arc::new(Workshop::new(&source)?);
        anyhow::Ok((source, shop))
    });
    let (source, shop) = opened.await??;
    base(guest, workspace, &source, &shop, most).await?;
    let folder = workspace.guest_path.as_str();
    let answer = remote::ask(guest, &["changes", folder], remote::MAX_CHANGES).await?;
    let (git, tree) = (shop.git_here(&source, "new", &workspace.base_tree), workspace.base_tree.clone());
    let alone = shop.git(&source, "none");
    let full = workspace.mode == WorkspaceMode::FullCopy;
    let sorting = work::begin(move || {
        let mut listed = sort(read(&answer, MAX_FILES)?);
        git.bytes(&["read-tree", &tree])?;
        let known: BTreeSet<Vec<u8>> = entries(&git.bytes(&["ls-files", "-z"])?).map(<[u8]>::to_vec).collect();
        if full {
            leave_submodules(&mut listed, &alone, &tree)?;
        }
        anyhow::Ok((listed, known))
    });
    let (mut listed, known) = sorting.await??;
    if workspace.mode == WorkspaceMode::MetadataOnly && listed.added.iter().any(|path| known.contains(path)) {
        // No files were prepared, and the guest has checked them out: what is missing was removed.
        listed.deleted = known.difference(&listed.added).filter(|path| !listed.is_hidden(path)).cloned().collect();
    }
    // What an earlier release has taken over when it prepared the folder again counts as prepared
    // there, although no tree has it.
    let new: BTreeSet<Vec<u8>> =
        listed.modified.union(&listed.added).filter(|path| !known.contains(*path)).cloned().collect();
    if !new.is_empty() {
        rules(guest, workspace, &source, &shop, &listed).await?;
        let git = shop.git_here(&source, "none", &workspace.base_tree);
        for path in work::begin(move || ignored(&git, &new)).await?? {
            listed.added.remove(&path);
            listed.modified.remove(&path);
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
            text.lines().for_each(|line| listed.notes.push(|| line.to_owned()));
        }
        let tree = git.text(&["write-tree"])?;
        Ok(Gathered { source, shop, tree, notes: listed.notes })
    };
    work::begin(work).await?
}

/// A guest's list of changes, which has no more than `most` of them: a short line becomes much more
/// in memory.
fn read(answer: &[u8], most: u64) -> anyhow::Result<Vec<Change>> {
    let count = answer.iter().filter(|byte| **byte == 0).count() as u64;
    anyhow::ensure!(count <= most, "the guest's list of changes has more than {most} files");
    parse_changes(answer).context("the guest's list of changes is not understood")
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
    let complete = || {
        let (git, tree) = (shop.git(source, "none"), workspace.base_tree.clone());
        work::begin(move || {
            let list = ["rev-list", "--objects", "--quiet", "--no-walk=unsorted", &tree];
            git.maybe(&list).map(|listed| listed.is_some())
        })
    };
    if complete().await?? {
        return Ok(());
    }
    let name = format!("{RECORDS}/base.pack");
    fetch(guest, &workspace.guest_path, shop, format!("{name}\0").into_bytes(), most).await?;
    let (git, tree) = (shop.git(source, "none").for_guests(), shop.path("tree"));
    let indexing = move || {
        let pack = tree.join(&name);
        // A link of the guest's would have git read what is elsewhere, or wait for a pipe.
        if pack.symlink_metadata().is_ok_and(|found| found.is_file()) {
            let mut index = git.command(&["index-pack", "--strict", "--stdin"]);
            index.stdin(std::fs::File::open(&pack)?);
            let done = git.ended(&mut index)?;
            anyhow::ensure!(done.status.success(), "git refuses what the guest kept of the prepared files");
        }
        std::fs::remove_dir_all(&tree)?;
        std::fs::create_dir(&tree)?;
        anyhow::Ok(())
    };
    work::begin(indexing).await??;
    if complete().await?? {
        return Ok(());
    }
    let message = format!("{} has no longer what was prepared", workspace.repo_root);
    Err(explained(message, "copy the files as they are: banger vm cp VM:PATH FOLDER"))
}

/// Drops what cannot be in a tree: the guest may say anything.
fn sort(changes: Vec<Change>) -> Listed {
    let mut listed = Listed::default();
    let odd = |path: &[u8], why: &str, notes: &mut Notes| {
        notes.push(|| format!("{}: left out, because {why}", String::from_utf8_lossy(path)));
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
            Change::Repository(path) => {
                odd(&path, "it is a repository of its own", &mut listed.notes);
                listed.repositories.insert(path);
            }
        }
    }
    listed
}

/// Files below a submodule are no part of the tree.
fn leave_submodules(listed: &mut Listed, git: &Git, tree: &str) -> anyhow::Result<()> {
    let lines = git.bytes(&["ls-tree", "-r", "-z", tree])?;
    for line in entries(&lines).filter(|line| line.starts_with(b"160000")) {
        let path = line.iter().position(|byte| *byte == b'\t').and_then(|tab| line.get(tab + 1..)).unwrap_or_default();
        let inside = [path, b"/"].concat();
        for list in [&mut listed.modified, &mut listed.added, &mut listed.deleted] {
            let before = list.len();
            list.retain(|file| !file.starts_with(&inside));
            if list.len() < before {
                let path = String::from_utf8_lossy(path);
                listed.notes.push(|| format!("{path} is a submodule: what was changed in it is left out"));
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
    let others: BTreeSet<Vec<u8>> = listed.deleted.union(&listed.modified).filter(is_rule).cloned().collect();
    let writing = work::begin(move || {
        let prepared = git.bytes(&["ls-files", "-z", "--", ":(glob)**/.gitignore"])?;
        let kept = entries(&prepared).filter(|path| !others.contains(*path));
        let kept: Vec<u8> = kept.flat_map(|path| [path, b"\0"].concat()).collect();
        if !kept.is_empty() {
            git.feed(&["checkout-index", "--quiet", "--force", "-z", "--stdin"], &kept)?;
        }
        anyhow::Ok(())
    });
    writing.await??;
    let theirs = joined(listed.modified.iter().chain(&listed.added).filter(is_rule));
    if theirs.is_empty() {
        return Ok(());
    }
    /// Of rules; a file of patterns is small.
    const MOST: u64 = 64 << 20;
    fetch(guest, &workspace.guest_path, shop, theirs, MOST).await
}

/// Which of these paths the rules ignore, the user's own among them.
fn ignored(git: &Git, paths: &BTreeSet<Vec<u8>>) -> anyhow::Result<Vec<Vec<u8>>> {
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_list_that_is_too_long_is_refused_and_what_is_told_of_one_is_short() {
        let list = b"M.\0".repeat(1000);
        assert!(read(&list, 999).unwrap_err().to_string().contains("more than 999 files"));
        let texts = sort(read(&list, 1000).unwrap()).notes.into_texts();
        assert_eq!(texts.len(), MAX_NOTES + 1);
        assert_eq!(texts.last().unwrap(), "and 950 more like these");
    }
}
