//! What is started again, and what is not.
use super::*;
use crate::agent::sessions::again::FIRST;
use crate::init_kind::InitKind;

fn kept(name: &str, script: &str) -> New {
    New { name: Some(name.into()), again: true, ..sh(script) }
}

impl Guest {
    /// The same guest after its agent has begun anew.
    fn later(&self) -> Self {
        let passwd = self.folder.path().join("passwd");
        let server = Arc::new(Server::with_sessions(&config(), passwd, in_threads(&self.places)).unwrap());
        server.resume_sessions(InitKind::Own);
        Self { server, places: self.places.clone(), folder: tempfile::tempdir().unwrap() }
    }

    async fn shows(&self, id: &str, status: Status) {
        for _ in 0..200 {
            if self.places.find(id).is_some_and(|session| session.status == status) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("{id} never is {status:?}: {:?}", self.places.list());
    }

    fn ids(&self) -> Vec<String> {
        self.places.list().into_iter().map(|session| session.id).collect()
    }
}

#[tokio::test]
async fn what_ends_is_started_again_until_it_is_stopped() {
    let guest = guest();
    // It ends at once, then lives.
    let script = "[ -e twice ] && exec sleep 60; touch twice; exit 3";
    let session = guest.start(kept("app", script)).await;
    assert!(session.again && session.id == "app.1", "{session:?}");
    guest.shows("app.1", Status::Exited(3)).await;
    guest.shows("app.2", Status::Running).await;
    // What a signal has ended is started again; what its user has stopped is not.
    assert_eq!(guest.answer(Request::Kill { session: "app".into(), signal: 9 }).await, Answer::Done);
    guest.shows("app.3", Status::Running).await;
    assert_eq!(guest.answer(Request::Stop { session: "app".into() }).await, Answer::Ended(Status::Killed(15)));
    sleep(FIRST + Duration::from_secs(1)).await;
    assert_eq!(guest.ids(), ["app.1", "app.2", "app.3"]);
    // Not even by an agent that is started again, but in the next boot.
    let later = guest.later();
    sleep(FIRST).await;
    assert_eq!(later.ids().len(), 3);
    drop(later);
    std::fs::remove_dir_all(guest.folder.path().join("stopped")).unwrap();
    let booted = guest.later();
    booted.shows("app.4", Status::Running).await;
    assert_eq!(booted.answer(Request::Stop { session: "app".into() }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn a_stop_while_it_is_started_again_stops_what_was_started() {
    let guest = guest();
    guest.start(kept("app", "[ -e once ] && exec sleep 60; touch once; exit 3")).await;
    guest.shows("app.1", Status::Exited(3)).await;
    // Both come while another start is under way, the second start of the session first.
    let sessions = &guest.server.shared().sessions;
    let turn = sessions.starting.lock().await;
    sleep(FIRST + Duration::from_millis(500)).await;
    let mut stopped = std::pin::pin!(guest.answer(Request::Stop { session: "app".into() }));
    let early = timeout(Duration::from_millis(500), &mut stopped).await;
    assert!(early.is_err(), "it was answered before: {early:?}");
    drop(turn);
    assert_eq!(stopped.await, Answer::Ended(Status::Killed(15)));
    assert_eq!(guest.ids(), ["app.1", "app.2"]);
    assert_eq!(guest.places.find("app").unwrap().status, Status::Killed(15));
}

#[tokio::test]
async fn one_that_runs_is_left_to_run_by_the_next_agent() {
    let guest = guest();
    guest.start(kept("app", "sleep 60")).await;
    let later = guest.later();
    sleep(FIRST).await;
    assert_eq!(later.ids(), ["app.1"]);
    assert_eq!(later.answer(Request::Stop { session: "app".into() }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn a_session_that_is_removed_or_replaced_is_not_started_again() {
    let guest = guest();
    let orders = || std::fs::read_dir(guest.folder.path().join("again")).unwrap().count();
    guest.start(kept("app", "exit 0")).await;
    guest.shows("app.1", Status::Exited(0)).await;
    assert_eq!(orders(), 1);
    assert_eq!(guest.answer(Request::Remove { session: "app".into() }).await, Answer::Done);
    assert_eq!(orders(), 0);
    guest.start(kept("web", "exit 0")).await;
    guest.shows("web.2", Status::Exited(0)).await;
    guest.sh("web", "exit 4").await;
    assert_eq!(orders(), 0);
    sleep(FIRST + Duration::from_secs(1)).await;
    assert_eq!(guest.ids(), ["web.2", "web.3"]);
    // A command that cannot be started is none to be started again.
    let missing =
        New { start: Start { words: vec![b"no-such-program".to_vec()], ..Start::default() }, ..kept("no", "") };
    assert!(matches!(guest.answer(Request::Start(Box::new(missing))).await, Answer::Refused(Refusal::Command(127, _))));
    assert_eq!(orders(), 0);
}

#[tokio::test]
async fn an_order_that_cannot_be_read_for_a_while_is_tried_again() {
    let guest = guest();
    let order = guest.folder.path().join("again/app");
    guest.start(kept("app", "until [ -e go ]; do sleep 0.05; done; exit 1")).await;
    // What opens as a folder and reads as an error, in the place of the file in one step.
    let (aside, link) = (guest.folder.path().join("aside"), guest.folder.path().join("link"));
    std::fs::copy(&order, &aside).unwrap();
    std::os::unix::fs::symlink("/", &link).unwrap();
    std::fs::rename(&link, &order).unwrap();
    std::fs::write(guest.folder.path().join("go"), "").unwrap();
    guest.shows("app.1", Status::Exited(1)).await;
    sleep(FIRST + Duration::from_millis(500)).await;
    assert_eq!(guest.ids(), ["app.1"]);
    std::fs::rename(&aside, &order).unwrap();
    guest.shows("app.2", Status::Exited(1)).await;
    assert_eq!(guest.answer(Request::Stop { session: named("app") }).await, Answer::Ended(Status::Exited(1)));
}

#[tokio::test]
async fn a_generated_name_is_no_other_sessions() {
    let guest = guest();
    let orders = || std::fs::read_dir(guest.folder.path().join("again")).unwrap().count();
    // One that runs, and one that will run again.
    guest.sh("s3", "sleep 60").await;
    guest.start(kept("s4", "sleep 60")).await;
    assert_eq!(guest.answer(Request::Stop { session: named("s4") }).await, Answer::Ended(Status::Killed(15)));
    assert_eq!(guest.start(sh("exit 0")).await.id, "s5.5");
    assert_eq!(orders(), 1);
    assert_eq!(guest.start(sh("exit 0")).await.id, "s6.6");
    assert_eq!(guest.answer(Request::Stop { session: named("s3") }).await, Answer::Ended(Status::Killed(15)));
}

#[tokio::test]
async fn one_that_always_ends_keeps_few_logs_and_nothing_starts_when_the_guest_ends() {
    let guest = guest();
    guest.start(kept("app", "exit 1")).await;
    guest.shows("app.4", Status::Exited(1)).await;
    for _ in 0..100 {
        if guest.ids().len() <= 3 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(guest.ids(), ["app.2", "app.3", "app.4"]);
    guest.server.end_sessions(SOON).await;
    sleep(Duration::from_secs(9)).await;
    assert_eq!(guest.ids().len(), 3, "{:?}", guest.ids());
}
