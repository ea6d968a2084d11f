//! Sessions with their real processes: the built program, started by the agent.
//!
//! Needs `ssh-keygen`; without it the test says that it is skipped.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod guest;

use banger_proto::command::Start;
use banger_proto::session::{Answer, New, Outputs, Refusal, Request, Status};
use guest::Guest;
use std::fs;
use std::path::Path;
use std::time::Duration;

fn start(name: &str, words: &[&str]) -> Request {
    let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let start = Start { words, ..Start::default() };
    Request::Start(Box::new(New { name: Some(name.into()), start, ..New::default() }))
}

fn field(pid: &str, at: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which is in brackets.
    stat.rsplit(')').next().unwrap().split_whitespace().nth(at - 3).unwrap().to_owned()
}

#[test]
fn a_sessions_process_stands_for_itself_and_gives_nothing_away() {
    let Some(guest) = Guest::start() else { return };
    let script = "echo $PPID; ls -l /proc/self/fd | grep -c -e memfd -e socket -e meta.json -e /log; tr '\\0' '\\n' < /proc/$PPID/environ; sleep 0.5; exit 5";
    let answers = guest.ask(&start("job", &["sh", "-c", script]));
    assert!(matches!(&answers[..], [Answer::Sessions(started)] if started[0].id == "job.1"), "{answers:?}");
    let log = || {
        let session = "job".to_owned();
        let answers = guest.ask(&Request::Logs { session, outputs: Outputs::Out, tail: None, follow: false });
        let bytes = answers.into_iter().filter_map(|answer| match answer {
            Answer::Record(record) => Some(record.bytes),
            _ => None,
        });
        String::from_utf8(bytes.flatten().collect()).unwrap()
    };
    let mut said = log();
    for _ in 0..100 {
        if said.lines().count() >= 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        said = log();
    }
    let pid = said.lines().next().unwrap().to_owned();
    // Leader of a session and a group of its own (proc_pid_stat(5), fields 5 and 6), known by its
    // name.
    assert_eq!((field(&pid, 5), field(&pid, 6)), (pid.clone(), pid.clone()));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "banger-session\n");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "0\n");
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(String::from_utf8(line).unwrap(), "banger-session\0session\0job.1\0");
    assert_eq!(guest.ask(&Request::Wait { session: "job".into() }), [Answer::Ended(Status::Exited(5))]);
    assert_eq!(log().lines().nth(1), Some("0"), "it has descriptors of the session: {}", log());
    for _ in 0..100 {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the process of a session that has ended is still there");
}

#[test]
fn a_process_that_is_killed_is_a_session_that_is_lost() {
    let Some(guest) = Guest::start() else { return };
    let refused = guest.ask(&start("none", &["no-such-program"]));
    assert!(matches!(&refused[..], [Answer::Refused(Refusal::Command(127, _))]), "{refused:?}");
    guest.ask(&start("job", &["sh", "-c", "echo $PPID > pid; exec sleep 20"]));
    let file = guest.path("pid");
    let mut pid = String::new();
    for _ in 0..100 {
        pid = fs::read_to_string(&file).unwrap_or_default();
        if pid.ends_with('\n') {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
    assert!(killed.success());
    let mut answer = Vec::new();
    for _ in 0..100 {
        answer = guest.ask(&Request::Show { session: "job".into() });
        if !matches!(&answer[..], [Answer::Sessions(found)] if found[0].status == Status::Running) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(matches!(&answer[..], [Answer::Sessions(found)] if found[0].status == Status::LostProcess), "{answer:?}");
}
