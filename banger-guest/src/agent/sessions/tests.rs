#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use super::*;
use crate::agent::Server;
use crate::agent::command::tests::{config, token};
use banger_policy::ImageConfig;
use banger_proto::command::{self, FromGuest, Opening, Purpose, Start, ToGuest, WINDOW};
use banger_proto::session::Record;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

mod by_itself;
mod many;
mod restarted;
mod stopped;

const SOON: Duration = Duration::from_secs(20);

/// A guest whose sessions' processes are threads.
struct Guest {
    server: Arc<Server>,
    places: Places,
    folder: tempfile::TempDir,
}

pub(super) fn launch_thread(order: &Order, ready: OwnedFd) -> io::Result<()> {
    let order = order.encode()?;
    std::thread::spawn(move || in_local_set(process::serve(&order, ready, std::future::pending())).unwrap());
    Ok(())
}

fn in_local_set<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn passwd(folder: &Path) -> PathBuf {
    let passwd = folder.join("passwd");
    std::fs::write(&passwd, format!("root:x:0:0::{}:/bin/sh\n", folder.display())).unwrap();
    passwd
}

/// Sessions whose processes are threads.
fn in_threads(places: &Places) -> impl FnOnce(Arc<Tables>) -> Sessions {
    let places = places.clone();
    move |tables| Sessions::of(places, Launch::Thread, tables)
}

fn guest_with(image: ImageConfig) -> Guest {
    let folder = tempfile::tempdir().unwrap();
    let places = Places { folders: folder.path().join("sessions"), sockets: folder.path().join("run") };
    let config = banger_proto::guest::GuestConfig { image, ..config() };
    let server = Server::with_sessions(&config, passwd(folder.path()), in_threads(&places)).unwrap();
    Guest { server: Arc::new(server), places, folder }
}

fn guest() -> Guest {
    guest_with(ImageConfig::default())
}

impl Guest {
    async fn ask(&self, request: Request) -> UnixStream {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let server = Arc::clone(&self.server);
        tokio::spawn(async move { server.serve_command(theirs).await });
        let opening = Opening { purpose: Purpose::Session, token: token() };
        ours.write_all(&opening.encode()).await.unwrap();
        assert_eq!(command::Answer::read(&mut ours).await.unwrap(), command::Answer::Open);
        request.write(&mut ours).await.unwrap();
        ours
    }

    async fn answer(&self, request: Request) -> Answer {
        next(&mut self.ask(request).await).await
    }

    async fn start(&self, new: New) -> Session {
        match self.answer(Request::Start(Box::new(new))).await {
            Answer::Sessions(mut started) if started.len() == 1 => started.remove(0),
            other => panic!("{other:?}"),
        }
    }

    async fn sh(&self, name: &str, script: &str) -> Session {
        self.start(New { name: Some(name.into()), ..sh(script) }).await
    }

    async fn wait(&self, session: &str) -> Status {
        match self.answer(Request::Wait { session: session.into() }).await {
            Answer::Ended(status) => status,
            other => panic!("{other:?}"),
        }
    }

