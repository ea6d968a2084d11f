//! The user's repository: where it is, and a picture of its working tree that nothing of it is
//! changed for.

use super::git::Git;
use crate::error::explained;
use anyhow::Context as _;
use nix::unistd::geteuid;
use std::fs::{self, File, FileTimes};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The mode of a submodule's entry (gitformat-index(5)).
const SUBMODULE: &[u8] = b"160000";
/// What the name of a workshop begins with.
const WORKSHOP: &str = "banger-workspace-";
/// A file of a workshop, locked (flock(2)) while the process lives that has made it.
const LOCK: &str = "lock";
/// A workshop without a lock that is older was left behind by whoever was killed while making it.
const LONG_MADE: Duration = Duration::from_secs(24 * 60 * 60);

/// A repository with a working tree.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As it was named, absolute.
    pub(crate) named: PathBuf,
    /// The top of the working tree.
    pub(crate) root: PathBuf,
    pub(crate) git_dir: PathBuf,
    objects: PathBuf,
    /// `sha1` or `sha256`.
    pub(crate) format: String,
    /// `None` before the first commit.
    pub(crate) head: Option<String>,
    /// `None` when HEAD is detached.
    pub(crate) branch: Option<String>,
    /// In its top folder.
    pub(crate) git: Git,
}

/// A file of the working tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tracked {
    pub(crate) path: Vec<u8>,
    /// What is to be executed is 100755 in the index, whatever the file system says.
    pub(crate) executable: bool,
}

/// The working tree as git sees it.
#[derive(Debug)]
pub(crate) struct Picture {
    /// All of it, as a tree.
    pub(crate) tree: String,
    /// What is staged, as a tree; `None` in the middle of a merge.
    pub(crate) staged: Option<String>,
    pub(crate) files: Vec<Tracked>,
    /// Not in the working tree, by a sparse checkout.
    pub(crate) hidden: Vec<Vec<u8>>,
    pub(crate) submodules: Vec<Vec<u8>>,
    /// Untracked folders with a repository of their own: left out.
    pub(crate) foreign: Vec<Vec<u8>>,
}

