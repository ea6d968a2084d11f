//! No work is lost, and branches.

use super::*;

#[tokio::test]
async fn what_was_changed_in_the_guest_is_not_replaced() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let first = world.prepare(world.wanted()).await.unwrap();
    assert_eq!((first.branch_name.as_deref(), first.repo_name.as_str()), (Some("main"), "tool"));
    // What the guest has built is ignored by the repository's rules: it is no change, and it stays.
    put(&world.theirs(), "target/out", "built");
    put(&world.repo(), "README", "newer\n");
    world.prepare(world.wanted()).await.unwrap();
    assert_eq!(fs::read_to_string(world.theirs().join("README")).unwrap(), "newer\n");
    assert_eq!(fs::read_to_string(world.theirs().join("target/out")).unwrap(), "built");
    assert!(!world.home.path().join(".tool.banger-new").exists());
    put(&world.theirs(), "README", "the guest's\n");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("was changed in the guest"), "{refused:#}");
    assert_eq!(fs::read_to_string(world.theirs().join("README")).unwrap(), "the guest's\n");
    world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
    assert_eq!(fs::read_to_string(world.theirs().join("README")).unwrap(), "newer\n");
    // A commit is a change though no file is another.
    git(&world.theirs(), &["commit", "--quiet", "--allow-empty", "-m", "theirs"]);
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("commits or branches"), "{refused:#}");
    // A folder that nobody has prepared.
    put(world.home.path(), "other/file", "x");
    let other = Wanted { guest_path: Some("~/other".into()), ..world.wanted() };
    let refused = world.prepare(other).await.unwrap_err();
    assert!(format!("{refused:#}").contains("there already"), "{refused:#}");
}

#[tokio::test]
async fn what_the_guest_has_built_is_no_change_however_often_it_is_prepared() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "target/out", "built");
    for text in ["second", "third", "fourth"] {
        put(&world.repo(), "README", text);
        world.prepare(world.wanted()).await.unwrap();
        assert_eq!(fs::read_to_string(world.theirs().join("target/out")).unwrap(), "built", "{text}");
        let (patch, _) = world.patch().await.unwrap();
        assert_eq!(fs::read_to_string(patch).unwrap(), "", "{text}");
    }
    // What is not ignored is the guest's own, and is kept and exported as such.
    put(&world.theirs(), "untracked.c", "int x;\n");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("was changed in the guest"), "{refused:#}");
    for _ in 0..2 {
        world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
        let (patch, _) = world.patch().await.unwrap();
        let text = fs::read_to_string(patch).unwrap();
        assert!(text.contains("+++ b/untracked.c") && !text.contains("target"), "{text}");
    }
    // A list of an earlier release, in which what was taken over counts as prepared.
    let manifest = world.theirs().join(".git/banger/manifest");
    let mut list = fs::read(&manifest).unwrap();
    list.extend_from_slice(b"100644,5,1.0,1.0,1 target/out\0");
    fs::write(&manifest, list).unwrap();
    let (patch, _) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(text.contains("untracked.c") && !text.contains("target"), "{text}");
}

#[tokio::test]
async fn a_stash_a_tag_and_a_note_of_the_guest_are_not_replaced() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    let stashed: [&[&str]; 3] = [&["stash", "--quiet"], &["tag", "mine"], &["notes", "add", "-m", "a note"]];
    for words in stashed {
        put(&world.theirs(), "README", "work of hours\n");
        git(&world.theirs(), words);
        put(&world.theirs(), "README", "hello\n");
        let refused = world.prepare(world.wanted()).await.unwrap_err();
        assert!(format!("{refused:#}").contains("commits or branches"), "{words:?}: {refused:#}");
        world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
    }
    // What the guest has fetched is somewhere else.
    git(&world.theirs(), &["update-ref", "refs/remotes/origin/main", "HEAD"]);
    world.prepare(world.wanted()).await.unwrap();
}

