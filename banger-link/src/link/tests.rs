use super::*;
use crate::fakes::guest;
use banger_proto::command::{FromGuest, Start, ToGuest};
use tokio::net::UnixListener;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@example";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_command() {
    let guest = guest();
    let mut stream = guest.link.command().await.unwrap();
    let words = ["sh", "-c", "cat; exit 42"].map(|word| word.as_bytes().to_vec()).to_vec();
    ToGuest::Start(Box::new(Start { words, ..Start::default() })).write(&mut stream).await.unwrap();
    ToGuest::Input(b"hello".to_vec()).write(&mut stream).await.unwrap();
    ToGuest::InputEnd.write(&mut stream).await.unwrap();
    let mut said = Vec::new();
    while let Some(frame) = FromGuest::read(&mut stream).await.unwrap() {
        let last = matches!(frame, FromGuest::Exited(_));
        said.push(frame);
        if last {
            break;
        }
    }
    for frame in [FromGuest::Started, FromGuest::Output(b"hello".to_vec()), FromGuest::Exited(42)] {
        assert!(said.contains(&frame), "{frame:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_are_taken_or_refused_as_a_whole() {
    let guest = guest();
    guest.link.set_authorized_keys(&[KEY.to_owned()]).await.unwrap();
    let refused = guest.link.set_authorized_keys(&[KEY.to_owned(), "rubbish".to_owned()]).await;
    assert!(matches!(refused, Err(LinkError::Keys)), "{refused:?}");
    guest.link.set_authorized_keys(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_another_boot_opens_nothing() {
    let guest = guest();
    let other = Link::new(guest.vsock.clone(), BootToken::new([2; 32]));
    let refused = other.command().await;
    assert!(matches!(&refused, Err(LinkError::Agent(_))), "{refused:?}");
    assert!(refused.err().is_some_and(|error| error.to_string().contains("before it answered")));
}

/// A socket that answers each connection with these bytes, then closes it.
fn answering(bytes: &'static [u8]) -> (tempfile::TempDir, Link) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = [0; 13];
            let _ = stream.read_exact(&mut line).await;
            let _ = stream.write_all(bytes).await;
            // The opening, if there is one.
            if bytes.starts_with(b"OK ") {
                let _ = stream.read_exact(&mut [0; 70]).await;
            }
        }
    });
    (folder, Link::new(path, BootToken::new([1; 32])))
}

/// A socket that takes connections, answers each with these bytes, and is silent from then on.
fn silent_after(bytes: &'static [u8]) -> (tempfile::TempDir, Link) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(bytes).await.unwrap();
            kept.push(stream);
        }
    });
    let patience = Duration::from_millis(300);
    (folder, Link { patience, ..Link::new(path, BootToken::new([1; 32])) })
}

#[tokio::test]
async fn a_layer_that_is_silent_is_named_in_time() {
    // A VMM that stands still, and an agent that does.
    for (bytes, silent) in [(&b""[..], Layer::Machine), (b"OK 1\n", Layer::Agent)] {
        let (_folder, link) = silent_after(bytes);
        for result in [link.command().await, link.inside().await, link.session().await] {
            assert!(matches!(result, Err(LinkError::Silent { silent: who }) if who == silent), "{result:?}");
        }
        let keys = link.set_authorized_keys(&[]).await;
        assert!(matches!(keys, Err(LinkError::Silent { silent: who }) if who == silent), "{keys:?}");
    }
    let (_folder, link) = silent_after(b"");
    assert!(matches!(link.ssh().await, Err(LinkError::Silent { silent: Layer::Machine })));
    // Nobody waits for those who wait before him.
    let commands = (0..=STARTUPS).map(|_| link.command());
    let waited = std::time::Instant::now();
    let refused: Vec<_> = futures_of(commands).await;
    assert!(waited.elapsed() < 3 * link.patience, "{:?}", waited.elapsed());
    assert!(refused.iter().all(|error| matches!(error, LinkError::Silent { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_guest_that_the_vmm_gives_up_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let given_up = Duration::from_millis(50);
    tokio::spawn(async move {
        for _ in 0..3 {
            let late = listener.accept().await.unwrap();
            tokio::time::sleep(2 * given_up).await;
            drop(late);
        }
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"OK 1\n\x01\x02").await.unwrap();
        std::future::pending::<()>().await;
    });
    let link = Link { given_up, ..Link::new(path, BootToken::new([1; 32])) };
    let answered = link.command().await;
    assert!(matches!(answered, Err(LinkError::Busy)), "the fourth connection is answered: {answered:?}");

    // One that never answers is not called one in which nobody listens.
    let path = folder.path().join("never.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok(late) = listener.accept().await {
            tokio::time::sleep(2 * given_up).await;
            drop(late);
        }
    });
    let patience = Duration::from_millis(300);
    let link = Link { given_up, patience, ..Link::new(path, BootToken::new([1; 32])) };
    let silent = link.command().await;
    assert!(matches!(silent, Err(LinkError::Silent { silent: Layer::Machine })), "{silent:?}");

    // One that ends meanwhile.
    let path = folder.path().join("ends.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let late = listener.accept().await.unwrap();
        tokio::time::sleep(2 * given_up).await;
        drop(listener);
        drop(late);
    });
    let link = Link { given_up, ..Link::new(path, BootToken::new([1; 32])) };
    let ended = link.command().await.unwrap_err().to_string();
    assert!(ended.contains("the guest ended"), "{ended}");
}

/// All at once; every one fails.
async fn futures_of(
    commands: impl Iterator<Item = impl Future<Output = Result<UnixStream, LinkError>>>,
) -> Vec<LinkError> {
    let mut waiting: Vec<_> = commands.map(Box::pin).collect();
    let mut failed = Vec::new();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|command| match command.as_mut().poll(context) {
            std::task::Poll::Ready(result) => {
                failed.push(result.unwrap_err());
                false
            }
            std::task::Poll::Pending => true,
        });
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    failed
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    for (bytes, said) in [
        (&b""[..], "nobody listens in the guest"),
        (b"NO\n", "nobody listens in the guest"),
        (b"OK 1\n", "before it answered"),
        (b"OK 1\n\x07\x01", "speaks version 7"),
        (b"OK 1\n\x01\x02", "as many commands as it can"),
        (b"OK 1\n\x01\x09", "does not answer as it should"),
        (&[b'x'; 200], "the VMM answers too much"),
    ] {
        let (_folder, link) = answering(bytes);
        let error = link.command().await.unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
        assert_eq!(error.is_old(), said.contains("nobody") || said.contains("version") || said.contains("VMM"));
    }
    let gone = Link::new("/nonexistent/vsock".into(), BootToken::new([1; 32]));
    assert!(matches!(gone.ssh().await, Err(LinkError::Vmm { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let silent = Link::new(path, BootToken::new([1; 32]));
    let error = silent.set_authorized_keys(&[]).await.unwrap_err();
    assert!(matches!(error, LinkError::Silent { silent: Layer::Machine }), "{error}");
}
