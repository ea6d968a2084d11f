//! A guest's files as a tree of git, made on the host.
//!
//! The guest says what may have changed and sends these files; the user's git adds them to a copy
//! of the tree that was prepared. A guest decides about names and bytes: names are checked here and
//! again by git, bytes go through the filters that the *prepared* tree and the user's configuration
//! ask for, never through those that a guest asks for.

use super::git::Git;
use super::listed::{Known, Listed, Notes, leave_submodules, read, sort};
use super::source::{Source, Workshop, entries};
use super::theirs;
use crate::error::explained;
use crate::remote::{self, Guest};
use crate::work;
use anyhow::Context as _;
use banger_files::{Limits, RECORDS, open_folder, unpack_only};
use banger_proto::model::{Workspace, WorkspaceMode};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

/// How much a guest may send: more than a day's work, and not the host's disk.
pub(crate) const DEFAULT_MOST: u64 = 2 << 30;
/// Files of one export, beside the name of the tree.
pub(super) const MAX_FILES: u64 = 1_000_000;
/// In [`RECORDS`], written by the host: the name of the prepared tree.
pub(super) const TREE: &str = "tree";
/// More than a name of a tree, bytes.
const MAX_NAME: u64 = 100;

/// The guest's tree, in a workshop's store.
pub(crate) struct Gathered {
    pub(crate) source: Source,
    pub(crate) shop: Arc<Workshop>,
    pub(crate) tree: String,
    pub(crate) notes: Notes,
    /// Files of the prepared commit that the guest has, ignores, and has no longer under version
    /// control.
    pub(super) untracked: BTreeSet<Vec<u8>>,
    /// What the guest's git has under version control.
    pub(super) tracked: BTreeSet<Vec<u8>>,
    /// Folders with a repository of their own, which were not looked into.
    pub(super) repositories: BTreeSet<Vec<u8>>,
    /// Files of a submodule were changed or removed, which no tree has.
    submodules: bool,
    /// No file was prepared, and some are there as the prepared tree has them.
    checked_out: bool,
}

/// What the host does not have, and a prepare would destroy in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    /// Commits, branches, a stash.
    Commits,
    /// Changes, which an export has.
    Changes,
    /// Changes in a submodule, which no export has.
    Submodules,
    /// Nothing but files of the old commit, which were checked out.
    CheckedOut,
    /// The repository is not there any more, or something else was prepared since.
    Unknown,
}

/// What of the guest's files is not on the host.
///
/// # Errors
/// As [`gather`].
pub(crate) async fn lost(guest: &Guest<'_>, workspace: &Workspace) -> anyhow::Result<Lost> {
    let root = workspace.repo_root.clone();
    let Ok(source) = work::begin(move || Source::open(Path::new(&root))).await? else { return Ok(Lost::Unknown) };
    Ok(match gather_with(guest, workspace, source, DEFAULT_MOST).await? {
        None => Lost::Unknown,
        Some(gathered) if gathered.tree != workspace.base_tree => Lost::Changes,
        Some(gathered) if gathered.submodules => Lost::Submodules,
        Some(gathered) if gathered.checked_out => Lost::CheckedOut,
        Some(_) => Lost::Nothing,
    })
}

/// Whether the guest has no file that was changed, removed or added, ignored ones included.
///
/// # Errors
/// When the guest does not answer.
pub(crate) async fn is_untouched(guest: &Guest<'_>, folder: &str) -> anyhow::Result<bool> {
    Ok(remote::ask(&guest.as_root(), &["changes", folder], remote::MAX_CHANGES).await?.is_empty())
}

/// Makes the tree.
///
/// # Errors
/// When the host's repository is not there any more, when something else was prepared since, when
/// the guest sends more than `most` bytes, or what git says.
pub(crate) async fn gather(guest: &Guest<'_>, workspace: &Workspace, most: u64) -> anyhow::Result<Gathered> {
    let root = workspace.repo_root.clone();
    let opening = work::begin(move || Source::open(Path::new(&root)).context("the repository cannot be used any more"));
    let source = opening.await??;
    gather_with(guest, workspace, source, most).await?.ok_or_else(|| {
        let folder = &workspace.guest_path;
        let message = format!("{folder} was prepared again, and that was interrupted");
        let hint =
            format!("prepare it once more, after you have copied what you need: banger vm cp VM:{folder} FOLDER");
        explained(message, hint)
    })
}

