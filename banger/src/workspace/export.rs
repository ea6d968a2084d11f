//! From a guest's files to a patch, a list of what changed, or a branch of the host's repository.

use super::gather::{Gathered, gather, names};
use super::git::{Git, pipe};
use super::identity;
use super::listed::{Notes, is_within};
use super::short;
use super::source::{Source, entries};
use super::theirs::{Theirs, commits};
use crate::error::explained;
use crate::output::Streams;
use crate::remote::Guest;
use crate::work;
use anyhow::Context as _;
use banger_proto::model::Workspace;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;

/// What is to be made.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// To standard output, or to a file.
    Patch(Option<PathBuf>),
    /// How many lines of which files.
    Stat,
    Branch {
        name: String,
        /// Though it exists and has other commits.
        force: bool,
    },
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) what: What,
    /// Against this commit of the host's repository, instead of what was prepared.
    pub(crate) from: Option<String>,
    /// Bytes that the guest may send.
    pub(crate) most: u64,
}

/// Makes it; gives what to tell the user.
///
/// # Errors
/// As [`gather`]; a branch that exists; a file that cannot be written.
pub(crate) async fn export(guest: &Guest<'_>, workspace: &Workspace, asked: Export) -> anyhow::Result<Vec<String>> {
    let gathered = gather(guest, workspace, asked.most).await?;
    let mut notes = gathered.notes.clone();
    if let What::Branch { name, force } = &asked.what {
        return branch(guest, workspace, gathered, (name, *force), asked.most).await;
    }
    let (source, from, prepared) = (gathered.source.clone(), asked.from.clone(), workspace.base_tree.clone());
    let (git, tree) = (gathered.shop.git(&gathered.source, "none"), gathered.tree.clone());
    let looking = work::begin(move || {
        let base = match from {
            Some(word) => source.tree_of(&source.commit(&word)?)?,
            None => prepared,
        };
        leading_out(&git, &base, &tree, &mut notes)?;
        anyhow::Ok((base, notes))
    });
    let (base, notes) = looking.await??;
    let mut notes = notes.into_texts();
    if base == gathered.tree {
        notes.push("nothing was changed".to_owned());
    }
    let git = gathered.shop.git_here(&gathered.source, "new", &workspace.base_tree);
    let git = ["diff.noprefix=false", "diff.mnemonicPrefix=false", "diff.external=", "core.quotePath=true"]
        .into_iter()
        .fold(git, Git::set);
    let mut words = vec!["diff-tree", "-r", "--no-ext-diff", "--no-textconv", "--find-renames", "--no-color"];
    match &asked.what {
        What::Stat => words.extend(["--stat", "--summary"]),
        _ => words.extend(["--patch", "--binary", "--full-index", "--src-prefix=a/", "--dst-prefix=b/"]),
    }
    words.extend([base.as_str(), gathered.tree.as_str()]);
    let command = git.command(&words);
    if let What::Patch(Some(path)) = asked.what {
        work::begin(move || to_file(&git, command, &path)).await??;
    } else {
        to_output(command).await?;
    }
    Ok(notes)
}

/// Complete, or not at all. What is no file keeps its name: a device, a pipe, a link to a file.
fn to_file(git: &Git, mut command: std::process::Command, path: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let hint = "write to it without -o: banger vm workspace export VM > PATH";
        return Err(explained("it is not a file", hint)).with_context(what);
    }
    let is_link = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    let path = &if is_link { path.canonicalize().with_context(what)? } else { path.to_owned() };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut aside = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .with_context(what)?;
    let ended = git.ended(command.stdout(aside.as_file().try_clone()?))?;
    anyhow::ensure!(ended.status.success(), "git diff-tree: {}", String::from_utf8_lossy(&ended.stderr).trim());
    aside.flush().with_context(what)?;
    aside.persist(path).map_err(|error| error.error).with_context(what)?;
    Ok(())
}

async fn to_output(command: std::process::Command) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::from(command);
    let mut child = command.stderr(Stdio::inherit()).kill_on_drop(true).spawn().map_err(super::git::not_started)?;
    let mut from = child.stdout.take().context("a pipe is missing")?;
    // A guest's text: clean on a terminal, byte for byte in a file.
    let mut streams = Streams::text();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        streams.output(buffer.get(..read).unwrap_or_default()).await?;
    }
    let ended = child.wait().await?;
    anyhow::ensure!(ended.success(), "git diff-tree ended with {ended}");
    Ok(())
}

/// Links whose targets are asked for at once: a target is no longer than a path.
const LINKS: usize = 1000;

