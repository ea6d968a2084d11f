//! `vm session` against a fake guest behind a fake daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod fake;

use banger_policy::lifecycle::State;
use fake::{Fake, vm};
use std::io::{Read as _, Write as _};
use std::process::{Output, Stdio};

fn demo() -> Fake {
    Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn all(output: &Output) -> String {
    format!("{}{}status {:?}\n", text(&output.stdout), text(&output.stderr), output.status.code())
}

fn run(fake: &Fake, words: &[&str]) -> Output {
    fake.banger(&[&["vm", "session"], words].concat()).output().unwrap()
}

#[test]
fn each_refusal_has_its_own_words_and_says_what_to_do() {
    let fake = demo();
    let cases: [&[&str]; 15] = [
        &["send", "demo", "deaf", "x"],
        &["send", "demo", "old", "x"],
        &["send", "demo", "lost", "x"],
        &["send", "demo", "nobody", "x"],
        &["send", "other", "web", "x"],
        &["send", "demo", "web", "enough"],
        &["send", "demo", "web", "--file", "/nonexistent"],
        &["start", "demo", "--", "missing"],
        &["start", "other", "--", "true"],
        &["start", "--name", "-x", "demo", "--", "true"],
        &["attach", "demo", "old"],
        &["wait", "demo", "lost"],
        &["kill", "-s", "NOSUCH", "demo", "web"],
        &["rm", "demo", "web", "old"],
        &["logs", "other", "web"],
    ];
    let shown = cases.map(|case| format!("$ banger vm session {}\n{}", case.join(" "), all(&run(&fake, case))));
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn what_is_sent_arrives_and_is_counted() {
    let fake = demo();
    let sent: Vec<u8> = (0..251).cycle().take(3_000_000).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &sent).unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(&fake, &["send", "demo", "web", "--file", path]);
    assert_eq!(all(&output), "3000000 bytes written\nstatus Some(0)\n");
    assert!(fake.state().uploaded == sent);
    fake.state().uploaded.clear();
    assert_eq!(all(&run(&fake, &["send", "--eof", "demo", "web", "-x\n"])), "3 bytes written\nstatus Some(0)\n");
    assert_eq!(fake.state().uploaded, b"-x\n");
    let mut banger = fake.banger(&["vm", "session", "send", "demo", "web"]);
    let mut child = banger.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&sent).unwrap();
    assert_eq!(all(&child.wait_with_output().unwrap()), "3000000 bytes written\nstatus Some(0)\n");
}

#[test]
fn nothing_to_send_is_no_work() {
    let fake = demo();
    for words in [&["send", "demo", "web", ""][..], &["send", "demo", "web"], &["send", "other", "nobody", ""]] {
        assert_eq!(all(&run(&fake, words)), "0 bytes written\nstatus Some(0)\n", "{words:?}");
    }
    assert!(fake.state().calls.is_empty(), "nobody is asked");
}

#[test]
fn a_session_is_started_followed_and_waited_for() {
    let fake = demo();
    let words = ["start", "--name", "web", "--stdin", "pipe", "-e", "A=b", "demo", "--", "serve", "--all"];
    assert_eq!(all(&run(&fake, &words)), "web\nstatus Some(0)\n");
    let said = fake.state().calls.pop().unwrap();
    assert!(
        said.contains("Some(\"web\")") && said.contains("stdin: true") && said.contains("terminal: None"),
        "{said}"
    );
    let output = run(&fake, &["logs", "-f", "-n", "2", "demo", "web"]);
    assert_eq!(text(&output.stdout), "out\nlast\n");
    assert_eq!(text(&output.stderr), "err\nbanger: 7 bytes of the log are missing here\n");
    let said = fake.state().calls.pop().unwrap();
    assert!(said.contains("tail: Some(2), follow: true"), "{said}");
    let errors = run(&fake, &["logs", "--stream", "stderr", "demo", "web"]);
    assert!(text(&errors.stdout).contains("err\n") && !text(&errors.stderr).contains("err\n"));
    for (session, status) in [("web", 143), ("old", 3)] {
        assert_eq!(run(&fake, &["wait", "demo", session]).status.code(), Some(status));
    }
    assert_eq!(all(&run(&fake, &["stop", "demo", "web", "web"])), "web killed (TERM)\nstatus Some(0)\n");
    assert_eq!(all(&run(&fake, &["kill", "-s", "int", "demo", "web"])), "status Some(0)\n");
    assert!(fake.state().calls.pop().unwrap().contains("signal: 2"));
}

