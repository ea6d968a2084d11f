#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod counting;
mod registered;

use super::wanted::{Wanted, WantedImage, WantedKernel};
use super::*;
use crate::vm::Ask;
use crate::vm::tests::{ALICE, BOB, ROOT, World, named as vm_named};
use banger_policy::ImageConfig;
use banger_policy::quota::UserLimits;
use banger_proto::model::{ApiError, CreateRequest, ErrorCode, JobId, JobState};
use banger_proto::stream::{Frame, read, write};
use banger_proto::time::Timestamp;
use std::time::Duration;
use tokio::net::UnixStream;

/// Has alice's number.
const CAROL: Peer = Peer::new(1001, "carol", false);

pub(super) fn id(first: u8) -> Digest {
    let mut bytes = [0x11; 32];
    bytes[0] = first;
    Digest::from_bytes(bytes).unwrap()
}

pub(super) fn image(peer: &Peer, name: &str, first: u8) -> ImageRecord {
    ImageRecord {
        id: id(first),
        name: name.parse().unwrap(),
        owner: peer.uid,
        owner_name: peer.name.clone().into_owned(),
        shared: false,
        managed: true,
        artifact_dir: String::new(),
        rootfs_path: String::new(),
        work_seed_path: None,
        build_size: 1 << 30,
        allocated_bytes: 100,
        docker: false,
        source: format!("/home/{}/secret/{name}.tar", peer.name),
        config: ImageConfig { user: Some(format!("{}-{name}", peer.name)), ..ImageConfig::default() },
        manifest_digest: None,
        kernel: None,
        kernel_id: None,
        created_at: Timestamp::from_unix(first.into()),
        updated_at: Timestamp::now(),
    }
}

fn kernel(peer: &Peer, name: &str, first: u8) -> KernelRecord {
    KernelRecord {
        id: id(first),
        name: name.parse().unwrap(),
        owner: peer.uid,
        owner_name: peer.name.clone().into_owned(),
        shared: false,
        version: name.to_owned(),
        modules: Vec::new(),
        size_bytes: 10,
        created_at: Timestamp::from_unix(first.into()),
    }
}

/// A store without what [`World`] has put into it: each entry with its folder.
pub(super) fn world(images: &[ImageRecord], kernels: &[KernelRecord]) -> World {
    let world = World::new();
    let store = Arc::clone(&world.life().store);
    world.life().runtime.block_on(async {
        store.delete::<ImageRecord>(&ROOT, "debian".into()).await.unwrap();
        store.delete::<KernelRecord>(&ROOT, "6.12".into()).await.unwrap();
        // Kernels first: images name them.
        for kernel in kernels {
            std::fs::create_dir_all(world.paths().kernel_dir(&kernel.id)).unwrap();
            store.db.insert_kernel(kernel.clone(), UserLimits::NONE).await.unwrap();
        }
        for image in images {
            std::fs::create_dir_all(world.paths().image_dir(&image.id)).unwrap();
            store.db.insert_image(image.clone(), UserLimits::NONE).await.unwrap();
        }
    });
    world
}

impl World {
    pub(super) fn store<T>(&self, work: impl AsyncFnOnce(&Arc<Store>) -> T) -> T {
        self.life().runtime.block_on(work(&self.life().store))
    }
}

#[test]
fn what_boots_is_never_another_users_choice() {
    let world = world(&[image(&BOB, "debian", 1)], &[kernel(&BOB, "evil", 2), kernel(&BOB, "newer", 3)]);
    world.store(async |store| {
        for peer in [&ALICE, &CAROL, &ROOT] {
            assert_eq!(ApiError::from(store.pick_kernel(peer, None).await.unwrap_err()).code, ErrorCode::NotFound);
            assert_eq!(ApiError::from(store.pick_image(peer, None).await.unwrap_err()).code, ErrorCode::NotFound);
            // Named, it does not exist either, in the same words as what is not there at all.
            let [hers, nobodys] = ["debian", "nothing"].map(|word| store.pick_image(peer, Some(word)));
            let (hers, nobodys) = (hers.await.unwrap_err().into(), nobodys.await.unwrap_err().into());
            let (hers, nobodys): (ApiError, ApiError) = (hers, nobodys);
            assert_eq!(hers.message.replace("debian", "X"), nobodys.message.replace("nothing", "X"));
            assert_eq!((hers.code, hers.hint), (nobodys.code, nobodys.hint));
        }
        assert_eq!(store.pick_kernel(&BOB, None).await.unwrap().name.as_str(), "newer");
        // An administrator's choice is everybody's, older or not.
        store.share::<KernelRecord>(&ROOT, "bob/evil", true).await.unwrap();
        assert_eq!(store.pick_kernel(&ALICE, None).await.unwrap().name.as_str(), "evil");
        assert_eq!(store.pick_kernel(&BOB, None).await.unwrap().name.as_str(), "evil");
        store.share::<KernelRecord>(&ROOT, "evil", false).await.unwrap();
        assert_eq!(ApiError::from(store.pick_kernel(&ALICE, None).await.unwrap_err()).code, ErrorCode::NotFound);
    });
    let refused = world.life().runtime.block_on(world.life().vms.create(&ALICE, CreateRequest::default(), false));
    assert_eq!(ApiError::from(refused.unwrap_err()).code, ErrorCode::NotFound);
}

