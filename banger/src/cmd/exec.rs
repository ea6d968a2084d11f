//! `vm exec` and `vm logs`: a stream each. `vm run` uses [`command`] as well.

use crate::cli::Exec;
use crate::client::Client;
use crate::error::explained;
use crate::interrupt::Interrupts;
use crate::session::{self, Mode};
use crate::terminal;
use anyhow::Context as _;
use banger_proto::stream::StreamRequest;

/// A request travels in one frame of 64 KiB with the environment beside it.
const MAX_COMMAND_BYTES: usize = 48 * 1024;

/// How a command is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) tty: bool,
    pub(super) stdin: bool,
}

pub(super) async fn exec(options: Exec) -> anyhow::Result<u8> {
    let tty = !options.no_tty && !options.no_stdin && (options.tty || terminal::interactive());
    check(&options.command)?;
    let what = format!("cannot run a command in {}", options.vm);
    let client = Client::connect().await?;
    command(&client, options.vm, options.command, How { tty, stdin: !options.no_stdin }, None).await.context(what)
}

/// # Errors
/// When the command is longer than a request.
pub(super) fn check(command: &[String]) -> anyhow::Result<()> {
    let length: usize = command.iter().map(|word| word.len() + 1).sum();
    if length <= MAX_COMMAND_BYTES {
        return Ok(());
    }
    Err(explained(
        format!("the command has {length} bytes, and at most {MAX_COMMAND_BYTES} can be sent"),
        "send the data through standard input: banger vm exec VM -- sh -c 'cat > file' < file",
    ))
}

/// Runs a command in a running VM; gives its exit status. Once it runs, signals are the command's; until then
/// an interruption, when the caller listens for them, ends the wait with its status.
///
/// # Errors
/// Why it could not be run.
pub(super) async fn command(
    client: &Client,
    vm: String,
    command: Vec<String>,
    how: How,
    interrupts: Option<&mut Interrupts>,
) -> anyhow::Result<u8> {
    let terminal = how.tty.then(terminal::describe);
    let opening = client.stream(StreamRequest::Exec { vm, command, env: environment(), terminal });
    let (stream, _) = match interrupts {
        None => opening.await?,
        Some(interrupts) => tokio::select! {
            opened = opening => opened?,
            status = interrupts.next() => return Ok(status),
        },
    };
    let mode = if how.tty { Mode::Terminal } else { Mode::Command { input: how.stdin } };
    session::talk(stream, mode).await
}

/// What of the caller's environment a guest should know: the language. Anything else may be a secret.
fn environment() -> Vec<(String, String)> {
    let wanted = |name: &str| matches!(name, "LANG" | "LANGUAGE" | "COLORTERM" | "TZ") || name.starts_with("LC_");
    let texts =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    texts.filter(|(name, value)| wanted(name) && name.len() + value.len() < 256).take(32).collect()
}

pub(super) async fn logs(vm: String, follow: bool, tail: Option<u32>) -> anyhow::Result<u8> {
    let what = format!("cannot show the console of {vm}");
    let client = Client::connect().await?;
    let (stream, _) = client.stream(StreamRequest::Logs { vm, follow, tail }).await.context(what.clone())?;
    session::talk(stream, Mode::Text).await.context(what)
}
