//! A repository into a guest: `.git` is made here, by the user's git, and goes with the files as
//! one tar stream; the guest needs neither git nor tar.

use super::gather::Lost;
use super::git::Git;
use super::repository::make_repository;
use super::source::{Picture, Source, Tracked, Workshop, entries};
use super::{gather, short};
use crate::error::explained;
use crate::output::amount;
use crate::progress::Progress;
use crate::remote::{self, Guest};
use crate::work;
use anyhow::Context as _;
use banger_files::{FREE, Kind, Look, Packer};
use banger_policy::VmId;
use banger_proto::model::{Workspace, WorkspaceMode};
use banger_proto::time::Timestamp;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) path: PathBuf,
    /// `~/NAME` when `None`.
    pub(crate) guest_path: Option<String>,
    pub(crate) mode: WorkspaceMode,
    pub(crate) branch: Option<String>,
    pub(crate) from: Option<String>,
    pub(crate) include_untracked: bool,
    /// Replace what is there, whatever it is.
    pub(crate) force: bool,
}

/// The VM as far as its workspace goes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) vm: VmId,
    pub(crate) name: String,
    /// What was prepared in it before, from here.
    pub(crate) known: Option<Workspace>,
}

/// Everything about the host's side, ready to be sent.
#[derive(Debug)]
pub(crate) struct Ready {
    source: Source,
    shop: Workshop,
    files: Vec<(Tracked, PathBuf)>,
    tree: String,
    base: Option<String>,
    branch: Option<String>,
    /// What the user is told about what is not sent.
    pub(crate) notes: Vec<String>,
}

impl Ready {
    /// What would be sent, in a line.
    pub(crate) fn summary(&self) -> String {
        let bytes: u64 = self.files.iter().filter_map(|(_, path)| Some(path.symlink_metadata().ok()?.len())).sum();
        let branch =
            self.branch.as_deref().map_or_else(|| "a detached HEAD".to_owned(), |name| format!("branch {name}"));
        let base = self.base.as_deref().map_or("no commit yet", short);
        format!("{}: {} files, {}, {branch} at {base}", self.source.root.display(), self.files.len(), amount(bytes))
    }
}

/// Looks at the repository and makes what is to be sent. Nothing of the repository is changed.
///
/// # Errors
/// What git says, and what cannot be sent.
pub(crate) fn ready(wanted: &Wanted) -> anyhow::Result<Ready> {
    let source = Source::open(&wanted.path)?;
    if let Some(name) = &wanted.branch {
        check_branch(&source, name)?;
    }
    let shop = Workshop::new(&source)?;
    let base = match &wanted.from {
        Some(word) => Some(source.commit(word)?),
        None => source.head.clone(),
    };
    let mut notes = Vec::new();
    let mut picture = shop.picture(&source, wanted.include_untracked)?;
    for folder in &picture.foreign {
        notes.push(format!("{} is a repository of its own and is left out", String::from_utf8_lossy(folder)));
    }
    if !picture.submodules.is_empty() && wanted.mode != WorkspaceMode::FullCopy {
        let first = picture.submodules.first().map(|path| String::from_utf8_lossy(path).into_owned());
        let message = format!("the repository has submodules, such as {}", first.unwrap_or_default());
        return Err(explained(message, "their files are sent with: --mode full_copy"));
    }
    let branch = wanted.branch.clone().or_else(|| source.branch.clone());
    let mut ready = if base == source.head {
        let staged = match (&picture.staged, &base) {
            (Some(tree), _) => tree.clone(),
            (None, Some(base)) => source.tree_of(base)?,
            (None, None) => picture.tree.clone(),
        };
        let files = files_of(&source, &picture, wanted.mode, &mut notes)?;
        // Without the files, what the guest checks out is what is staged.
        if wanted.mode == WorkspaceMode::MetadataOnly && picture.tree != staged {
            notes.push("changes of the working tree that are not staged are not sent with metadata_only".to_owned());
            picture.tree.clone_from(&staged);
        }
        make_repository(&source, &shop, wanted, base.as_deref(), branch.as_deref(), &picture, &staged)?;
        Ready { tree: picture.tree, files, source, shop, base, branch, notes }
    } else {
        // Another commit than the one that the working tree belongs to: its files as git writes
        // them.
        let commit = base.clone().context("there is no commit")?;
        let tree = source.tree_of(&commit)?;
        let files = check_out(&source, &shop, &tree, wanted.mode)?;
        let clean = Picture {
            tree: tree.clone(),
            staged: None,
            files: Vec::new(),
            hidden: Vec::new(),
            submodules: Vec::new(),
            foreign: Vec::new(),
        };
        make_repository(&source, &shop, wanted, base.as_deref(), branch.as_deref(), &clean, &tree)?;
        if source.head.as_deref().map(|head| source.tree_of(head)).transpose()? != Some(picture.tree) {
            notes.push("changes of the working tree are not sent with --from".to_owned());
        }
        Ready { tree, files, source, shop, base, branch, notes }
    };
    if wanted.mode == WorkspaceMode::MetadataOnly {
        ready.files.clear();
    }
    Ok(ready)
}

