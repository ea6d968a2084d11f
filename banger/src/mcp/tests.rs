//! The server as a client sees it: lines of JSON-RPC. In the place of banger stands a script that
//! says what it was called with.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use serde_json::Value;
use std::fs::Permissions;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(30);

struct Client {
    from: BufReader<ReadHalf<DuplexStream>>,
    to: WriteHalf<DuplexStream>,
    serving: JoinHandle<anyhow::Result<u8>>,
    folder: tempfile::TempDir,
    last: u64,
}

impl Client {
    /// With a banger that is this script.
    async fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("banger");
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display())).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (from, to) = tokio::io::split(theirs);
        let serving = tokio::spawn(serve(program, from, to, std::future::pending()));
        let (from, to) = tokio::io::split(ours);
        let mut client = Self { from: BufReader::new(from), to, serving, folder, last: 0 };
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } });
        let answer = client.ask("initialize", hello).await;
        assert_eq!(answer.pointer("/result/serverInfo/name"), Some(&"banger".into()), "{answer}");
        client.tell(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        client
    }

    async fn tell(&mut self, message: Value) {
        self.to.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.last += 1;
        let id = self.last;
        self.tell(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        id
    }

    async fn next(&mut self) -> Value {
        let mut line = String::new();
        timeout(SOON, self.from.read_line(&mut line)).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params).await;
        let answer = self.next().await;
        assert_eq!(answer.get("id"), Some(&id.into()), "{answer}");
        answer
    }

    /// The text of a tool's answer, and whether it is an error.
    async fn call(&mut self, name: &str, arguments: Value) -> (String, bool) {
        let answer = self.ask("tools/call", json!({ "name": name, "arguments": arguments })).await;
        let text = answer.pointer("/result/content/0/text").and_then(Value::as_str);
        let failed = answer.pointer("/result/isError").and_then(Value::as_bool);
        (text.unwrap_or_else(|| unreachable!("{answer}")).to_owned(), failed.unwrap_or(false))
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

#[tokio::test]
async fn tools_are_listed_and_an_unknown_one_is_refused() {
    let mut client = Client::new("exit 9").await;
    let answer = client.ask("tools/list", json!({})).await;
    let tools = answer.pointer("/result/tools").and_then(Value::as_array).unwrap().clone();
    assert_eq!(tools.len(), TOOLS.len());
    let of = |name: &str| tools.iter().find(|tool| tool.get("name") == Some(&name.into())).unwrap();
    assert_eq!(of("vm_delete").pointer("/annotations/destructiveHint"), Some(&true.into()));
    assert_eq!(of("vm_list").pointer("/annotations/readOnlyHint"), Some(&true.into()));
    assert_eq!(of("vm_exec").pointer("/inputSchema/properties/vm/type"), Some(&"string".into()));
    let refused = client.ask("tools/call", json!({ "name": "no_such_tool", "arguments": {} })).await;
    assert!(refused.get("error").is_some(), "{refused}");
    let (text, failed) = client.call("vm_delete", json!({ "vm": "--everyone" })).await;
    assert!(failed && text.contains("cannot be"), "{text}");
}

#[tokio::test]
async fn a_tool_is_done_by_the_command_line_and_its_failure_is_the_tools() {
    let mut client = Client::new(r#"echo "$@" >> called; cat > input; echo "it is done"; [ "$3" != bad ] || { echo "banger: cannot: why" >&2; exit 1; }"#).await;
    assert_eq!(client.call("vm_start", json!({ "vm": "demo" })).await, ("it is done\n".to_owned(), false));
    let (text, failed) = client.call("vm_start", json!({ "vm": "bad" })).await;
    assert!(failed && text.contains("banger: cannot: why"), "{text}");
    client.call("session_send", json!({ "vm": "demo", "session": "web", "text": "typed" })).await;
    assert_eq!(client.file("input"), "typed");
    assert_eq!(client.file("called"), "vm start demo\nvm start bad\nvm session send demo web\n");
}

#[tokio::test]
async fn what_a_guest_wrote_is_bounded_and_steers_nothing() {
    let evil = r#"printf '{"event":"output","stream":"stdout","text":"\\u001b[2J\\u202e\\u009b","base64":null}\n{"event":"exit","status":0,"signal":null,"reason":null}\n'"#;
    let mut client =
        Client::new(&format!("[ $2 = exec ] && {{ {evil}; exit; }}; printf '\\033[2J'; yes | head -c 1000000")).await;
    let (text, failed) = client.call("vm_exec", json!({ "vm": "demo", "command": ["x"] })).await;
    assert!(!failed && text.contains(r"\u001b[2J\u202e\u009b"), "{text}");
    let (text, _) = client.call("session_logs", json!({ "vm": "demo", "session": "web" })).await;
    assert!(text.len() < 100_000 && text.contains("bytes are left out here"), "{} bytes", text.len());
    assert!(text.starts_with("\u{fffd}[2J"), "{:?}", text.get(..20));
}

#[tokio::test]
async fn files_go_both_ways_within_their_bounds() {
    let script = r#"
        if [ "$4" = - ]; then
            [ "$3" = demo:/big ] && exec head -c 9000000 /dev/zero
            [ "$3" = demo:/secret ] && exec tar --mode=000 -c stored
            [ "$3" = demo:/link ] && { ln -sf /etc/passwd link; exec tar c link; }
            exec tar c stored
        fi
        tar xO > stored"#;
    let mut client = Client::new(script).await;
    for text in ["plain\n", "", "\u{1b}[31m"] {
        client.call("file_write", json!({ "vm": "demo", "path": "/x", "text": text })).await;
        let (read, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/x" })).await;
        assert!(!failed);
        let same =
            read == text || serde_json::from_str::<Value>(&read).is_ok_and(|value| value == json!({ "text": text }));
        assert!(same && !read.contains('\u{1b}'), "{read:?}");
    }
    client.call("file_write", json!({ "vm": "demo", "path": "/x", "base64": "/wA=" })).await;
    let (read, _) = client.call("file_read", json!({ "vm": "demo", "path": "/x" })).await;
    assert_eq!(serde_json::from_str::<Value>(&read).unwrap(), json!({ "base64": "/wA=" }));
    let (text, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/big" })).await;
    assert!(failed && text.contains("more than"), "{text}");
    let (text, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/link" })).await;
    assert!(failed && !text.contains("root:"), "a guest's link leads nowhere on the host: {text}");
    assert!(text.contains("it is a link to /etc/passwd"), "{text}");
    // Not as root, who reads whatever the mode is.
    let (text, failed) = client.call("file_read", json!({ "vm": "demo", "path": "/secret" })).await;
    assert!(!failed, "{text}");
}

#[tokio::test]
async fn a_cancelled_tool_and_a_client_that_goes_undo_what_was_begun() {
    let script = "trap 'echo undone >> undone; exit 130' INT; echo begun >> begun; while :; do sleep 0.05; done";
    let mut client = Client::new(script).await;
    let until = async |client: &Client, name: &str, lines: usize| {
        for _ in 0..600 {
            if client.file(name).lines().count() >= lines {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("{name} has fewer than {lines} lines");
    };
    let id = client.begin("tools/call", json!({ "name": "vm_run", "arguments": {} })).await;
    until(&client, "begun", 1).await;
    client.tell(json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } })).await;
    until(&client, "undone", 1).await;
    client.begin("tools/call", json!({ "name": "vm_run", "arguments": {} })).await;
    until(&client, "begun", 2).await;
    let Client { from, to, serving, folder, .. } = client;
    drop((from, to));
    assert_eq!(timeout(SOON, serving).await.unwrap().unwrap().unwrap(), 0);
    let undone = std::fs::read_to_string(folder.path().join("undone")).unwrap();
    assert_eq!(undone.lines().count(), 2, "the client's end did not wait for the rollback");
}

#[tokio::test]
async fn what_was_done_before_a_failure_and_what_was_remarked_is_told() {
    let script = r#"
        event() { printf '{"event":%s}\n' "$1"; }
        case "$2" in
            run)
                event '"ready","vm":{"name":"new","network":{"mode":"nat"}}'
                event '"output","stream":"stdout","text":"built","base64":null'
                event '"exit","status":0,"signal":null,"reason":null'
                event '"error","code":null,"message":"cannot delete new","hint":"try again"'
                exit 1 ;;
            exec)
                event '"output","stream":"stdout","text":"built","base64":null'
                kill -9 $$ ;;
            cp) mkdir -p from; echo text > from/file; tar cC from file; echo "note: cp" >&2 ;;
            *) echo patch; echo "note: evil is a link that leads out of the repository" >&2 ;;
        esac"#;
    let mut client = Client::new(script).await;
    let (text, failed) = client.call("vm_run", json!({ "command": ["make"], "remove": true })).await;
    assert!(failed, "{text}");
    let value: Value = serde_json::from_str(text.strip_prefix("cannot delete new\ntry again\n").unwrap()).unwrap();
    assert_eq!((value.get("exit_status"), value.get("stdout")), (Some(&0.into()), Some(&"built".into())));
    assert_eq!(value.pointer("/vm/network"), Some(&"nat".into()));
    let (text, failed) = client.call("vm_exec", json!({ "vm": "new", "command": ["make"] })).await;
    assert!(failed && text.contains("built"), "{text}");
    for (name, arguments, first, second) in [
        ("workspace_export", json!({ "vm": "new" }), "patch\n", "evil is a link"),
        ("file_read", json!({ "vm": "new", "path": "/file" }), "text\n", "note: cp"),
    ] {
        let answer = client.ask("tools/call", json!({ "name": name, "arguments": arguments })).await;
        let text = |number: u8| answer.pointer(&format!("/result/content/{number}/text")).and_then(Value::as_str);
        assert!(text(0) == Some(first) && text(1).is_some_and(|text| text.contains(second)), "{answer}");
    }
}