#[test]
fn a_list_shows_ones_own_and_what_is_shared_and_no_path_of_others() {
    let images = [image(&BOB, "his", 1), image(&BOB, "given", 2), image(&ALICE, "hers", 3)];
    let kernels = [kernel(&BOB, "his", 1), kernel(&BOB, "given", 2), kernel(&ALICE, "hers", 3)];
    let world = world(&images, &kernels);
    world.store(async |store| {
        store.share::<ImageRecord>(&ROOT, "bob/given", true).await.unwrap();
        store.share::<KernelRecord>(&ROOT, "bob/given", true).await.unwrap();
        let kernels = async |peer: &Peer, all: bool| {
            let seen = store.list::<KernelRecord>(peer, all).await.map_err(|why| ApiError::from(why).code)?;
            Ok(seen.iter().map(|kernel| kernel.name.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(kernels(&ALICE, false).await.unwrap(), ["hers", "given"]);
        assert_eq!(kernels(&CAROL, false).await.unwrap(), ["given"]);
        assert_eq!(kernels(&ALICE, true).await, Err(ErrorCode::Denied));
        assert_eq!(kernels(&ROOT, true).await.unwrap(), ["hers", "given", "his"]);
        let names = |images: &[ImageRecord]| images.iter().map(|image| image.name.to_string()).collect::<Vec<_>>();
        let seen = store.list::<ImageRecord>(&ALICE, false).await.unwrap();
        assert_eq!(names(&seen), ["given", "hers"]);
        let told = serde_json::to_string(&seen[0]).unwrap();
        assert!(!told.contains("/home") && !told.contains("secret") && told.contains("given.tar"), "{told}");
        assert!(!told.contains(&world.paths().state.display().to_string()), "{told}");
        assert!(seen[1].source.starts_with("/home/alice/"), "her own path is hers to see");
        assert_eq!(names(&store.list::<ImageRecord>(&CAROL, false).await.unwrap()), ["given"]);
        assert_eq!(ApiError::from(store.list::<ImageRecord>(&ALICE, true).await.unwrap_err()).code, ErrorCode::Denied);
        assert_eq!(names(&store.list::<ImageRecord>(&ROOT, true).await.unwrap()), ["given", "hers", "his"]);
        let shared = ApiError::from(store.share::<ImageRecord>(&ALICE, "hers", true).await.unwrap_err());
        assert_eq!(shared.code, ErrorCode::Denied);
        // One shared entry of a name.
        store.db.insert_image(image(&ALICE, "given", 4), UserLimits::NONE).await.unwrap();
        let twice = ApiError::from(store.share::<ImageRecord>(&ROOT, "alice/given", true).await.unwrap_err());
        assert_eq!(twice.code, ErrorCode::AlreadyExists);
    });
}

/// The bytes are one; how commands run in them is each name's own, and a VM keeps what was true
/// when it was made.
#[test]
fn what_an_images_configuration_says_belongs_to_the_name() {
    let world =
        world(&[image(&ALICE, "one", 1), image(&ALICE, "two", 1), image(&BOB, "his", 1)], &[kernel(&ROOT, "k", 2)]);
    let user = |image: ImageRecord| image.config.user.unwrap();
    let job = world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "k", true).await.unwrap();
        for (peer, word, expected) in
            [(&ALICE, "one", "alice-one"), (&ALICE, "two", "alice-two"), (&BOB, "his", "bob-his")]
        {
            assert_eq!(user(store.show::<ImageRecord>(peer, word).await.unwrap()), expected);
        }
        let request = CreateRequest { image_name: Some("two".into()), no_start: true, ..vm_named("web") };
        world.life().vms.create(&ALICE, request, false).await.unwrap()
    });
    let made = world.wait(job);
    assert!(matches!(made, JobState::Done(_)), "{made:?}");
    world.store(async |store| {
        let row = store.db.find_vms(&ALICE, "web".into()).await.unwrap().remove(0);
        assert_eq!(row.image_config.user.as_deref(), Some("alice-two"));
    });
}

