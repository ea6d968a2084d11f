//! Kernels that images name: whose they are, what a VM gets, and what stays for them.

use super::*;
use crate::db::DbError;

/// An image that was registered, with a kernel.
fn registered(peer: &Peer, name: &str, first: u8, kernel: u8) -> ImageRecord {
    ImageRecord { managed: false, kernel_id: Some(id(kernel)), ..image(peer, name, first) }
}

fn told(error: StoreError) -> (ErrorCode, String) {
    let error = ApiError::from(error);
    (error.code, format!("{} {}", error.message, error.hint))
}

#[test]
fn a_vm_gets_the_kernel_that_was_named_else_the_images_else_the_default() {
    let kernels = [kernel(&ROOT, "usual", 1), kernel(&ALICE, "hers", 2), kernel(&ALICE, "newer", 3)];
    let world = world(&[registered(&ALICE, "own", 4, 2), image(&ALICE, "plain", 5)], &kernels);
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "usual", true).await.unwrap();
        let got = async |image: &str, word: Option<&str>| {
            let image = store.pick_image(&ALICE, Some(image)).await.unwrap();
            store.kernel_for(&ALICE, &image, word).await.unwrap().name.to_string()
        };
        assert_eq!(got("own", None).await, "hers");
        assert_eq!(got("own", Some("newer")).await, "newer");
        assert_eq!(got("plain", None).await, "usual");
        let shown = store.show::<ImageRecord>(&ALICE, "own").await.unwrap();
        assert_eq!((shown.kernel.unwrap().as_str(), shown.kernel_id), ("hers", Some(id(2))));
        let plain = store.show::<ImageRecord>(&ALICE, "plain").await.unwrap();
        assert_eq!((plain.kernel, plain.kernel_id), (None, None));
    });
    let request = CreateRequest { image_name: Some("own".into()), no_start: true, ..vm_named("web") };
    let job = world.life().runtime.block_on(world.life().vms.create(&ALICE, request, false)).unwrap();
    assert!(matches!(world.wait(job), JobState::Done(_)));
    world.store(async |store| {
        let row = store.db.find_vms(&ALICE, "web".into()).await.unwrap().remove(0);
        assert_eq!(row.kernel_id, id(2));
    });
}

/// What boots in a VM decides about all that is in it, so it is asked at each making whether the
/// user may still use the kernel.
#[test]
fn a_kernel_that_was_taken_back_boots_no_more() {
    let world = world(&[], &[kernel(&ROOT, "usual", 1), kernel(&BOB, "his", 2)]);
    world.store(async |store| {
        let insert = |image: ImageRecord| store.db.insert_image(image, UserLimits::NONE);
        // Bob's is not alice's to name, by its digest or by its name.
        let refused = insert(registered(&ALICE, "x", 3, 2)).await.unwrap_err();
        assert!(matches!(refused, DbError::Gone), "{refused}");
        for word in ["his", "bob/his", "usual", "0211"] {
            let refused = told(store.kernel_to_name(&ALICE, word).await.unwrap_err());
            let nobodys = told(store.kernel_to_name(&ALICE, "nothing").await.unwrap_err());
            assert_eq!((refused.0, refused.1.replace(word, "X")), (nobodys.0, nobodys.1.replace("nothing", "X")));
        }
        // An administrator sees it, and it is not theirs either.
        assert_eq!(told(store.kernel_to_name(&ROOT, "bob/his").await.unwrap_err()).0, ErrorCode::Denied);
        store.share::<KernelRecord>(&ROOT, "usual", true).await.unwrap();
        assert_eq!(store.kernel_to_name(&ALICE, "usual").await.unwrap().id, id(1));
        insert(registered(&ALICE, "x", 3, 1)).await.unwrap();
        let image = store.show::<ImageRecord>(&ALICE, "x").await.unwrap();
        assert_eq!(store.kernel_for(&ALICE, &image, None).await.unwrap().id, id(1));
        store.share::<KernelRecord>(&ROOT, "usual", false).await.unwrap();
        let (code, said) = told(store.kernel_for(&ALICE, &image, None).await.unwrap_err());
        assert!(code == ErrorCode::NotFound && said.contains("--kernel"), "{said}");
        let image = store.show::<ImageRecord>(&ALICE, "x").await.unwrap();
        assert_eq!((image.kernel, image.kernel_id), (None, Some(id(1))), "its name is not hers to know now");
        // Its owner has deleted it; the bytes stay for her image, and go with it.
        store.delete::<KernelRecord>(&ROOT, "usual".into()).await.unwrap();
        let folder = world.paths().kernel_dir(&id(1));
        assert!(folder.exists());
        store.delete::<ImageRecord>(&ALICE, "x".into()).await.unwrap();
        assert!(!folder.exists());
    });
}