    async fn logs(&self, session: &str, outputs: Outputs, tail: Option<u64>, follow: bool) -> (String, Status) {
        let mut stream = self.ask(Request::Logs { session: session.into(), outputs, tail, follow }).await;
        let mut text = String::new();
        loop {
            match next(&mut stream).await {
                Answer::Record(Record { bytes, .. }) => text += &String::from_utf8(bytes).unwrap(),
                Answer::Ended(status) => return (text, status),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn both(&self, session: &str) -> String {
        self.logs(session, Outputs::Both, None, false).await.0
    }

    async fn says(&self, session: &str, text: &str) {
        for _ in 0..200 {
            if self.both(session).await.contains(text) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{session} never says {text:?}: {:?}", self.both(session).await);
    }
}

fn sh(script: &str) -> New {
    let words = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    New { start: Start { words, ..Start::default() }, ..New::default() }
}

async fn next(stream: &mut UnixStream) -> Answer {
    timeout(SOON, Answer::read(stream)).await.unwrap().unwrap().unwrap()
}

async fn said(stream: &mut UnixStream) -> FromGuest {
    timeout(SOON, FromGuest::read(stream)).await.unwrap().unwrap().unwrap()
}

fn refused(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn named(session: &str) -> String {
    session.to_owned()
}

#[tokio::test]
async fn a_session_runs_by_itself_and_its_status_and_log_are_kept() {
    let guest = guest();
    let session = guest.sh("web", "echo out; echo err >&2; sleep 0.3; echo more; exit 7").await;
    assert_eq!((session.id.as_str(), session.status, session.stdin), ("web.1", Status::Running, false));
    assert_eq!(guest.wait("web").await, Status::Exited(7));
    let (both, status) = guest.logs("web.1", Outputs::Both, None, true).await;
    assert_eq!(status, Status::Exited(7));
    assert!(both.contains("out\n") && both.contains("err\n") && both.ends_with("more\n"), "{both}");
    assert_eq!(guest.logs("web", Outputs::Out, Some(1), false).await.0, "more\n");
    assert_eq!(guest.logs("web", Outputs::Err, None, false).await.0, "err\n");
    let Answer::Sessions(found) = guest.answer(Request::Show { session: named("web") }).await else { panic!() };
    assert_eq!(found[0].status, Status::Exited(7));
    assert!(found[0].ended_at >= Some(found[0].started_at) && found[0].command[0] == "sh");
    assert!(!guest.places.socket("web.1").exists());
    assert_eq!(guest.answer(Request::Remove { session: named("web") }).await, Answer::Done);
    assert_eq!(guest.answer(Request::List).await, Answer::Sessions(Vec::new()));
    assert!(!guest.places.folder("web.1").exists());
}

#[tokio::test]
async fn a_command_that_cannot_start_leaves_nothing() {
    let guest = guest();
    let start = Start { words: vec![b"no-such-program".to_vec()], ..Start::default() };
    let new = New { start, ..New::default() };
    let refusal = refused(guest.answer(Request::Start(Box::new(new))).await);
    assert!(matches!(&refusal, Refusal::Command(127, why) if why.contains("no-such-program")), "{refusal:?}");
    let is_left = |entry: &std::fs::DirEntry| entry.file_name() != folder::NUMBER;
    let left = std::fs::read_dir(&guest.places.folders).unwrap().filter(|entry| is_left(entry.as_ref().unwrap()));
    assert_eq!(left.count(), 0);
    assert_eq!(std::fs::read_dir(&guest.places.sockets).unwrap().count(), 0);
    for name in ["Web", "", "../x"] {
        let bad = New { name: Some(name.into()), ..sh("true") };
        refused(guest.answer(Request::Start(Box::new(bad))).await);
    }
}

#[tokio::test]
async fn names_are_unique_among_those_that_run() {
    let guest = guest();
    guest.sh("web", "sleep 100").await;
    let again = Request::Start(Box::new(New { name: Some("web".into()), ..sh("true") }));
    assert_eq!(refused(guest.answer(again.clone()).await), Refusal::NameTaken);
    assert_eq!(refused(guest.answer(Request::Remove { session: named("web") }).await), Refusal::Runs);
    assert_eq!(guest.start(sh("sleep 100")).await.name, "s2", "a name is generated");
    assert_eq!(guest.answer(Request::Stop { session: named("web") }).await, Answer::Ended(Status::Killed(15)));
    assert_eq!(guest.answer(Request::Stop { session: named("web") }).await, Answer::Ended(Status::Killed(15)));
    let Answer::Sessions(started) = guest.answer(again).await else { panic!() };
    assert_eq!(started[0].id, "web.3");
    let kill = Request::Kill { session: named("s2"), signal: 9 };
    assert_eq!(guest.answer(kill.clone()).await, Answer::Done);
    assert_eq!(guest.wait("s2").await, Status::Killed(9));
    assert_eq!(refused(guest.answer(kill).await), Refusal::Ended(Status::Killed(9)));
    assert_eq!(refused(guest.answer(Request::Wait { session: named("nobody") }).await), Refusal::Unknown);
}

#[tokio::test]
async fn input_is_sent_by_many_and_ends_on_request_only() {
    let guest = guest();
    guest.start(New { name: Some("cat".into()), stdin: true, ..sh("cat; echo end") }).await;
    for text in ["one\n", "two\n"] {
        let mut stream = guest.ask(Request::Send { session: named("cat") }).await;
        assert_eq!(next(&mut stream).await, Answer::Opened);
        ToGuest::Input(text.into()).write(&mut stream).await.unwrap();
        assert_eq!(next(&mut stream).await, Answer::Credit(4));
        drop(stream);
        guest.says("cat", text).await;
    }
    let mut stream = guest.ask(Request::Send { session: named("cat") }).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    ToGuest::InputEnd.write(&mut stream).await.unwrap();
    assert_eq!(next(&mut stream).await, Answer::Credit(0));
    assert_eq!(guest.wait("cat").await, Status::Exited(0));
    assert_eq!(guest.both("cat").await, "one\ntwo\nend\n");
    let send = |session: &str| Request::Send { session: session.to_owned() };
    assert_eq!(refused(guest.answer(send("cat")).await), Refusal::Ended(Status::Exited(0)));
    guest.sh("deaf", "sleep 100").await;
    assert_eq!(refused(guest.answer(send("deaf")).await), Refusal::NoInput);
    guest.start(New { name: Some("closes".into()), stdin: true, ..sh("exec <&-; echo closed; sleep 100") }).await;
    guest.says("closes", "closed").await;
    let mut stream = guest.ask(send("closes")).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    ToGuest::Input(b"lost".to_vec()).write(&mut stream).await.unwrap();
    assert_eq!(next(&mut stream).await, Answer::InputClosed);
    assert_eq!(refused(guest.answer(send("closes")).await), Refusal::InputClosed);
}

#[tokio::test]
async fn input_waits_for_the_command_and_who_sends_more_than_the_credit_is_cut_off() {
    let guest = guest();
    guest.start(New { name: Some("slow".into()), stdin: true, ..sh("sleep 100") }).await;
    let mut stream = guest.ask(Request::Send { session: named("slow") }).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    // The pipe takes as much as the window has, and no more is taken.
    let mut sent = 0;
    while sent < 4 * WINDOW && ToGuest::Input(vec![0; 32_768]).write(&mut stream).await.is_ok() {
        sent += 32_768;
    }
    assert!(sent >= WINDOW, "{sent}");
    let cut = async { while Answer::read(&mut stream).await.is_ok_and(|answer| answer.is_some()) {} };
    timeout(SOON, cut).await.unwrap();
    assert_eq!(guest.answer(Request::Stop { session: named("slow") }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn one_who_does_not_read_stops_nobody() {
    let guest = guest();
    guest.sh("flood", "head -c 3000000 /dev/zero; echo done >&2").await;
    let stuck = Request::Logs { session: named("flood"), outputs: Outputs::Both, tail: None, follow: true };
    let stuck = guest.ask(stuck).await;
    assert_eq!(guest.wait("flood").await, Status::Exited(0));
    let (out, _) = guest.logs("flood", Outputs::Out, None, true).await;
    assert_eq!(out.len(), 3_000_000);
    drop(stuck);
}

#[tokio::test]
async fn attaching_and_detaching_leave_the_session_alone() {
    let guest = guest();
    guest
        .start(New { name: Some("echo".into()), stdin: true, ..sh("while read l; do echo got $l; done; exit 4") })
        .await;
    let attach = || Request::Attach { session: named("echo"), size: None };
    for word in ["one", "two"] {
        let mut stream = guest.ask(attach()).await;
        assert_eq!(next(&mut stream).await, Answer::Opened);
        ToGuest::Input(format!("{word}\n").into_bytes()).write(&mut stream).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\n") {
            match said(&mut stream).await {
                FromGuest::Output(bytes) => heard.extend(bytes),
                FromGuest::Credit(4) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(String::from_utf8(heard).unwrap(), format!("got {word}\n"), "from now on, not from before");
    }
    let mut stream = guest.ask(attach()).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    ToGuest::InputEnd.write(&mut stream).await.unwrap();
    assert_eq!(said(&mut stream).await, FromGuest::Exited(4));
    assert_eq!(guest.wait("echo").await, Status::Exited(4));
    assert_eq!(refused(guest.answer(attach()).await), Refusal::Ended(Status::Exited(4)));
}

#[tokio::test]
async fn a_terminal_shows_what_it_wrote_and_is_drawn_anew() {
    let guest = guest();
    let terminal = command::Terminal { term: "dumb".into(), cols: 80, rows: 24, modes: vec![(53, 0)] };
    let mut new = sh(
        "trap 'echo drawn' WINCH; echo begun; stty size; l=; until [ \"$l\" = q ]; do read l && stty size; done; echo end",
    );
    new.name = Some("tty".into());
    new.start.terminal = Some(terminal);
    let session = guest.start(new).await;
    assert!(session.tty && session.stdin);
    guest.says("tty", "24 80").await;
    let mut stream = guest.ask(Request::Attach { session: named("tty"), size: Some((100, 40)) }).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    ToGuest::Input(b"\n".to_vec()).write(&mut stream).await.unwrap();
    let mut heard = String::new();
    while !(heard.contains("40 100") && heard.contains("drawn")) {
        match said(&mut stream).await {
            FromGuest::Output(bytes) => heard += &String::from_utf8(bytes).unwrap(),
            FromGuest::Credit(_) => {}
            other => panic!("{other:?}: {heard}"),
        }
    }
    assert!(heard.starts_with("begun"), "{heard}");
    ToGuest::Input(b"q\n".to_vec()).write(&mut stream).await.unwrap();
    guest.says("tty", "end").await;
    assert_eq!(guest.wait("tty").await, Status::Exited(0));
}

#[tokio::test]
async fn the_images_own_command_is_put_together() {
    let image = ImageConfig {
        entrypoint: ["sh", "-c", "echo \"$@\"", "sh"].map(str::to_owned).to_vec(),
        cmd: vec!["served".into()],
        ..ImageConfig::default()
    };
    let guest = guest_with(image);
    let app = |words: &[&str]| {
        let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        New { start: Start { words, ..Start::default() }, entrypoint: true, ..New::default() }
    };
    for (words, said) in [(&[][..], "served\n"), (&["a", "b c"], "a b c\n")] {
        let session = guest.start(app(words)).await;
        assert_eq!(guest.wait(&session.id).await, Status::Exited(0));
        assert_eq!(guest.both(&session.id).await, said);
    }
    let none = self::guest();
    assert_eq!(refused(none.answer(Request::Start(Box::new(app(&[])))).await), Refusal::NoEntrypoint);
}

#[tokio::test]
async fn at_the_machines_end_all_are_told_and_their_status_is_kept() {
    let guest = guest();
    guest.sh("polite", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done").await;
    guest.sh("plain", "sleep 100").await;
    guest.says("polite", "ready").await;
    timeout(SOON, guest.server.end_sessions(SOON)).await.unwrap();
    assert_eq!(guest.wait("polite").await, Status::Exited(3));
    let said = guest.both("polite").await;
    assert!(said.ends_with("bye\n"), "{said}");
    assert_eq!(guest.wait("plain").await, Status::Killed(15));
}

#[tokio::test]
async fn another_agent_finds_the_sessions_of_the_first() {
    let first = guest();
    first.start(New { name: Some("cat".into()), stdin: true, ..sh("cat") }).await;
    let server = Server::with_sessions(&config(), passwd(first.folder.path()), in_threads(&first.places)).unwrap();
    let Guest { places, folder, server: old } = first;
    drop(old);
    let second = Guest { server: Arc::new(server), places, folder };
    let mut stream = second.ask(Request::Send { session: named("cat") }).await;
    assert_eq!(next(&mut stream).await, Answer::Opened);
    ToGuest::Input(b"still there\n".to_vec()).write(&mut stream).await.unwrap();
    second.says("cat", "still there").await;
    assert_eq!(second.answer(Request::Stop { session: named("cat") }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn a_session_that_runs_is_use_of_the_guest_and_one_that_has_ended_is_none() {
    let guest = guest();
    assert_eq!(guest.server.open_commands(), 0);
    guest.sh("web", "sleep 60").await;
    guest.sh("other", "sleep 60").await;
    // Whoever looks at one is no second one.
    let _logs =
        guest.ask(Request::Logs { session: named("web"), outputs: Outputs::Both, tail: None, follow: true }).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(guest.server.open_commands(), 2);
    for left in [1, 0] {
        let session = if left == 1 { "web" } else { "other" };
        guest.answer(Request::Kill { session: named(session), signal: 9 }).await;
        assert_eq!(guest.wait(session).await, Status::Killed(9));
        for _ in 0..100 {
            if guest.server.open_commands() == left {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(guest.server.open_commands(), left);
    }
}
