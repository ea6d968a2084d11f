//! The guest's `.git`, made on the host by the user's git: one pack, the references, an index, a
//! configuration.

use super::gather::TREE;
use super::git::{Git, pipe};
use super::identity;
use super::prepare::Wanted;
use super::source::{Picture, Source, Workshop, entries};
use anyhow::Context as _;
use banger_files::{RECORDS, UNSENT};
use banger_proto::model::WorkspaceMode;
use std::fs;
use std::path::Path;

/// `guest/.git` in the workshop.
pub(super) fn make_repository(
    source: &Source,
    shop: &Workshop,
    wanted: &Wanted,
    base: Option<&str>,
    branch: Option<&str>,
    picture: &Picture,
    staged: &str,
) -> anyhow::Result<()> {
    let folder = shop.path("guest");
    let place = folder.to_str().context("the folder's path is not UTF-8")?;
    Git::within(shop.folder.path()).bytes(&[
        "init",
        "--quiet",
        "--template=",
        &format!("--object-format={}", source.format),
        place,
    ])?;
    let git_dir = folder.join(".git");
    let full = wanted.mode == WorkspaceMode::FullCopy;
    let git = shop.git(source, "none");
    pack(&git, &git_dir, full, base, [&picture.tree, staged])?;
    let mut refs = String::new();
    if full {
        let format = "--format=%(objectname) %(refname)";
        for line in git.text(&["for-each-ref", format, "refs/heads", "refs/tags", "refs/remotes"])?.lines() {
            let replaced = branch.is_some_and(|name| line.ends_with(&format!(" refs/heads/{name}")));
            if !replaced {
                refs += &format!("{line}\n");
            }
        }
        let shallow = source.git.text(&["rev-parse", "--path-format=absolute", "--git-path", "shallow"])?;
        if let Ok(text) = fs::read(shallow) {
            fs::write(git_dir.join("shallow"), text)?;
        }
    } else if let Some(base) = base {
        fs::write(git_dir.join("shallow"), format!("{base}\n"))?;
    }
    if let (Some(name), Some(base)) = (branch, base) {
        refs += &format!("{base} refs/heads/{name}\n");
    }
    let mut lines: Vec<&str> = refs.lines().collect();
    lines.sort_unstable_by_key(|line| line.split_once(' ').map(|(_, name)| name.to_owned()));
    fs::write(git_dir.join("packed-refs"), lines.join("\n") + if lines.is_empty() { "" } else { "\n" })?;
    let head = match (branch, base) {
        (Some(name), _) => format!("ref: refs/heads/{name}\n"),
        (None, Some(base)) => format!("{base}\n"),
        (None, None) => "ref: refs/heads/main\n".to_owned(),
    };
    fs::write(git_dir.join("HEAD"), head)?;
    configure(source, &git, &git_dir)?;
    let index = git_dir.join("index");
    let git = shop.git(source, "none").set("core.sparseCheckout=false").set("index.sparse=false");
    let git = git.env("GIT_INDEX_FILE", &index);
    git.bytes(&["read-tree", staged])?;
    if !picture.hidden.is_empty() {
        let known: Vec<Vec<u8>> = entries(&git.bytes(&["ls-files", "-z"])?).map(<[u8]>::to_vec).collect();
        let known: std::collections::BTreeSet<_> = known.iter().map(Vec::as_slice).collect();
        let hidden = picture.hidden.iter().filter(|path| known.contains(path.as_slice()));
        let hidden: Vec<u8> = hidden.flat_map(|path| [path.as_slice(), b"\0"].concat()).collect();
        git.feed(&["update-index", "--skip-worktree", "-z", "--stdin"], &hidden)?;
    }
    // What the working tree had beyond its commit, for exports: a `git gc` in the guest does not
    // see it.
    let records = folder.join(RECORDS);
    fs::create_dir_all(&records)?;
    let list = format!("{}\n{}", picture.tree, base.map(|base| format!("^{base}\n")).unwrap_or_default());
    let pack = git.feed(&["pack-objects", "--revs", "--stdout", "--quiet", "--window=0"], list.as_bytes())?;
    fs::write(records.join("base.pack"), pack)?;
    // Which prepare the folder is of, and what was checked out from it and is no work of the
    // guest's.
    fs::write(records.join(TREE), format!("{}\n", picture.tree))?;
    if wanted.mode == WorkspaceMode::MetadataOnly {
        fs::write(records.join(UNSENT), git.bytes(&["ls-tree", "-r", "-z", "--name-only", &picture.tree])?)?;
    }
    Ok(())
}

/// All objects that the guest gets, in one pack. Nothing is compressed anew that need not be.
fn pack(git: &Git, git_dir: &Path, full: bool, base: Option<&str>, trees: [&str; 2]) -> anyhow::Result<()> {
    let mut list = vec!["rev-list", "--objects", "--no-object-names"];
    if full {
        list.extend(["--branches", "--tags", "--remotes"]);
    } else {
        list.push("--no-walk=unsorted");
    }
    list.extend(base);
    list.extend(trees);
    let to = git_dir.join("objects/pack/pack");
    let mut packer = git.clone().set("pack.compression=1").command(&["pack-objects", "--quiet", "--window=0"]);
    packer.arg(to);
    pipe((git, git.command(&list)), (git, packer)).context("cannot pack the repository")?;
    Ok(())
}

/// What the guest's git must know to see the files as the host's does, and who commits there.
fn configure(source: &Source, git: &Git, git_dir: &Path) -> anyhow::Result<()> {
    let file = git_dir.join("config");
    let file = file.to_str().context("the folder's path is not UTF-8")?;
    let mut settings = identity::of(&source.git)?;
    settings.extend(source.settings(&[
        "core.autocrlf",
        "core.eol",
        "core.sparseCheckout",
        "core.sparseCheckoutCone",
    ])?);
    for (name, value) in settings {
        git.bytes(&["config", "--file", file, name, &value])?;
    }
    let patterns = source.git.text(&["rev-parse", "--path-format=absolute", "--git-path", "info/sparse-checkout"])?;
    let exclude = source.git.text(&["rev-parse", "--path-format=absolute", "--git-path", "info/exclude"])?;
    fs::create_dir_all(git_dir.join("info"))?;
    for (from, name) in [(patterns, "info/sparse-checkout"), (exclude, "info/exclude")] {
        if let Ok(text) = fs::read(from) {
            fs::write(git_dir.join(name), text)?;
        }
    }
    Ok(())
}
