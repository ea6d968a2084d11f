#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use proptest::prelude::*;

fn session() -> Session {
    Session {
        id: "web.3".into(),
        name: "web".into(),
        command: vec!["serve".into(), "--all".into()],
        status: Status::Killed(9),
        stdin: true,
        tty: false,
        started_at: 1_763_632_800,
        ended_at: Some(1_763_632_801),
        log_path: "/root/.banger/sessions/web.3/log".into(),
        again: true,
    }
}

#[tokio::test]
async fn every_request_comes_back() {
    let session = || "web".to_owned();
    let start = Start { words: vec![vec![0xff, b' ']], ..Start::default() };
    let new = New { name: Some(session()), start, stdin: true, entrypoint: false, again: true };
    let requests = [
        Request::List,
        Request::Show { session: session() },
        Request::Start(Box::new(new)),
        Request::Logs { session: session(), outputs: Outputs::Err, tail: Some(10), follow: true },
        Request::Send { session: session() },
        Request::Attach { session: session(), size: Some((80, 24)) },
        Request::Stop { session: session() },
        Request::Kill { session: session(), signal: 34 },
        Request::Wait { session: session() },
        Request::Remove { session: session() },
    ];
    let mut bytes = Vec::new();
    for request in &requests {
        request.write(&mut bytes).await.unwrap();
    }
    let mut from = bytes.as_slice();
    for request in requests {
        assert_eq!(Request::read(&mut from).await.unwrap(), Some(request));
    }
    assert_eq!(Request::read(&mut from).await.unwrap(), None);
}

#[tokio::test]
async fn every_answer_comes_back() {
    let answers = [
        Answer::Sessions(vec![session(), Session { status: Status::LostGuest, ended_at: None, ..session() }]),
        Answer::Refused(Refusal::Command(127, "why".into())),
        Answer::Refused(Refusal::Ended(Status::Exited(3))),
        Answer::Ended(Status::Exited(7)),
        Answer::Record(Record { at: u64::MAX, error: true, bytes: vec![1; MAX_PAYLOAD] }),
        Answer::Record(Record { at: 0, error: false, bytes: Vec::new() }),
        Answer::Gap(1 << 40),
        Answer::Opened,
        Answer::Credit(70_000),
        Answer::InputClosed,
        Answer::Done,
    ];
    let mut bytes = Vec::new();
    for answer in &answers {
        answer.write(&mut bytes).await.unwrap();
    }
    let mut from = bytes.as_slice();
    for answer in answers {
        assert_eq!(Answer::read(&mut from).await.unwrap(), Some(answer));
    }
    assert_eq!(Answer::read(&mut from).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_too_long_is_neither_sent_nor_read() {
    let long = Answer::Sessions(vec![session(); 20_000]);
    assert!(long.write(&mut Vec::new()).await.is_err());
    let start = Start { words: vec![vec![b'x'; MAX_START]], ..Start::default() };
    let request = Request::Start(Box::new(New { start, ..New::default() }));
    assert!(request.write(&mut Vec::new()).await.is_err());
    for kind in [SESSIONS, REFUSED, RECORD, GAP, 99] {
        let bytes = [kind, 255, 255, 255, 255];
        assert!(Answer::read(&mut &bytes[..]).await.is_err(), "{kind}");
    }
}

#[test]
fn names_are_short_and_plain() {
    for good in ["a", "web", "web-2", "0", &"x".repeat(63)] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "-a", "a-", "Web", "a.b", "../x", "a b", "ä", &"x".repeat(64)] {
        assert!(!is_name(bad), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes: Vec<u8>, kind in 30_u8..43) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        let framed = [&[kind][..], &length.to_be_bytes(), &bytes].concat();
        for whole in [bytes, framed] {
            drop(runtime.block_on(Request::read(&mut whole.as_slice())));
            if let Ok(Some(answer)) = runtime.block_on(Answer::read(&mut whole.as_slice())) {
                let mut again = Vec::new();
                runtime.block_on(answer.write(&mut again)).unwrap();
                prop_assert_eq!(runtime.block_on(Answer::read(&mut again.as_slice())).unwrap(), Some(answer));
            }
        }
    }
}
