//! Guests that want something on the host.

use super::*;
use std::os::unix::fs::symlink;

/// Where something would appear that a guest has had run.
fn alarm(world: &World) -> (PathBuf, String) {
    let path = world.host.path().join("alarm");
    let script = format!("#!/bin/sh\ntouch {}\ncat\n", path.display());
    (path, script)
}

async fn exports(world: &World) {
    for what in [What::Stat, What::Branch { name: "theirs".into(), force: true }] {
        drop(world.export(what).await);
    }
    drop(world.patch().await);
}

#[tokio::test]
async fn hooks_configuration_and_attributes_of_a_guest_run_nothing() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let (path, script) = alarm(&world);
    // The user's own filter, for the user's own files.
    git(&world.repo(), &["config", "filter.mine.clean", path.with_extension("sh").to_str().unwrap()]);
    put(world.host.path(), "alarm.sh", &script);
    mode(&world.host.path().join("alarm.sh"), 0o755);
    world.prepare(world.wanted()).await.unwrap();
    let theirs = world.theirs();
    put(&theirs, "evil.sh", &script);
    mode(&theirs.join("evil.sh"), 0o755);
    let evil = theirs.join("evil.sh");
    let evil = evil.to_str().unwrap();
    for hook in ["post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc", "fsmonitor-watchman"] {
        put(&theirs, &format!(".git/hooks/{hook}"), &script);
        mode(&theirs.join(format!(".git/hooks/{hook}")), 0o755);
    }
    let config = format!(
        "[core]\n\tfsmonitor = {evil}\n\thooksPath = .\n\tsshCommand = {evil}\n\tpager = {evil}\n[filter \"x\"]\n\tclean = {evil}\n\
         [diff]\n\texternal = {evil}\n[diff \"x\"]\n\ttextconv = {evil}\n[uploadpack]\n\tpackObjectsHook = {evil}\n"
    );
    let old = fs::read_to_string(theirs.join(".git/config")).unwrap();
    put(&theirs, ".git/config", old + &config);
    put(&theirs, ".gitattributes", "* filter=mine\n* diff=x\n");
    put(&theirs, "README", "changed\n");
    put(
        &theirs,
        ".gitmodules",
        "[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c touch% /tmp/x\n\tupdate = !touch /tmp/x\n",
    );
    exports(&world).await;
    assert!(!path.exists(), "something of the guest was run");
    assert!(fs::read_to_string(world.host.path().join("patch")).unwrap().contains("+changed"));
}

#[tokio::test]
async fn links_and_repositories_of_a_guest_lead_nowhere() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let secret = world.host.path().join("secret");
    put(world.host.path(), "secret", "secret\n");
    world.prepare(world.wanted()).await.unwrap();
    let theirs = world.theirs();
    symlink(&secret, theirs.join("leak")).unwrap();
    fs::remove_file(theirs.join("README")).unwrap();
    symlink("../../../../../../etc/passwd", theirs.join("README")).unwrap();
    fs::remove_dir_all(theirs.join("src")).unwrap();
    symlink(world.host.path(), theirs.join("src")).unwrap();
    // Two that lead out together: from `up`, the kernel goes on upwards.
    fs::create_dir(theirs.join("sub")).unwrap();
    symlink("..", theirs.join("sub/up")).unwrap();
    symlink("sub/up/../secret", theirs.join("both")).unwrap();
    symlink("../run.sh", theirs.join("sub/in")).unwrap();
    put(&theirs, "nested/.git/config", "[core]\n\tfsmonitor = touch /tmp/x\n");
    put(&theirs, "nested/file", "x\n");
    put(&theirs, "other/.GIT/config", "[core]\n");
    let (patch, notes) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(!text.contains("+secret\n") && !text.contains("nested/file") && !text.contains(".GIT"), "{text}");
    let branch = world.export(What::Branch { name: "theirs".into(), force: false }).await.unwrap();
    for notes in [notes.join("\n"), branch.join("\n")] {
        for said in [
            "leak is a link that leads out",
            "README is a link",
            "src is a link",
            "both is a link that may lead out",
            "nested: left out",
            "other/.GIT/config: left out",
        ] {
            assert!(notes.contains(said), "{said}: {notes}");
        }
        assert!(!notes.contains("sub/in") && !notes.contains("sub/up is"), "{notes}");
    }
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret\n");
}

#[tokio::test]
async fn a_record_or_pack_that_a_guest_made_up_is_refused() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    put(&world.repo(), "README", "only in the working tree\n");
    world.prepare(world.wanted()).await.unwrap();
    let records = world.theirs().join(".git/banger");
    put(&records, "base.pack", "PACK of nothing");
    let refused = world.patch().await.unwrap_err();
    assert!(format!("{refused:#}").contains("git refuses"), "{refused:#}");
    fs::remove_file(records.join("base.pack")).unwrap();
    symlink("/dev/zero", records.join("base.pack")).unwrap();
    world.patch().await.unwrap_err();
    put(&records, "manifest", "nonsense");
    world.patch().await.unwrap_err();
}

#[tokio::test]
async fn names_in_commits_of_a_guest_are_checked() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    let theirs = world.theirs();
    // Trees that no `git add` makes.
    for name in ["..", ".git", "a/../../b"] {
        let script = format!(
            "blob=$(echo x | git hash-object -w --stdin) && tree=$(printf '100644 blob %s\\t%s\\n' $blob '{name}' | git mktree) && \
             commit=$(git -c user.name=x -c user.email=x@x commit-tree $tree -p HEAD -m evil) && git update-ref HEAD $commit"
        );
        let made = Command::new("sh").args(["-c", &script]).current_dir(&theirs).output().unwrap();
        if !made.status.success() {
            continue;
        }
        let refused = world.export(What::Branch { name: "theirs".into(), force: true }).await.unwrap_err();
        assert!(format!("{refused:#}").contains("git refuses"), "{name}: {refused:#}");
        assert!(!world.repo().join(".git/refs/heads/theirs").exists());
        git(&theirs, &["update-ref", "HEAD", "HEAD~1"]);
    }
}

#[tokio::test]
async fn more_than_was_allowed_is_not_taken() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    fs::File::create(world.theirs().join("huge")).unwrap().set_len(64 << 20).unwrap();
    let asked = Export { what: What::Stat, from: None, most: 1 << 20 };
    let refused = export(&world.guest(), world.known.as_ref().unwrap(), asked).await.unwrap_err();
    assert!(format!("{refused:#}").contains("more than 1 MiB"), "{refused:#}");
}

/// Of any user of the guest: root there reads it, and the host's user is not root.
#[tokio::test]
async fn a_file_that_nobody_may_read_is_exported() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    put(&world.theirs(), "shadow", "x\n");
    put(&world.theirs(), "sudo", "x\n");
    mode(&world.theirs().join("shadow"), 0);
    mode(&world.theirs().join("sudo"), 0o111);
    let (patch, _) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(text.contains("new file mode 100755") && text.contains("new file mode 100644"), "{text}");
}
