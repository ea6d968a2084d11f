#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use super::*;
use banger_link::fakes::{Guest, guest, words};
use banger_proto::stream::{Frame, Terminal, read, write};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

fn start(guest: &Guest, command: &[&str], terminal: Option<Terminal>) -> (UnixStream, JoinHandle<std::io::Result<()>>) {
    let (client, server) = UnixStream::pair().unwrap();
    let (session, command) = (guest.session.clone(), words(command));
    let serving = tokio::spawn(async move { exec(server, &session, &command, &[], terminal.as_ref()).await });
    (client, serving)
}

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

async fn output(client: &mut UnixStream) -> Vec<u8> {
    match timeout(SOON, read(client)).await.unwrap().unwrap() {
        Some(Frame::Output(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_served_to_its_status() {
    let guest = guest();
    let (mut client, serving) = start(&guest, &["sh", "-c", "cat; echo err >&2; exit 42"], None);
    write(&mut client, &Frame::Input(b"hello".to_vec())).await.unwrap();
    write(&mut client, &Frame::InputEnd).await.unwrap();
    assert_eq!(all(&mut client).await, ("hello".into(), "err\n".into(), Frame::Exit(42)));
    assert_eq!(read(&mut client).await.unwrap(), None);
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_command() {
    let guest = guest();
    let script = "trap 'echo caught; exit 3' INT; echo set; while :; do sleep 0.1; done";
    let (mut client, _serving) = start(&guest, &["sh", "-c", script], None);
    assert_eq!(read(&mut client).await.unwrap(), Some(Frame::Output(b"set\n".to_vec())));
    write(&mut client, &Frame::Signal("NONSENSE".into())).await.unwrap();
    write(&mut client, &Frame::Signal("INT".into())).await.unwrap();
    assert_eq!(all(&mut client).await, ("caught\n".into(), String::new(), Frame::Exit(3)));
}

async fn ends(pid: &str) -> bool {
    let process = format!("/proc/{}", pid.trim());
    for _ in 0..200 {
        if !Path::new(&process).exists() {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_command() {
    let guest = guest();
    for terminal in [None, Some(Terminal { term: "dumb".into(), cols: 80, rows: 24 })] {
        let (mut client, serving) = start(&guest, &["sh", "-c", "echo $$; exec sleep 1000"], terminal);
        let pid = output(&mut client).await;
        drop(client);
        assert!(timeout(SOON, serving).await.unwrap().unwrap().is_err());
        assert!(ends(&String::from_utf8(pid).unwrap()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn also_when_the_guest_takes_no_input_any_more() {
    let guest = guest();
    let (mut client, serving) = start(&guest, &["sh", "-c", "echo up; exec sleep 1000"], None);
    assert_eq!(read(&mut client).await.unwrap(), Some(Frame::Output(b"up\n".to_vec())));
    guest.stall.notify_waiters();
    // Until no buffer on the way takes more: memory is bounded.
    let mut sent = 0_u32;
    while let Ok(written) = timeout(Duration::from_secs(1), write(&mut client, &Frame::Input(vec![0; 60_000]))).await {
        written.unwrap();
        sent += 1;
        assert!(sent < 200, "somebody buffers without end");
    }
    drop(client);
    assert!(timeout(SOON, serving).await.unwrap().unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_stops_the_command() {
    let guest = guest();
    let (client, serving) = start(&guest, &["yes"], None);
    sleep(Duration::from_millis(500)).await;
    assert!(!serving.is_finished());
    drop(client);
    assert!(timeout(SOON, serving).await.unwrap().unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_answer_is_said() {
    let guest = guest();
    let lost = start(&guest, &["sleep", "1000"], None);
    let (mut client, _serving) = lost;
    sleep(Duration::from_millis(500)).await;
    for connection in guest.connections.lock().unwrap().iter() {
        connection.abort();
    }
    let (_, _, last) = all(&mut client).await;
    assert_eq!(last, Frame::Failed("the connection to the guest was lost before the command ended".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_ssh_gets_the_servers_bytes() {
    let guest = guest();
    let (mut client, server) = UnixStream::pair().unwrap();
    let session = guest.session.clone();
    let serving = tokio::spawn(async move { ssh_proxy(server, &session).await });
    write(&mut client, &Frame::Input(b"SSH-2.0-test\r\n".to_vec())).await.unwrap();
    let banner = output(&mut client).await;
    assert!(banner.starts_with(b"SSH-2.0-banger_"));
    // Not a key exchange: the server hangs up.
    write(&mut client, &Frame::Input(vec![0xff; 100])).await.unwrap();
    assert_eq!(all(&mut client).await.2, Frame::Exit(0));
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn logs_are_sent_from_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console.log");
    let read_all = async |tail| {
        let (mut client, server) = UnixStream::pair().unwrap();
        let (sent, said) = tokio::join!(logs(server, &path, false, tail), all(&mut client));
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
    let serving = tokio::spawn(async move { logs(server, &followed, true, Some(1)).await });
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
    let (done, last, ..) = send(&parts, 4).await;
    assert!(matches!(done, Err(UploadError::TooLarge(4))));
    assert_eq!(last, Some(Frame::Failed("the upload is larger than 4 bytes".into())));
    let (done, ..) = send(&parts[..1], 6).await;
    assert!(matches!(done, Err(UploadError::Client(_))), "{done:?}");
    let (done, ..) = send(&[Frame::Exit(0)], 6).await;
    assert!(matches!(done, Err(UploadError::Client(_))), "{done:?}");
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

/// As a client sends them, through the daemon's own SSH client, to the agent.
#[tokio::test(flavor = "multi_thread")]
async fn variables_folder_and_user_reach_the_command() {
    let guest = guest();
    let folder = tempfile::tempdir().unwrap();
    let env = vec![("GREETING".to_owned(), "a=b\n c".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    let run = async |command: &[&str], env: &[(String, String)], folder: Option<&Path>, user: Option<&str>| {
        let folder = folder.map(|folder| folder.to_str().unwrap().to_owned());
        let asked = requests(env.to_vec(), folder, user.map(str::to_owned));
        let (mut client, server) = UnixStream::pair().unwrap();
        let (session, command) = (guest.session.clone(), words(command));
        let serving = tokio::spawn(async move { exec(server, &session, &command, &asked, None).await });
        let said = all(&mut client).await;
        serving.await.unwrap().unwrap();
        said
    };
    let show = ["sh", "-c", "pwd; echo \"$GREETING|$PATH\""];
    let (out, err, end) = run(&show, &env, Some(folder.path()), None).await;
    assert_eq!((out, end), (format!("{}\na=b\n c|/usr/bin:/bin\n", folder.path().display()), Frame::Exit(0)), "{err}");
    let (_, err, end) = run(&["true"], &[], Some(&folder.path().join("none")), None).await;
    assert!(end == Frame::Exit(126) && err.contains("there is no folder") && err.contains("-w"), "{end:?} {err}");
    let (_, err, end) = run(&["true"], &[], None, Some("nobody-knows")).await;
    assert!(end == Frame::Exit(126) && err.contains("\"nobody-knows\"") && err.contains("-u root"), "{end:?} {err}");
    if nix::unistd::geteuid().is_root() {
        let (out, err, end) = run(&["id"], &[], Some(Path::new("/")), Some("4711:4712")).await;
        assert!(
            end == Frame::Exit(0) && out.starts_with("uid=4711") && out.contains("gid=4712"),
            "{end:?} {out} {err}"
        );
    } else {
        eprintln!("skipped: not root: only root can become another user");
    }
}
