#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;

const ALICE: Peer = Peer::new(1001, "alice", false);
const BOB: Peer = Peer::new(1002, "bob", false);
const ONE: Peer = Peer::new(1, "one", false);

async fn jobs(dir: &tempfile::TempDir) -> (Arc<Jobs>, Db) {
    let db = Db::open(&dir.path().join("db")).await.unwrap();
    (Jobs::load(db.clone()).await.unwrap(), db)
}

#[tokio::test]
async fn a_watcher_sees_each_change_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _db) = jobs(&dir).await;
    let job = jobs.begin(&ALICE, "start demo".into()).unwrap();
    let id = job.id();
    let first = jobs.watch(&ALICE, id, 0, Duration::ZERO).await.unwrap();
    assert_eq!((first.seq, first.state), (1, JobState::Running));

    let watcher = tokio::spawn({
        let jobs = Arc::clone(&jobs);
        async move { jobs.watch(&ALICE, id, 1, Duration::from_secs(10)).await.unwrap() }
    });
    job.stage("disk");
    assert_eq!(watcher.await.unwrap().stages.len(), 1);
    job.stage("guest ready");
    job.finish(Ok::<_, ApiError>(JobResult::Text("done".into())));
    let last = jobs.watch(&ALICE, id, 0, Duration::ZERO).await.unwrap();
    assert_eq!(last.state, JobState::Done(JobResult::Text("done".into())));
    assert!(last.stages.iter().all(|stage| stage.took_ms.is_some()));
}

#[tokio::test]
async fn a_stranger_neither_sees_nor_cancels() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _db) = jobs(&dir).await;
    let job = jobs.begin(&ALICE, "start demo".into()).unwrap();
    assert_eq!(ApiError::from(jobs.cancel(&BOB, job.id()).unwrap_err()).code, ErrorCode::NotFound);
    assert!(jobs.list(&BOB, None, 32).jobs.is_empty() && !job.cancelled().is_cancelled());
    jobs.cancel(&ALICE, job.id()).unwrap();
    assert!(job.go_on().is_err());
}

#[tokio::test]
async fn a_job_that_is_dropped_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _db) = jobs(&dir).await;
    let id = jobs.begin(&ONE, "x".into()).unwrap().id();
    let view = jobs.watch(&ONE, id, 0, Duration::ZERO).await.unwrap();
    assert!(matches!(view.state, JobState::Failed(error) if error.code == ErrorCode::Internal));
}

#[tokio::test]
async fn after_a_restart_unfinished_jobs_have_failed_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_, db) = jobs(&dir).await;
    db.record_job(7, ALICE.owner(), "start demo".into());
    db.record_job(8, ALICE.owner(), "stop demo".into());
    db.record_job_end(8, "done", "stopped".into());
    let again = Jobs::load(db).await.unwrap();
    let view = again.watch(&ALICE, JobId(7), 41, Duration::from_secs(5)).await.unwrap();
    assert!(matches!(view.state, JobState::Failed(_)), "{view:?}");
    let view = again.watch(&ALICE, JobId(8), 0, Duration::ZERO).await.unwrap();
    assert_eq!(view.state, JobState::Done(JobResult::Text("stopped".into())));
    assert_eq!(again.begin(&ONE, "next".into()).unwrap().id(), JobId(9));
}

