//! `vm exec` and `vm logs`: a stream each. `vm run` uses [`command`] as well.

use crate::cli::{Exec, With};
use crate::client::Client;
use crate::cmd::workspace;
use crate::error::explained;
use crate::interrupt::Interrupts;
use crate::session::{self, Mode};
use crate::terminal;
use anyhow::Context as _;
use banger_proto::stream::StreamRequest;

/// A request travels in one frame of 64 KiB with the environment beside it.
const MAX_COMMAND_BYTES: usize = 48 * 1024;

/// How a command is run.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) settings: Settings,
}

/// What the command finds, checked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    user: Option<String>,
}

pub(super) async fn exec(options: Exec) -> anyhow::Result<u8> {
    let tty = !options.no_tty && !options.no_stdin && (options.tty || terminal::interactive());
    let what = format!("cannot run a command in {}", options.vm);
    let mut settings = check(&options.command, options.with).with_context(|| what.clone())?;
    let client = Client::connect().await?;
    if settings.working_dir.is_none() {
        settings.working_dir =
            workspace::enter(&client, &options.vm, options.auto_prepare).await.with_context(|| what.clone())?;
    }
    let how = How { tty, stdin: !options.no_stdin, settings };
    command(&client, options.vm, options.command, how, None).await.context(what)
}

impl Settings {
    /// Starts in that folder, unless the user has named another one.
    pub(super) fn within(mut self, folder: String) -> Self {
        self.working_dir.get_or_insert(folder);
        self
    }
}

/// # Errors
/// When the command and its variables are longer than a request, or no process could have them.
pub(super) fn check(command: &[String], with: With) -> anyhow::Result<Settings> {
    let With { env, workdir: working_dir, user } = with;
    let given = given(&env, |name| std::env::var(name).ok());
    let words: usize = command.iter().map(|word| word.len() + 1).sum();
    let variables: usize = given.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if words + variables > MAX_COMMAND_BYTES {
        return Err(explained(
            format!(
                "the command and its variables have {} bytes, and at most {MAX_COMMAND_BYTES} can be sent",
                words + variables
            ),
            "send the data through standard input: banger vm exec VM -- sh -c 'cat > file' < file",
        ));
    }
    banger_policy::command::check(&given, working_dir.as_deref(), user.as_deref())?;
    // What is given comes later, and so counts.
    Ok(Settings { env: environment().into_iter().chain(given).collect(), working_dir, user })
}

/// The variables that were given: `NAME=VALUE`, or a `NAME` whose value is ours, if there is one.
fn given(env: &[String], ours: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let pair = |entry: &String| match entry.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => ours(entry).map(|value| (entry.clone(), value)),
    };
    env.iter().filter_map(pair).collect()
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
    let Settings { env, working_dir, user } = how.settings;
    let opening = client.stream(StreamRequest::Exec { vm, command, env, working_dir, user, terminal });
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

/// What of the caller's environment a guest should know: language, time zone and kind of terminal. Anything else may be a secret.
fn environment() -> Vec<(String, String)> {
    let wanted =
        |name: &str| matches!(name, "TERM" | "LANG" | "LANGUAGE" | "COLORTERM" | "TZ") || name.starts_with("LC_");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_given_with_its_value_or_taken_from_here() {
        let entries = ["A=b=c", "EMPTY=", "HERE", "NOT_HERE", "A=last"].map(str::to_owned);
        let given = given(&entries, |name| (name == "HERE").then(|| "ours".to_owned()));
        let expected = [("A", "b=c"), ("EMPTY", ""), ("HERE", "ours"), ("A", "last")];
        assert_eq!(given, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