#[test]
fn an_image_is_shown_to_those_who_see_it_and_its_paths_to_its_owner() {
    let world = world(&[image(&BOB, "his", 1), image(&BOB, "given", 2)], &[]);
    world.store(async |store| {
        store.share::<ImageRecord>(&ROOT, "bob/given", true).await.unwrap();
        let state = world.paths().state.display().to_string();
        for (peer, whole) in [(&BOB, true), (&ROOT, true), (&ALICE, false)] {
            let told = serde_json::to_string(&store.show::<ImageRecord>(peer, "given").await.unwrap()).unwrap();
            assert_eq!((told.contains(&state), told.contains("/home/bob")), (whole, whole), "{}: {told}", peer.name);
            assert!(told.contains("given.tar") && told.contains("bob-given"), "{told}");
        }
        assert!(
            store.show::<ImageRecord>(&BOB, "his").await.is_ok()
                && store.show::<ImageRecord>(&ROOT, "bob/his").await.is_ok()
        );
        for (peer, word) in [(&ALICE, "his"), (&CAROL, "his"), (&ALICE, "bob/his"), (&ROOT, "his")] {
            assert_eq!(
                ApiError::from(store.show::<ImageRecord>(peer, word).await.unwrap_err()).code,
                ErrorCode::NotFound,
                "{} {word}",
                peer.name
            );
        }
    });
}

#[test]
fn two_names_share_content_which_goes_with_the_last_of_them() {
    let world = world(&[image(&ALICE, "one", 1), image(&BOB, "two", 1)], &[kernel(&ROOT, "k", 2)]);
    let folder = world.paths().image_dir(&id(1));
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "k", true).await.unwrap();
        assert_eq!(
            ApiError::from(store.delete::<ImageRecord>(&BOB, "one".into()).await.unwrap_err()).code,
            ErrorCode::NotFound
        );
        store.delete::<ImageRecord>(&ALICE, "one".into()).await.unwrap();
        assert!(folder.exists());
        assert_eq!(store.pick_image(&BOB, None).await.unwrap().name.as_str(), "two");
        store.delete::<ImageRecord>(&BOB, "two".into()).await.unwrap();
        assert!(!folder.exists());
        assert_eq!(store.db.contents(&IMAGES).await.unwrap(), []);
    });
}

#[test]
fn content_that_a_vm_uses_outlives_its_last_name_and_goes_with_the_vm() {
    let world = world(&[image(&ALICE, "one", 1), image(&BOB, "two", 1)], &[kernel(&ROOT, "k", 2)]);
    let folder = world.paths().image_dir(&id(1));
    world.store(async |store| store.share::<KernelRecord>(&ROOT, "k", true).await.unwrap());
    let vm = world.running("web");
    world.store(async |store| {
        // Bob learns nothing of alice's VM, and his name is his to remove.
        store.delete::<ImageRecord>(&BOB, "two".into()).await.unwrap();
        let used = ApiError::from(store.delete::<ImageRecord>(&ALICE, "one".into()).await.unwrap_err());
        assert!(used.code == ErrorCode::InUse && used.message.contains("VM web"), "{used:?}");
        // An administrator is told whose it is.
        let used = ApiError::from(store.delete::<KernelRecord>(&ROOT, "k".into()).await.unwrap_err());
        assert!(used.code == ErrorCode::InUse && used.message.contains("alice/web"), "{used:?}");
        store.share::<KernelRecord>(&ROOT, "k", false).await.unwrap();
        store.delete::<KernelRecord>(&ROOT, "k".into()).await.unwrap();
    });
    let kernels = world.paths().kernel_dir(&id(2));
    assert!(folder.exists() && kernels.exists());
    world.order_of(&ALICE, Ask::Restart, "web");
    world.order_of(&ALICE, Ask::Delete, &vm.id.to_string());
    world.until_true("the kernel without a name is gone", || !kernels.exists());
    assert!(folder.exists(), "alice has a name for it");
}

