//! The tools: what each is called with, and the command that does it.
//!
//! Whoever calls them is a model: every value is a text that somebody else may have chosen. A value becomes one
//! argument, which cannot be taken for a flag.

use crate::error::explained;
use anyhow::Context as _;
use rmcp::handler::server::common::schema_for_type;
use rmcp::model::JsonObject;
use rmcp::schemars::{self, JsonSchema};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::child::Call;

/// How long a tool may take when the model does not say.
const LIMIT: u64 = 600;
/// The longest that it may say, seconds.
const MAX_LIMIT: u64 = 24 * 3600;
/// Bytes of a file that is read or written, and of a patch.
pub(super) const MAX_FILE: usize = 1 << 20;

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
    /// A file that the command reads; its path is the argument that is empty.
    pub(super) file: Option<Vec<u8>>,
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

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Run {
    /// The image: a name of the host, or a reference of a registry such as debian:13. The host's default without it.
    image: Option<String>,
    /// The VM's name; generated without it.
    name: Option<String>,
    /// vCPUs.
    vcpu: Option<u32>,
    /// Memory, such as 512M or 4G.
    memory: Option<String>,
    /// The disk on /root, such as 8G.
    disk_size: Option<String>,
    /// The root disk, such as 8G.
    root_size: Option<String>,
    /// Let the VM reach the network outside. Without it, it reaches nothing.
    #[serde(default)]
    nat: bool,
    /// A folder of the host with a git repository, which is prepared in the VM; the command starts there.
    repository: Option<String>,
    /// The words of a command, without a shell in between.
    #[serde(default)]
    command: Vec<String>,
    /// Run the command as the session `app` and do not wait for it.
    #[serde(default)]
    background: bool,
    /// Remove the VM when the command has ended.
    #[serde(default)]
    remove: bool,
    /// Standard input of the command.
    stdin: Option<String>,
    /// Variables of the command.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// How long it may take, seconds; 600 without it. A VM that is not ready by then is removed.
    timeout_seconds: Option<u64>,
}

