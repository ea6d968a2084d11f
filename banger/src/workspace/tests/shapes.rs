//! More than thirty shapes of repositories.

use super::*;

/// What is done to the repository before it is prepared, and how it is.
pub(super) type Shape = (&'static str, fn(&World), fn(&mut Wanted));

pub(super) fn as_it_is(_: &mut Wanted) {}

pub(super) fn untracked(wanted: &mut Wanted) {
    wanted.include_untracked = true;
}

fn full(wanted: &mut Wanted) {
    wanted.mode = WorkspaceMode::FullCopy;
}

fn shallow(w: &World) {
    commit(&w.repo());
    let main = w.host.path().join("main");
    fs::rename(w.repo(), &main).unwrap();
    let from = format!("file://{}", main.display());
    git(w.host.path(), &["clone", "--quiet", "--depth", "1", &from, "tool"]);
}

fn shapes() -> Vec<Shape> {
    vec![
        ("clean", |_| {}, as_it_is),
        ("modified", |w| put(&w.repo(), "README", "another\n"), as_it_is),
        (
            "staged",
            |w| {
                put(&w.repo(), "README", "another\n");
                git(&w.repo(), &["add", "README"]);
            },
            as_it_is,
        ),
        (
            "staged and modified again",
            |w| {
                put(&w.repo(), "README", "staged\n");
                git(&w.repo(), &["add", "README"]);
                put(&w.repo(), "README", "modified\n");
            },
            as_it_is,
        ),
        (
            "renamed",
            |w| {
                git(&w.repo(), &["mv", "README", "LIESMICH"]);
            },
            as_it_is,
        ),
        ("renamed by hand", |w| fs::rename(w.repo().join("README"), w.repo().join("LIESMICH")).unwrap(), as_it_is),
        ("deleted", |w| fs::remove_file(w.repo().join("src/file-2.txt")).unwrap(), as_it_is),
        (
            "deleted and staged",
            |w| {
                git(&w.repo(), &["rm", "--quiet", "src/file-2.txt"]);
            },
            as_it_is,
        ),
        (
            "added",
            |w| {
                put(&w.repo(), "new.c", "int x;\n");
                git(&w.repo(), &["add", "new.c"]);
            },
            as_it_is,
        ),
        (
            "intended to be added",
            |w| {
                put(&w.repo(), "new.c", "int x;\n");
                git(&w.repo(), &["add", "-N", "new.c"]);
            },
            as_it_is,
        ),
        ("untracked, left out", |w| put(&w.repo(), "notes", "mine\n"), as_it_is),
        (
            "untracked, sent",
            |w| {
                put(&w.repo(), "notes", "mine\n");
                put(&w.repo(), "x.o", "ignored");
                fs::remove_file(w.repo().join("x.o")).unwrap();
            },
            untracked,
        ),
        (
            "binary",
            |w| {
                put(&w.repo(), "bin", (0..=255).collect::<Vec<u8>>().repeat(50));
                commit(&w.repo());
            },
            as_it_is,
        ),
        ("executable bit", |w| mode(&w.repo().join("README"), 0o755), as_it_is),
        (
            "executable bit that git ignores",
            |w| {
                git(&w.repo(), &["config", "core.fileMode", "false"]);
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "links",
            |w| {
                for (name, target) in
                    [("link", "README"), ("dangling", "nothing"), ("absolute", "/etc/hostname"), ("folder", "src")]
                {
                    std::os::unix::fs::symlink(target, w.repo().join(name)).unwrap();
                }
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "a link where a file was",
            |w| {
                fs::remove_file(w.repo().join("README")).unwrap();
                std::os::unix::fs::symlink("run.sh", w.repo().join("README")).unwrap();
            },
            as_it_is,
        ),
        (
            "a folder where a file was",
            |w| {
                fs::remove_file(w.repo().join("README")).unwrap();
                put(&w.repo(), "README/inside", "x\n");
                git(&w.repo(), &["add", "-A"]);
            },
            as_it_is,
        ),
        (
            "odd names",
            |w| {
                for name in [
                    "with space",
                    "with\ttab",
                    "with\nnewline",
                    "\"quoted\"",
                    "-dash",
                    "ünï",
                    "back\\slash",
                    ":colon",
                    "*star?",
                    "#hash",
                ] {
                    put(&w.repo(), name, format!("{name:?}\n"));
                }
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "names that are not UTF-8",
            |w| {
                use std::os::unix::ffi::OsStrExt as _;
                fs::write(w.repo().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "latin\n").unwrap();
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "long names",
            |w| {
                put(&w.repo(), &format!("{}/{}/{}", "a".repeat(120), "b".repeat(120), "c".repeat(200)), "deep\n");
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "lines end with CRLF",
            |w| {
                put(&w.repo(), "dos.txt", "one\r\ntwo\r\n");
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "lines end with CRLF here only",
            |w| {
                put(&w.repo(), ".gitattributes", "*.txt text eol=crlf\n");
                commit(&w.repo());
                fs::remove_dir_all(w.repo().join("src")).unwrap();
                git(&w.repo(), &["checkout", "--quiet", "--", "."]);
                assert!(fs::read(w.repo().join("src/file-0.txt")).unwrap().ends_with(b"\r\n"));
            },
            as_it_is,
        ),
        (
            "text=auto",
            |w| {
                put(&w.repo(), ".gitattributes", "* text=auto\n");
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "a filter",
            |w| {
                git(&w.repo(), &["config", "filter.upper.clean", "tr a-z A-Z"]);
                git(&w.repo(), &["config", "filter.upper.smudge", "tr A-Z a-z"]);
                put(&w.repo(), ".gitattributes", "*.txt filter=upper\n");
                commit(&w.repo());
                assert!(git(&w.repo(), &["show", "HEAD:src/file-0.txt"]).starts_with("LINE"));
            },
            as_it_is,
        ),
        (
            "pointers of LFS",
            |w| {
                put(&w.repo(), ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
                put(&w.repo(), "big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n");
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "a worktree",
            |w| {
                let main = w.host.path().join("main");
                fs::rename(w.repo(), &main).unwrap();
                git(&main, &["worktree", "add", "--quiet", "-b", "side", w.repo().to_str().unwrap()]);
                put(&w.repo(), "README", "in the worktree\n");
            },
            as_it_is,
        ),
        (
            "sparse",
            |w| {
                put(&w.repo(), "docs/page", "text\n");
                commit(&w.repo());
                git(&w.repo(), &["sparse-checkout", "set", "src"]);
                assert!(!w.repo().join("docs").exists());
            },
            as_it_is,
        ),
        ("shallow", shallow, as_it_is),
        ("shallow, whole", shallow, full),
        (
            "a clone with alternates",
            |w| {
                let main = w.host.path().join("main");
                fs::rename(w.repo(), &main).unwrap();
                git(w.host.path(), &["clone", "--quiet", "--shared", main.to_str().unwrap(), "tool"]);
            },
            as_it_is,
        ),
        (
            "no commit yet",
            |w| {
                fs::remove_dir_all(w.repo().join(".git")).unwrap();
                git(&w.repo(), &["init", "--quiet", "-b", "main"]);
                git(&w.repo(), &["add", "README", "src"]);
            },
            as_it_is,
        ),
        (
            "nothing at all",
            |w| {
                fs::remove_dir_all(w.repo()).unwrap();
                fs::create_dir(w.repo()).unwrap();
                git(&w.repo(), &["init", "--quiet"]);
            },
            as_it_is,
        ),
        (
            "a detached HEAD",
            |w| {
                git(&w.repo(), &["checkout", "--quiet", "--detach"]);
            },
            as_it_is,
        ),
        (
            "a merge with conflicts",
            |w| {
                git(&w.repo(), &["checkout", "--quiet", "-b", "side"]);
                put(&w.repo(), "README", "side\n");
                commit(&w.repo());
                git(&w.repo(), &["checkout", "--quiet", "main"]);
                put(&w.repo(), "README", "main\n");
                commit(&w.repo());
                let merged =
                    Command::new("git").arg("-C").arg(w.repo()).args(["merge", "--quiet", "side"]).output().unwrap();
                assert!(!merged.status.success());
            },
            as_it_is,
        ),
        (
            "all of its history",
            |w| {
                commit(&w.repo());
                git(&w.repo(), &["tag", "v1"]);
                git(&w.repo(), &["branch", "side"]);
            },
            full,
        ),
        (
            "submodules, whole",
            |w| {
                let other = w.host.path().join("other");
                fs::create_dir(&other).unwrap();
                git(&other, &["init", "--quiet"]);
                put(&other, "inside", "x\n");
                commit(&other);
                git(&w.repo(), &["submodule", "--quiet", "add", other.to_str().unwrap(), "zz-lib"]);
                commit(&w.repo());
            },
            full,
        ),
        (
            "another branch",
            |w| {
                git(&w.repo(), &["checkout", "--quiet", "-b", "side"]);
                put(&w.repo(), "only-here", "side\n");
                commit(&w.repo());
                git(&w.repo(), &["checkout", "--quiet", "main"]);
            },
            |wanted| wanted.from = Some("side".into()),
        ),
        (
            "SHA-256",
            |w| {
                fs::remove_dir_all(w.repo().join(".git")).unwrap();
                git(&w.repo(), &["init", "--quiet", "--object-format=sha256"]);
                commit(&w.repo());
            },
            as_it_is,
        ),
        (
            "an index that is split",
            |w| {
                git(&w.repo(), &["update-index", "--split-index"]);
                put(&w.repo(), "README", "another\n");
            },
            as_it_is,
        ),
        ("a folder of it is named", |_| {}, |wanted| wanted.path = wanted.path.join("src")),
    ]
}

/// A quarter of them, so that they go side by side.
async fn go_and_come_back(quarter: usize) {
    let shapes: Vec<Shape> = shapes().into_iter().chain(rare::shapes()).collect();
    assert!(shapes.len() >= 30, "{}", shapes.len());
    for (name, build, how) in shapes.into_iter().skip(quarter).step_by(4) {
        let mut world = World::with_repository();
        build(&world);
        let before = fs::read(world.repo().join(".git/index")).ok();
        let mut wanted = world.wanted();
        how(&mut wanted);
        let prepared = world.prepare(wanted).await.map_err(|error| format!("{name}: {error:#}")).unwrap();
        world.comes_back(&format!("{name}, not edited")).await;
        assert_eq!(fs::metadata(world.host.path().join("patch")).unwrap().len(), 0, "{name}: a change that is none");
        // The guest's own git understands what it got.
        git(&world.theirs(), &["fsck", "--no-dangling"]);
        git(&world.theirs(), &["status"]);
        assert_eq!(prepared.head_commit.is_some(), prepared.base_commit.is_some(), "{name}");
        edit(&world.theirs());
        world.comes_back(name).await;
        assert_eq!(fs::read(world.repo().join(".git/index")).ok(), before, "{name}: the host's index was changed");
    }
}

#[tokio::test]
async fn every_shape_goes_and_comes_back() {
    if no_git() {
        return;
    }
    go_and_come_back(0).await;
}

#[tokio::test]
async fn every_shape_goes_and_comes_back_second_quarter() {
    if no_git() {
        return;
    }
    go_and_come_back(1).await;
}

#[tokio::test]
async fn every_shape_goes_and_comes_back_third_quarter() {
    if no_git() {
        return;
    }
    go_and_come_back(2).await;
}

#[tokio::test]
async fn every_shape_goes_and_comes_back_last_quarter() {
    if no_git() {
        return;
    }
    go_and_come_back(3).await;
}
