//! What a prepare must not destroy, and does not.

use super::*;

fn full(world: &World) -> Wanted {
    Wanted { mode: WorkspaceMode::FullCopy, ..world.wanted() }
}

#[tokio::test]
async fn what_was_changed_in_a_submodule_is_not_replaced() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let other = world.host.path().join("other");
    fs::create_dir(&other).unwrap();
    git(&other, &["init", "--quiet"]);
    put(&other, "inside", "x\n");
    put(&other, "second", "x\n");
    commit(&other);
    git(&world.repo(), &["submodule", "--quiet", "add", other.to_str().unwrap(), "zz-lib"]);
    commit(&world.repo());
    world.prepare(full(&world)).await.unwrap();
    put(&world.theirs(), "zz-lib/built.o", "taken over");
    world.prepare(full(&world)).await.unwrap();
    for change in [&(|at: PathBuf| put(&at, "inside", "work of hours\n")) as &dyn Fn(PathBuf), &|at| {
        fs::remove_file(at.join("second")).unwrap()
    }] {
        change(world.theirs().join("zz-lib"));
        let refused = world.prepare(full(&world)).await.unwrap_err();
        assert!(format!("{refused:#}").contains("changed in the guest, in a submodule"), "{refused:#}");
        world.prepare(Wanted { force: true, ..full(&world) }).await.unwrap();
        assert!(world.theirs().join("zz-lib/built.o").exists());
    }
}

/// The user's filter stands for an agent that works there meanwhile: it runs while the guest's
/// files are looked at.
#[tokio::test]
async fn what_is_changed_after_the_look_is_not_replaced() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let saved = world.theirs().join("README");
    let filter =
        format!("case \"$PWD\" in *banger-workspace-*) echo 'work of hours' > {};; esac; cat", saved.display());
    git(&world.repo(), &["config", "filter.agent.clean", &filter]);
    put(&world.repo(), ".gitattributes", "src/file-1.txt filter=agent\n");
    commit(&world.repo());
    world.prepare(world.wanted()).await.unwrap();
    // Another time and the same text: what it is must be looked at.
    put(&world.theirs(), "src/file-1.txt", fs::read(world.repo().join("src/file-1.txt")).unwrap());
    assert_eq!(fs::read_to_string(&saved).unwrap(), "hello\n");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("prepare it again"), "{refused:#}");
    assert_eq!(fs::read_to_string(&saved).unwrap(), "work of hours\n");
}

#[tokio::test]
async fn a_commit_of_a_linked_worktree_counts_and_packed_references_do_not() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    git(&world.theirs(), &["pack-refs", "--all"]);
    git(&world.theirs(), &["gc", "--quiet"]);
    world.prepare(world.wanted()).await.unwrap();
    git(&world.theirs(), &["worktree", "add", "--quiet", "--detach", "../try"]);
    let try_it = world.home.path().join("try");
    put(&try_it, "README", "work of hours\n");
    git(&try_it, &["commit", "--quiet", "--all", "-m", "work"]);
    assert_eq!(git(&world.theirs(), &["status", "--short"]), "");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("commits or branches"), "{refused:#}");
    git(&try_it, &["log", "-1"]);
}

/// The guest has the new prepare, and the record is the old one.
#[tokio::test]
async fn what_was_prepared_after_the_record_is_not_exported_by_it() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    let before = world.prepare(world.wanted()).await.unwrap();
    put(&world.repo(), "README", "the host's own\n");
    commit(&world.repo());
    let after = world.prepare(world.wanted()).await.unwrap();
    world.known = Some(before.clone());
    // Nothing of the guest's is there: it may be replaced.
    world.prepare(world.wanted()).await.unwrap();
    world.known = Some(before);
    put(&world.theirs(), "src/file-1.txt", "the guest's\n");
    let refused = world.patch().await.unwrap_err();
    assert!(format!("{refused:#}").contains("prepared again, and that was interrupted"), "{refused:#}");
    let refused = world.prepare(world.wanted()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("is not known here"), "{refused:#}");
    assert_eq!(fs::read_to_string(world.theirs().join("src/file-1.txt")).unwrap(), "the guest's\n");
    world.known = Some(after);
    let (patch, _) = world.patch().await.unwrap();
    let text = fs::read_to_string(patch).unwrap();
    assert!(text.contains("+the guest's") && !text.contains("README"), "{text}");
    world.prepare(Wanted { force: true, ..world.wanted() }).await.unwrap();
}

#[tokio::test]
async fn a_repository_that_was_moved_is_prepared_again_if_nothing_is_lost() {
    if no_git() {
        return;
    }
    let mut world = World::with_repository();
    world.prepare(world.wanted()).await.unwrap();
    let moved = world.host.path().join("moved");
    fs::rename(world.repo(), &moved).unwrap();
    let wanted = Wanted { path: moved, ..world.wanted() };
    let first = world.known.clone();
    world.prepare(wanted.clone()).await.unwrap();
    world.known = first;
    put(&world.theirs(), "README", "work of hours\n");
    let refused = world.prepare(wanted.clone()).await.unwrap_err();
    assert!(crate::error::said(&refused).contains("banger vm cp demo:"), "{}", crate::error::said(&refused));
    world.known = None;
    world.prepare(wanted.clone()).await.unwrap_err();
    world.prepare(Wanted { force: true, ..wanted }).await.unwrap();
}

/// Each of what a prepare does is kept when the guest has it, and not only when all is tidied up.
#[tokio::test]
async fn the_record_is_kept_once() {
    if no_git() {
        return;
    }
    let world = World::with_repository();
    let place = Place { vm: VmId::from_bytes([1; 32]).unwrap(), name: "demo".into(), known: None };
    let (kept, theirs) = (std::sync::Mutex::new(Vec::new()), world.theirs());
    let record = async |workspace: &Workspace| {
        assert!(theirs.join(".git/banger/manifest").exists(), "before the guest has it");
        kept.lock().unwrap().push(workspace.clone());
        Ok(())
    };
    let progress = Progress::new(Detail::Quiet);
    let prepared = prepare(&world.guest(), &place, world.wanted(), &progress, record).await.unwrap();
    assert_eq!(kept.into_inner().unwrap(), [prepared]);
}
