//! What users have stored, and that there is a limit to it.

use super::*;
use crate::db::DbError;

#[test]
fn one_user_cannot_fill_the_store() {
    let world = world(&[], &[]);
    let limits = UserLimits { images: 2, store: 250, ..UserLimits::BUILT_IN };
    world.store(async |store| {
        let insert = |image: ImageRecord| store.db.insert_image(image, limits);
        insert(image(&ALICE, "one", 1)).await.unwrap();
        // Another name for the same bytes costs no bytes.
        insert(image(&ALICE, "same", 1)).await.unwrap();
        let third = insert(image(&ALICE, "three", 1)).await.unwrap_err();
        assert!(matches!(&third, DbError::Limit(why) if why.to_string().contains("limit images is 2")), "{third}");
        store.delete::<ImageRecord>(&ALICE, "same".into()).await.unwrap();
        insert(image(&ALICE, "two", 2)).await.unwrap();
        store.delete::<ImageRecord>(&ALICE, "two".into()).await.unwrap();
        let large = insert(ImageRecord { allocated_bytes: 151, ..image(&ALICE, "two", 2) }).await.unwrap_err();
        assert!(matches!(&large, DbError::Limit(why) if why.to_string().contains("limit store")), "{large}");
        assert_eq!(store.db.contents(&IMAGES).await.unwrap(), [id(1)], "nothing of a refusal stays");
        insert(ImageRecord { allocated_bytes: 150, ..image(&ALICE, "two", 2) }).await.unwrap();
        insert(image(&BOB, "one", 1)).await.unwrap();
        // Before the upload, with whom to ask.
        let peer = Peer { limits, ..ALICE };
        let wanted = Wanted::Image(WantedImage::new(&peer, "more", "x", None, false).unwrap());
        let refused = ApiError::from(store.check_free(&peer, &wanted).await.unwrap_err());
        assert!(refused.code == ErrorCode::Limit && refused.hint.contains("[limits.users.alice]"), "{refused:?}");
    });
}

/// Kernels, and images that are pulled, are written by other statements.
#[test]
fn kernels_and_what_is_pulled_are_counted_like_images() {
    let world = world(&[], &[]);
    let limits = UserLimits { images: 1, kernels: 1, store: 250, ..UserLimits::BUILT_IN };
    let over = |refused: Result<(), DbError>, limit: &str| match refused.unwrap_err() {
        DbError::Limit(why) => assert!(why.to_string().contains(limit), "{why}"),
        other => unreachable!("{other}"),
    };
    world.store(async |store| {
        let insert = |kernel: KernelRecord| store.db.insert_kernel(kernel, limits);
        over(insert(KernelRecord { size_bytes: 251, ..kernel(&ALICE, "k", 1) }).await, "limit store");
        insert(kernel(&ALICE, "k", 1)).await.unwrap();
        over(insert(kernel(&ALICE, "more", 2)).await, "limit kernels is 1");
        insert(kernel(&BOB, "k", 1)).await.unwrap();
        let pull = |image: ImageRecord| store.db.insert_pulled(image, false, limits);
        over(pull(ImageRecord { allocated_bytes: 241, ..image(&ALICE, "i", 3) }).await, "limit store");
        pull(image(&ALICE, "i", 3)).await.unwrap();
        over(pull(image(&ALICE, "more", 4)).await, "limit images is 1");
        pull(image(&BOB, "i", 4)).await.unwrap();
    });
}

/// No row counts them.
#[test]
fn uploads_count_against_the_limit_while_they_are_spooled() {
    let world = world(&[image(&ALICE, "hers", 1)], &[]);
    world.store(async |store| {
        let end = async |peer: Peer| {
            let wanted = Wanted::Kernel(WantedKernel::new(&peer, Some("k"), false).unwrap());
            let job = store.begin(&peer, &wanted).unwrap();
            let (id, (mut ours, theirs)) = (job.id(), UnixStream::pair().unwrap());
            let client = async {
                write(&mut ours, &Frame::Input(b"this is no kernel".to_vec())).await.unwrap();
                // It may be refused before this.
                drop(write(&mut ours, &Frame::InputEnd).await);
                drop(read(&mut ours).await);
                drop(ours);
            };
            tokio::join!(store.import(theirs, peer, wanted, job), client);
            match store.jobs.watch(&ROOT, id, 0, Duration::ZERO).await.unwrap().state {
                JobState::Failed(why) => why,
                other => unreachable!("{other:?}"),
            }
        };
        // 100 bytes are stored.
        let limits = UserLimits { store: 110, ..UserLimits::BUILT_IN };
        let peer = |peer: Peer| Peer { limits, ..peer };
        let mut other = store.spooled.begin(ALICE.uid);
        other.has(spooled::most_for(10), 100, &limits).unwrap();
        let why = end(peer(ALICE)).await;
        assert!(why.code == ErrorCode::Limit && why.message.contains("limit store"), "{why:?}");
        assert_eq!(end(peer(BOB)).await.code, ErrorCode::BadRequest, "his is looked at");
        drop(other);
        assert_eq!(end(peer(ALICE)).await.code, ErrorCode::BadRequest);
    });
}

