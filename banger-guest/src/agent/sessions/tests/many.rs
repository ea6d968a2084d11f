//! More clients than a session serves at a time.
use super::*;

/// As many as are served.
const MOST: usize = 64;

async fn why(guest: &Guest, request: Request) -> String {
    match refused(guest.answer(request).await) {
        Refusal::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_with_many_who_read_is_stopped_and_killed_all_the_same() {
    let guest = guest();
    guest.sh("web", "trap 'echo heard' USR1; echo ready; while :; do sleep 0.1; done").await;
    let follow = || Request::Logs { session: named("web"), outputs: Outputs::Both, tail: None, follow: true };
    let mut readers = Vec::new();
    for _ in 0..MOST {
        let mut reader = guest.ask(follow()).await;
        assert!(matches!(next(&mut reader).await, Answer::Record(_)));
        readers.push(reader);
    }
    for request in [follow(), Request::Wait { session: named("web") }] {
        let why = why(&guest, request).await;
        assert!(why.contains("64 clients"), "{why}");
    }
    assert_eq!(guest.answer(Request::Kill { session: named("web"), signal: 10 }).await, Answer::Done);
    guest.says("web", "heard").await;
    // A place that is left is taken.
    readers.pop();
    let mut served = guest.answer(follow()).await;
    for _ in 0..100 {
        if matches!(served, Answer::Record(_)) {
            break;
        }
        sleep(Duration::from_millis(20)).await;
        served = guest.answer(follow()).await;
    }
    assert!(matches!(served, Answer::Record(_)), "{served:?}");
    assert_eq!(guest.answer(Request::Stop { session: named("web") }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn input_that_was_given_up_is_bounded_and_makes_room_when_it_is_read() {
    let guest = guest();
    let new = New { name: Some("deaf".into()), stdin: true, ..sh("until [ -e read ]; do sleep 0.1; done; cat >read") };
    guest.start(new).await;
    let send = || Request::Send { session: named("deaf") };
    // What the first one sends lies in the pipe.
    for _ in 0..=MOST {
        let mut writer = guest.ask(send()).await;
        assert_eq!(next(&mut writer).await, Answer::Opened);
        for _ in 0..8 {
            ToGuest::Input(vec![b'x'; WINDOW / 8]).write(&mut writer).await.unwrap();
        }
    }
    for request in [send(), Request::Attach { session: named("deaf"), size: None }] {
        let mut why = why(&guest, request.clone()).await;
        // Those that have gone give their connections' places back in their own time.
        for _ in 0..100 {
            if !why.contains("connected") {
                break;
            }
            sleep(Duration::from_millis(20)).await;
            why = self::why(&guest, request.clone()).await;
        }
        assert!(why.contains("does not read its input"), "{why}");
    }
    let read = guest.folder.path().join("read");
    std::fs::write(&read, "").unwrap();
    let all = ((MOST + 1) * WINDOW) as u64;
    for _ in 0..400 {
        if read.metadata().unwrap().len() == all {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read.metadata().unwrap().len(), all, "what was taken is written");
    assert_eq!(guest.answer(send()).await, Answer::Opened);
    assert_eq!(guest.answer(Request::Stop { session: named("deaf") }).await, Answer::Ended(Status::Killed(15)));
}