#[test]
fn a_kernel_that_an_image_names_stays_until_the_image_goes() {
    let kernels = [kernel(&ALICE, "hers", 1), kernel(&ROOT, "all", 2)];
    let world = world(&[registered(&ALICE, "own", 3, 1)], &kernels);
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "all", true).await.unwrap();
        store.db.insert_image(registered(&BOB, "secret", 4, 2), UserLimits::NONE).await.unwrap();
        let (code, said) = told(store.delete::<KernelRecord>(&ALICE, "hers".into()).await.unwrap_err());
        assert!(code == ErrorCode::InUse && said.contains("is the kernel of image own"), "{said}");
        assert!(said.contains("banger image delete own"), "{said}");
        // An administrator is told whose it is.
        let (_, said) = told(store.delete::<KernelRecord>(&ROOT, "all".into()).await.unwrap_err());
        assert!(said.contains("bob/secret") && said.contains("kernel share --off"), "{said}");
        store.delete::<ImageRecord>(&ALICE, "own".into()).await.unwrap();
        store.delete::<KernelRecord>(&ALICE, "hers".into()).await.unwrap();
        assert!(!world.paths().kernel_dir(&id(1)).exists());
    });
}

#[test]
fn who_shared_a_kernel_is_not_told_whose_image_names_it() {
    let world = world(&[], &[kernel(&BOB, "given", 1)]);
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "bob/given", true).await.unwrap();
        store.db.insert_image(registered(&ALICE, "secret", 2, 1), UserLimits::NONE).await.unwrap();
        let (code, said) = told(store.delete::<KernelRecord>(&BOB, "given".into()).await.unwrap_err());
        assert!(code == ErrorCode::InUse && said.contains("an image of another user names it"), "{said}");
        assert!(!said.contains("secret") && !said.contains("alice"), "{said}");
        // Not shared, it is bob's alone.
        store.share::<KernelRecord>(&ROOT, "bob/given", false).await.unwrap();
        store.delete::<KernelRecord>(&BOB, "given".into()).await.unwrap();
        assert!(world.paths().kernel_dir(&id(1)).exists(), "her image has it still");
    });
}

#[test]
fn an_image_is_promoted_by_its_owner_and_shared_with_its_kernel_only() {
    let kernels = [kernel(&ALICE, "hers", 1), kernel(&ROOT, "same", 1)];
    let world = world(&[registered(&ALICE, "own", 3, 1), registered(&ALICE, "plain", 4, 1)], &kernels);
    world.store(async |store| {
        let managed = async |word: &str| store.show::<ImageRecord>(&ROOT, word).await.unwrap().managed;
        assert!(!managed("alice/own").await);
        for (peer, word) in [(&BOB, "own"), (&BOB, "alice/own"), (&CAROL, "own"), (&ROOT, "own")] {
            assert_eq!(told(store.promote(peer, word).await.unwrap_err()).0, ErrorCode::NotFound, "{}", peer.name);
        }
        store.promote(&ALICE, "own").await.unwrap();
        assert!(managed("alice/own").await && !managed("alice/plain").await);
        store.promote(&ALICE, "own").await.unwrap();

        assert_eq!(told(store.share::<ImageRecord>(&ALICE, "plain", true).await.unwrap_err()).0, ErrorCode::Denied);
        let (code, said) = told(store.share::<ImageRecord>(&ROOT, "alice/plain", true).await.unwrap_err());
        assert!(code == ErrorCode::Denied && said.contains("banger kernel share alice/hers"), "{said}");
        assert!(!managed("alice/plain").await, "a refusal changes nothing");
        assert_eq!(told(store.show::<ImageRecord>(&BOB, "plain").await.unwrap_err()).0, ErrorCode::NotFound);
        // The same bytes under another name that is shared: they are everybody's, and her own name
        // for them is not.
        store.share::<KernelRecord>(&ROOT, "same", true).await.unwrap();
        store.share::<ImageRecord>(&ROOT, "alice/plain", true).await.unwrap();
        let seen = store.show::<ImageRecord>(&BOB, "plain").await.unwrap();
        assert_eq!((seen.managed, seen.kernel.as_ref().unwrap().as_str()), (true, "same"));
        assert_eq!(store.kernel_for(&BOB, &seen, None).await.unwrap().id, id(1));
        assert_eq!(told(store.promote(&BOB, "plain").await.unwrap_err()).0, ErrorCode::Denied);
        // Everybody's image without its kernel says so.
        store.share::<KernelRecord>(&ROOT, "same", false).await.unwrap();
        let seen = store.show::<ImageRecord>(&BOB, "plain").await.unwrap();
        assert_eq!(seen.kernel, None);
        assert_eq!(told(store.kernel_for(&BOB, &seen, None).await.unwrap_err()).0, ErrorCode::NotFound);
        store.share::<ImageRecord>(&ROOT, "alice/plain", false).await.unwrap();
        assert!(managed("alice/plain").await, "what is managed stays so");
    });
}

/// A pull of the same name brings another image, which is as all that are pulled.
#[test]
fn a_pull_over_the_name_takes_the_kernel_away() {
    let world = world(&[registered(&ALICE, "own", 3, 1)], &[kernel(&ALICE, "hers", 1)]);
    world.store(async |store| {
        let before = store.show::<ImageRecord>(&ALICE, "own").await.unwrap();
        let pulled = ImageRecord { source: before.source, ..image(&ALICE, "own", 4) };
        store.db.insert_pulled(pulled, false, UserLimits::NONE).await.unwrap();
        let after = store.show::<ImageRecord>(&ALICE, "own").await.unwrap();
        assert_eq!((after.managed, after.kernel_id, after.id), (true, None, id(4)));
    });
}