impl Source {
    /// # Errors
    /// When there is no repository, or none with a working tree, or git does not trust it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let named = std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
        let found = fs::metadata(&named).with_context(|| format!("cannot use {}", named.display()))?;
        anyhow::ensure!(found.is_dir(), "{} is not a folder", named.display());
        super::git::check_version()?;
        let here = Git::within(&named);
        let inside = here.output(&["rev-parse", "--is-inside-work-tree"], b"")?;
        if !inside.status.success() {
            let said = String::from_utf8_lossy(&inside.stderr).trim().to_owned();
            let hint = "name a folder in a working tree of git, or make it one: git init";
            return Err(explained(format!("{}: {said}", named.display()), hint));
        }
        if inside.stdout != b"true\n" {
            let hint = "name a folder that was made by `git clone`, or by `git worktree add`";
            return Err(explained(format!("{} is a repository without a working tree", named.display()), hint));
        }
        let ask = |what: &str| here.text(&["rev-parse", "--path-format=absolute", what]);
        let root = PathBuf::from(ask("--show-toplevel")?);
        let git = Git::within(&root);
        Ok(Self {
            git_dir: ask("--absolute-git-dir")?.into(),
            objects: here.text(&["rev-parse", "--path-format=absolute", "--git-path", "objects"])?.into(),
            format: here.text(&["rev-parse", "--show-object-format"])?,
            head: here.maybe(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])?,
            branch: here.maybe(&["symbolic-ref", "--quiet", "--short", "HEAD"])?,
            named,
            root,
            git,
        })
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> String {
        self.root.file_name().map_or_else(|| "workspace".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// The commit that a word of the user means.
    ///
    /// # Errors
    /// When it means none.
    pub(crate) fn commit(&self, word: &str) -> anyhow::Result<String> {
        let found =
            self.git.maybe(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{word}^{{commit}}")])?;
        found.ok_or_else(|| {
            let message = format!("{word} means no commit of {}", self.root.display());
            explained(message, "see: git branch --all, git log")
        })
    }

    /// # Errors
    /// When git does not answer.
    pub(crate) fn tree_of(&self, commit: &str) -> anyhow::Result<String> {
        self.git.text(&["rev-parse", "--verify", &format!("{commit}^{{tree}}")])
    }

    /// Settings that have a value.
    ///
    /// # Errors
    /// When git cannot be started.
    pub(crate) fn settings(&self, names: &[&'static str]) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mut found = Vec::new();
        for name in names {
            if let Some(value) = self.git.maybe(&["config", "--get", name])? {
                found.push((*name, value));
            }
        }
        Ok(found)
    }
}

/// A private folder with a store for objects, so that the user's repository gets none.
#[derive(Debug)]
pub(crate) struct Workshop {
    pub(crate) folder: TempDir,
    _lock: File,
}

impl Workshop {
    /// # Errors
    /// When there is no room for temporary files.
    pub(crate) fn new(source: &Source) -> anyhow::Result<Self> {
        sweep(&std::env::temp_dir());
        let folder = tempfile::Builder::new().prefix(WORKSHOP).tempdir().context("cannot make a folder")?;
        let lock = File::create(folder.path().join(LOCK)).context("cannot make a folder")?;
        lock.try_lock().context("cannot make a folder")?;
        let info = folder.path().join("objects/info");
        fs::create_dir_all(&info)?;
        fs::create_dir_all(folder.path().join("objects/pack"))?;
        fs::create_dir_all(folder.path().join("tree"))?;
        let objects =
            source.objects.to_str().filter(|path| !path.contains('\n')).context("its path is not supported")?;
        fs::write(info.join("alternates"), format!("{objects}\n"))?;
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Git on the user's repository with new objects going to our store, and an index of ours.
    pub(crate) fn git(&self, source: &Source, index: &str) -> Git {
        source.git.clone().env("GIT_OBJECT_DIRECTORY", self.path("objects")).env("GIT_INDEX_FILE", self.path(index))
    }

    /// The same, with our folder as the working tree: whatever is in there, only the attributes of
    /// `tree`, which are the user's own, say what is done with it.
    pub(crate) fn git_here(&self, source: &Source, index: &str, tree: &str) -> Git {
        let here = Git::within(&self.path("tree"))
            .set("core.sparseCheckout=false")
            .set("core.fileMode=true")
            .set("core.symlinks=true")
            .set("core.bare=false")
            .set("core.protectNTFS=true")
            .set("core.protectHFS=true")
            .option(format!("--attr-source={tree}"));
        here.env("GIT_DIR", &source.git_dir)
            .env("GIT_WORK_TREE", self.path("tree"))
            .env("GIT_OBJECT_DIRECTORY", self.path("objects"))
            .env("GIT_INDEX_FILE", self.path(index))
    }

    /// Takes the picture of the working tree.
    ///
    /// # Errors
    /// What git says: a file that cannot be read, mostly.
    pub(crate) fn picture(&self, source: &Source, untracked: bool) -> anyhow::Result<Picture> {
        self.copy_index(source)?;
        let git = self.git(source, "index");
        // A merge in progress has no tree; what is missing of a partial clone is not needed for its
        // name.
        let staged = git.maybe(&["write-tree", "--missing-ok"])?;
        look_at_all(source, &git)?;
        // Of nothing, git would say that it matches nothing. Beyond the patterns of a sparse
        // checkout, too, there may be files, which it would leave as they are in the index.
        if !git.bytes(&["ls-files", "-z"])?.is_empty() {
            git.bytes(&["add", "--update", "--sparse", "--", "."]).context("cannot read the working tree")?;
        }
        let mut foreign = Vec::new();
        if untracked {
            let listed = git.bytes(&["ls-files", "--others", "--exclude-standard", "-z"])?;
            let (folders, files): (Vec<&[u8]>, Vec<&[u8]>) = entries(&listed).partition(|path| path.ends_with(b"/"));
            foreign = folders.into_iter().map(<[u8]>::to_vec).collect();
            let files: Vec<u8> = files.iter().flat_map(|path| [*path, b"\0"].concat()).collect();
            if !files.is_empty() {
                git.feed(&["update-index", "--add", "-z", "--stdin"], &files).context("cannot read untracked files")?;
            }
        }
        let tree = git.text(&["write-tree", "--missing-ok"])?;
        let mut picture =
            Picture { tree, staged, files: Vec::new(), hidden: Vec::new(), submodules: Vec::new(), foreign };
        for line in entries(&git.bytes(&["ls-files", "-t", "--stage", "-z"])?) {
            let tab =
                line.iter().position(|byte| *byte == b'\t').context("git lists files in a way that is not known")?;
            let (facts, path) = line.split_at(tab);
            let path = path.get(1..).unwrap_or_default().to_vec();
            let mode = facts.get(2..8).unwrap_or_default();
            if mode == SUBMODULE {
                picture.submodules.push(path);
            } else if facts.first() == Some(&b'S') {
                picture.hidden.push(path);
            } else {
                picture.files.push(Tracked { path, executable: mode == b"100755" });
            }
        }
        Ok(picture)
    }

    /// With its time, by which git knows which files it must look at again.
    fn copy_index(&self, source: &Source) -> anyhow::Result<()> {
        let from = source.git.text(&["rev-parse", "--path-format=absolute", "--git-path", "index"])?;
        let to = self.path("index");
        if !Path::new(&from).exists() {
            return Ok(());
        }
        fs::copy(&from, &to).context("cannot copy git's index")?;
        let modified = fs::metadata(&from)?.modified()?;
        File::options().write(true).open(&to)?.set_times(FileTimes::new().set_modified(modified))?;
        // A shared one lies beside it and would be looked for there.
        for entry in fs::read_dir(&source.git_dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("sharedindex.") {
                fs::copy(entry.path(), self.folder.path().join(entry.file_name()))?;
            }
        }
        Ok(())
    }
}

/// Clears the marks by which git does not look at a file: what is sent is what the working tree
/// has. Files that are marked and not there are what a sparse checkout leaves out, and stay marked.
fn look_at_all(source: &Source, git: &Git) -> anyhow::Result<()> {
    let (mut present, mut assumed) = (Vec::new(), Vec::new());
    // A capital is SKIP-WORKTREE, a small letter is "assume unchanged", `s` is both
    // (git-ls-files(1), -v).
    for line in entries(&git.bytes(&["ls-files", "-v", "-z"])?) {
        let (Some(mark), Some(path)) = (line.first(), line.get(2..)) else { continue };
        let name = [path, b"\0"].concat();
        if mark.is_ascii_lowercase() {
            assumed.extend_from_slice(&name);
        }
        let at = source.root.join(Path::new(std::ffi::OsStr::from_bytes(path)));
        if mark.eq_ignore_ascii_case(&b'S') && at.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            present.extend_from_slice(&name);
        }
    }
    for (how, list) in [("--no-assume-unchanged", assumed), ("--no-skip-worktree", present)] {
        if !list.is_empty() {
            git.feed(&["update-index", how, "-z", "--stdin"], &list).context("cannot read the working tree")?;
        }
    }
    Ok(())
}

/// Removes this user's workshops whose processes were killed: nobody else ever would.
fn sweep(around: &Path) {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    for entry in fs::read_dir(around).into_iter().flatten().flatten() {
        let is_one = entry.file_name().as_bytes().starts_with(WORKSHOP.as_bytes());
        let Some(found) = entry.metadata().ok().filter(|_| is_one) else { continue };
        if !found.is_dir() || found.uid() != geteuid().as_raw() {
            continue;
        }
        let is_left = match File::options().read(true).custom_flags(flags).open(entry.path().join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LONG_MADE))
            }
            Err(_) => false,
        };
        if is_left {
            // What cannot be removed stays for the next time.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// What git separates by zero bytes.
pub(crate) fn entries(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == 0).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn what_was_left_behind_is_swept_and_what_is_in_use_is_not() {
        let around = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = around.path().join(name);
            fs::create_dir_all(folder.join("tree")).unwrap();
            folder
        };
        let (left, used, new, old, other) = (
            make("banger-workspace-a"),
            make("banger-workspace-b"),
            make("banger-workspace-c"),
            make("banger-workspace-d"),
            make("other"),
        );
        fs::write(left.join(LOCK), "").unwrap();
        let lock = File::create(used.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LONG_MADE;
        File::open(&old).unwrap().set_modified(long_ago).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), around.path().join("banger-workspace-e")).unwrap();
        sweep(around.path());
        assert!(!left.exists() && !old.exists());
        assert!(used.exists() && new.exists() && other.exists() && elsewhere.path().join(LOCK).exists());
    }
}