/// What users of the content have: a VM of the image, with the kernel.
fn vm_of(world: &World, peer: &Peer, name: &str, image: u8, kernel: u8) {
    let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
    let values = rusqlite::params![name, peer.uid, peer.name, id(image).to_string(), id(kernel).to_string()];
    sql.execute(
        "INSERT INTO vms (id, owner, owner_name, name, image_id, image_name, kernel_id, state, making, created_at, updated_at,
         last_touched_at, vcpu_count, memory_mib, system_overlay_size_bytes, work_disk_size_bytes, nat_enabled)
         VALUES (?1, ?2, ?3, ?1, ?4, 'x', ?5, 'stopped', 0, 1, 1, 1, 1, 256, 100, 11, 0)",
        values,
    )
    .unwrap();
}

#[test]
fn what_only_vms_still_use_counts_for_their_owners() {
    let kernels = [kernel(&ROOT, "all", 1), kernel(&ALICE, "hers", 2)];
    let world = world(&[image(&ROOT, "all", 3)], &kernels);
    world.store(async |store| {
        store.share::<KernelRecord>(&ROOT, "all", true).await.unwrap();
        store.share::<ImageRecord>(&ROOT, "all", true).await.unwrap();
        let stored = async |peer: &Peer| store.db.stored_by(peer.owner()).await.unwrap();
        vm_of(&world, &BOB, "his", 3, 1);
        assert_eq!((stored(&BOB).await, stored(&ROOT).await), (0, 110), "what everybody has is its owner's");

        let limits = UserLimits { store: 250, ..UserLimits::BUILT_IN };
        let pull = |first: u8| {
            let source = "registry.example/x".to_owned();
            store.db.insert_pulled(ImageRecord { source, ..image(&ALICE, "x", first) }, false, limits)
        };
        pull(4).await.unwrap();
        vm_of(&world, &ALICE, "one", 4, 2);
        pull(5).await.unwrap();
        assert_eq!(stored(&ALICE).await, 210, "the name has moved, and a VM needs what it meant");
        vm_of(&world, &ALICE, "two", 5, 2);
        let refused = pull(6).await.unwrap_err();
        assert!(matches!(&refused, DbError::Limit(why) if why.to_string().contains("limit store")), "{refused}");

        // A kernel that is nobody's any more stays for what names it.
        store.db.insert_image(ImageRecord { kernel_id: Some(id(1)), ..image(&BOB, "named", 7) }, limits).await.unwrap();
        let sql = rusqlite::Connection::open(world.paths().database()).unwrap();
        sql.execute("DELETE FROM kernel_names WHERE owner = 0", []).unwrap();
        assert_eq!(stored(&BOB).await, 110);
    });
}

/// Earlier releases counted one file of each.
#[test]
fn what_is_stored_is_counted_anew_when_the_daemon_starts() {
    let world = world(&[image(&ALICE, "i", 1)], &[kernel(&ALICE, "k", 2)]);
    let (image, kernel) = (world.paths().image_dir(&id(1)), world.paths().kernel_dir(&id(2)));
    std::fs::create_dir(kernel.join("modules")).unwrap();
    let files = [image.join("rootfs.ext4"), image.join("work-seed.tar"), kernel.join("modules/00-a.ko")];
    for file in &files {
        std::fs::write(file, [1; 10_000]).unwrap();
        std::fs::File::open(file).unwrap().sync_all().unwrap();
    }
    world.store(async |store| {
        store.remove_leftovers().await.unwrap();
        let taken: u64 = files.iter().map(|file| crate::util::allocated(file)).sum();
        assert!(taken >= 30_000);
        assert_eq!(store.db.stored_by(ALICE.owner()).await.unwrap(), taken);
    });
}
