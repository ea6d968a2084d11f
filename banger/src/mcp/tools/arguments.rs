//! What each tool is called with, in words for the model, and the command that does it.

use crate::error::explained;
use anyhow::Context as _;
use banger_files::Packer;
use rmcp::schemars::{self, JsonSchema};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{Answer, Arguments, MAX_FILE, MAX_INPUT, MAX_LIMIT, Order, Words};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub(super) struct Run {
    /// The image: a name of the host, or a reference of a registry such as debian:13. The host's
    /// default without it.
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
    /// How far the VM reaches: none, public (the internet and no private network), nat (wherever
    /// the host routes to). Without it, what the host's administrator has configured.
    net: Option<String>,
    /// Destinations that the VM reaches, and no others: addresses, networks or names, perhaps with
    /// a port, as in example.org:443.
    #[serde(default)]
    allow: Vec<String>,
    /// The short form of net: nat.
    #[serde(default)]
    nat: bool,
    /// A folder of the host with a git repository, which is prepared in the VM; the command starts
    /// there.
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
    /// Standard input of the command, up to 8 MiB; none in the background.
    #[schemars(length(max = "MAX_INPUT"))]
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
        let of_command = self.remove || self.background || self.stdin.is_some() || !self.env.is_empty();
        anyhow::ensure!(!(alone && of_command), "name the command with `command`");
        if self.background && self.stdin.is_some() {
            let hint = "give it standard input with session_start (stdin) and session_send";
            return Err(explained("a command in the background takes no `stdin` here", hint));
        }
        let mut words = Words::new(&["vm", "run", "--json"]);
        let vcpu = self.vcpu.map(|count| count.to_string());
        let flags = [
            ("--image", self.image),
            ("--name", self.name),
            ("--vcpu", vcpu),
            ("--memory", self.memory),
            ("--disk-size", self.disk_size),
            ("--root-size", self.root_size),
            ("--net", self.net),
        ];
        for (flag, value) in flags {
            words.flag(flag, value);
        }
        for destination in self.allow {
            words.flag("--allow", Some(destination));
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
pub(super) struct Exec {
    /// The VM's name or id.
    vm: String,
    /// The words of the command, without a shell in between. For a shell: ["sh", "-c", "..."].
    command: Vec<String>,
    /// Standard input, up to 8 MiB.
    #[schemars(length(max = "MAX_INPUT"))]
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
pub(super) struct Nothing {}

impl Arguments for Nothing {
    fn order(self) -> anyhow::Result<Order> {
        Words::new(&["vm", "list"]).order(Answer::Text, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub(super) struct Start {
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
pub(super) struct Stop {
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
pub(super) struct OneVm {
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
pub(super) struct SessionStart {
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
pub(super) struct OneVmSessions {
    /// The VM's name or id.
    vm: String,
}

impl Arguments for OneVmSessions {
    fn order(self) -> anyhow::Result<Order> {
        let mut words = Words::new(&["vm", "session", "list", "--json"]);
        words.place("vm", self.vm)?.order(Answer::Whole, None, None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub(super) struct SessionLogs {
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
pub(super) struct SessionSend {
    /// The VM's name or id.
    vm: String,
    /// The session's name or id.
    session: String,
    /// What is written, up to 8 MiB; nothing is added, not even the end of a line.
    #[schemars(length(max = "MAX_INPUT"))]
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
pub(super) struct OneSession {
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
pub(super) struct FileRead {
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
pub(super) struct FileWrite {
    /// The VM's name or id.
    vm: String,
    /// The file's absolute path. A folder of it that is missing is made.
    path: String,
    /// What it is to hold, as text.
    text: Option<String>,
    /// What it is to hold, as base64.
    base64: Option<String>,
    /// It is a program or a script that is to be started by its path. Say so again when it is
    /// written again.
    #[serde(default)]
    executable: bool,
}

impl Arguments for FileWrite {
    fn order(self) -> anyhow::Result<Order> {
        let bytes = match (self.text, self.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => data_encoding::BASE64.decode(text.as_bytes()).context("`base64` is none")?,
            _ => return Err(explained("give either `text` or `base64`", "")),
        };
        anyhow::ensure!(bytes.len() <= MAX_FILE, "a file may have {MAX_FILE} bytes");
        in_vm(&self.vm, &self.path)?;
        let (folder, name) = self.path.rsplit_once('/').unwrap_or_default();
        anyhow::ensure!(!matches!(name, "" | "." | ".."), "`path` must be a file's absolute path");
        let mut words = Words::new(&["vm", "cp"]);
        words.word("-").place("vm", format!("{}:{folder}/", self.vm))?;
        // As an archive with that name: a folder in the file's place, which the guest may have made
        // meanwhile, is an error and not where the file goes.
        let mode = if self.executable { 0o755 } else { 0o644 };
        let mut archive = Vec::new();
        let mut packer = Packer::new(&mut archive);
        packer.add_bytes(name.as_bytes(), mode, &bytes)?;
        packer.finish()?;
        words.order_of_bytes(Answer::Text, Some(archive), None)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub(super) struct Export {
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
    anyhow::ensure!(!path.contains('\0'), "`path` may not contain a NUL");
    anyhow::ensure!(!vm.is_empty() && !vm.contains(':') && !vm.starts_with(['/', '.', '~']), "`vm` is no name of a VM");
    Ok(format!("{vm}:{path}"))
}
