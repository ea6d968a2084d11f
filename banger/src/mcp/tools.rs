//! The tools: what each is called with, and the command that does it.
//!
//! Whoever calls them is a model: every value is a text that somebody else may have chosen. A value
//! becomes one argument, which cannot be taken for a flag.

use anyhow::Context as _;
use rmcp::handler::server::common::schema_for_type;
use rmcp::model::JsonObject;
use rmcp::schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::child::Call;
use arguments::{
    Exec, Export, FileRead, FileWrite, Nothing, OneSession, OneVm, OneVmSessions, Run, SessionLogs, SessionSend,
    SessionStart, Start, Stop,
};

mod arguments;

/// How long a tool may take when the model does not say.
const LIMIT: u64 = 600;
/// The longest that it may say, seconds.
const MAX_LIMIT: u64 = 24 * 3600;
/// Bytes of a file that is read or written, and of a patch.
pub(super) const MAX_FILE: usize = 1 << 20;
/// Bytes that a command or session is sent.
pub(super) const MAX_INPUT: usize = 8 << 20;

/// What becomes of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Events, which become one value.
    Events,
    /// It is shown as it is.
    Text,
    /// A tar stream with one file, which is shown.
    File,
    /// A patch, whole or not at all.
    Whole,
}

/// A command that does what a tool was asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) call: Call,
    pub(super) answer: Answer,
}

/// A tool.
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// It changes nothing.
    pub(super) reads: bool,
    /// What it changes is not to be had back.
    pub(super) destroys: bool,
    pub(super) schema: fn() -> Arc<JsonObject>,
    pub(super) order: fn(JsonObject) -> anyhow::Result<Order>,
}

impl Tool {
    /// It looks, or ends something: it is wanted most when all others are at work.
    pub(super) fn is_apart(&self) -> bool {
        self.reads || ["vm_stop", "vm_delete", "session_stop"].contains(&self.name)
    }
}

/// What a tool is called with.
trait Arguments: DeserializeOwned + JsonSchema + 'static {
    fn order(self) -> anyhow::Result<Order>;
}

const fn tool<A: Arguments>(name: &'static str, about: &'static str, reads: bool, destroys: bool) -> Tool {
    Tool { name, about, reads, destroys, schema: schema_for_type::<A>, order: parse::<A> }
}

fn parse<A: Arguments>(arguments: JsonObject) -> anyhow::Result<Order> {
    serde_json::from_value::<A>(arguments.into()).context("the arguments do not fit this tool")?.order()
}

pub(super) const TOOLS: &[Tool] = &[
    tool::<Run>(
        "vm_run",
        "Make a microVM, start it, and run a command in it if one is named. The VM stays until vm_delete, unless remove is true.",
        false,
        false,
    ),
    tool::<Exec>("vm_exec", "Run a command in a running VM and wait for its end.", false, false),
    tool::<Nothing>("vm_list", "List the user's VMs with their states.", true, false),
    tool::<Start>("vm_start", "Start a VM that does not run.", false, false),
    tool::<Stop>("vm_stop", "Shut a VM down cleanly. Its disks stay.", false, false),
    tool::<OneVm>("vm_delete", "Stop a VM and remove it with its disks, for good.", false, true),
    tool::<SessionStart>("session_start", "Start a command in the background of a VM, such as a server.", false, false),
    tool::<OneVmSessions>("session_list", "List the background commands (sessions) of a VM.", true, false),
    tool::<SessionLogs>("session_logs", "Show the last lines that a session wrote.", true, false),
    tool::<SessionSend>("session_send", "Write to a session's standard input.", false, false),
    tool::<OneSession>("session_stop", "Ask a session to end, and end it after ten seconds.", false, false),
    tool::<FileRead>("file_read", "Read a file of a running VM, up to 1 MiB.", true, false),
    tool::<FileWrite>("file_write", "Write a file in a running VM, up to 1 MiB, over one that is there.", false, true),
    tool::<Export>(
        "workspace_export",
        "Get what was changed in the repository that vm_run prepared, as a patch for git apply.",
        true,
        false,
    ),
];

/// The arguments of a command.
struct Words(Vec<OsString>);

impl Words {
    fn new(words: &[&str]) -> Self {
        Self(words.iter().map(Into::into).collect())
    }

    fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(word.into());
        self
    }

    /// One word with its value, so that no value is a flag.
    fn flag(&mut self, flag: &str, value: Option<String>) -> &mut Self {
        self.0.extend(value.map(|value| format!("{flag}={value}").into()));
        self
    }

    fn switch(&mut self, flag: &str, wanted: bool) -> &mut Self {
        self.0.extend(wanted.then(|| flag.into()));
        self
    }

    fn env(&mut self, env: BTreeMap<String, String>) -> anyhow::Result<&mut Self> {
        for (name, value) in env {
            // Without a value, a name would mean the value that this process has.
            anyhow::ensure!(!name.is_empty() && !name.contains('='), "{name:?} is no name of a variable");
            self.flag("--env", Some(format!("{name}={value}")));
        }
        Ok(self)
    }

    /// A value that stands by itself.
    fn place(&mut self, name: &str, value: String) -> anyhow::Result<&mut Self> {
        anyhow::ensure!(!value.is_empty() && !value.starts_with('-'), "`{name}` cannot be {value:?}");
        self.0.push(value.into());
        Ok(self)
    }

    /// What follows is the command's, whatever it looks like.
    fn command(&mut self, command: Vec<String>) -> &mut Self {
        if !command.is_empty() {
            self.word("--");
            self.0.extend(command.into_iter().map(Into::into));
        }
        self
    }

    fn order(&mut self, answer: Answer, stdin: Option<String>, seconds: Option<u64>) -> anyhow::Result<Order> {
        self.order_of_bytes(answer, stdin.map(String::into_bytes), seconds)
    }

    fn order_of_bytes(
        &mut self,
        answer: Answer,
        stdin: Option<Vec<u8>>,
        seconds: Option<u64>,
    ) -> anyhow::Result<Order> {
        let seconds = seconds.unwrap_or(LIMIT);
        anyhow::ensure!((1..=MAX_LIMIT).contains(&seconds), "`timeout_seconds` may be 1 to {MAX_LIMIT}");
        // A NUL ends an argument: the kernel would refuse the rest without a word of why.
        let nul = |word: &OsString| word.as_encoded_bytes().contains(&0);
        anyhow::ensure!(!self.0.iter().any(nul), "no value may contain a NUL");
        let input = stdin.as_ref().map_or(0, Vec::len);
        anyhow::ensure!(input <= MAX_INPUT, "it may be sent {MAX_INPUT} bytes; send more by `banger vm cp`");
        let words = std::mem::take(&mut self.0);
        let call = Call { words, stdin, limit: Duration::from_secs(seconds) };
        Ok(Order { call, answer })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::json;

    fn order(name: &str, arguments: serde_json::Value) -> anyhow::Result<Order> {
        let serde_json::Value::Object(arguments) = arguments else { unreachable!("{arguments}") };
        (TOOLS.iter().find(|tool| tool.name == name).unwrap().order)(arguments)
    }

    fn words(name: &str, arguments: serde_json::Value) -> String {
        let words = order(name, arguments).unwrap().call.words;
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_tool_is_a_command() {
        let run = json!({ "image": "debian:13", "memory": "1G", "nat": true, "repository": "/src", "env": { "A": "b=c" },
            "command": ["make", "-j2"], "remove": true });
        let line = "vm|run|--json|--image=debian:13|--memory=1G|--nat|--rm|--env=A=b=c|-n|/src|--|make|-j2";
        assert_eq!(words("vm_run", run), line);
        assert_eq!(words("vm_run", json!({})), "vm|run|--json|-d|-n");
        let listed = json!({ "net": "allow", "allow": ["10.0.0.0/8", "example.org:443"] });
        let line = "vm|run|--json|--net=allow|--allow=10.0.0.0/8|--allow=example.org:443|-d|-n";
        assert_eq!(words("vm_run", listed), line);
        let exec = json!({ "vm": "demo", "command": ["cat"], "stdin": "x", "user": "app", "timeout_seconds": 5 });
        let order = order("vm_exec", exec).unwrap();
        assert_eq!(order.call.words, ["vm", "exec", "--json", "--user=app", "demo", "--", "cat"]);
        assert_eq!((order.call.stdin.as_deref(), order.call.limit), (Some(&b"x"[..]), Duration::from_secs(5)));
        assert_eq!(words("vm_stop", json!({ "vm": "demo", "timeout_seconds": 5 })), "vm|stop|--timeout=5|demo");
        assert_eq!(words("file_read", json!({ "vm": "demo", "path": "/etc/a:b" })), "vm|cp|demo:/etc/a:b|-");
        assert_eq!(words("file_write", json!({ "vm": "demo", "path": "/x", "text": "" })), "vm|cp|-|demo:/");
        for (executable, mode) in [(false, 0o644), (true, 0o755)] {
            let write = json!({ "vm": "demo", "path": "/etc/a:b", "text": "x", "executable": executable });
            let order = self::order("file_write", write).unwrap();
            assert_eq!(order.call.words, ["vm", "cp", "-", "demo:/etc/"]);
            let folder = tempfile::tempdir().unwrap();
            let opened = banger_files::open_folder(folder.path()).unwrap();
            let archive = order.call.stdin.unwrap();
            banger_files::unpack(archive.as_slice(), &opened, banger_files::Limits::NONE).unwrap();
            let stat = std::fs::metadata(folder.path().join("a:b")).unwrap();
            assert_eq!((stat.len(), std::os::unix::fs::PermissionsExt::mode(&stat.permissions()) & 0o777), (1, mode));
        }
    }

    #[test]
    fn no_value_is_taken_for_a_flag_or_for_another_place() {
        let refused = [
            ("vm_exec", json!({ "vm": "--everyone", "command": ["x"] })),
            ("vm_exec", json!({ "vm": "demo", "command": [] })),
            ("vm_exec", json!({ "vm": "demo", "command": ["a\0b"] })),
            ("vm_exec", json!({ "vm": "demo", "command": ["x"], "env": { "HOME": "x", "A=B": "y" } })),
            ("vm_exec", json!({ "vm": "demo", "command": ["x"], "timeout_seconds": 0 })),
            ("vm_stop", json!({ "vm": "--everyone" })),
            ("vm_delete", json!({ "vm": "" })),
            ("vm_delete", json!({ "vm": "a", "force": true })),
            ("vm_run", json!({ "repository": "--rm" })),
            ("vm_run", json!({ "remove": true })),
            ("vm_run", json!({ "stdin": "x" })),
            ("vm_run", json!({ "env": { "A": "b" } })),
            ("vm_run", json!({ "command": ["x"], "background": true, "stdin": "x" })),
            ("vm_exec", json!({ "vm": "demo", "command": ["x"], "stdin": "x".repeat(MAX_INPUT + 1) })),
            ("session_send", json!({ "vm": "demo", "session": "web", "text": "x".repeat(MAX_INPUT + 1) })),
            ("session_logs", json!({ "vm": "demo", "session": "-f" })),
            ("file_read", json!({ "vm": "demo", "path": "etc/passwd" })),
            ("file_read", json!({ "vm": "../demo", "path": "/etc/passwd" })),
            ("file_read", json!({ "vm": "/etc/x", "path": "/etc/passwd" })),
            ("file_write", json!({ "vm": "demo", "path": "/x" })),
            ("file_write", json!({ "vm": "demo", "path": "/x/..", "text": "" })),
            ("file_write", json!({ "vm": "demo", "path": "/", "text": "" })),
            ("file_write", json!({ "vm": "demo", "path": "/root/a\0b", "text": "" })),
            ("file_write", json!({ "vm": "demo", "path": "/x", "base64": "?" })),
            ("file_write", json!({ "vm": "demo", "path": "/x", "text": "x".repeat(MAX_FILE + 1) })),
        ];
        for (name, arguments) in refused {
            assert!(order(name, arguments.clone()).is_err(), "{name} {arguments}");
        }
        assert!(words("vm_run", json!({ "name": "--rm" })).contains("--name=--rm"));
    }

    #[test]
    fn every_tool_says_what_it_takes() {
        for tool in TOOLS {
            let schema = (tool.schema)();
            assert_eq!(schema.get("type"), Some(&"object".into()), "{}", tool.name);
            assert_eq!(schema.get("additionalProperties"), Some(&false.into()), "{}", tool.name);
            let about = |value: &serde_json::Value| value.get("description").is_some();
            let all =
                schema.get("properties").and_then(|all| all.as_object()).is_none_or(|all| all.values().all(about));
            assert!(all && tool.about.ends_with('.'), "{}: {schema:?}", tool.name);
        }
    }
}
