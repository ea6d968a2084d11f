//! `image register` and what becomes of it, by calls.

use super::*;
use banger_policy::quota::UserLimits;
use banger_proto::model::{CreateRequest, ImageRecord};

/// A file system of 1 MiB, as far as the daemon looks: without a checksum.
fn file_system() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    for (at, value) in [(0x4, 256_u32), (0x18, 2), (0x38, 0xef53), (0x60, 0x2c2)] {
        bytes[1024 + at..1024 + at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes[1 << 19] = 1;
    bytes
}

fn request(name: &str, kernel: Option<&str>) -> StreamRequest {
    StreamRequest::RegisterImage {
        name: name.into(),
        source: "/home/alice/x.ext4".into(),
        kernel: kernel.map(Into::into),
    }
}

async fn registered(door: &Door, peer: Peer, request: StreamRequest) -> ImageRecord {
    match send(door, peer, request, &file_system()).await {
        JobState::Done(JobResult::Image(image)) => *image,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn a_file_system_becomes_an_image_with_its_kernel_boots_and_is_promoted() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let (alice, bob, root) = (door.client(ALICE).await, door.client(BOB).await, door.client(ROOT).await);
        let image = registered(&door, ALICE, request("own", Some("6.12"))).await;
        assert_eq!((image.managed, image.shared, image.build_size), (false, false, 128 << 20));
        assert_eq!(image.kernel.as_ref().unwrap().as_str(), "6.12");
        let shown = alice.show_image(now(), "own".into()).await.unwrap().unwrap();
        assert_eq!((&shown.kernel, shown.kernel_id, shown.managed), (&image.kernel, image.kernel_id, false));
        let folder = world.paths().image_dir(&image.id);
        let stored = std::fs::File::open(folder.join(banger_image::ROOTFS_FILE)).unwrap();
        let mut front = vec![1; 1 << 20];
        std::os::unix::fs::FileExt::read_exact_at(&stored, &mut front, 0).unwrap();
        assert!(front == file_system());

        let vm = CreateRequest { image_name: Some("own".into()), ..named("web") };
        let job = alice.create_vm(now(), vm, false).await.unwrap().unwrap();
        let JobState::Done(JobResult::Vm(vm)) = end_of(&alice, job).await else { unreachable!("no VM") };
        assert_eq!((vm.kernel_id, vm.image_id, vm.state), (image.kernel_id.unwrap(), image.id, State::Running));

        // Nobody else's.
        for refused in [
            bob.show_image(now(), "own".into()).await.unwrap().map(drop),
            bob.promote_image(now(), "own".into()).await.unwrap(),
            bob.promote_image(now(), image.id.to_string()).await.unwrap(),
            bob.delete_image(now(), "own".into()).await.unwrap(),
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
        }
        let code = |done: Result<(), ApiError>| done.map_err(|error| error.code);
        assert_eq!(code(alice.share_image(now(), "own".into(), true).await.unwrap()), Err(ErrorCode::Denied));
        alice.promote_image(now(), "own".into()).await.unwrap().unwrap();
        assert!(alice.show_image(now(), "own".into()).await.unwrap().unwrap().managed);

        // An administrator shares it when its kernel is shared.
        root.share_kernel(now(), "6.12".into(), false).await.unwrap().unwrap();
        let refused = root.share_image(now(), "alice/own".into(), true).await.unwrap().unwrap_err();
        assert!(refused.hint.contains("banger kernel share root/6.12"), "{refused:?}");
        root.share_kernel(now(), "6.12".into(), true).await.unwrap().unwrap();
        root.share_image(now(), "alice/own".into(), true).await.unwrap().unwrap();
        assert_eq!(bob.show_image(now(), "own".into()).await.unwrap().unwrap().source, "x.ext4");

        assert_eq!(code(root.delete_kernel(now(), "6.12".into()).await.unwrap()), Err(ErrorCode::InUse));
        assert_eq!(code(alice.delete_image(now(), "own".into()).await.unwrap()), Err(ErrorCode::InUse));
        let job = alice.delete_vm(now(), "web".into()).await.unwrap().unwrap();
        assert!(matches!(end_of(&alice, job).await, JobState::Done(_)));
        let refused = root.delete_kernel(now(), "6.12".into()).await.unwrap().unwrap_err();
        assert!(refused.message.contains("image alice/own"), "{refused:?}");
        alice.delete_image(now(), "own".into()).await.unwrap().unwrap();
        assert!(!folder.exists());
        root.delete_kernel(now(), "6.12".into()).await.unwrap().unwrap();
    });
}

#[test]
fn what_cannot_become_one_is_refused_before_the_upload_or_leaves_nothing() {
    let world = World::new();
    let door = Door::of(&world);
    world.life().runtime.block_on(async {
        let alice = door.client(ALICE).await;
        let image = registered(&door, ALICE, request("own", None)).await;
        assert_eq!((image.kernel, image.kernel_id), (None, None));
        for (wanted, code) in [
            (request("own", None), ErrorCode::AlreadyExists),
            (request("bad name", None), ErrorCode::BadRequest),
            (request("new", Some("nothing")), ErrorCode::NotFound),
        ] {
            assert_eq!(alice.open_stream(now(), wanted).await.unwrap().unwrap_err().code, code);
        }
        let limits = UserLimits { images: 1, ..UserLimits::BUILT_IN };
        let limited = door.client(Peer { limits, ..ALICE }).await;
        let refused = limited.open_stream(now(), request("new", None)).await.unwrap().unwrap_err();
        assert_eq!(refused.code, ErrorCode::Limit);

        let partitioned = [&[0; 510][..], b"\x55\xaaEFI PART", &[0; 4000]].concat();
        let end = send(&door, ALICE, request("new", None), &partitioned).await;
        let JobState::Failed(why) = end else { unreachable!("{end:?}") };
        assert!(why.code == ErrorCode::BadRequest && why.message.contains("GPT"), "{why:?}");
        // The kernel goes while the file is sent.
        let root = door.client(ROOT).await;
        let open = alice.open_stream(now(), request("new", Some("6.12"))).await.unwrap().unwrap();
        root.delete_kernel(now(), "6.12".into()).await.unwrap().unwrap();
        let mut stream = door.stream(ALICE, &open.ticket).await;
        // Other bytes than those of before: a new content.
        let mut bytes = file_system();
        bytes[1 << 18] = 1;
        for piece in bytes.chunks(MAX_PAYLOAD) {
            write(&mut stream, &Frame::Input(piece.to_owned())).await.unwrap();
        }
        write(&mut stream, &Frame::InputEnd).await.unwrap();
        let JobState::Failed(why) = end_of(&alice, open.job.unwrap()).await else { unreachable!("it was made") };
        assert!(why.code == ErrorCode::NotFound && why.message.contains("kernel was deleted"), "{why:?}");
        assert_eq!(alice.list_images(now(), false, None).await.unwrap().unwrap().entries.len(), 2);
    });
    let folders = std::fs::read_dir(world.paths().images()).unwrap().count();
    assert_eq!(folders, 1, "of the one that was made");
    assert_eq!(std::fs::read_dir(world.paths().staging()).unwrap().count(), 0);
}
