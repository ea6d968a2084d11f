//! `vm run --json` and `vm exec --json`: one JSON object a line, and nothing else on standard
//! output.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod fake;

use banger_policy::lifecycle::State;
use fake::{Fake, vm};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Output, Stdio};

fn demo() -> Fake {
    Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)])
}

fn events(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn run_tells_stages_output_and_the_exit() {
    let fake = demo();
    let words = ["vm", "run", "--json", "--rm", "--name", "new", "--", "both"];
    let output = fake.banger(&words).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let events = events(&output);
    let names = names(&events);
    assert_eq!(names[0], "stage", "{events:?}");
    assert_eq!(names[names.len() - 5..], ["ready", "output", "output", "exit", "deleted"]);
    let stages: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert!(stages.contains(&"spec") && stages.contains(&"guest ready"), "{stages:?}");
    let [.., ready, out, err, exit, deleted] = events.as_slice() else { unreachable!("{events:?}") };
    assert_eq!(ready["vm"]["name"], "new");
    assert!(ready["took_ms"].is_u64() && ready["vm"]["spec"]["vcpu_count"].is_u64(), "{ready}");
    assert_eq!(out, &json!({ "event": "output", "stream": "stdout", "text": "out\n", "base64": null }));
    assert_eq!(err, &json!({ "event": "output", "stream": "stderr", "text": "err\n", "base64": null }));
    assert_eq!(exit, &json!({ "event": "exit", "status": 3, "signal": null, "reason": null }));
    assert_eq!(deleted, &json!({ "event": "deleted", "vm": "new" }));
    assert_eq!(fake.state().calls.last().unwrap(), "delete new");
}

#[test]
fn a_run_whose_command_could_not_be_run_tells_that_the_vm_is_gone() {
    let fake = demo();
    let output = fake.banger(&["vm", "run", "--json", "--rm", "--name", "new", "--", "cut"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let events = events(&output);
    assert_eq!(names(&events).split_off(events.len() - 2), ["deleted", "error"], "{events:?}");
    assert_eq!(fake.state().calls.last().unwrap(), "delete new");
}

#[test]
fn a_session_is_told_and_nothing_else_is_printed() {
    let fake = demo();
    let output = fake.banger(&["vm", "run", "--json", "-d", "--name", "new", "--", "serve"]).output().unwrap();
    let told = events(&output);
    assert_eq!(names(&told).split_off(told.len() - 2), ["ready", "session"], "{told:?}");
    let session = &told.last().unwrap()["session"];
    assert_eq!((&session["name"], &session["status"]), (&json!("app"), &json!("running")));
    let idle = fake.banger(&["vm", "run", "--json", "-d", "--name", "idle"]).output().unwrap();
    assert_eq!(names(&events(&idle)).last(), Some(&"ready"));
    // Not detached: what it writes, and its end.
    let output = fake.banger(&["vm", "run", "--json", "--entrypoint", "--name", "ep"]).output().unwrap();
    let told = events(&output);
    let end = ["ready", "session", "output", "output", "gap", "output", "exit"];
    assert_eq!(names(&told).split_off(told.len() - end.len()), end, "{told:?}");
    assert_eq!((told.last().unwrap()["status"].as_u64(), output.status.code()), (Some(9), Some(9)));
}

#[test]
fn a_run_whose_session_does_not_begin_leaves_no_vm() {
    for (words, status) in [(&["-d", "--", "missing"][..], 127), (&["--entrypoint", "--", "nothing"], 1)] {
        let fake = demo();
        let run = |more: &[&str]| {
            let output =
                fake.banger(&[&["vm", "run", "--json", "--name", "new"], more, words].concat()).output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{output:?}");
            (events(&output), fake.state().calls.clone())
        };
        let (told, calls) = run(&[]);
        let end = if status == 127 { vec!["ready", "exit", "deleted"] } else { vec!["ready", "deleted", "error"] };
        assert_eq!(names(&told).split_off(told.len() - 3), end);
        assert_eq!(calls.last().unwrap(), "delete new");
        let (told, calls) = run(&["--keep-on-error"]);
        assert!(
            told.iter().any(|event| event["message"] == "new is kept; remove it: banger vm delete new"),
            "{told:?}"
        );
        assert!(!names(&told).contains(&"deleted") && !calls.last().unwrap().starts_with("delete"), "{calls:?}");
    }
}

#[test]
fn what_is_remarked_is_a_warning() {
    let fake = demo();
    let words = ["vm", "run", "--json", "-d", "--name", "new", "--root-size", "200M"];
    let told = events(&fake.banger(&words).output().unwrap());
    let message = "--root-size: a root disk is a multiple of 128M, so it becomes 256M";
    assert_eq!(told[0], json!({ "event": "warning", "message": message }), "{told:?}");
}

#[test]
fn what_is_no_text_is_base64_and_a_character_stays_whole() {
    let fake = demo();
    let send = |bytes: &[u8]| {
        let mut child =
            fake.banger(&["vm", "exec", "--json", "demo", "--", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for byte in bytes.chunks(1) {
            stdin.write_all(byte).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(stdin);
        events(&child.wait_with_output().unwrap())
    };
    let of = |told: &[Value], key: &str| told.iter().filter_map(|event| event[key].as_str()).collect::<String>();
    let text = send("ä€\u{1f9ea}".as_bytes());
    assert_eq!((of(&text, "text").as_str(), of(&text, "base64").as_str()), ("ä€\u{1f9ea}", ""), "{text:?}");
    let odd = send(b"\xff");
    assert_eq!((of(&odd, "text").as_str(), of(&odd, "base64").as_str()), ("", "/w=="), "{odd:?}");
    // The end of a character that does not come.
    let cut = send(b"a\xe2\x82");
    assert_eq!((of(&cut, "text").as_str(), of(&cut, "base64").as_str()), ("a", "4oI="), "{cut:?}");
    assert_eq!(names(&cut).last(), Some(&"exit"));
}

#[test]
fn failures_are_told_with_the_daemons_word_for_them() {
    let fake = demo();
    let unknown = fake.banger(&["vm", "exec", "--json", "nobody", "--", "true"]).output().unwrap();
    let [error] = events(&unknown).try_into().unwrap();
    assert_eq!((&error["event"], &error["code"]), (&json!("error"), &json!("not_found")));
    assert!(error["message"].as_str().unwrap().contains("no VM nobody"), "{error}");
    assert_eq!(error["hint"], "see: banger vm list");
    assert_eq!(unknown.status.code(), Some(1));
    let killed = fake.banger(&["vm", "exec", "--json", "demo", "--", "killed", "9"]).output().unwrap();
    assert_eq!(events(&killed), [json!({ "event": "exit", "status": 137, "signal": 9, "reason": null })]);
    let missing = fake.banger(&["vm", "exec", "--json", "demo", "--", "missing"]).output().unwrap();
    let [exit] = events(&missing).try_into().unwrap();
    assert_eq!((exit["status"].as_u64(), missing.status.code()), (Some(127), Some(127)));
    assert_eq!(exit["reason"], "missing: there is no such program");
    let lost = fake.banger(&["vm", "exec", "--json", "demo", "--", "hang-up"]).output().unwrap();
    let [error] = events(&lost).try_into().unwrap();
    assert_eq!((&error["event"], &error["code"]), (&json!("error"), &Value::Null));
    for words in [&["vm", "exec", "--json", "demo"][..], &["vm", "run", "--json"]] {
        let refused = fake.banger(words).output().unwrap();
        assert_eq!(names(&events(&refused)), ["error"], "a shell is for people: {words:?}");
    }
}

#[test]
fn a_guest_steers_no_terminal_by_json() {
    let fake = demo();
    fake.state().evil = "\x1b[31m\u{9b}2J\u{7f}\u{202e}\u{2028}\x07\rbanger";
    for words in [
        &["vm", "run", "--json", "--name", "new", "--entrypoint"][..],
        &["vm", "exec", "--json", "demo", "--", "missing"],
    ] {
        let output = fake.banger(words).output().unwrap();
        let text = std::str::from_utf8(&output.stdout).unwrap();
        let steers = |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!text.chars().any(steers), "{text:?}");
        assert!(events(&output).iter().any(|event| event.to_string().contains("\\u001b[31m")), "kept: {text}");
    }
}