#[tokio::test]
async fn a_repository_that_is_begun_in_a_prepared_folder_deletes_nothing() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    let sub = world.theirs().join("src");
    git(&sub, &["init", "--quiet"]);
    let (patch, _) = world.patch().await.unwrap();
    assert_eq!(fs::read_to_string(patch).unwrap(), "");
    // As git there shows it.
    assert_eq!(git(&world.theirs(), &["status", "--short"]), "");
    put(&sub, "file-1.txt", "changed\n");
    put(&sub, "added", "text\n");
    put(&sub, "own/file", "text\n");
    git(&sub.join("own"), &["init", "--quiet"]);
    let (patch, notes) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert_eq!(git(&world.theirs(), &["status", "--short"]), "M src/file-1.txt\n?? src/added\n?? src/own/");
    assert!(text.contains("+++ b/src/file-1.txt") && text.contains("+++ b/src/added"), "{text}");
    assert!(!text.contains("deleted file") && !text.contains("own/file") && !text.contains(".git"), "{text}");
    assert!(notes.iter().any(|note| note.contains("src/own: left out")), "{notes:?}");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("was changed in the guest"), "{refused:#}");
    world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
    assert!(sub.join(".git/HEAD").exists(), "the guest's repository is kept");
}

#[tokio::test]
async fn the_guest_knows_branch_identity_and_state() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    git(&world.repo(), &["config", "user.name", "Alice A."]);
    git(&world.repo(), &["config", "user.email", "a@example.org"]);
    put(&world.repo(), "README", "staged\n");
    git(&world.repo(), &["add", "README"]);
    put(&world.repo(), "run.sh", "#!/bin/sh\nexit 1\n");
    let before = git(&world.repo(), &["status", "--short"]);
    let wanted = Wanted { branch: Some("fix/it".into()), ..world.wanted() };
    world.prepare(wanted).await.unwrap();
    assert_eq!(git(&world.theirs(), &["config", "--local", "user.email"]), "a@example.org");
    assert_eq!(git(&world.theirs(), &["branch", "--show-current"]), "fix/it");
    assert_eq!(git(&world.theirs(), &["status", "--short"]), before);
    assert_eq!(git(&world.theirs(), &["rev-list", "--count", "HEAD"]), "1");
}

#[tokio::test]
async fn a_branch_has_the_guests_commits_and_what_is_not_committed() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    put(&world.repo(), "README", "not committed\n");
    world.prepare(world.wanted()).await.unwrap();
    let index = fs::read(world.theirs().join(".git/index")).unwrap();
    put(&world.theirs(), "one", "1\n");
    world.export(What::Branch { name: "loose".into(), force: false }).await.unwrap();
    let subjects = |name: &str| git(&world.repo(), &["log", "--format=%s", &format!("main..{name}")]);
    assert_eq!(subjects("loose").lines().count(), 2, "the host's changes, then the guest's");
    assert_eq!(git(&world.repo(), &["show", "loose:one"]), "1");
    assert_eq!(git(&world.repo(), &["diff", "--stat", "loose~1", "loose", "--", "README"]), "");
    assert_eq!(fs::read(world.theirs().join(".git/index")).unwrap(), index, "the guest's index was touched");
    git(&world.theirs(), &["add", "one"]);
    git(&world.theirs(), &["commit", "--quiet", "-m", "by the guest"]);
    put(&world.theirs(), "two", "2\n");
    world.export(What::Branch { name: "both".into(), force: false }).await.unwrap();
    assert!(subjects("both").contains("by the guest"), "{}", subjects("both"));
    assert_eq!(git(&world.repo(), &["show", "both:two"]), "2");
    git(&world.repo(), &["fsck", "--no-dangling"]);
    // It goes on from there, and never back.
    put(&world.theirs(), "three", "3\n");
    git(&world.repo(), &["branch", "other", "main"]);
    world.export(What::Branch { name: "other".into(), force: false }).await.unwrap();
    let refused = world.export(What::Branch { name: "loose".into(), force: false }).await.unwrap_err();
    assert!(format!("{refused:#}").contains("other commits"), "{refused:#}");
    world.export(What::Branch { name: "loose".into(), force: true }).await.unwrap();
    let refused = world.export(What::Branch { name: "main".into(), force: true }).await.unwrap_err();
    assert!(format!("{refused:#}").contains("checked out"), "{refused:#}");
    for name in ["-x", "a..b", "../x", ""] {
        world.export(What::Branch { name: name.into(), force: true }).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_commit_that_was_amended_is_exported_with_the_hosts_history() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    put(&world.repo(), "second", "2\n");
    commit(&world.repo());
    let main = git(&world.repo(), &["rev-parse", "HEAD"]);
    let repo = world.repo();
    let history = |name: &str| git(&repo, &["log", "--format=%s", name]);
    let amend = |theirs: &Path| {
        put(theirs, "second", "amended\n");
        git(theirs, &["commit", "--quiet", "--all", "--amend", "-m", "amended"]);
    };
    world.prepare(world.wanted()).await.unwrap();
    amend(&world.theirs());
    let notes = world.export(What::Branch { name: "shallow".into(), force: false }).await.unwrap();
    assert!(notes.iter().any(|note| note.contains("do not follow")), "{notes:?}");
    assert_eq!(history("shallow").lines().count(), 3, "{}", history("shallow"));
    assert_eq!(git(&world.repo(), &["rev-parse", "shallow~1"]), main);
    assert_eq!(git(&world.repo(), &["show", "shallow:second"]), "amended");
    // With all of its history, the guest's commit has the parent that it says.
    world.prepare(Wanted { mode: WorkspaceMode::FullCopy, force: true, ..world.wanted() }).await.unwrap();
    amend(&world.theirs());
    world.export(What::Branch { name: "full".into(), force: false }).await.unwrap();
    assert_eq!(history("full"), "amended\na commit");
}

