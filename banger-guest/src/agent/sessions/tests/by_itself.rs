//! A session's process that the test starts itself, in the place of the agent.
use super::*;

impl Guest {
    /// What a session's process is told, for tests that start it themselves.
    fn order(&self, name: &str, script: &str) -> Order {
        self.places.make().unwrap();
        let meta = Meta {
            name: name.into(),
            number: self.places.take_number().unwrap(),
            command: vec![script.into()],
            stdin: false,
            tty: false,
            boot_id: folder::boot_id(),
            started_at: 7,
            again: false,
        };
        let tables = Tables { passwd: self.folder.path().join("passwd"), image: ImageConfig::default() };
        Order { meta, new: sh(script), tables, places: self.places.clone() }
    }
}

#[tokio::test]
async fn a_machine_that_ends_waits_for_nobody_who_stands_still() {
    let guest = guest();
    let (end, ends) = tokio::sync::oneshot::channel::<()>();
    let (mut ready, theirs) = io::pipe().unwrap();
    let script = "head -c 3000000 /dev/zero; echo done; exec sleep 100";
    let order = guest.order("flood", script).encode().unwrap();
    let (ended, has_ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let terminated = async move { drop(ends.await) };
        in_local_set(process::serve(&order, theirs.into(), terminated)).unwrap();
        let _ = ended.send(());
    });
    io::Read::read_to_end(&mut ready, &mut Vec::new()).unwrap();
    guest.says("flood", "done").await;
    let stuck = Request::Logs { session: named("flood"), outputs: Outputs::Both, tail: None, follow: true };
    let mut stuck = guest.ask(stuck).await;
    assert!(matches!(next(&mut stuck).await, Answer::Record(_)));
    end.send(()).unwrap();
    timeout(SOON, has_ended).await.expect("its process waits for one who does not read").unwrap();
    assert_eq!(guest.wait("flood").await, Status::Killed(15));
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_starts_nothing() {
    let guest = guest();
    let order = guest.order("late", "touch late; sleep 100").encode().unwrap();
    let (ready, theirs) = io::pipe().unwrap();
    drop(ready);
    let process =
        std::thread::spawn(move || in_local_set(process::serve(&order, theirs.into(), std::future::pending())));
    for _ in 0..200 {
        if process.is_finished() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(process.is_finished(), "it serves a session: {:?}", guest.places.list());
    assert_eq!(guest.places.list(), []);
    assert!(!guest.folder.path().join("late").exists() && !guest.places.socket("late.1").exists());
}
