//! Round trips: a repository of some shape goes into a guest, is edited there, and what comes back
//! gives the guest's tree.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod kept;
mod lost;
mod modes;
mod rare;
mod shapes;

use super::prepare::Place;
use super::{DEFAULT_MOST, Export, Wanted, What, export, prepare};
use crate::progress::{Detail, Progress};
use crate::remote::Guest;
use banger_policy::VmId;
use banger_proto::model::{Workspace, WorkspaceMode};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A host's folder with a repository in it, and a guest's home.
struct World {
    host: TempDir,
    home: TempDir,
    known: Option<Workspace>,
}

/// Runs git in a folder, as a user without any configuration.
fn git(folder: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=Alice", "-c", "user.email=alice@example.org"]);
    command.args(["-c", "protocol.file.allow=always"]).args(words).stdin(Stdio::null());
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

/// Without a git that is new enough there is nothing to try.
fn no_git() -> bool {
    let missing = super::git::check_version().err();
    if let Some(error) = &missing {
        eprintln!("skipped: {error}");
    }
    missing.is_some()
}

fn put(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn commit(folder: &Path) {
    git(folder, &["add", "-A"]);
    git(folder, &["commit", "--quiet", "--allow-empty", "-m", "a commit"]);
}

impl World {
    fn new() -> Self {
        Self { host: tempfile::tempdir().unwrap(), home: tempfile::tempdir().unwrap(), known: None }
    }

    /// A repository with a commit of a few files.
    fn with_repository() -> Self {
        let world = Self::new();
        let repo = world.repo();
        fs::create_dir(&repo).unwrap();
        git(&repo, &["init", "--quiet", "-b", "main"]);
        for number in 0..6 {
            put(&repo, &format!("src/file-{number}.txt"), format!("line one of {number}\nline two\nline three\n"));
        }
        put(&repo, "README", "hello\n");
        put(&repo, "run.sh", "#!/bin/sh\n");
        mode(&repo.join("run.sh"), 0o755);
        put(&repo, ".gitignore", "*.o\ntarget/\n");
        commit(&repo);
        world
    }

    fn repo(&self) -> PathBuf {
        self.host.path().join("tool")
    }

    fn theirs(&self) -> PathBuf {
        self.home.path().join("tool")
    }

    fn guest(&self) -> Guest<'static> {
        Guest::Folder(self.home.path().to_owned())
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            path: self.repo(),
            guest_path: Some("~/tool".to_owned()),
            mode: WorkspaceMode::ShallowOverlay,
            branch: None,
            from: None,
            include_untracked: false,
            force: false,
        }
    }

    async fn prepare(&mut self, wanted: Wanted) -> anyhow::Result<Workspace> {
        let vm = VmId::from_bytes([1; 32]).unwrap();
        let place = Place { vm, name: "demo".into(), known: self.known.clone() };
        let (guest, progress) = (self.guest(), Progress::new(Detail::Quiet));
        let prepared = prepare(&guest, &place, wanted, &progress, async |_: &Workspace| Ok(())).await?;
        self.known = Some(prepared.clone());
        Ok(prepared)
    }

    async fn export(&self, what: What) -> anyhow::Result<Vec<String>> {
        let asked = Export { what, from: None, most: DEFAULT_MOST };
        export(&self.guest(), self.known.as_ref().unwrap(), asked).await
    }

    /// The patch of what was changed.
    async fn patch(&self) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let file = self.host.path().join("patch");
        let notes = self.export(What::Patch(Some(file.clone()))).await?;
        Ok((file, notes))
    }

    /// Applies the patch to what was prepared, and compares with what the guest has.
    async fn comes_back(&self, name: &str) {
        let (patch, _) = self.patch().await.unwrap();
        let known = self.known.clone().unwrap();
        let copy = self.host.path().join("copy");
        run("cp", &["-a", self.repo().to_str().unwrap(), copy.to_str().unwrap()]);
        if known.base_commit != known.head_commit {
            git(&copy, &["checkout", "--quiet", "--force", "--detach", known.base_commit.as_deref().unwrap()]);
        }
        if !known.include_untracked {
            git(&copy, &["clean", "-ffdxq"]);
        }
        if patch.metadata().unwrap().len() > 0 {
            // As three-way, so that filters have their say; and to the working tree alone.
            git(&copy, &["apply", "--whitespace=nowarn", patch.to_str().unwrap()]);
        }
        let plain = |from: &Path, name: &str| {
            let to = self.host.path().join(name);
            run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
            drop(fs::remove_dir_all(to.join(".git")));
            drop(fs::remove_file(to.join(".git")));
            // Of a submodule, the files alone are sent.
            drop(fs::remove_file(to.join("zz-lib/.git")));
            to
        };
        let (ours, theirs) = (plain(&copy, "ours"), plain(&self.theirs(), "theirs"));
        let mut compare = Command::new("git");
        compare.args(["diff", "--no-index", "--no-renames"]).args([&ours, &theirs]).current_dir("/");
        let compared = compare.output().unwrap();
        let text = String::from_utf8_lossy(&compared.stdout);
        assert!(compared.status.success(), "{name}: {text}\n{}", fs::read_to_string(&patch).unwrap_or_default());
        for made in [copy, ours, theirs] {
            fs::remove_dir_all(made).unwrap();
        }
    }
}

fn run(program: &str, words: &[&str]) {
    assert!(Command::new(program).args(words).status().unwrap().success(), "{program} {words:?}");
}

/// What a day in a repository does to its files.
fn edit(folder: &Path) {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                // What is changed in a submodule stays there.
                if entry.file_name() != ".git" && entry.file_name() != "zz-lib" {
                    folders.push(entry.path());
                }
            } else if kind.is_file() && entry.file_name() != ".gitattributes" && entry.file_name() != ".gitignore" {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    if let [first, second, third, ..] = files.as_slice() {
        let mut text = fs::read(first).unwrap();
        text.extend_from_slice(if text.ends_with(b"\r\n") { b"one more line\r\n" } else { b"one more line\n" });
        fs::write(first, text).unwrap();
        fs::remove_file(second).unwrap();
        fs::rename(third, folder.join("renamed file")).unwrap();
    }
    if let Some(last) = files.get(3..).and_then(<[PathBuf]>::last) {
        mode(last, 0o755);
    }
    put(folder, "new/added", "text\n");
    put(folder, "new/binary", [0, 1, 2, 0, 255, 10, 13].repeat(100));
    put(folder, "new/empty", "");
    put(folder, "new/odd \"name\"\té", "odd\n");
    std::os::unix::fs::symlink("added", folder.join("new/link")).unwrap();
}
