//! `banger mcp` against the fake daemon: by lines of JSON-RPC, and by the Model Context Protocol's
//! own client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]
#![expect(unreachable_pub, reason = "the fake is part of this test")]

mod fake;

use banger_policy::lifecycle::State;
use fake::{Fake, vm};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

fn demo() -> Fake {
    Fake::start(vec![vm("demo", State::Running), vm("other", State::Stopped)])
}

struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last: u64,
}

impl Client {
    fn new(fake: &Fake) -> Self {
        let mut child = fake.banger(&["mcp"]).stdin(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut client = Self { child, to, from, last: 0 };
        let about = json!({ "name": "test", "version": "1" });
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": about });
        let answer = client.ask("initialize", &hello);
        assert!(answer.pointer("/result/instructions").is_some_and(Value::is_string), "{answer}");
        client.tell(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
        client
    }

    fn tell(&mut self, message: &Value) {
        writeln!(self.to, "{message}").unwrap();
    }

    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.last += 1;
        let id = self.last;
        self.tell(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The text of a tool's answer, and whether it is an error.
    fn call(&mut self, name: &str, arguments: Value) -> (String, bool) {
        let answer = self.ask("tools/call", &json!({ "name": name, "arguments": arguments }));
        let text = answer.pointer("/result/content/0/text").and_then(Value::as_str).unwrap_or_default().to_owned();
        assert!(!text.is_empty(), "{answer}");
        (text, answer.pointer("/result/isError").and_then(Value::as_bool).unwrap_or(false))
    }

    fn value(&mut self, name: &str, arguments: Value) -> Value {
        let (text, failed) = self.call(name, arguments);
        assert!(!failed, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The client goes; the server's exit status.
    fn end(self) -> Option<i32> {
        let Self { mut child, to, .. } = self;
        drop(to);
        child.wait().unwrap().code()
    }
}

#[test]
fn an_agent_makes_uses_and_removes_a_vm() {
    let fake = demo();
    let mut client = Client::new(&fake);
    let made = client.value("vm_run", json!({ "name": "new" }));
    assert_eq!(made.pointer("/vm/name"), Some(&"new".into()), "{made}");
    let ran = client.value("vm_exec", json!({ "vm": "demo", "command": ["both"] }));
    assert_eq!(ran, json!({ "exit_status": 3, "stdout": "out\n", "stderr": "err\n" }));
    let typed = client.value("vm_exec", json!({ "vm": "demo", "command": ["cat"], "stdin": "typed" }));
    assert_eq!(typed.get("stdout"), Some(&"typed".into()));
    let missing = client.value("vm_exec", json!({ "vm": "demo", "command": ["missing"] }));
    assert_eq!(missing.get("not_started"), Some(&"missing: there is no such program".into()));
    let (text, failed) = client.call("vm_exec", json!({ "vm": "nobody", "command": ["true"] }));
    assert!(failed && text.contains("no VM nobody") && text.contains("see: banger vm list"), "{text}");
    assert!(client.call("vm_list", json!({})).0.contains("demo"));
    assert_eq!(client.call("session_start", json!({ "vm": "demo", "command": ["serve"], "name": "web" })).0, "web\n");
    assert!(client.call("session_logs", json!({ "vm": "demo", "session": "web" })).0.contains("last\n"));
    let sent = client.call("session_send", json!({ "vm": "demo", "session": "web", "text": "hello" }));
    assert_eq!(sent, ("5 bytes written\n".to_owned(), false));
    let (text, failed) = client.call("session_send", json!({ "vm": "demo", "session": "deaf", "text": "x" }));
    assert!(failed && text.contains("without standard input"), "{text}");
    client.call("vm_stop", json!({ "vm": "new", "timeout_seconds": 7 }));
    client.call("vm_delete", json!({ "vm": "new" }));
    let calls = fake.state().calls.clone();
    let ends: Vec<&String> = calls.iter().filter(|call| call.ends_with("new") || call.starts_with("within")).collect();
    assert_eq!(ends, ["within 7 s", "stop new", "delete new"], "{calls:?}");
    assert_eq!(client.end(), Some(0));
}

#[test]
fn files_go_into_a_vm_and_out_of_it() {
    let fake = demo();
    let mut client = Client::new(&fake);
    for text in ["one\n", "another, longer text\n"] {
        let (said, failed) = client.call("file_write", json!({ "vm": "demo", "path": "/root/notes", "text": text }));
        assert!(!failed, "{said}");
        assert_eq!(std::fs::read_to_string(fake.guest_home().join("notes")).unwrap(), text);
        assert_eq!(client.call("file_read", json!({ "vm": "demo", "path": "/root/notes" })), (text.to_owned(), false));
    }
    // A folder that the guest has put in the file's place is no place for it.
    std::fs::remove_file(fake.guest_home().join("notes")).unwrap();
    std::fs::create_dir(fake.guest_home().join("notes")).unwrap();
    let (said, failed) = client.call("file_write", json!({ "vm": "demo", "path": "/root/notes", "text": "x" }));
    assert!(failed && said.contains("notes"), "{said}");
    assert_eq!(std::fs::read_dir(fake.guest_home().join("notes")).unwrap().count(), 0);
    let (text, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/root/nothing" }));
    assert!(failed && text.contains("nothing"), "{text}");
    std::os::unix::fs::symlink("/etc/hostname", fake.guest_home().join("link")).unwrap();
    let (text, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/root/link" }));
    assert!(failed, "{text}");
    std::fs::write(fake.guest_home().join("big"), vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(client.call("file_read", json!({ "vm": "demo", "path": "/root/big" })).1);
}

#[test]
fn what_a_hostile_guest_says_steers_nothing() {
    let fake = demo();
    fake.state().evil = "\x1b[31m\u{9b}2J\u{7f}\u{202e}\u{2028}\x07\rbanger";
    let mut client = Client::new(&fake);
    let calls = [
        ("vm_exec", json!({ "vm": "demo", "command": ["missing"] })),
        ("vm_exec", json!({ "vm": "nobody", "command": ["x"] })),
        ("vm_list", json!({})),
        ("session_list", json!({ "vm": "demo" })),
        ("session_logs", json!({ "vm": "demo", "session": "web" })),
        ("session_send", json!({ "vm": "demo", "session": "old", "text": "x" })),
    ];
    for (name, arguments) in calls {
        let (text, _) = client.call(name, arguments);
        let steers = |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!text.chars().any(steers), "{name}: {text:?}");
    }
}

/// The protocol's own client, from PyPI: `python3 -m venv V; V/bin/pip install mcp`, and
/// `BANGER_MCP_PYTHON` names `V/bin/python`.
#[test]
fn the_protocols_own_client_gets_along() {
    let python = std::env::var_os("BANGER_MCP_PYTHON").unwrap_or_else(|| "python3".into());
    let there = Command::new(&python).args(["-c", "import mcp"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("skipped: no Python with the package mcp (BANGER_MCP_PYTHON names one)");
        return;
    }
    let fake = demo();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mcp_client.py");
    let mut command = Command::new(python);
    command.arg(script).arg(env!("CARGO_BIN_EXE_banger")).env("BANGER_SOCKET", fake.socket());
    let output = command.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said, "banger\nexit_status 3\nfailed\nwritten\n");
    assert_eq!(fake.state().calls.last().unwrap(), "delete new");
}