#[test]
fn who_shared_it_for_another_user_is_not_told_whose_vm_uses_it() {
    let world = world(&[image(&BOB, "given", 1)], &[kernel(&ROOT, "k", 2)]);
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "k", true).await.unwrap();
        store.share::<ImageRecord>(&ROOT, "bob/given", true).await.unwrap();
    });
    world.running("web");
    let used = world.store(async |store| store.delete::<ImageRecord>(&BOB, "given".into()).await.unwrap_err());
    let used = ApiError::from(used);
    assert_eq!(used.code, ErrorCode::InUse);
    let told = format!("{} {}", used.message, used.hint);
    assert!(!told.contains("web") && !told.contains("alice"), "{told}");
}

#[test]
fn unused_content_that_a_crash_left_is_collected_at_the_next_start() {
    let mut world = world(&[image(&ALICE, "one", 1)], &[]);
    world.store(async |store| {
        store.db.remove_name(&IMAGES, ALICE.owner(), "one".into()).await.unwrap().unwrap();
    });
    let folder = world.paths().image_dir(&id(1));
    assert!(folder.exists());
    world.restart();
    world.until_true("collected", || !folder.exists());
    assert_eq!(world.store(async |store| store.db.contents(&IMAGES).await.unwrap()), []);
}

/// It had no row when somebody looked.
#[test]
fn what_was_imported_meanwhile_is_not_removed_as_a_leak() {
    let world = world(&[image(&ALICE, "hers", 1)], &[kernel(&ALICE, "k", 2)]);
    let (known, kernels) = (world.paths().image_dir(&id(1)), world.paths().kernel_dir(&id(2)));
    let unknown = world.paths().image_dir(&id(3));
    std::fs::create_dir(&unknown).unwrap();
    world.store(async |store| {
        for folder in [&known, &kernels] {
            assert!(matches!(store.remove_unknown(folder).await, Err(StoreError::Known)));
            assert!(folder.exists());
        }
        // Not while somebody publishes.
        let publishing = store.publishing.lock().await;
        let removing = store.remove_unknown(&unknown);
        assert!(tokio::time::timeout(Duration::from_millis(50), removing).await.is_err() && unknown.exists());
        drop(publishing);
        store.remove_unknown(&unknown).await.unwrap();
        store.remove_unknown(&unknown).await.unwrap();
        assert!(!unknown.exists());
    });
}

#[test]
fn only_an_administrator_imports_for_everybody() {
    for (peer, may) in [(&ALICE, false), (&ROOT, true)] {
        let wanted = WantedKernel::new(peer, None, true);
        assert_eq!(wanted.map_err(|why| ApiError::from(why).code).err(), (!may).then_some(ErrorCode::Denied));
    }
}

#[test]
fn an_import_waits_for_its_users_turn_and_for_nobody_elses() {
    let world = world(&[], &[]);
    world.store(async |store| {
        let turn = store.imports.take(ALICE.uid).await.unwrap();
        let begin = async |peer: &Peer| {
            let wanted = Wanted::Kernel(WantedKernel::new(peer, Some("k"), false).unwrap());
            let job = store.begin(peer, &wanted).unwrap();
            let (id, (mut ours, theirs)) = (job.id(), UnixStream::pair().unwrap());
            let (store, peer) = (Arc::clone(store), peer.clone());
            tokio::spawn(async move { store.import(theirs, peer, wanted, job).await });
            write(&mut ours, &Frame::Input(b"this is no kernel".to_vec())).await.unwrap();
            write(&mut ours, &Frame::InputEnd).await.unwrap();
            (id, ours)
        };
        let end = async |job: JobId| loop {
            let view = store.jobs.watch(&ROOT, job, 0, Duration::ZERO).await.unwrap();
            if view.state != JobState::Running {
                break view.state;
            }
            let seen = store.jobs.watch(&ROOT, job, view.seq, Duration::from_secs(20)).await.unwrap();
            assert!(seen.seq > view.seq, "stuck: {seen:?}");
        };
        let ((hers, _open), (his, _too)) = (begin(&ALICE).await, begin(&BOB).await);
        assert!(matches!(end(his).await, JobState::Failed(_)));
        // Whatever she is at, she comes no further than to this.
        let mut seq = 0;
        let waits = loop {
            let view = store.jobs.watch(&ROOT, hers, seq, Duration::from_millis(500)).await.unwrap();
            if view.seq == seq || view.state != JobState::Running {
                break view;
            }
            seq = view.seq;
        };
        let stage = waits.stages.last().map(|stage| stage.name.as_str());
        assert_eq!((stage, &waits.state), (Some("wait for a turn"), &JobState::Running));
        drop(turn);
        assert!(matches!(end(hers).await, JobState::Failed(_)));
    });
}

