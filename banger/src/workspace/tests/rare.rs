//! Shapes of repositories that are rare, and are prepared and exported like those of `shapes`.

use super::shapes::{Shape, as_it_is, untracked};
use super::*;

pub(super) fn shapes() -> Vec<Shape> {
    vec![
        (
            "tracked, and ignored",
            |w| {
                put(&w.repo(), ".gitignore", "*.log\n");
                put(&w.repo(), "kept.log", "one\n");
                git(&w.repo(), &["add", "--force", ".gitignore", "kept.log"]);
                git(&w.repo(), &["commit", "--quiet", "-m", "ignored"]);
                put(&w.repo(), "kept.log", "two\n");
            },
            as_it_is,
        ),
        (
            "not looked at, and changed",
            |w| {
                git(&w.repo(), &["update-index", "--skip-worktree", "README"]);
                git(&w.repo(), &["update-index", "--assume-unchanged", "src/file-5.txt", "src/file-4.txt"]);
                put(&w.repo(), "README", "local\n");
                put(&w.repo(), "src/file-5.txt", "local\n");
                fs::remove_file(w.repo().join("src/file-4.txt")).unwrap();
            },
            as_it_is,
        ),
        (
            "changed beyond the patterns of a sparse checkout",
            |w| {
                put(&w.repo(), "docs/page", "text\n");
                put(&w.repo(), "docs/other", "text\n");
                commit(&w.repo());
                git(&w.repo(), &["sparse-checkout", "set", "src"]);
                put(&w.repo(), "docs/page", "local\n");
            },
            as_it_is,
        ),
        (
            "empty files",
            |w| {
                put(&w.repo(), "empty", "");
                put(&w.repo(), "README", "");
                git(&w.repo(), &["add", "empty"]);
            },
            as_it_is,
        ),
        ("a name in another case", |w| drop(git(&w.repo(), &["mv", "README", "Readme"])), as_it_is),
        (
            "a file where a folder was",
            |w| {
                fs::remove_dir_all(w.repo().join("src")).unwrap();
                put(&w.repo(), "src", "no folder\n");
            },
            untracked,
        ),
        (
            "a folder that was a file and is one again",
            |w| {
                fs::remove_file(w.repo().join("README")).unwrap();
                put(&w.repo(), "README/inside", "x\n");
                commit(&w.repo());
                fs::remove_dir_all(w.repo().join("README")).unwrap();
                put(&w.repo(), "README", "a file again\n");
            },
            untracked,
        ),
    ]
}