impl Arguments for Run {
    fn order(self) -> anyhow::Result<Order> {
        let alone = self.command.is_empty();
        anyhow::ensure!(!(alone && (self.remove || self.background)), "name the command with `command`");
        let mut words = Words::new(&["vm", "run", "--json"]);
        let vcpu = self.vcpu.map(|count| count.to_string());
        let flags = [
            ("--image", self.image),
            ("--name", self.name),
            ("--vcpu", vcpu),
            ("--memory", self.memory),
            ("--disk-size", self.disk_size),
            ("--root-size", self.root_size),
        ];
        for (flag, value) in flags {
            words.flag(flag, value);
        }
        words.switch("--nat", self.nat).switch("--rm", self.remove).switch("-d", alone || self.background);
        words.env(self.env)?.switch("-n", self.stdin.is_none());
        if let Some(path) = self.repository {
            words.place("repository", path)?;
        }
        words.command(self.command);
        words.order(Answer::Events, self.stdin, self.timeout_seconds)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Exec {
    /// The VM's name or id.
    vm: String,
    /// The words of the command, without a shell in between. For a shell: ["sh", "-c", "..."].
    command: Vec<String>,
    /// Standard input.
    stdin: Option<String>,
    /// Variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The folder to start in; the workspace, else the image's, without it.
    workdir: Option<String>,
    /// Who runs it, as NAME or NAME:GROUP; the image's user, else root, without it.
    user: Option<String>,
    /// How long it may take, seconds; 600 without it.
    timeout_seconds: Option<u64>,
}

impl Arguments for Exec {
    fn order(self) -> anyhow::Result<Order> {
        anyhow::ensure!(!self.command.is_empty(), "`command` is empty");
        let mut words = Words::new(&["vm", "exec", "--json"]);
        words.flag("--workdir", self.workdir).flag("--user", self.user).switch("-n", self.stdin.is_none());
        words.env(self.env)?.place("vm", self.vm)?.command(self.command);
        words.order(Answer::Events, self.stdin, self.timeout_seconds)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Nothing {}

impl Arguments for Nothing {
    fn order(self) -> anyhow::Result<Order> {
        Words::new(&["vm", "list"]).order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Start {
    /// The VM's name or id.
    vm: String,
}

impl Arguments for Start {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "start"]);
        words.place("vm", self.vm)?.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Stop {
    /// The VM's name or id.
    vm: String,
    /// How long the guest may take before it is ended, 1 to 3600 seconds; 90 without it.
    timeout_seconds: Option<u64>,
}

impl Arguments for Stop {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "stop"]);
        words.flag("--timeout", self.timeout_seconds.map(|seconds| seconds.to_string())).place("vm", self.vm)?;
        // The command's own time is the guest's, and what a teardown takes.
        words.order(Answer::Text, None, Some(self.timeout_seconds.unwrap_or(90).saturating_add(120).min(MAX_LIMIT)))
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct OneVm {
    /// The VM's name or id.
    vm: String,
}

impl Arguments for OneVm {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "delete"]);
        words.place("vm", self.vm)?.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct SessionStart {
    /// The VM's name or id.
    vm: String,
    /// The words of the command, without a shell in between.
    command: Vec<String>,
    /// The session's name; generated without it.
    name: Option<String>,
    /// Give it standard input, for session_send.
    #[serde(default)]
    stdin: bool,
    /// Variables.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The folder to start in.
    workdir: Option<String>,
    /// Start it again when it ends, and with the VM.
    #[serde(default)]
    restart: bool,
}

impl Arguments for SessionStart {
    fn order(self) -> anyhow::Result<Order> {
        anyhow::ensure!(!self.command.is_empty(), "`command` is empty");
        let mut words = Words::new(&["vm", "session", "start"]);
        words.flag("--name", self.name).flag("--workdir", self.workdir).switch("--stdin=pipe", self.stdin);
        words.switch("--restart=always", self.restart).env(self.env)?;
        words.place("vm", self.vm)?.command(self.command);
        words.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct OneVmSessions {
    /// The VM's name or id.
    vm: String,
}

impl Arguments for OneVmSessions {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "session", "list", "--json"]);
        words.place("vm", self.vm)?.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct SessionLogs {
    /// The VM's name or id.
    vm: String,
    /// The session's name or id.
    session: String,
    /// How many lines; 200 without it.
    lines: Option<u32>,
}

impl Arguments for SessionLogs {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "session", "logs"]);
        words.flag("--tail", Some(self.lines.unwrap_or(200).to_string()));
        words.place("vm", self.vm)?.place("session", self.session)?.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct SessionSend {
    /// The VM's name or id.
    vm: String,
    /// The session's name or id.
    session: String,
    /// What is written; nothing is added, not even the end of a line.
    text: String,
    /// Then close the session's standard input.
    #[serde(default)]
    close: bool,
}

impl Arguments for SessionSend {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "session", "send"]);
        words.switch("--eof", self.close).place("vm", self.vm)?.place("session", self.session)?;
        words.order(Answer::Text, Some(self.text), None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct OneSession {
    /// The VM's name or id.
    vm: String,
    /// The session's name or id.
    session: String,
}

impl Arguments for OneSession {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "session", "stop"]);
        words.place("vm", self.vm)?.place("session", self.session)?.order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct FileRead {
    /// The VM's name or id.
    vm: String,
    /// The file's absolute path.
    path: String,
}

impl Arguments for FileRead {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "cp"]);
        words.place("vm", in_vm(&self.vm, &self.path)?)?.word("-");
        words.order(Answer::File, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct FileWrite {
    /// The VM's name or id.
    vm: String,
    /// The file's absolute path. Its folder must be there.
    path: String,
    /// What it is to hold, as text.
    text: Option<String>,
    /// What it is to hold, as base64.
    base64: Option<String>,
}

impl Arguments for FileWrite {
    fn order(self) -> anyhow::Result<Order> {
        let bytes = match (self.text, self.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => data_encoding::BASE64.decode(text.as_bytes()).context("`base64` is none")?,
            _ => return Err(explained("give either `text` or `base64`", "")),
        };
        anyhow::ensure!(bytes.len() <= MAX_FILE, "a file may have {MAX_FILE} bytes");
        let mut words = Words::new(&["vm", "cp"]);
        words.word("").place("vm", in_vm(&self.vm, &self.path)?)?;
        let order = words.order(Answer::Text, None, None)?;
        Ok(Order { file: Some(bytes), ..order })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
struct Export {
    /// The VM's name or id.
    vm: String,
    /// Show only which files changed, and how much.
    #[serde(default)]
    summary: bool,
}

impl Arguments for Export {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "workspace", "export"]);
        words.switch("--diff", self.summary).place("vm", self.vm)?.order(Answer::Whole, None, None)
    }
}

/// `VM:PATH`, which nothing else can be taken for.
fn in_vm(vm: &str, path: &str) -> anyhow::Result<String> {
    anyhow::ensure!(path.starts_with('/') && !path.ends_with('/'), "`path` must be a file's absolute path");
    anyhow::ensure!(!vm.is_empty() && !vm.contains(':') && !vm.starts_with(['/', '.', '~']), "`vm` is no name of a VM");
    Ok(format!("{vm}:{path}"))
}

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
        let seconds = seconds.unwrap_or(LIMIT);
        anyhow::ensure!((1..=MAX_LIMIT).contains(&seconds), "`timeout_seconds` may be 1 to {MAX_LIMIT}");
        // A NUL ends an argument: the kernel would refuse the rest without a word of why.
        let nul = |word: &OsString| word.as_encoded_bytes().contains(&0);
        anyhow::ensure!(!self.0.iter().any(nul), "no value may contain a NUL");
        let words = std::mem::take(&mut self.0);
        let call = Call { words, stdin: stdin.map(String::into_bytes), limit: Duration::from_secs(seconds) };
        Ok(Order { call, answer, file: None })
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
        let exec = json!({ "vm": "demo", "command": ["cat"], "stdin": "x", "user": "app", "timeout_seconds": 5 });
        let order = order("vm_exec", exec).unwrap();
        assert_eq!(order.call.words, ["vm", "exec", "--json", "--user=app", "demo", "--", "cat"]);
        assert_eq!((order.call.stdin.as_deref(), order.call.limit), (Some(&b"x"[..]), Duration::from_secs(5)));
        assert_eq!(words("vm_stop", json!({ "vm": "demo", "timeout_seconds": 5 })), "vm|stop|--timeout=5|demo");
        assert_eq!(words("file_read", json!({ "vm": "demo", "path": "/etc/a:b" })), "vm|cp|demo:/etc/a:b|-");
        assert_eq!(words("file_write", json!({ "vm": "demo", "path": "/x", "text": "" })), "vm|cp||demo:/x");
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
            ("session_logs", json!({ "vm": "demo", "session": "-f" })),
            ("file_read", json!({ "vm": "demo", "path": "etc/passwd" })),
            ("file_read", json!({ "vm": "../demo", "path": "/etc/passwd" })),
            ("file_read", json!({ "vm": "/etc/x", "path": "/etc/passwd" })),
            ("file_write", json!({ "vm": "demo", "path": "/x" })),
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
