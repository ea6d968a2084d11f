//! Doctor, leaks and the bundle for a bug report.

use super::*;
use banger_proto::model::{JobId, JobState, JobView};

#[test]
fn leaks_are_shown_and_what_is_left_is_a_failure() {
    let found = demo().banger(&["doctor", "--leaks"]).output().unwrap();
    assert_eq!(found.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    assert!(out.contains("found") && out.contains("tap bgr-") && err.contains("--leaks --fix"), "{out}{err}");
    let fixed = demo().banger(&["doctor", "--leaks", "--fix"]).output().unwrap();
    assert_eq!(fixed.status.code(), Some(1), "one of them is left");
    let (out, err) = (String::from_utf8_lossy(&fixed.stdout), String::from_utf8_lossy(&fixed.stderr));
    assert!(out.contains("released") && out.contains("FAILED") && err.contains("journalctl"), "{out}{err}");
    let json = demo().banger(&["doctor", "--leaks", "--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&json.stdout).contains("\"kind\": \"folder\""), "{json:?}");
    assert_eq!(demo().banger(&["doctor", "--fix"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn doctor_fails_with_what_the_daemon_found() {
    let output = demo().banger(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("FAIL  kvm") && shown.contains("there is no /dev/kvm"), "{}", all(&output));
    assert!(shown.contains("-> switch virtualisation on in the firmware"), "{}", all(&output));
}

/// As an administrator is shown them: alice's, and bob's about a VM of the same name.
fn two_users_jobs(fake: &Fake) {
    for (id, title, owner) in [(98, "restart demo", 1001), (99, "kill demo", 1002)] {
        let job = JobView {
            id: JobId(id),
            title: title.to_owned(),
            owner,
            seq: 1,
            started_at: Timestamp::now(),
            stages: Vec::new(),
            warnings: Vec::new(),
            state: JobState::Cancelled,
        };
        fake.state().jobs.insert(id, job);
    }
}

#[test]
fn doctor_of_a_vm_shows_its_state_its_jobs_and_its_console() {
    let fake = demo();
    two_users_jobs(&fake);
    let output = fake.banger(&["doctor", "vm", "demo"]).output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    for words in ["name", "demo", "state", "running", "console", "restart demo"] {
        assert!(shown.contains(words), "{words}: {}", all(&output));
    }
    assert!(!shown.contains("kill demo"), "of another user's VM with that name: {}", all(&output));
    let broken = demo().banger(&["doctor", "vm", "nobody"]).output().unwrap();
    assert_eq!(broken.status.code(), Some(1), "{}", all(&broken));
}

#[test]
fn a_bundle_for_a_bug_report_has_what_the_daemon_says_and_no_console() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bug.tar.gz");
    let fake = demo();
    two_users_jobs(&fake);
    let output = fake.banger(&["bug", "--output", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", all(&output));
    assert_eq!(text(&output.stdout).trim(), path.to_str().unwrap());
    let listed =
        Command::new("tar").args(["--extract", "--gzip", "--to-stdout", "--file"]).arg(&path).output().unwrap();
    let bundle = text(&listed.stdout);
    assert!(bundle.contains("\"demo\"") && bundle.contains("Firecracker v1.16.0"), "{bundle}");
    assert!(bundle.contains("restart demo") && !bundle.contains("kill demo"), "jobs of the user alone: {bundle}");
    assert!(!bundle.contains("\x1b[2J"), "the console is in it: {bundle}");
    let again = demo().banger(&["bug", "--output", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a file that is there is not replaced: {}", all(&again));
}
