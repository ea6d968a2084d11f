//! The time that processes have to end before a guest without an init of its own is switched off.
//!
//! Called by the agent when the daemon asks for the end, before PID 1 is asked: that one waits two
//! seconds, whatever the user's limit is. A guest in which nothing runs any more ends at once.

use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

use super::processes::{self, Process};
use super::server::Server;
use super::sessions::process::NAME as SESSION;
use crate::sys::signals;

/// How often it is looked whether processes are left.
const LOOK: Duration = Duration::from_millis(50);
/// Far behind every limit.
const FOR_EVER: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Tells every process that the guest ends, once, and returns when all have ended, or at `until`,
/// which may change.
pub(super) async fn farewell(server: &Server, until: impl Fn() -> Instant) {
    say_and_wait(server, until, processes::all).await;
}

async fn say_and_wait(server: &Server, until: impl Fn() -> Instant, processes: impl Fn() -> Vec<Process>) {
    let late = async {
        while Instant::now() < until() {
            sleep(LOOK).await;
        }
    };
    server.end_commands();
    let rest = async {
        let mut there = processes();
        for pid in to_tell(&there, &server.groups()) {
            let _ = signals::send(pid, libc::SIGTERM);
            let _ = signals::send(pid, libc::SIGCONT);
        }
        // A session's process may go on for those who read its log.
        there.retain(|process| process.name != SESSION);
        while processes::are_left(&there, &processes()) {
            sleep(LOOK).await;
        }
    };
    let ended = async { tokio::join!(server.end_sessions(FOR_EVER), server.wait_for_commands(FOR_EVER), rest) };
    tokio::select! {
        _ = ended => {}
        () = late => {}
    }
}

/// Those that nobody else tells: neither commands, which `groups` are of, nor sessions. Some
/// programs take a second SIGTERM for impatience, and end without tidying up.
fn to_tell(processes: &[Process], groups: &BTreeSet<i32>) -> Vec<i32> {
    let keepers: BTreeSet<i32> = processes.iter().filter(|one| one.name == SESSION).map(|one| one.pid).collect();
    let of_sessions = processes.iter().filter(|one| keepers.contains(&one.parent)).map(|one| one.group);
    let told: BTreeSet<i32> = of_sessions.chain(groups.iter().copied()).collect();
    let others = processes.iter().filter(|one| !keepers.contains(&one.pid) && !told.contains(&one.group));
    others.map(|one| one.pid).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::agent::Server;
    use std::os::unix::process::CommandExt;

    #[test]
    fn whoever_is_told_by_others_is_not_told_again() {
        let one = |pid, parent, group, name: &str| Process { pid, parent, group, name: name.to_owned(), start: 0 };
        let all = [
            one(10, 9, 10, SESSION),
            one(11, 10, 11, "web"),
            one(12, 11, 11, "web-worker"),
            // It has left its session's group.
            one(13, 12, 13, "cron"),
            one(20, 9, 20, "make"),
            one(21, 20, 20, "cc"),
            one(30, 1, 30, "daemon"),
        ];
        assert_eq!(to_tell(&all, &BTreeSet::from([20])), [13, 30]);
    }

    fn server(folder: &std::path::Path) -> Server {
        let key = folder.join("key");
        let mut keygen = std::process::Command::new("ssh-keygen");
        assert!(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap().success());
        let host_key = std::fs::read_to_string(key).unwrap();
        let config = banger_proto::guest::GuestConfig { host_key, ..crate::agent::tests::config() };
        Server::with_sessions_below(&config, folder.join("passwd"), folder, "/bin/true".into()).unwrap()
    }

    /// One that says that it tidies up, and does so for that long.
    fn tidies(folder: &std::path::Path, name: &str, seconds: u32) -> std::process::Child {
        let line =
            format!("trap 'sleep {seconds}; touch {name}.done; exit' TERM; touch {name}; while :; do sleep 0.1; done");
        let mut command = std::process::Command::new("/bin/sh");
        let child = command.args(["-c", &line]).current_dir(folder).process_group(0).spawn().unwrap();
        while !folder.join(name).exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }

    /// Those of the test's own children, never others of the machine.
    fn own(child: i32) -> Vec<Process> {
        processes::all().into_iter().filter(|process| process.group == child).collect()
    }

    #[tokio::test]
    async fn processes_have_the_time_that_the_user_gives_and_no_more() {
        if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() {
            eprintln!("skipped: no ssh-keygen on this machine");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let server = server(folder.path());
        let begun = Instant::now();
        farewell_of(&server, Duration::from_secs(60), Vec::new).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "nothing runs");
        // More than the two seconds of PID 1.
        let mut child = tidies(folder.path(), "one", 4);
        let group = child.id().cast_signed();
        farewell_of(&server, Duration::from_secs(60), move || own(group)).await;
        assert!(folder.path().join("one.done").exists() && begun.elapsed() < Duration::from_secs(40));
        child.wait().unwrap();
        let mut child = tidies(folder.path(), "two", 300);
        let (group, begun) = (child.id().cast_signed(), Instant::now());
        farewell_of(&server, Duration::from_secs(1), move || own(group)).await;
        assert!(begun.elapsed() < Duration::from_secs(20), "it is not waited for for ever");
        signals::send(-group, libc::SIGKILL).unwrap();
        child.wait().unwrap();
    }

    async fn farewell_of(server: &Server, bound: Duration, processes: impl Fn() -> Vec<Process>) {
        let until = Instant::now() + bound;
        say_and_wait(server, || until, processes).await;
    }
}