#[test]
fn a_vm_of_an_image_that_went_meanwhile_is_not_made() {
    let world = world(&[], &[]);
    let refused = world.store(async |store| {
        let (image, kernel) = (image(&ALICE, "gone", 1), kernel(&ALICE, "gone", 2));
        let new = crate::db::NewVm {
            id: banger_policy::VmId::from_bytes([9; 32]).unwrap(),
            owner: ALICE.owner(),
            name: "web".parse().unwrap(),
            image_id: image.id,
            image_name: image.name,
            image_config: image.config,
            kernel_id: kernel.id,
            spec: banger_policy::vm::CheckedSpec::new(1, 256, 1 << 30, 1 << 30).unwrap(),
            network: banger_policy::network::VmNetwork::default(),
            restart: vm_named("web").restart,
            starts: false,
        };
        store
            .db
            .insert_vm(
                new,
                crate::config::Config::built_in().network,
                UserLimits::NONE,
                banger_policy::quota::HostLimits::NONE,
            )
            .await
            .unwrap_err()
    });
    assert!(matches!(refused, DbError::Gone), "{refused}");
}

/// A digest is a converter's word. What is there under it already is only shared with whoever has
/// made the same bytes.
#[test]
fn content_is_compared_before_two_are_one() {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, at: u64, bytes: &[u8]| {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(bytes, at).unwrap();
        path
    };
    let one = file("one", 5 << 30, b"the same");
    let same = |other: &Path| staging::same_bytes(&one, other, &|| true).unwrap();
    assert!(same(&file("same", 5 << 30, b"the same")));
    assert!(!same(&file("changed", 5 << 30, b"the s\0me")));
    assert!(!same(&file("elsewhere", 6 << 30, b"the same")));
    assert!(!same(&file("nothing", 0, b"")));
    // All that was made is there, and something beside it.
    let more = file("more", 5 << 30, b"the same");
    std::fs::File::options().write(true).open(&more).unwrap().write_all_at(b"and more", 6 << 30).unwrap();
    assert!(!same(&more));
    let shorter = dir.path().join("shorter");
    std::fs::write(&shorter, b"the same").unwrap();
    assert!(!same(&shorter));
}

/// Gigabytes take a while to remove, and what is moved away is in nobody's way.
#[test]
fn what_is_removed_is_out_of_the_way_of_the_next_import_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(id(1).to_string());
    std::fs::create_dir(&folder).unwrap();
    let aside = set_aside(&folder).unwrap().unwrap();
    assert!(!folder.exists() && aside.is_dir() && is_unfinished(&aside) && !is_finished(&aside));
    assert_eq!(set_aside(&folder).unwrap(), None);
    std::fs::create_dir(&folder).unwrap();
    assert_ne!(set_aside(&folder).unwrap().unwrap(), aside);
}

#[test]
fn a_comparison_ends_when_its_job_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    std::fs::write(&one, vec![1; 3 << 20]).unwrap();
    std::fs::copy(&one, &other).unwrap();
    let asked = std::cell::Cell::new(0);
    let go_on = || {
        asked.set(asked.get() + 1);
        asked.get() < 2
    };
    assert!(!staging::same_bytes(&one, &other, &go_on).unwrap());
    assert_eq!(asked.get(), 2, "of three MiB");
}

/// What is not to be seen is not even read.
#[test]
fn another_users_rows_cost_nobody_anything() {
    let world = world(&[image(&ALICE, "hers", 1), image(&BOB, "his", 2)], &[kernel(&BOB, "his", 3)]);
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    sql.execute("UPDATE image_names SET config = 'none' WHERE owner_name = 'bob'", []).unwrap();
    sql.execute("UPDATE kernels SET modules = 'none'", []).unwrap();
    world.store(async |store| {
        assert_eq!(store.list::<ImageRecord>(&ALICE, false).await.unwrap().len(), 1);
        assert_eq!(store.pick_image(&ALICE, Some("hers")).await.unwrap().id, id(1));
        assert_eq!(store.pick_image(&ALICE, None).await.unwrap().id, id(1));
        assert_eq!(store.list::<KernelRecord>(&ALICE, false).await.unwrap().len(), 0);
        assert!(store.list::<ImageRecord>(&BOB, false).await.is_err(), "it is his row");
    });
}
