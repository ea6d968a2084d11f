//! What a stop ends, and what goes on without one.
use super::*;
use crate::agent::processes;

/// Of the process that the session's command has begun in its group and whose number it has said.
async fn other(guest: &Guest, session: &str) -> processes::Process {
    guest.says(session, "ready\n").await;
    let said = guest.both(session).await;
    let pid: i32 = said.lines().next().unwrap().parse().unwrap();
    processes::all().into_iter().find(|process| process.pid == pid).unwrap()
}

fn is_left(other: &processes::Process) -> bool {
    processes::are_left(std::slice::from_ref(other), &processes::all())
}

#[tokio::test]
async fn a_stop_waits_for_the_others_of_the_group() {
    let guest = guest();
    let other_says = "trap \"sleep 1; echo last words; exit\" TERM; echo $$; echo ready; while :; do sleep 0.1; done";
    guest.sh("web", &format!("sh -c '{other_says}' & exec sleep 100")).await;
    let other = other(&guest, "web").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(guest.answer(Request::Stop { session: named("web") }).await, Answer::Ended(Status::Killed(15)));
    assert!(begun.elapsed() < Duration::from_secs(8), "it waited on when the group was empty");
    assert!(!is_left(&other));
    assert!(guest.both("web").await.ends_with("last words\n"), "{}", guest.both("web").await);
}

#[tokio::test]
async fn a_stop_kills_the_others_of_the_group_after_ten_seconds() {
    let guest = guest();
    let other_says = "trap \"\" TERM; echo $$; echo ready; while :; do sleep 0.1; done";
    guest.sh("web", &format!("sh -c '{other_says}' & exec sleep 100")).await;
    let other = other(&guest, "web").await;
    assert_eq!(guest.answer(Request::Stop { session: named("web") }).await, Answer::Ended(Status::Killed(15)));
    assert!(!is_left(&other));
}

#[tokio::test]
async fn without_a_stop_the_others_of_the_group_go_on() {
    let guest = guest();
    guest.sh("web", "sleep 100 & echo $!; echo ready; sleep 0.5; exit 3").await;
    let other = other(&guest, "web").await;
    assert_eq!(guest.wait("web").await, Status::Exited(3));
    assert!(is_left(&other));
    crate::sys::signals::send(other.pid, libc::SIGKILL).unwrap();
}
