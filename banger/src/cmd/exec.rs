//! `vm exec` and `vm logs`: a stream each. `vm run` uses [`command`] as well.

use crate::cli::{Exec, With};
use crate::client::{Client, Opened, answer, soon};
use crate::cmd::workspace;
use crate::error::{explained, told};
use crate::interrupt::Interrupts;
use crate::{guest, output, session, terminal};
use anyhow::Context as _;
use banger_policy::lifecycle::State;
use banger_proto::command::Start;
use banger_proto::stream::StreamRequest;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::time::{Duration, Instant};

/// A guest's agent waits 30 s for what it is to start. A repository on a slow disk may take longer
/// to say where its HEAD is: then the guest is reached again.
const AGENT_WAITS: Duration = Duration::from_secs(20);

/// How a command is run.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) tty: bool,
    pub(super) stdin: bool,
    /// What happens goes to standard output as JSON.
    pub(super) json: bool,
    pub(super) settings: Settings,
}

/// What the command finds, checked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    env: Vec<(OsString, OsString)>,
    working_dir: Option<String>,
    user: Option<String>,
}

pub(super) async fn exec(options: Exec) -> anyhow::Result<u8> {
    let json = options.json;
    if json {
        output::begin_events();
    }
    told(json, enter(options).await).await
}

async fn enter(options: Exec) -> anyhow::Result<u8> {
    let json = options.json;
    let tty = !json && !options.no_tty && !options.no_stdin && (options.tty || terminal::interactive());
    let what = format!("cannot run a command in {}", options.vm);
    if json && options.command.is_empty() {
        return Err(explained("--json is for programs, and a login shell is not", "name a COMMAND")).context(what);
    }
    let mut settings = check(options.with).with_context(|| what.clone())?;
    let client = Client::connect().await?;
    let how = |settings| How { tty, stdin: !options.no_stdin, json, settings };
    if options.auto_prepare {
        // A preparation that is interrupted removes what it has made here.
        let mut interrupts = Interrupts::listen()?;
        let folder = tokio::select! {
            entered = Box::pin(workspace::enter(&client, &options.vm, true)) => entered.with_context(|| what.clone())?,
            status = interrupts.next() => return Ok(status),
        };
        settings.working_dir = settings.working_dir.or(folder);
        return command(client, options.vm, options.command, how(settings), Some(&mut interrupts)).await.context(what);
    }
    if settings.working_dir.is_none() {
        // Where the command starts is found out while the guest is reached.
        let entering = Box::pin(workspace::enter(&client, &options.vm, false));
        let reaching = async { Ok((client.guest(request(&options.vm)).await?, Instant::now())) };
        let (folder, (opened, reached)) = tokio::try_join!(entering, reaching).with_context(|| what.clone())?;
        settings.working_dir = folder;
        if reached.elapsed() < AGENT_WAITS {
            drop(client);
            return converse(opened, options.vm, options.command, how(settings)).await.context(what);
        }
    }
    command(client, options.vm, options.command, how(settings), None).await.context(what)
}

impl Settings {
    /// Starts in that folder, unless the user has named another one.
    pub(super) fn within(mut self, folder: String) -> Self {
        self.working_dir.get_or_insert(folder);
        self
    }
}

/// # Errors
/// When no process could have these variables, this folder or this user.
pub(super) fn check(with: With) -> anyhow::Result<Settings> {
    let With { env, workdir: working_dir, user } = with;
    let given = given(&env, |name| std::env::var_os(name));
    let text = |text: &OsString| text.to_string_lossy().into_owned();
    let texts: Vec<(String, String)> = given.iter().map(|(name, value)| (text(name), text(value))).collect();
    banger_policy::command::check(&texts, working_dir.as_deref(), user.as_deref())?;
    // What is given comes later, and so counts.
    Ok(Settings { env: environment(std::env::vars_os()).into_iter().chain(given).collect(), working_dir, user })
}

/// The variables that were given: `NAME=VALUE`, or a `NAME` whose value is ours, if there is one.
fn given(env: &[OsString], ours: impl Fn(&OsStr) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let pair = |entry: &OsString| {
        let bytes = entry.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = bytes.split_at(at);
                let text = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
                Some((text(name), text(value.get(1..).unwrap_or_default())))
            }
            None => ours(entry).map(|value| (entry.clone(), value)),
        }
    };
    env.iter().filter_map(pair).collect()
}

