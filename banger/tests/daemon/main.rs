//! What the real program does with a daemon, which is a fake one on a real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod commands;
mod doctor;
#[path = "../fake/mod.rs"]
mod fake;
mod host;
mod images;
mod life;
mod signals;
mod terminal;

use banger_policy::lifecycle::State;
use banger_proto::model::{Refused, RefusedList};
use banger_proto::time::Timestamp;
use banger_proto::wire::Hello;
use fake::{Fake, vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Output, Stdio};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn demo() -> Fake {
    Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)])
}

/// Two destinations.
fn were_refused() -> RefusedList {
    let at = |hours: u64| Timestamp::from_unix(Timestamp::now().unix() - hours * 3600 - 60);
    let one = |address: [u8; 4], protocol: &str, port, times| Refused {
        address: address.into(),
        protocol: protocol.into(),
        port,
        times,
        first_at: at(3),
        last_at: at(1),
    };
    let destinations = vec![one([192, 0, 2, 7], "tcp", Some(443), 3), one([198, 51, 100, 1], "icmp", None, 1)];
    RefusedList { recorded: true, destinations }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(holds(), "not within 5 s: {what}");
}

fn all(output: &Output) -> String {
    format!("{}{}status {:?}\n", text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn tables() {
    let fake = demo();
    fake.state().vms[1].runtime.last_error = "the guest panicked\nKernel panic - not syncing".into();
    fake.state().refused = were_refused();
    let commands: [&[&str]; 25] = [
        &["vm", "list"],
        &["ps", "--all"],
        &["top"],
        &["top", "--all", "--once"],
        &["image", "list"],
        &["image", "show", "debian:13"],
        &["kernel", "list"],
        &["kernel", "show", "6.12"],
        &["image", "promote", "--shared", "debian:13"],
        &["image", "promote", "--private", "debian:13"],
        &["image", "promote", "debian:13", "other"],
        &["kernel", "share", "6.12"],
        &["vm", "chown", "bob", "other", "nobody"],
        &["job", "list"],
        &["version"],
        &["vm", "show", "nobody"],
        &["vm", "logs", "demo"],
        &["vm", "ports", "demo"],
        &["vm", "refused", "demo"],
        &["vm", "health", "demo"],
        &["vm", "health", "other"],
        &["vm", "exec", "-n", "demo", "--", "missing"],
        &["vm", "session", "list", "demo"],
        &["vm", "session", "show", "demo", "old"],
        &["vm", "session", "logs", "--times", "demo", "web"],
    ];
    let shown = commands.map(|c| format!("$ banger {}\n{}", c.join(" "), all(&fake.banger(c).output().unwrap())));
    // Times are those of this run.
    let fixed = |line: &str| {
        if line.starts_with("created ") || line.starts_with("updated ") {
            line[..13].to_owned() + "TIME"
        } else {
            line.to_owned()
        }
    };
    insta::assert_snapshot!(shown.join("\n").lines().map(fixed).collect::<Vec<_>>().join("\n"));
}

#[test]
fn json_has_the_names_of_the_model_and_every_page() {
    let fake = Fake::start((0..40).map(|n| vm(&format!("vm-{n}"), State::Stopped)).collect());
    let distinct: std::collections::BTreeSet<_> = fake.state().vms.iter().map(|vm| vm.id).collect();
    fake.state().vms.dedup_by_key(|vm| vm.id);
    let output = fake.banger(&["vm", "list", "--json"]).output().unwrap();
    let vms: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(vms.as_array().unwrap().len(), distinct.len());
    assert_eq!(vms[0]["spec"]["vcpu_count"], 2);
    assert_eq!(vms[0]["state"], "stopped");
    assert!(vms[0]["created_at"].as_str().unwrap().ends_with('Z'));
    for command in [["image", "list"], ["kernel", "list"], ["job", "list"]] {
        let output = fake.banger(&[command[0], command[1], "--json"]).output().unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().is_array(), "{command:?}");
    }
    let one = fake.banger(&["vm", "show", "vm-1", "--json"]).output().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&one.stdout).unwrap()["name"], "vm-1");
}

#[test]
fn what_was_refused_is_shown_or_why_it_is_not() {
    let fake = demo();
    let refused = |words: &[&str]| fake.banger(&[&["vm", "refused"], words].concat()).output().unwrap();
    let off = all(&refused(&["demo"]));
    assert!(off.starts_with("nothing is recorded") && off.contains("enable bangerd-refused.socket"), "{off}");
    let value: serde_json::Value = serde_json::from_slice(&refused(&["demo", "--json"]).stdout).unwrap();
    assert_eq!(value, serde_json::json!({ "recorded": false, "destinations": [] }));
    fake.state().refused.recorded = true;
    let none = all(&refused(&["demo"]));
    assert_eq!(none, "nothing was refused to demo since it runs, and since the daemon runs\nstatus Some(0)\n");
    fake.state().refused = were_refused();
    let value: serde_json::Value = serde_json::from_slice(&refused(&["demo", "--json"]).stdout).unwrap();
    let one = &value["destinations"][0];
    assert_eq!((&one["address"], &one["protocol"], &one["port"]), (&"192.0.2.7".into(), &"tcp".into(), &443.into()));
    assert!(one["first_at"].as_str().unwrap().ends_with('Z') && one["last_at"].is_string() && one["times"] == 3);
    assert!(value["destinations"][1]["port"].is_null());
    assert_eq!(refused(&["nobody"]).status.code(), Some(1));
    fake.state().vms[0].refused = Some(2);
    let shown = all(&fake.banger(&["vm", "show", "demo"]).output().unwrap());
    assert!(shown.contains("2 destinations, see: banger vm refused demo"), "{shown}");
}

#[test]
fn a_command_that_lasts_holds_no_connection_for_calls() {
    let commands: [&[&str]; 3] = [
        &["vm", "exec", "-n", "demo", "--", "signal"],
        &["vm", "run", "--name", "new", "-n", "--", "signal"],
        &["vm", "session", "attach", "demo", "web"],
    ];
    for words in commands {
        let fake = demo();
        let mut child = fake.banger(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line == "waiting\n" || line == "now\n", "{line}");
        wait_for("no connection", || fake.state().connections == 0);
        signal(&child, Signal::SIGTERM);
        child.wait().unwrap();
    }
}

#[test]
fn a_connection_that_is_closed_at_once_is_explained_by_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = Command::new(env!("CARGO_BIN_EXE_banger")).arg("ps").env("BANGER_SOCKET", &socket).output().unwrap();
    closing.join().unwrap();
    assert!(text(&output.stderr).contains("as many connections as a user may have (128)"), "{}", all(&output));
}

#[test]
fn what_is_watched_as_json_is_an_object_a_line() {
    let fake = demo();
    let mut child = fake.banger(&["vm", "stats", "--watch", "--json", "demo"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["vm"]["name"], "demo");
    }
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
}

#[test]
fn an_older_daemon_gets_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let older = std::thread::spawn(move || {
        let mut peer = listener.accept().unwrap().0;
        let mut hello = Hello::ours(banger_proto::wire::Purpose::Calls);
        peer.read_exact(&mut [0; 32]).unwrap();
        hello.version = 0;
        peer.write_all(&hello.encode()).unwrap();
    });
    let output = Command::new(env!("CARGO_BIN_EXE_banger")).arg("ps").env("BANGER_SOCKET", &socket).output().unwrap();
    older.join().unwrap();
    let said = text(&output.stderr);
    assert!(said.starts_with("banger: cannot talk to bangerd: protocol version 0"), "{said}");
}