#[test]
fn attaching_shows_what_comes_and_sends_what_is_typed() {
    let fake = demo();
    let mut banger = fake.banger(&["vm", "session", "attach", "demo", "web"]);
    let mut child = banger.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    assert_eq!(all(&child.wait_with_output().unwrap()), "now\ntyped\nstatus Some(4)\n");
}

#[test]
fn whose_word_it_is_that_a_session_has_a_terminal_is_said() {
    let fake = demo();
    let command = format!("{} vm session attach demo app", env!("CARGO_BIN_EXE_banger"));
    // Nothing is typed: it is ended when it has shown what it shows first.
    let mut script = std::process::Command::new("timeout");
    script.args(["120", "script", "-qec", &command, "/dev/null"]).env("BANGER_SOCKET", fake.socket());
    let Ok(mut child) = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        eprintln!("skipped: there is no timeout(1)");
        return;
    };
    let (mut from, mut shown, mut buffer) = (child.stdout.take().unwrap(), Vec::new(), [0; 1024]);
    while !text(&shown).contains("now") {
        match from.read(&mut buffer).unwrap() {
            0 => break,
            length => shown.extend_from_slice(&buffer[..length]),
        }
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
    let shown = text(&shown);
    if shown.is_empty() {
        eprintln!("skipped: there is no script(1)");
        return;
    }
    let (said, theirs) = (shown.find("the guest says that session app has a terminal"), shown.find("now"));
    assert!(said.is_some() && said < theirs, "{shown:?}");
}

#[test]
fn json_has_the_names_of_the_contract() {
    let fake = demo();
    let shown = |words: &[&str]| -> serde_json::Value { serde_json::from_slice(&run(&fake, words).stdout).unwrap() };
    let list = shown(&["list", "--json", "demo"]);
    let states: Vec<&str> = list.as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap()).collect();
    assert_eq!(states, ["exited", "running", "running", "lost"]);
    let old = shown(&["show", "--json", "demo", "old"]);
    assert_eq!(old, list[0]);
    assert_eq!((&old["exit_code"], &old["stdin"], &old["signal"]), (&3.into(), &"none".into(), &().into()));
    assert_eq!(old["command"], serde_json::json!(["serve", "--all"]));
    assert_eq!(list[3]["reason"], "the guest ended");
}

#[test]
fn run_starts_the_session_app() {
    let fake = demo();
    let output = fake.banger(&["vm", "run", "-d", "--name", "new", "--", "serve"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "new\n".into()), "{}", all(&output));
    let said = fake.state().calls.pop().unwrap();
    assert!(
        said.starts_with("Start") && said.contains("Some(\"app\")") && said.contains("entrypoint: false"),
        "{said}"
    );
    // Not detached, its output and its status are ours.
    let output = fake.banger(&["vm", "run", "--rm", "--entrypoint", "--name", "ours"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(9), "out\nlast\n".into()), "{}", all(&output));
    assert!(text(&output.stderr).contains("err\nbanger: 7 bytes"), "{}", all(&output));
    let calls = fake.state().calls.split_off(1);
    let [.., start, follow, delete] = &calls[..] else { unreachable!("{calls:?}") };
    assert!(start.contains("entrypoint: true") && follow.contains("follow: true"), "{calls:?}");
    assert_eq!(delete, "delete ours");
    let refused =
        fake.banger(&["vm", "run", "-d", "--entrypoint", "--name", "none", "--", "nothing"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("the image has neither Entrypoint nor Cmd"), "{}", all(&refused));
    let missing = fake.banger(&["vm", "run", "-d", "--name", "miss", "--", "missing"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(127), "{}", all(&missing));
}

#[test]
fn a_guest_steers_no_terminal() {
    let fake = demo();
    fake.state().evil = "\x1b[31m\u{9b}2J\u{7f}\u{202e}\u{2028}\x07\rbanger";
    let cases: [&[&str]; 6] = [
        &["list", "demo"],
        &["list", "--json", "demo"],
        &["show", "demo", "web"],
        &["start", "demo", "--", "true"],
        &["start", "demo", "--", "missing"],
        &["send", "demo", "old", "x"],
    ];
    for case in cases {
        let shown = all(&run(&fake, case));
        let steers = |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!shown.chars().any(steers), "{case:?}: {shown:?}");
        assert!(shown.contains("banger"), "{case:?}: {shown}");
    }
}