/// Runs a command in a running VM; gives its exit status. Once it runs, signals are the command's;
/// until then an interruption, when the caller listens for them, ends the wait with its status.
///
/// # Errors
/// Why it could not be run.
pub(super) async fn command(
    client: Client,
    vm: String,
    words: Vec<OsString>,
    how: How,
    interrupts: Option<&mut Interrupts>,
) -> anyhow::Result<u8> {
    let opening = client.guest(request(&vm));
    let opened = match interrupts {
        None => opening.await?,
        Some(interrupts) => tokio::select! {
            opened = opening => opened?,
            status = interrupts.next() => return Ok(status),
        },
    };
    // A command may take days: of the connections that its user may have, it has one.
    drop(client);
    converse(opened, vm, words, how).await
}

fn request(vm: &str) -> StreamRequest {
    StreamRequest::Command { vm: vm.to_owned(), reads: false }
}

async fn converse(opened: Opened, vm: String, words: Vec<OsString>, how: How) -> anyhow::Result<u8> {
    let start = start(words, how.settings, how.tty);
    let done = guest::run(opened, start, how.stdin, how.json).await;
    because(vm, done).await
}

/// A lost connection is explained by what has become of the VM, unless the user does not wait for
/// that. The daemon may hear of it later than we do.
pub(super) async fn because<T>(vm: String, done: anyhow::Result<T>) -> anyhow::Result<T> {
    const LOOKS: u32 = 15;
    const PAUSE: Duration = Duration::from_millis(200);
    let Err(lost) = done else { return done };
    if !guest::is_loss(&lost) {
        return Err(lost);
    }
    let asking = async {
        let client = Client::connect_again().await.ok()?;
        for _ in 0..LOOKS {
            match answer(client.rpc.show_vm(soon(), vm.clone())).await {
                Ok(now) if now.state == State::Running => tokio::time::sleep(PAUSE).await,
                Ok(now) => return Some(guest::vm_ended(&now.runtime.last_error)),
                Err(_) => break,
            }
        }
        None
    };
    // The command took the signals, and is gone.
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        why = asking => Err(why.unwrap_or(lost)),
        _ = interrupts.next() => Err(lost),
    }
}

/// What the guest is told to start.
pub(super) fn start(words: Vec<OsString>, settings: Settings, tty: bool) -> Start {
    let Settings { env, working_dir, user } = settings;
    Start {
        words: words.into_iter().map(OsString::into_vec).collect(),
        env: env.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
        working_dir: working_dir.map(String::into_bytes),
        user,
        terminal: tty.then(terminal::describe),
    }
}

/// What of the caller's environment a guest should know: language, time zone and colours. Anything
/// else may be a secret. The kind of terminal goes with a terminal only ([`terminal::describe`]).
fn environment(ours: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let wanted = |name: &OsStr| {
        let name = name.as_bytes();
        [&b"LANG"[..], b"LANGUAGE", b"COLORTERM", b"TZ"].contains(&name) || name.starts_with(b"LC_")
    };
    ours.filter(|(name, value)| wanted(name) && name.len() + value.len() < 256).take(32).collect()
}

pub(super) async fn logs(vm: String, follow: bool, tail: Option<u32>) -> anyhow::Result<u8> {
    let what = format!("cannot show the console of {vm}");
    let client = Client::connect().await?;
    let (stream, _) = client.stream(StreamRequest::Logs { vm, follow, tail }).await.context(what.clone())?;
    drop(client);
    session::text(stream).await.context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_given_with_its_value_or_taken_from_here() {
        let entries = ["A=b=c", "EMPTY=", "HERE", "NOT_HERE", "A=last"].map(OsString::from);
        let given = given(&entries, |name| (name == "HERE").then(|| "ours".into()));
        let expected = [("A", "b=c"), ("EMPTY", ""), ("HERE", "ours"), ("A", "last")];
        assert_eq!(given, expected.map(|(name, value)| (name.into(), value.into())));
    }

    #[test]
    fn a_guest_knows_language_time_zone_and_colours_of_the_caller() {
        let long = "x".repeat(256);
        let ours = [
            ("LANG", "C"),
            ("TERM", "xterm"),
            ("LC_ALL", "C"),
            ("SECRET", "s"),
            ("TZ", "UTC"),
            ("LC_X", long.as_str()),
        ];
        let known = environment(ours.into_iter().map(|(name, value)| (name.into(), value.into())));
        assert_eq!(
            known,
            [("LANG", "C"), ("LC_ALL", "C"), ("TZ", "UTC")].map(|(name, value)| (name.into(), value.into()))
        );
    }

    #[test]
    fn what_is_no_text_stays_as_it_is() {
        let odd = OsString::from_vec(b"A=\xff=\xfe".to_vec());
        let expected = (OsString::from("A"), OsString::from_vec(b"\xff=\xfe".to_vec()));
        assert_eq!(given(&[odd], |_| None), [expected]);
    }
}