#[tokio::test]
async fn finished_jobs_are_bounded_and_running_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _db) = jobs(&dir).await;
    let goes_on = jobs.begin(&ONE, "goes on".into()).unwrap();
    let long = jobs.begin(&ONE, "ends last".into()).unwrap();
    let (running, last) = (goes_on.id(), long.id());
    for _ in 0..KEPT_AT_MOST + 20 {
        jobs.begin(&ONE, "short".into()).unwrap().finish(Ok::<_, ApiError>(JobResult::Text(String::new())));
    }
    long.finish(Ok::<_, ApiError>(JobResult::Text(String::new())));
    let peer = ONE;
    assert!(jobs.list(&peer, None, usize::MAX).jobs.len() <= KEPT_AT_MOST + 4);
    forget_oldest(&mut jobs.lock().jobs, &ONE.owner(), Instant::now());
    assert!(jobs.list(&peer, None, usize::MAX).jobs.len() > KEPT, "who looks now and then finds his own");
    forget_oldest(&mut jobs.lock().jobs, &ONE.owner(), Instant::now() + KEPT_FOR);
    assert_eq!(jobs.list(&peer, None, usize::MAX).jobs.len(), KEPT + 1);
    for id in [running, last] {
        assert!(jobs.watch(&peer, id, 0, Duration::ZERO).await.is_ok());
    }
}

#[tokio::test]
async fn one_user_cannot_fill_the_daemon_and_ended_jobs_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, _db) = jobs(&dir).await;
    let mut held: Vec<Job> = (0..UserLimits::BUILT_IN.jobs).map(|_| jobs.begin(&ONE, "x".into()).unwrap()).collect();
    assert_eq!(ApiError::from(jobs.begin(&ONE, "one more".into()).unwrap_err()).code, ErrorCode::Limit);
    assert!(jobs.begin(&BOB, "another user's".into()).is_ok());
    held.pop().unwrap().finish(Ok::<_, ApiError>(JobResult::Text(String::new())));
    assert!(jobs.begin(&ONE, "now".into()).is_ok());
}

#[tokio::test]
async fn a_number_that_was_given_again_sees_no_job_of_before_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (first, db) = jobs(&dir).await;
    let job = first.begin(&ALICE, "start demo".into()).unwrap();
    let carol = Peer::new(ALICE.uid, "carol", false);
    let again = Jobs::load(db).await.unwrap();
    for jobs in [&first, &again] {
        assert!(jobs.list(&carol, None, 32).jobs.is_empty());
        assert_eq!(ApiError::from(jobs.cancel(&carol, job.id()).unwrap_err()).code, ErrorCode::NotFound);
        assert_eq!(jobs.list(&ALICE, None, 32).jobs.len(), 1);
    }
    let nobody = Peer::new(ALICE.uid, "", false);
    assert_eq!(ApiError::from(first.begin(&nobody, "x".into()).unwrap_err()).code, ErrorCode::Denied);
}

#[tokio::test]
async fn a_list_comes_in_pages_and_nobody_pushes_anybody_elses_out() {
    let dir = tempfile::tempdir().unwrap();
    let (jobs, db) = jobs(&dir).await;
    let hers = jobs.begin(&ALICE, "hers".into()).unwrap();
    let id = hers.id();
    hers.finish(Ok::<_, ApiError>(JobResult::Text(String::new())));
    for _ in 0..KEPT_AT_MOST * 2 {
        jobs.begin(&BOB, "his".into()).unwrap().finish(Ok::<_, ApiError>(JobResult::Text(String::new())));
    }
    forget_oldest(&mut jobs.lock().jobs, &BOB.owner(), Instant::now() + KEPT_FOR);
    let (mut his, mut before) = (Vec::new(), None);
    loop {
        let page = jobs.list(&BOB, before, 7);
        assert!(page.jobs.len() <= 7);
        his.extend(page.jobs.into_iter().map(|job| job.id));
        assert!(his.len() <= KEPT, "pages without an end");
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert!(his.len() == KEPT && his.is_sorted_by(|newer, older| newer > older), "{his:?}");
    let page = jobs.list(&ALICE, None, 7);
    assert_eq!((page.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), page.next), (vec![id], None));
    // And the same after a restart of the daemon.
    let again = Jobs::load(db).await.unwrap();
    assert_eq!(again.list(&ALICE, None, 7).jobs.len(), 1);
    assert_eq!(again.list(&BOB, None, usize::MAX).jobs.len(), KEPT);
}