/// Each of these is the guest's commit, with nothing to add to it.
#[tokio::test]
async fn a_branch_does_not_undo_the_guests_commits() {
    if no_git() {
        return;
    }
    type Change = fn(&Path);
    let commits: [(&str, Change); 4] = [
        ("an ignored file", |theirs| {
            put(theirs, "target/app.js", "ship\n");
            git(theirs, &["add", "--force", "target/app.js"]);
        }),
        ("no longer under version control, and ignored", |theirs| {
            git(theirs, &["rm", "--quiet", "--cached", "README"]);
            put(theirs, ".gitignore", "*.o\ntarget/\nREADME\n");
            git(theirs, &["add", ".gitignore"]);
        }),
        ("no longer under version control", |theirs| {
            git(theirs, &["rm", "--quiet", "--cached", "README"]);
        }),
        ("a repository of its own", |theirs| {
            fs::create_dir_all(theirs.join("vendor/x")).unwrap();
            git(&theirs.join("vendor/x"), &["init", "--quiet"]);
            put(&theirs.join("vendor/x"), "file", "x\n");
            commit(&theirs.join("vendor/x"));
            git(theirs, &["add", "vendor/x"]);
        }),
    ];
    for (name, change) in commits {
        let mut world = World::with_repository();
        world.prepare(world.wanted()).await.unwrap();
        change(&world.theirs());
        git(&world.theirs(), &["commit", "--quiet", "-m", "by the guest"]);
        world.export(What::Branch { name: "work".into(), force: false }).await.unwrap();
        let tip = git(&world.repo(), &["rev-parse", "work"]);
        assert_eq!(tip, git(&world.theirs(), &["rev-parse", "HEAD"]), "{name}");
    }
}

#[tokio::test]
async fn a_branch_has_what_was_removed_and_brought_back() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    git(&world.theirs(), &["rm", "--quiet", "README"]);
    git(&world.theirs(), &["commit", "--quiet", "-m", "removed"]);
    git(&world.theirs(), &["checkout", "--quiet", "HEAD~1", "--", "README"]);
    world.export(What::Branch { name: "work".into(), force: false }).await.unwrap();
    assert_eq!(git(&world.repo(), &["show", "work:README"]), "hello");
    assert_eq!(git(&world.repo(), &["log", "-1", "--format=%s", "work~1"]), "removed");
}

#[tokio::test]
async fn a_file_that_the_guest_has_under_version_control_is_not_ignored() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "target/app.js", "ship\n");
    put(&world.theirs(), "target/other.js", "ignored\n");
    git(&world.theirs(), &["add", "--force", "target/app.js"]);
    let (patch, _) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(text.contains("target/app.js") && !text.contains("other.js"), "{text}");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("was changed in the guest"), "{refused:#}");
}

