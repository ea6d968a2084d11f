#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use banger_link::fakes::guest;
use banger_proto::stream::{Frame, OPENED_BYTES, read, write};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::fs::File;
use std::future::pending;
use std::io::{IoSliceMut, Read, Seek, Write};
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// Everything up to the last frame: standard output, standard error, last frame.
async fn all(client: &mut UnixStream) -> (String, String, Frame) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(SOON, read(client)).await.unwrap().unwrap().unwrap() {
            Frame::Output(bytes) => out.extend(bytes),
            Frame::ErrorOutput(bytes) => err.extend(bytes),
            last => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return (text(&out), text(&err), last);
            }
        }
    }
}

/// The bytes that wait on the socket, and how many descriptors came with them.
fn received(socket: &UnixStream) -> (Vec<u8>, usize) {
    let mut bytes = [0; 64];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT).unwrap();
    let descriptors = |beside| match beside {
        ControlMessageOwned::ScmRights(all) => all.len(),
        _ => 0,
    };
    let (count, descriptors) = (message.bytes, message.cmsgs().unwrap().map(descriptors).sum());
    (bytes[..count].to_vec(), descriptors)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_a_guest_is_handed_over_and_counts_until_the_client_goes() {
    let guest = guest();
    for ssh in [false, true] {
        let opened = if ssh { guest.link.ssh().await } else { guest.link.command().await }.unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(hand_over(server, opened));
        timeout(SOON, client.readable()).await.unwrap().unwrap();
        assert_eq!(received(&client), (OPENED_BYTES.to_vec(), 1));
        assert!(!serving.is_finished());
        drop(client);
        timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_that_is_gone_gets_nothing() {
    let (client, server) = UnixStream::pair().unwrap();
    let (opened, _far) = UnixStream::pair().unwrap();
    drop(client);
    assert!(hand_over(server, opened).await.is_err());
}

#[tokio::test]
async fn logs_are_sent_from_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    let read_all = async |tail| {
        let (mut client, server) = UnixStream::pair().unwrap();
        let sending = logs(server, &path, false, tail, pending(), pending());
        let (sent, said) = tokio::join!(sending, all(&mut client));
        sent.unwrap();
        said
    };
    assert_eq!(read_all(None).await, (String::new(), String::new(), Frame::Exit(0)));
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    assert_eq!(read_all(None).await.0, "one\ntwo\nthree\n");
    assert_eq!(read_all(Some(2)).await.0, "two\nthree\n");
    assert_eq!(read_all(Some(0)).await.0, "");
    std::fs::write(&path, "x".repeat(1_000_000)).unwrap();
    assert_eq!(read_all(None).await.0.len(), 1_000_000);
}

#[tokio::test]
async fn followed_logs_go_on_into_the_next_boot_and_end_with_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    std::fs::write(&path, "old\nlast\n").unwrap();
    let (mut client, server) = UnixStream::pair().unwrap();
    let followed = path.clone();
    let serving = tokio::spawn(async move { logs(server, &followed, true, Some(1), pending(), pending()).await });
    let mut next = async || timeout(SOON, read(&mut client)).await.unwrap().unwrap();
    assert_eq!(next().await, Some(Frame::Output(b"last\n".to_vec())));
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(b"more\n").unwrap();
    assert_eq!(next().await, Some(Frame::Output(b"more\n".to_vec())));
    file.set_len(0).unwrap();
    file.write_all(b"boot\n").unwrap();
    assert_eq!(next().await, Some(Frame::Output(b"boot\n".to_vec())));
    drop(client);
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn followed_logs_end_with_the_vm_and_have_its_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm/console.log");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "running\n").unwrap();
    let (mut client, server) = UnixStream::pair().unwrap();
    let (delete, gone) = tokio::sync::oneshot::channel::<()>();
    let followed = path.clone();
    let serving = tokio::spawn(async move {
        let gone = async { drop(gone.await) };
        logs(server, &followed, true, None, pending(), gone).await
    });
    let mut next = async || timeout(SOON, read(&mut client)).await.unwrap().unwrap();
    assert_eq!(next().await, Some(Frame::Output(b"running\n".to_vec())));
    std::fs::write(&path, "running\nlast\n").unwrap();
    assert_eq!(next().await, Some(Frame::Output(b"last\n".to_vec())));
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    drop(delete);
    assert_eq!(next().await, Some(Frame::Exit(0)));
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_is_spooled_and_capped() {
    let send = async |frames: &[Frame], cap| {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let spool = file.try_clone().unwrap();
        let mut seen = 0;
        let sending = async {
            for frame in frames {
                write(&mut client, frame).await.unwrap();
            }
            let last = if frames.last() == Some(&Frame::InputEnd) || cap == 4 {
                read(&mut client).await.unwrap()
            } else {
                None
            };
            drop(client);
            last
        };
        let (done, last) = tokio::join!(
            upload(server, spool, cap, |total| {
                seen = total;
                Ok(())
            }),
            sending
        );
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        (done, last, content, seen)
    };
    let parts = [Frame::Input(b"abc".to_vec()), Frame::Input(b"def".to_vec()), Frame::InputEnd];
    let (done, last, content, seen) = send(&parts, 6).await;
    assert_eq!((done.unwrap(), last, content.as_slice(), seen), (6, Some(Frame::Exit(0)), b"abcdef".as_slice(), 6));
    // Zeros become holes, and are there all the same.
    let zeros = Frame::Input(vec![0; 64 * 1024]);
    let parts_with_zeros = [zeros.clone(), parts[0].clone(), zeros.clone(), zeros.clone(), Frame::InputEnd];
    let (done, _, content, seen) = send(&parts_with_zeros, 1 << 20).await;
    let expected = [&[0; 64 * 1024], &b"abc"[..], &[0; 128 * 1024]].concat();
    assert_eq!((done.unwrap(), seen), (expected.len() as u64, expected.len() as u64));
    assert!(content == expected);
    let (done, last, ..) = send(&parts, 4).await;
    assert!(matches!(done, Err(UploadError::TooLarge(4))));
    assert_eq!(last, Some(Frame::Failed("the upload is larger than 4 bytes".into())));
    let (done, ..) = send(&parts[..1], 6).await;
    assert!(matches!(done, Err(UploadError::Client(_))), "{done:?}");
    let (done, ..) = send(&[Frame::Exit(0)], 6).await;
    assert!(matches!(done, Err(UploadError::Client(_))), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn no_upload_goes_on_for_ever() {
    // A byte now and then; a frame without one counts for nothing.
    for (bytes, longest) in [(1, Duration::from_secs(25 * 60 * 60)), (0, Duration::from_secs(1))] {
        let begin = tokio::time::Instant::now();
        let (client, server) = UnixStream::pair().unwrap();
        let (mut from, mut to) = client.into_split();
        let uploading = tokio::spawn(upload(server, tempfile::tempfile().unwrap(), 1 << 20, |_| Ok(())));
        let trickle = async {
            while write(&mut to, &Frame::Input(vec![0; bytes])).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(300)).await;
            }
        };
        let answer = tokio::select! {
            answer = read(&mut from) => answer.unwrap(),
            () = trickle => None,
        };
        assert!(matches!(answer, Some(Frame::Failed(_))), "{answer:?}");
        assert!(begin.elapsed() <= longest, "{:?}", begin.elapsed());
        drop((from, to));
        assert!(uploading.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_full_disk_ends_an_upload() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let sending = async {
        write(&mut client, &Frame::Input(vec![0; 1000])).await.unwrap();
        write(&mut client, &Frame::InputEnd).await.unwrap();
        let last = read(&mut client).await.unwrap();
        drop(client);
        last
    };
    let (done, last) = tokio::join!(upload(server, full, 1 << 20, |_| Ok(())), sending);
    assert!(matches!(done, Err(UploadError::File(error)) if error.kind() == std::io::ErrorKind::StorageFull));
    assert!(matches!(last, Some(Frame::Failed(_))));
}