/// Links of the guest's that lead out of the repository: whoever applies the patch should know.
fn leading_out(git: &Git, base: &str, tree: &str, notes: &mut Notes) -> anyhow::Result<()> {
    let listed = git.bytes(&["diff-tree", "-r", "-z", "--diff-filter=AMT", base, tree])?;
    let mut links = Vec::new();
    let mut fields = entries(&listed);
    while let (Some(facts), Some(path)) = (fields.next(), fields.next()) {
        let facts: Vec<&[u8]> = facts.split(|byte| *byte == b' ').collect();
        let (Some(mode), Some(blob)) = (facts.get(1), facts.get(3)) else { continue };
        if *mode == b"120000" {
            links.push((path, *blob));
        }
    }
    for links in links.chunks(LINKS) {
        let names: Vec<u8> = links.iter().flat_map(|(_, blob)| [*blob, b"\n"].concat()).collect();
        let answer = git.feed(&["cat-file", "--batch"], &names)?;
        let mut rest = answer.as_slice();
        for (path, _) in links {
            let target = blob(&mut rest).context("git says nothing of a link")?;
            let (path, target) = (String::from_utf8_lossy(path), String::from_utf8_lossy(target));
            if let Some(leads) = leads_outside(&path, &target) {
                notes.push(|| format!("{path} is a link that {leads} out of the repository, to {target}"));
            }
        }
    }
    Ok(())
}

/// The next object of `cat-file --batch`: `NAME blob SIZE`, and so many bytes on the next line.
fn blob<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(rest.get(..end)?).ok()?;
    let size = head.rsplit(' ').next()?.parse().ok()?;
    let (bytes, after) = rest.get(end.checked_add(1)?..)?.split_at_checked(size)?;
    *rest = after.strip_prefix(b"\n")?;
    Some(bytes)
}

/// Whether a link at that path leads out of the folder. Behind a name, `..` may: the name may be
/// another link, from which the kernel goes up.
fn leads_outside(path: &str, target: &str) -> Option<&'static str> {
    let (mut depth, mut named, mut may) = (path.matches('/').count(), false, false);
    if target.starts_with('/') {
        return Some("leads");
    }
    for part in target.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            may |= named;
            let Some(above) = depth.checked_sub(1) else { return Some("leads") };
            depth = above;
        } else {
            named = true;
            depth += 1;
        }
    }
    may.then_some("may lead")
}

/// The guest's commits, and one of what it has not committed, as a branch.
async fn branch(
    guest: &Guest<'_>,
    workspace: &Workspace,
    gathered: Gathered,
    (name, force): (&str, bool),
    most: u64,
) -> anyhow::Result<Vec<String>> {
    let (source, wanted) = (gathered.source.clone(), name.to_owned());
    let old = work::begin(move || before(&source, &wanted)).await??;
    let (theirs, left) = match commits(guest, workspace, &gathered, most).await? {
        Theirs::None => (None, None),
        Theirs::At(head) => (Some(head), None),
        Theirs::Left(why) => (None, Some(why)),
    };
    let (workspace, wanted, shop) = (workspace.clone(), name.to_owned(), Arc::clone(&gathered.shop));
    let making = work::begin(move || {
        let tip = make(&workspace, &gathered, &wanted, force, old, theirs)?;
        let (git, mut notes) = (gathered.shop.git(&gathered.source, "none"), gathered.notes.clone());
        leading_out(&git, &workspace.base_tree, &tip, &mut notes)?;
        anyhow::Ok((tip, notes.into_texts()))
    });
    let (tip, notes) = making.await??;
    drop(shop);
    Ok(notes.into_iter().chain(left).chain([format!("branch {name} is at {}", short(&tip))]).collect())
}

/// What a branch is before the export; `None` when there is none.
fn before(source: &Source, name: &str) -> anyhow::Result<Option<String>> {
    let known = source.git.maybe(&["check-ref-format", "--branch", name])?;
    anyhow::ensure!(known.as_deref() == Some(name), "{name:?} cannot be the name of a branch");
    let full = format!("refs/heads/{name}");
    let old = source.git.maybe(&["rev-parse", "--verify", "--quiet", &full])?;
    let busy = source.git.text(&["worktree", "list", "--porcelain"])?;
    if busy.lines().any(|line| line == format!("branch {full}")) {
        let hint = "name another branch, and merge that";
        return Err(explained(format!("{name} is checked out on the host"), hint));
    }
    Ok(old)
}