#[tokio::test]
async fn what_lasts_keeps_nobody_from_looking_and_ending() {
    let script = r#"[ "$2" = exec ] && { echo >> begun; exec sleep 60; }; echo "$2""#;
    let mut client = Client::new(script).await;
    let long = json!({ "name": "vm_exec", "arguments": { "vm": "demo", "command": ["x"] } });
    for _ in 0..AT_ONCE {
        client.begin("tools/call", long.clone()).await;
    }
    while client.file("begun").lines().count() < AT_ONCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.call("vm_list", json!({})).await, ("list\n".to_owned(), false));
    assert_eq!(client.call("vm_stop", json!({ "vm": "demo" })).await, ("stop\n".to_owned(), false));
    let ninth = json!({ "vm": "demo", "command": ["x"], "timeout_seconds": 1 });
    let (text, failed) = client.call("vm_exec", ninth).await;
    assert!(failed && text.contains("8 calls are at work"), "{text}");
    assert_eq!(client.file("begun").lines().count(), AT_ONCE);
}

#[tokio::test]
async fn a_large_input_arrives_and_one_that_is_too_large_is_refused() {
    let mut client = Client::new("wc -c").await;
    // Each is six characters of JSON.
    let text = |bytes| json!({ "vm": "demo", "session": "web", "text": "\u{1}".repeat(bytes) });
    let sent = client.call("session_send", text(MAX_INPUT)).await;
    assert_eq!(sent, (format!("{MAX_INPUT}\n"), false));
    let (said, failed) = client.call("session_send", text(MAX_INPUT + 1)).await;
    assert!(failed && said.contains("may be sent"), "{said}");
}
