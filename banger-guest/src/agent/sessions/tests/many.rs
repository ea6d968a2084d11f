//! More clients than a session serves at a time.
use super::*;

/// As many as are served.
const MOST: usize = 64;

fn why(answer: Answer) -> String {
    match refused(answer) {
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
        let why = why(guest.answer(request).await);
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