/// The same with the repository. `None`: the guest has something else than this was prepared.
async fn gather_with(
    user: &Guest<'_>,
    workspace: &Workspace,
    source: Source,
    most: u64,
) -> anyhow::Result<Option<Gathered>> {
    // What was built may be of users whose files the image's user cannot read.
    let guest = &user.as_root();
    let making = {
        let source = source.clone();
        work::begin(move || Workshop::new(&source).map(Arc::new))
    };
    let shop = making.await??;
    if !base(guest, workspace, &source, &shop, most).await? {
        return Ok(None);
    }
    let folder = workspace.guest_path.as_str();
    let answer = remote::ask(guest, &["changes", folder], remote::MAX_CHANGES).await?;
    let (git, tree) = (shop.git_here(&source, "new", &workspace.base_tree), workspace.base_tree.clone());
    let alone = shop.git(&source, "none");
    let (full, unsent) = (workspace.mode == WorkspaceMode::FullCopy, workspace.mode == WorkspaceMode::MetadataOnly);
    let commit = workspace.base_commit.clone();
    let sorting = work::begin(move || {
        let mut listed = sort(read(&answer, MAX_FILES)?);
        git.bytes(&["read-tree", &tree])?;
        let all: BTreeSet<Vec<u8>> = entries(&git.bytes(&["ls-files", "-z"])?).map(<[u8]>::to_vec).collect();
        // The user may have removed that commit from the repository since.
        let committed = commit.map(|commit| names(&alone, &commit).unwrap_or_default()).unwrap_or_default();
        let committed = committed.into_iter().filter(|path| all.contains(path)).collect();
        let submodules = full && leave_submodules(&mut listed, &alone, &tree)?;
        anyhow::Ok((listed, Known { all, committed }, submodules))
    });
    let (mut listed, known, submodules) = sorting.await??;
    let index = theirs::index(user, workspace).await?;
    let checked_out = unsent && listed.added.iter().any(|path| known.all.contains(path));
    if checked_out && index.is_none() {
        listed.notes.push(|| "git in the guest does not answer: files that were removed are not seen".to_owned());
    }
    listed.forgive(index.as_ref(), &known, unsent);
    let is_tracked = |path: &Vec<u8>| index.as_ref().is_some_and(|index| index.tracked.contains(path));
    // What an earlier release has taken over when it prepared the folder again counts as prepared
    // there, although no tree has it.
    let sent = listed.modified.union(&listed.added);
    let mut asked: BTreeSet<Vec<u8>> = sent.filter(|path| !known.all.contains(*path)).cloned().collect();
    if index.is_some() {
        asked.extend(known.committed.iter().filter(|path| !is_tracked(path)).cloned());
    }
    let mut untracked = BTreeSet::new();
    if !asked.is_empty() {
        rules(guest, workspace, &source, &shop, &listed).await?;
        let git = shop.git_here(&source, "none", &workspace.base_tree);
        for path in work::begin(move || ignored(&git, &asked)).await?? {
            if known.all.contains(&path) {
                untracked.insert(path);
            } else if !is_tracked(&path) {
                listed.added.remove(&path);
                listed.modified.remove(&path);
            }
        }
    }
    let wanted: Vec<u8> = joined(listed.modified.iter().chain(&listed.added));
    // Its name comes last: a prepare that takes place until then is seen by it.
    let with_name = [wanted.clone(), format!("{RECORDS}/{TREE}\0").into_bytes()].concat();
    fetch(guest, folder, &shop, with_name, most).await?;
    let (shop, source, base) = (Arc::clone(&shop), source, workspace.base_tree.clone());
    let tracked = index.map(|index| index.tracked).unwrap_or_default();
    let work = move || {
        if !is_of(&shop, &base)? {
            return Ok(None);
        }
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
        let Listed { repositories, notes, .. } = listed;
        Ok(Some(Gathered { source, shop, tree, notes, untracked, tracked, repositories, submodules, checked_out }))
    };
    work::begin(work).await?
}

/// Whether the guest's folder was prepared from that tree, by the name that came with its files. An
/// earlier release has sent none.
fn is_of(shop: &Workshop, tree: &str) -> anyhow::Result<bool> {
    let path = shop.path("tree").join(RECORDS).join(TREE);
    // A link of the guest's would have another file read.
    if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
        return Ok(true);
    }
    let mut name = String::new();
    std::fs::File::open(&path)?.take(MAX_NAME).read_to_string(&mut name)?;
    Ok(name.trim() == tree)
}

/// The names in a tree.
pub(super) fn names(git: &Git, tree: &str) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let listed = git.bytes(&["ls-tree", "-r", "-z", "--name-only", "--full-tree", tree])?;
    Ok(entries(&listed).map(<[u8]>::to_vec).collect())
}

fn joined<'a>(paths: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    paths.into_iter().flat_map(|path| [path.as_slice(), b"\0"].concat()).collect()
}

/// The tree that was prepared: the host's repository has what was committed, the guest keeps the
/// rest. Whatever the guest sends, an object is what its name says, and the tree's name is in the
/// daemon's record. False when the guest has another one.
async fn base(
    guest: &Guest<'_>,
    workspace: &Workspace,
    source: &Source,
    shop: &Arc<Workshop>,
    most: u64,
) -> anyhow::Result<bool> {
    let complete = || {
        let (git, tree) = (shop.git(source, "none"), workspace.base_tree.clone());
        work::begin(move || {
            let list = ["rev-list", "--objects", "--quiet", "--no-walk=unsorted", &tree];
            git.maybe(&list).map(|listed| listed.is_some())
        })
    };
    if complete().await?? {
        return Ok(true);
    }
    let name = format!("{RECORDS}/base.pack");
    fetch(guest, &workspace.guest_path, shop, format!("{name}\0{RECORDS}/{TREE}\0").into_bytes(), most).await?;
    if !is_of(shop, &workspace.base_tree)? {
        return Ok(false);
    }
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
        return Ok(true);
    }
    let message = format!("{} has no longer what was prepared", workspace.repo_root);
    Err(explained(message, "copy the files as they are: banger vm cp VM:PATH FOLDER"))
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
        let limits = Limits { bytes: most, entries: MAX_FILES + 1, mask: 0 };
        unpack_only(from, &open_folder(&shop.path("tree"))?, limits, &asked)?;
        Ok(())
    };
    remote::fetch(guest, &["get", folder], None, names, unpacking).await.context("cannot get the guest's files")
}
