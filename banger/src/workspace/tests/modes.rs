//! Another mode, what is refused, and the size of it.

use super::*;

#[tokio::test]
async fn a_commit_without_files_is_exported_once_it_is_checked_out() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let wanted = Wanted { mode: WorkspaceMode::MetadataOnly, ..world.wanted() };
    world.prepare(wanted).await.unwrap();
    assert_eq!(fs::read_dir(world.theirs()).unwrap().count(), 1, "only .git");
    world.patch().await.unwrap();
    assert_eq!(fs::metadata(world.host.path().join("patch")).unwrap().len(), 0);
    git(&world.theirs(), &["checkout", "--quiet", "--", "."]);
    git(&world.theirs().join("src"), &["init", "--quiet"]);
    let (patch, _) = world.patch().await.unwrap();
    assert_eq!(fs::read_to_string(patch).unwrap(), "", "what is not looked into is not deleted");
    fs::remove_dir_all(world.theirs().join("src/.git")).unwrap();
    edit(&world.theirs());
    world.comes_back("metadata only").await;
}

/// What was never checked out was not removed.
#[tokio::test]
async fn of_a_commit_without_files_only_what_was_checked_out_can_be_removed() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    put(&world.repo(), "docs/page", "text\n");
    commit(&world.repo());
    let wanted = Wanted { mode: WorkspaceMode::MetadataOnly, ..world.wanted() };
    world.prepare(wanted.clone()).await.unwrap();
    let changed = async |world: &World| {
        let (patch, _) = world.patch().await.unwrap();
        let text = fs::read_to_string(patch).unwrap();
        let names = text.lines().filter_map(|line| line.strip_prefix("diff --git a/"));
        names.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<Vec<_>>()
    };
    git(&world.theirs(), &["checkout", "HEAD", "--", "README", "src/file-1.txt"]);
    put(&world.theirs(), "README", "edited\n");
    assert_eq!(changed(&world).await, ["README"]);
    fs::remove_file(world.theirs().join("src/file-1.txt")).unwrap();
    assert_eq!(changed(&world).await, ["README", "src/file-1.txt"]);
    git(&world.theirs(), &["rm", "--quiet", "--cached", "src/file-2.txt"]);
    assert_eq!(changed(&world).await, ["README", "src/file-1.txt", "src/file-2.txt"]);
    // And what a sparse checkout leaves out was not either, in any mode.
    for mode in [WorkspaceMode::MetadataOnly, WorkspaceMode::ShallowOverlay] {
        world.prepare(Wanted { mode, force: true, ..world.wanted() }).await.unwrap();
        git(&world.theirs(), &["reset", "--quiet", "--hard"]);
        git(&world.theirs(), &["sparse-checkout", "set", "src"]);
        assert!(!world.theirs().join("docs").exists());
        put(&world.theirs(), "src/file-1.txt", "edited\n");
        assert_eq!(changed(&world).await, ["src/file-1.txt"], "{mode:?}");
    }
}

#[tokio::test]
async fn files_of_the_old_commit_do_not_undo_the_new_one() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let wanted = Wanted { mode: WorkspaceMode::MetadataOnly, ..world.wanted() };
    // What is not sent is no difference either.
    put(&world.repo(), "README", "not staged\n");
    world.prepare(wanted.clone()).await.unwrap();
    git(&world.theirs(), &["checkout", "--quiet", "--", "."]);
    let (patch, _) = world.patch().await.unwrap();
    assert_eq!(fs::read_to_string(&patch).unwrap(), "");
    put(&world.repo(), "README", "newer\n");
    commit(&world.repo());
    put(&world.theirs(), "x.o", "built");
    let refused = world.prepare(wanted.clone()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("files of the old commit"), "{refused:#}");
    world.prepare(Wanted { force: true, ..wanted }).await.unwrap();
    let mut left: Vec<_> = fs::read_dir(world.theirs()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".git", "x.o"]);
    let (patch, _) = world.patch().await.unwrap();
    assert_eq!(fs::read_to_string(patch).unwrap(), "");
}

#[tokio::test]
async fn submodules_and_what_is_no_repository_are_refused() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let other = world.host.path().join("other");
    fs::create_dir(&other).unwrap();
    let none = world.prepare(Wanted { path: other.clone(), ..world.wanted() }).await.unwrap_err();
    assert!(format!("{none:#}").contains("not a git repository"), "{none:#}");
    git(&other, &["init", "--quiet", "--bare"]);
    let bare = world.prepare(Wanted { path: other.clone(), ..world.wanted() }).await.unwrap_err();
    assert!(format!("{bare:#}").contains("without a working tree"), "{bare:#}");
    let third = world.host.path().join("third");
    fs::create_dir(&third).unwrap();
    git(&third, &["init", "--quiet"]);
    commit(&third);
    git(&world.repo(), &["submodule", "--quiet", "add", third.to_str().unwrap(), "lib"]);
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("submodules, such as lib"), "{refused:#}");
    assert!(!world.theirs().exists());
    for word in ["nothing", "--help", "HEAD:README"] {
        let wanted = Wanted { from: Some(word.into()), ..world.wanted() };
        world.prepare(wanted).await.unwrap_err();
    }
    for name in ["-x", "a..b", "a b", "@{-1}"] {
        world.prepare(Wanted { branch: Some(name.into()), ..world.wanted() }).await.unwrap_err();
    }
}

/// By hand: `cargo nextest run -p banger --run-ignored only`.
#[tokio::test]
#[ignore = "takes minutes and six gigabytes"]
async fn a_gigabyte_in_a_hundred_thousand_files() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let mut seed = 1_u64;
    for number in 0..100_000 {
        let random = (0..1250).flat_map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()
        });
        put(&world.repo(), &format!("{}/{number}", number % 500), random.collect::<Vec<u8>>());
    }
    commit(&world.repo());
    let took = |what: &str, since: std::time::Instant| eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
    let began = std::time::Instant::now();
    world.prepare(world.wanted()).await.unwrap();
    took("prepare", began);
    edit(&world.theirs());
    let began = std::time::Instant::now();
    world.patch().await.unwrap();
    took("export", began);
    let began = std::time::Instant::now();
    let theirs = world.theirs();
    fs::remove_file(theirs.join("new/added")).unwrap();
    world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
    took("prepare again", began);
}