#[tokio::test]
async fn the_commits_of_a_repository_that_had_none_are_exported() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    fs::remove_dir_all(world.repo().join(".git")).unwrap();
    git(&world.repo(), &["init", "--quiet", "-b", "main"]);
    git(&world.repo(), &["add", "README", "src"]);
    world.prepare(world.wanted()).await.unwrap();
    let subjects = |name: &str| git(&world.repo(), &["log", "--format=%s", name]);
    put(&world.theirs(), "loose", "1\n");
    world.export(What::Branch { name: "loose".into(), force: false }).await.unwrap();
    assert_eq!(subjects("loose").lines().count(), 2);
    for subject in ["one", "two"] {
        put(&world.theirs(), "loose", subject);
        git(&world.theirs(), &["add", "-A"]);
        git(&world.theirs(), &["commit", "--quiet", "-m", subject]);
    }
    world.export(What::Branch { name: "work".into(), force: false }).await.unwrap();
    assert_eq!(subjects("work"), "two\none");
    assert_eq!(git(&world.repo(), &["rev-parse", "work"]), git(&world.theirs(), &["rev-parse", "HEAD"]));
}

#[tokio::test]
async fn commits_that_cannot_be_had_are_not_left_out_without_a_word() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "README", "by the guest\n");
    git(&world.theirs(), &["commit", "--quiet", "--all", "-m", "by the guest"]);
    // As an object that root has written and the image's user cannot read.
    let head = git(&world.theirs(), &["rev-parse", "HEAD"]);
    fs::remove_file(world.theirs().join(format!(".git/objects/{}/{}", &head[..2], &head[2..]))).unwrap();
    let notes = world.export(What::Branch { name: "work".into(), force: false }).await.unwrap();
    assert!(notes.iter().any(|note| note.contains("git in the guest")), "{notes:?}");
    assert_eq!(git(&world.repo(), &["show", "work:README"]), "by the guest");
}

#[tokio::test]
async fn a_patch_goes_to_files_and_through_links_and_into_nothing_else() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "README", "changed\n");
    let at = |name: &str| world.host.path().join(name);
    let (pipe, link, file, dangling) = (at("pipe"), at("link"), at("file"), at("dangling"));
    run("mkfifo", &[pipe.to_str().unwrap()]);
    put(world.host.path(), "file", "old\n");
    std::os::unix::fs::symlink("file", &link).unwrap();
    std::os::unix::fs::symlink("nothing", &dangling).unwrap();
    for path in [&pipe, &dangling] {
        let refused = world.export(What::Patch(Some(path.clone()))).await.unwrap_err();
        assert!(format!("{refused:#}").contains("cannot write"), "{refused:#}");
    }
    let kind = |path: &Path| path.symlink_metadata().unwrap().file_type();
    use std::os::unix::fs::FileTypeExt as _;
    assert!(kind(&pipe).is_fifo() && kind(&dangling).is_symlink());
    world.export(What::Patch(Some(link.clone()))).await.unwrap();
    assert!(kind(&link).is_symlink() && fs::read_to_string(&file).unwrap().contains("+changed"));
}

#[tokio::test]
async fn another_commit_is_written_by_its_own_attributes() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    put(&world.repo(), ".gitattributes", "*.txt text eol=crlf\n");
    commit(&world.repo());
    put(&world.repo(), ".gitattributes", "README text eol=crlf\n");
    commit(&world.repo());
    world.prepare(Wanted { from: Some("HEAD~1".into()), ..world.wanted() }).await.unwrap();
    let folder = world.theirs();
    let theirs = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!((theirs("README").as_str(), theirs("src/file-1.txt").contains("\r\n")), ("hello\n", true));
    assert_eq!(git(&world.theirs(), &["status", "--short"]), "");
    put(&world.theirs(), "src/file-1.txt", "one\r\ntwo\r\n");
    put(&world.theirs(), "README", "changed\n");
    let (patch, _) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(text.contains("+one\n+two\n") && text.contains("+changed\n"), "{text}");
}

#[tokio::test]
async fn a_patch_can_be_against_another_commit_and_ignores_what_is_ignored() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let first = git(&world.repo(), &["rev-parse", "HEAD"]);
    put(&world.repo(), "second", "2\n");
    commit(&world.repo());
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "x.o", "ignored");
    put(&world.theirs(), ".gitignore", "*.tmp\n");
    put(&world.theirs(), "y.tmp", "ignored by the guest's own rule");
    let file = world.host.path().join("patch");
    let asked = Export { what: What::Patch(Some(file.clone())), from: Some(first), most: DEFAULT_MOST };
    export(&world.guest(), world.known.as_ref().unwrap(), asked).await.unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("second") && text.contains("x.o") && !text.contains("y.tmp"), "{text}");
    // What the host's repository does not keep, the guest has kept.
    git(&world.repo(), &["gc", "--quiet", "--prune=now"]);
    world.patch().await.unwrap();
}