/// Makes the commits that are missing, and has the branch show the last one.
fn make(
    workspace: &Workspace,
    gathered: &Gathered,
    name: &str,
    force: bool,
    old: Option<String>,
    theirs: Option<String>,
) -> anyhow::Result<String> {
    let source = &gathered.source;
    let git = gathered.shop.git(source, "none").for_guests();
    let git = committing(source, git)?;
    let (on_base, last) = (theirs.is_none(), last_tree(workspace, gathered, theirs.as_deref())?);
    let mut tip = theirs.or_else(|| workspace.base_commit.clone());
    // What was not committed on the host when it was prepared is no work of the guest's.
    if on_base && last != workspace.base_tree {
        let message = "Changes of the working tree when the workspace was prepared";
        tip = on_top(&git, tip, &workspace.base_tree, message)?;
    }
    tip = on_top(&git, tip, &last, &format!("Work in {} of a VM", workspace.guest_path))?;
    let tip = tip.context("there is nothing to make a branch of")?;
    if let Some(old) = &old {
        let forward = git.output(&["merge-base", "--is-ancestor", old, &tip], b"")?.status.success();
        if !forward && !force {
            let hint = "name another branch, or replace it with: --force";
            return Err(explained(format!("{name} exists and has other commits"), hint));
        }
    }
    let mut list = format!("{tip}\n");
    for known in [workspace.base_commit.as_ref(), old.as_ref()].into_iter().flatten() {
        if source.git.maybe(&["cat-file", "-e", known])?.is_some() {
            list += &format!("^{known}\n");
        }
    }
    let file = gathered.shop.path("revisions");
    std::fs::write(&file, list)?;
    let mut packer = git.command(&["pack-objects", "--revs", "--stdout", "--quiet", "--thin"]);
    packer.stdin(std::fs::File::open(&file)?);
    // Into the user's repository, each object checked as those of a stranger.
    let here = source.git.clone().for_guests();
    let indexer = here.command(&["index-pack", "--strict", "--fix-thin", "--stdin"]);
    pipe((&git, packer), (&here, indexer)).context("git refuses the guest's commits")?;
    let zero = "0".repeat(tip.len());
    let full = format!("refs/heads/{name}");
    source.git.bytes(&[
        "update-ref",
        "-m",
        "banger: workspace export",
        &full,
        &tip,
        old.as_deref().unwrap_or(&zero),
    ])?;
    Ok(tip)
}

/// The guest's tree as its own git would commit it. That differs from the tree of its files, which
/// is told by what was prepared: a commit may have taken a file out of version control that is
/// still there, and repositories of their own are in commits by their names alone.
fn last_tree(workspace: &Workspace, gathered: &Gathered, head: Option<&str>) -> anyhow::Result<String> {
    let git = gathered.shop.git(&gathered.source, "last").for_guests();
    let (mut gone, mut kept) = (gathered.untracked.clone(), Vec::new());
    if let Some(head) = head {
        if let Some(base) = &workspace.base_commit {
            let theirs = names(&git, head)?;
            let changed =
                ["diff-tree", "-r", "-z", "--name-only", "--no-renames", &workspace.base_tree, &gathered.tree];
            let changed = git.bytes(&changed)?;
            let changed: BTreeSet<&[u8]> = entries(&changed).collect();
            let removed = names(&git, base)?.into_iter().filter(|path| !theirs.contains(path));
            // One that was brought back and not committed yet is in the guest's index.
            let stays = |path: &Vec<u8>| changed.contains(path.as_slice()) || gathered.tracked.contains(path);
            gone.extend(removed.filter(|path| !stays(path)));
        }
        for line in entries(&git.bytes(&["ls-tree", "-r", "-z", "--full-tree", head])?) {
            let path =
                line.iter().position(|byte| *byte == b'\t').and_then(|tab| line.get(tab + 1..)).unwrap_or_default();
            if gathered.repositories.contains(path) || is_within(path, &gathered.repositories) {
                kept.extend_from_slice(&[line, b"\0"].concat());
            }
        }
    }
    let gone: Vec<u8> = gone.iter().flat_map(|path| [path.as_slice(), b"\0"].concat()).collect();
    if gone.is_empty() && kept.is_empty() {
        return Ok(gathered.tree.clone());
    }
    git.bytes(&["read-tree", &gathered.tree])?;
    if !gone.is_empty() {
        git.feed(&["update-index", "--force-remove", "-z", "--stdin"], &gone)?;
    }
    if !kept.is_empty() {
        git.feed(&["update-index", "-z", "--index-info"], &kept)?;
    }
    git.text(&["write-tree"])
}

/// A commit of that tree on `tip`, unless `tip` has that tree.
fn on_top(git: &Git, tip: Option<String>, tree: &str, message: &str) -> anyhow::Result<Option<String>> {
    let mut words = vec!["commit-tree", tree, "-m", message];
    if let Some(tip) = &tip {
        if git.text(&["rev-parse", "--verify", &format!("{tip}^{{tree}}")])? == tree {
            return Ok(Some(tip.clone()));
        }
        words.extend(["-p", tip]);
    }
    git.text(&words).map(Some)
}

/// Who commits: the user, or this program when git does not know the user.
fn committing(source: &Source, git: Git) -> anyhow::Result<Git> {
    let known = identity::of(&source.git)?;
    let value = |wanted: &str, other: &str| {
        let found = known.iter().find(|(name, _)| *name == wanted);
        found.map_or_else(|| other.to_owned(), |(_, value)| value.clone())
    };
    let (name, email) = (value("user.name", &crate::client::user_name()), value("user.email", "banger@localhost"));
    Ok(git
        .env("GIT_AUTHOR_NAME", &name)
        .env("GIT_COMMITTER_NAME", &name)
        .env("GIT_AUTHOR_EMAIL", &email)
        .env("GIT_COMMITTER_EMAIL", &email))
}