fn check_branch(source: &Source, name: &str) -> anyhow::Result<()> {
    let known = source.git.maybe(&["check-ref-format", "--branch", name])?;
    if known.as_deref() == Some(name) {
        return Ok(());
    }
    Err(explained(format!("{name:?} cannot be the name of a branch"), "see: git check-ref-format --help"))
}

fn files_of(
    source: &Source,
    picture: &Picture,
    mode: WorkspaceMode,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<(Tracked, PathBuf)>> {
    let at = |root: &Path, path: &[u8]| root.join(Path::new(std::ffi::OsStr::from_bytes(path)));
    let mut files: Vec<_> = picture.files.iter().map(|file| (file.clone(), at(&source.root, &file.path))).collect();
    if mode != WorkspaceMode::FullCopy {
        return Ok(files);
    }
    let mut submodules = picture.submodules.clone();
    while let Some(name) = submodules.pop() {
        let root = at(&source.root, &name);
        let git = Git::within(&root);
        let top = git.maybe(&["rev-parse", "--path-format=absolute", "--show-toplevel"])?;
        if top.map(PathBuf::from) != Some(root.canonicalize().unwrap_or_else(|_| root.clone())) {
            notes.push(format!("the submodule {} is not checked out and is left out", String::from_utf8_lossy(&name)));
            continue;
        }
        for line in entries(&git.bytes(&["ls-files", "--stage", "-z"])?) {
            let tab =
                line.iter().position(|byte| *byte == b'\t').context("git lists files in a way that is not known")?;
            let (facts, path) = line.split_at(tab);
            let path = [&name, b"/".as_slice(), path.get(1..).unwrap_or_default()].concat();
            if facts.starts_with(b"160000") {
                submodules.push(path);
            } else if at(&source.root, &path).symlink_metadata().is_ok() {
                let to = at(&source.root, &path);
                files.push((Tracked { path, executable: facts.starts_with(b"100755") }, to));
            }
        }
    }
    Ok(files)
}

/// The files of a tree, written by git with the user's filters, as the attributes of that tree ask
/// for them: an export reads them by the same.
fn check_out(
    source: &Source,
    shop: &Workshop,
    tree: &str,
    mode: WorkspaceMode,
) -> anyhow::Result<Vec<(Tracked, PathBuf)>> {
    let git = shop.git(source, "commit-index").set("core.sparseCheckout=false");
    let git = git.option(format!("--attr-source={tree}"));
    git.bytes(&["read-tree", tree])?;
    let prefix = format!("--prefix={}/", shop.path("tree").to_str().context("the folder's path is not UTF-8")?);
    if mode != WorkspaceMode::MetadataOnly {
        git.bytes(&["checkout-index", "--all", "--quiet", &prefix])?;
    }
    let mut files = Vec::new();
    for line in entries(&git.bytes(&["ls-files", "--stage", "-z"])?) {
        let tab = line.iter().position(|byte| *byte == b'\t').context("git lists files in a way that is not known")?;
        let (facts, path) = line.split_at(tab);
        if facts.starts_with(b"160000") {
            let hint = "name a commit without submodules, or leave --from out and take --mode full_copy";
            return Err(explained("that commit has submodules", hint));
        }
        let path = path.get(1..).unwrap_or_default().to_vec();
        let at = shop.path("tree").join(Path::new(std::ffi::OsStr::from_bytes(&path)));
        files.push((Tracked { path, executable: facts.starts_with(b"100755") }, at));
    }
    Ok(files)
}

/// Prepares a workspace in a running VM. `record` keeps what was prepared, as soon as the guest has
/// it: whoever is interrupted after that has a record that is true.
///
/// # Errors
/// Why it could not be; then the guest is as it was. What `record` says.
pub(crate) async fn prepare(
    guest: &Guest<'_>,
    place: &Place,
    wanted: Wanted,
    progress: &Progress,
    record: impl AsyncFnOnce(&Workspace) -> anyhow::Result<()>,
) -> anyhow::Result<Workspace> {
    progress.say_moving("look at the repository");
    let asked = wanted.clone();
    let ready = work::begin(move || ready(&asked)).await??;
    for note in &ready.notes {
        progress.remark(&format!("note: {note}"));
    }
    let default = format!("~/{}", ready.source.name());
    let look = look(guest, wanted.guest_path.as_deref().unwrap_or(&default)).await?;
    let state = if wanted.force { None } else { Box::pin(nothing_is_lost(guest, place, &look)).await? };
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path of the host is not UTF-8");
    let workspace = Workspace {
        vm_id: place.vm,
        source_path: text(&ready.source.named)?,
        repo_root: text(&ready.source.root)?,
        repo_name: ready.source.name(),
        guest_path: look.path.clone(),
        mode: wanted.mode,
        head_commit: ready.source.head.clone(),
        current_branch: ready.source.branch.clone(),
        branch_name: ready.branch.clone(),
        base_commit: ready.base.clone(),
        base_tree: ready.tree.clone(),
        include_untracked: wanted.include_untracked,
        prepared_at: Timestamp::now(),
    };
    workspace.check().map_err(|why| anyhow::anyhow!(why))?;
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    // Root keeps what others have built there, and gives the workspace to the image's user. An
    // agent that names no owner knows no other way than that user's own.
    let (path, root) = (look.path.as_str(), guest.as_root());
    let (mut replace, guest) = match look.owner.as_deref() {
        Some(owner) => (vec!["replace", path, owner], &root),
        None => (vec!["replace", path], guest),
    };
    replace.extend(state.as_deref());
    let placed = Arc::new(Notify::new());
    let heard = Heard(Arc::clone(&placed));
    let mut sending = Box::pin(remote::send_to(guest, &replace, None, sent, heard, move |to| write(&ready, to)));
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let mut record = Some(record);
    loop {
        tokio::select! {
            done = &mut sending => break done.context("cannot send the files")?,
            () = placed.notified() => if let Some(record) = record.take() { record(&workspace).await? },
            _ = ticks.tick() => progress.sent(count.load(Ordering::Relaxed), None),
        }
    }
    if let Some(record) = record {
        record(&workspace).await?;
    }
    Ok(workspace)
}

/// The output of `replace`: the agent says a word when the new folder has its place, and then
/// removes the old one. An agent of an earlier release says none.
struct Heard(Arc<Notify>);

impl AsyncWrite for Heard {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.notify_one();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What there is at a path of a guest.
///
/// # Errors
/// When the guest does not answer.
pub(crate) async fn look(guest: &Guest<'_>, path: &str) -> anyhow::Result<Look> {
    let answer = remote::ask(guest, &["look", path], remote::MAX_LOOK).await?;
    let look: Look = serde_json::from_slice(&answer).context("the guest's answer is not understood")?;
    anyhow::ensure!(look.path.starts_with('/') && !look.path.contains('\0'), "the guest's answer is not understood");
    Ok(look)
}

/// Refuses to replace what is not on the host. Gives the state of the folder, which it must have
/// until it is replaced; an agent of an earlier release has none.
async fn nothing_is_lost(guest: &Guest<'_>, place: &Place, look: &Look) -> anyhow::Result<Option<String>> {
    let (path, name) = (&look.path, &place.name);
    // Before the files are looked at: a change after that is found when the folder is replaced.
    let state = match look.kind {
        Kind::Folder if look.prepared && look.states => {
            let answer = remote::ask(&guest.as_root(), &["state", path], remote::MAX_LOOK).await?;
            Some(String::from_utf8(answer).context("the guest's answer is not understood")?)
        }
        Kind::None | Kind::Empty => look.states.then(|| FREE.to_owned()),
        _ => None,
    };
    let lost = match look.kind {
        Kind::None | Kind::Empty => return Ok(state),
        Kind::Other => return Err(refused(format!("{path} is not a folder in the guest"), "")),
        Kind::Folder if !look.prepared => {
            let why = format!("{path} is there already in the guest, and no workspace that was prepared");
            return Err(refused(why, ""));
        }
        Kind::Folder if look.refs_changed => Lost::Commits,
        Kind::Folder => match &place.known {
            Some(known) if known.guest_path == *path => gather::lost(guest, known).await?,
            _ => Lost::Unknown,
        },
    };
    let export = format!("take the changes home first: banger vm workspace export {name}; ");
    let copy = format!("copy what you need first: banger vm cp {name}:{path} FOLDER; ");
    let (why, first) = match lost {
        Lost::Nothing => return Ok(state),
        Lost::Unknown if gather::is_untouched(guest, path).await? => return Ok(state),
        Lost::Commits => ("has commits or branches of the guest", export),
        Lost::Changes => ("was changed in the guest", export),
        Lost::Submodules => ("was changed in the guest, in a submodule, which no export has", copy),
        Lost::CheckedOut => ("has files of the old commit, which were checked out in the guest", String::new()),
        Lost::Unknown => ("has changes in the guest, and of what it was prepared is not known here", copy),
    };
    Err(refused(format!("{path} {why}"), &first))
}

fn refused(why: String, first: &str) -> anyhow::Error {
    explained(why, format!("{first}replace it with: --force; or choose another folder: --guest-path"))
}

/// `.git` first, then the files.
fn write(ready: &Ready, to: &mut dyn Write) -> anyhow::Result<()> {
    let mut packer = Packer::new(to);
    packer.add_tree(b".git", &ready.shop.path("guest/.git"))?;
    for (file, path) in &ready.files {
        // In a tree of git, only whether a file is to be executed counts.
        let found = path.symlink_metadata().with_context(|| format!("cannot read {}", path.display()))?;
        let mode = if found.is_file() { Some(if file.executable { 0o755 } else { 0o644 }) } else { None };
        packer.add(&file.path, path, mode)?;
    }
    packer.finish()?;
    Ok(())
}
