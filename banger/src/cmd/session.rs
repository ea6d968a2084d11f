//! `vm session`: commands in the background of a VM. `vm run` starts the session `app` by this,
//! too.

use crate::cli::Json;
use crate::cli::session::{Logs, One, Send, Session as Command, Several, Start, Stdin, Stream};
use crate::client::Client;
use crate::cmd::exec;
use crate::error::{FAILED, explained, say};
use crate::guest::{self, Left, Terms};
use crate::input;
use crate::interrupt::Interrupts;
use crate::output::{self, Event, age, facts, line, note, table, tell};
use crate::sessions::{self, Shown, answer, answer_whenever, ask, exit_status, odd, words};
use crate::terminal;
use anyhow::Context as _;
use banger_policy::vm::RestartPolicy;
use banger_proto::model::VmRecord;
use banger_proto::session::{Answer, New, Outputs, Refusal, Request, Session, Status, is_name};
use banger_proto::signal;
use banger_proto::time::Timestamp;
use serde::Serialize;
use std::io::{Cursor, Read as _};
use std::os::unix::ffi::OsStringExt as _;

/// What `vm run` calls the session of its command.
pub(super) const APP: &str = "app";

pub(super) async fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Start(options) => start(options).await,
        Command::List { vm, json } => list(vm, json).await,
        Command::Show { one, json } => show(one, json).await,
        Command::Logs(options) => logs(options).await,
        Command::Send(options) => send(options).await,
        Command::Attach(one) => attach(one).await,
        Command::Stop(several) => each(several, "stop", |session| Request::Stop { session }).await,
        Command::Kill { several, signal } => {
            let upper = signal.to_ascii_uppercase();
            let number = signal::number(&upper);
            let Some(signal) = number else {
                return Err(explained(format!("{signal:?} is no signal"), "use a name or number, such as TERM or 15"));
            };
            each(several, "kill", |session| Request::Kill { session, signal }).await
        }
        Command::Wait(one) => wait(one).await,
        Command::Rm(several) => each(several, "remove", |session| Request::Remove { session }).await,
    }
}

async fn start(options: Start) -> anyhow::Result<u8> {
    let Start { name, stdin, tty, restart, with, vm, command } = options;
    let what = format!("cannot start a session in {vm}");
    if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
        let rule = "use 1 to 63 characters of a-z, 0-9 and -, without - at either end";
        return Err(explained(format!("{name:?} is no name of a session"), rule)).context(what);
    }
    let start = exec::start(command, exec::check(with).context(what.clone())?, tty);
    let new = New { name, start, stdin: stdin == Stdin::Pipe, entrypoint: false, again: again(restart) };
    let client = Client::connect().await?;
    match begin(&client, &vm, new).await.context(what)? {
        Begun::Session(session) => {
            line(&session.name)?;
            Ok(0)
        }
        Begun::Refused(status, why) => refused(false, status, &why).await,
    }
}

enum Begun {
    Session(Session),
    /// The command cannot be started: the status that a shell would give, and why.
    Refused(u8, String),
}

/// Says why a command cannot be started.
async fn refused(json: bool, status: u8, why: &str) -> anyhow::Result<u8> {
    if json {
        tell(&Event::Exit { status, signal: None, reason: Some(why) }).await?;
    } else {
        note(&format!("banger: the command cannot be started: {why}"));
    }
    Ok(status)
}

async fn begin(client: &Client, vm: &str, new: New) -> anyhow::Result<Begun> {
    let name = new.name.clone().unwrap_or_default();
    let mut opened = ask(client, vm, &Request::Start(Box::new(new))).await?;
    let answered = async { Answer::read(&mut opened.guest).await.map_err(guest::lost) };
    match guest::in_time(sessions::ANSWER, answered).await? {
        Some(Answer::Sessions(started)) => Ok(Begun::Session(started.into_iter().next().ok_or_else(odd)?)),
        Some(Answer::Refused(Refusal::Command(status, why))) => Ok(Begun::Refused(status, guest::first_line(&why))),
        Some(Answer::Refused(refusal)) => Err(sessions::refused(&refusal, vm, &name)),
        Some(_) => Err(odd()),
        None => Err(explained("the guest ended the connection without an answer", guest::WHAT_TO_SEE)),
    }
}

/// Whether the session `app` of `vm run` has begun.
pub(super) enum App {
    Begun(Session),
    /// It has not, and why is said: the status for that.
    Not(u8),
}

/// Starts the session `app` of a VM that `vm run` has made. With `json`, what happens is told as
/// events.
///
/// # Errors
/// Why it has not begun.
pub(super) async fn begin_app(
    client: &Client,
    vm: &VmRecord,
    app: New,
    json: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<App> {
    let what = || format!("cannot start the session {APP} in {}", vm.name);
    let id = vm.id.to_string();
    let begun = tokio::select! {
        begun = begin(client, &id, app) => begun.with_context(what)?,
        status = interrupts.next() => return Ok(App::Not(status)),
    };
    match begun {
        Begun::Session(session) => Ok(App::Begun(session)),
        Begun::Refused(status, why) => refused(json, status, &why).await.map(App::Not),
    }
}

/// Goes on with the session `app`: says that it runs, if that is all that is asked for (`detach`),
/// else shows its output until its end.
///
/// # Errors
/// A lost connection, a reader of ours that went away, or an end without a status.
pub(super) async fn follow_app(
    client: Client,
    vm: &VmRecord,
    session: Session,
    (detach, json): (bool, bool),
    interrupts: &mut Interrupts,
) -> anyhow::Result<u8> {
    if json {
        let begun = Event::Session { session: serde_json::to_value(View::new(&session))? };
        tokio::select! {
            told = tell(&begun) => told?,
            status = interrupts.next() => return Ok(status),
        }
    } else if detach {
        line(vm.name.as_str())?;
    }
    if detach {
        return Ok(0);
    }
    let request = Request::Logs { session: session.id, outputs: Outputs::Both, tail: None, follow: true };
    let mut opened = ask(&client, &vm.id.to_string(), &request).await?;
    drop(client);
    let shown = Shown { outputs: Outputs::Both, times: false, json, follow: true };
    tokio::select! {
        status = sessions::logs(&mut opened, vm.name.as_str(), APP, shown) => ended(status?, vm.name.as_str(), APP),
        status = interrupts.next() => Ok(status),
    }
}

/// The session's exit status as ours.
fn ended(status: Status, vm: &str, session: &str) -> anyhow::Result<u8> {
    let lost = || {
        let hint = format!("what it wrote: banger vm session logs {vm} {session}");
        explained(format!("session {session} has no exit status: {}", words(status)), hint)
    };
    exit_status(status).ok_or_else(lost)
}

async fn one_session(client: &Client, one: &One) -> anyhow::Result<Session> {
    let request = Request::Show { session: one.session.clone() };
    let mut opened = ask(client, &one.vm, &request).await?;
    match answer(&mut opened, &one.vm, &one.session).await? {
        Answer::Sessions(found) => found.into_iter().next().ok_or_else(odd),
        _ => Err(odd()),
    }
}

/// A session in JSON.
#[derive(Serialize)]
struct View<'a> {
    id: &'a str,
    name: &'a str,
    command: &'a [String],
    status: &'static str,
    exit_code: Option<u8>,
    signal: Option<u8>,
    reason: Option<&'static str>,
    stdin: &'static str,
    tty: bool,
    restart: RestartPolicy,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    log_path: &'a str,
}

impl<'a> View<'a> {
    fn new(session: &'a Session) -> Self {
        let (status, exit_code, signal, reason) = match session.status {
            Status::Running => ("running", None, None, None),
            Status::Exited(code) => ("exited", Some(code), None, None),
            Status::Killed(number) => ("killed", None, Some(number), None),
            Status::LostGuest => ("lost", None, None, Some("the guest ended")),
            Status::LostProcess => ("lost", None, None, Some("its process was ended")),
        };
        Self {
            id: &session.id,
            name: &session.name,
            command: &session.command,
            status,
            exit_code,
            signal,
            reason,
            stdin: stdin_word(session),
            tty: session.tty,
            restart: restart(session),
            started_at: Timestamp::from_unix(session.started_at),
            ended_at: session.ended_at.map(Timestamp::from_unix),
            log_path: &session.log_path,
        }
    }
}

/// Is it started again, as users say that.
pub(super) fn again(restart: RestartPolicy) -> bool {
    restart == RestartPolicy::Always
}

fn restart(session: &Session) -> RestartPolicy {
    if session.again { RestartPolicy::Always } else { RestartPolicy::No }
}

fn stdin_word(session: &Session) -> &'static str {
    if session.stdin { "pipe" } else { "none" }
}

async fn list(vm: String, json: Json) -> anyhow::Result<u8> {
    let what = format!("cannot list the sessions of {vm}");
    let client = Client::connect().await?;
    let mut opened = ask(&client, &vm, &Request::List).await.context(what.clone())?;
    let Answer::Sessions(found) = answer(&mut opened, &vm, "").await.context(what)? else { return Err(odd()) };
    if json.json {
        output::json(&found.iter().map(View::new).collect::<Vec<_>>())?;
        return Ok(0);
    }
    if found.is_empty() {
        note(&format!("no sessions; start one with: banger vm session start {vm} -- COMMAND"));
        return Ok(0);
    }
    let now = Timestamp::now();
    let row = |session: &Session| {
        vec![
            session.name.clone(),
            session.id.clone(),
            words(session.status),
            stdin_word(session).to_owned(),
            age(Timestamp::from_unix(session.started_at), now),
            session.command.join(" ").chars().take(60).collect(),
        ]
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    let colour = |column: usize, cell: &str| (column == 2 && cell == "running").then_some(32);
    table(&["NAME", "ID", "STATUS", "STDIN", "AGE", "COMMAND"], &rows, colour)?;
    Ok(0)
}

async fn show(one: One, json: Json) -> anyhow::Result<u8> {
    let client = Client::connect().await?;
    let what = format!("cannot show session {} of {}", one.session, one.vm);
    let session = one_session(&client, &one).await.context(what)?;
    if json.json {
        output::json(&View::new(&session))?;
        return Ok(0);
    }
    facts(&[
        ("name", session.name.clone()),
        ("id", session.id.clone()),
        ("status", words(session.status)),
        ("command", session.command.join(" ")),
        ("stdin", stdin_word(&session).to_owned()),
        ("terminal", if session.tty { "yes" } else { "no" }.to_owned()),
        ("restart", restart(&session).to_string()),
        ("started", Timestamp::from_unix(session.started_at).to_string()),
        ("ended", session.ended_at.map(|at| Timestamp::from_unix(at).to_string()).unwrap_or_default()),
        ("log", session.log_path.clone()),
    ])?;
    Ok(0)
}

async fn logs(options: Logs) -> anyhow::Result<u8> {
    let Logs { one: One { vm, session }, stream, follow, tail, times } = options;
    let what = format!("cannot show what session {session} of {vm} wrote");
    let outputs = match stream {
        None => Outputs::Both,
        Some(Stream::Stdout) => Outputs::Out,
        Some(Stream::Stderr) => Outputs::Err,
    };
    let client = Client::connect().await?;
    let request = Request::Logs { session: session.clone(), outputs, tail, follow };
    let mut opened = ask(&client, &vm, &request).await.context(what.clone())?;
    drop(client);
    sessions::logs(&mut opened, &vm, &session, Shown { outputs, times, json: false, follow }).await.context(what)?;
    Ok(0)
}

async fn send(options: Send) -> anyhow::Result<u8> {
    let Send { one: One { vm, session }, text, file, eof } = options;
    let what = format!("cannot send to session {session} of {vm}");
    let mut pieces = match (text, file) {
        (Some(text), _) => {
            let mut text = Cursor::new(text.into_vec());
            sessions::pieces(move |buffer| text.read(buffer))
        }
        (None, Some(path)) => {
            let mut file = std::fs::File::open(&path).with_context(|| format!("{what}: {}", path.display()))?;
            sessions::pieces(move |buffer| input::piece(&mut file, buffer))
        }
        (None, None) => sessions::pieces(|buffer| input::piece(&mut std::io::stdin(), buffer)),
    };
    let first = pieces.recv().await.transpose().context(what.clone())?.unwrap_or_default();
    let sent = if first.is_empty() && !eof {
        0
    } else {
        let client = Client::connect().await?;
        let request = Request::Send { session: session.clone() };
        let mut opened = ask(&client, &vm, &request).await.context(what.clone())?;
        match answer(&mut opened, &vm, &session).await.context(what.clone())? {
            Answer::Opened => {}
            _ => return Err(odd()),
        }
        sessions::send(opened, (&vm, &session), first, pieces, eof).await.context(what)?
    };
    line(&format!("{sent} bytes written"))?;
    Ok(0)
}

async fn attach(one: One) -> anyhow::Result<u8> {
    let what = format!("cannot attach to session {} of {}", one.session, one.vm);
    let client = Client::connect().await?;
    let session = one_session(&client, &one).await.context(what.clone())?;
    let tty = session.tty && terminal::interactive();
    let request = Request::Attach { session: session.id, size: if tty { terminal::window() } else { None } };
    let mut opened = ask(&client, &one.vm, &request).await.context(what.clone())?;
    drop(client);
    match answer(&mut opened, &one.vm, &one.session).await.context(what.clone())? {
        Answer::Opened => {}
        _ => return Err(odd()),
    }
    if tty {
        // Only the guest knows what the session was started with, and may say anything.
        note(&format!("the guest says that session {} has a terminal: it steers yours until ~.", one.session));
    }
    let left = guest::converse(opened.guest, Terms { tty, input: session.stdin, attached: true, json: false }).await;
    match exec::because(one.vm.clone(), left).await.context(what)? {
        Left::Ended(status) => Ok(status),
        Left::HungUp(_) => {
            note(&format!("\ndetached; session {} of {} goes on", one.session, one.vm));
            Ok(0)
        }
    }
}

async fn wait(one: One) -> anyhow::Result<u8> {
    let what = format!("cannot wait for session {} of {}", one.session, one.vm);
    let client = Client::connect().await?;
    let request = Request::Wait { session: one.session.clone() };
    let mut opened = ask(&client, &one.vm, &request).await.context(what.clone())?;
    drop(client);
    match answer_whenever(&mut opened, &one.vm, &one.session).await.context(what)? {
        Answer::Ended(status) => ended(status, &one.vm, &one.session),
        _ => Err(odd()),
    }
}

/// The same for several sessions at once. One that fails does not stop the others.
async fn each(several: Several, verb: &str, request: impl Fn(String) -> Request) -> anyhow::Result<u8> {
    let Several { vm, mut sessions } = several;
    let client = Client::connect().await?;
    let mut seen = std::collections::BTreeSet::new();
    sessions.retain(|session| seen.insert(session.clone()));
    let work = sessions.iter().map(async |session| {
        let mut opened = ask(&client, &vm, &request(session.clone())).await?;
        match answer(&mut opened, &vm, session).await? {
            Answer::Ended(status) => line(&format!("{session} {}", words(status))),
            Answer::Done => Ok(()),
            _ => Err(odd()),
        }
    });
    let mut status = 0;
    for (done, session) in futures::future::join_all(work).await.into_iter().zip(&sessions) {
        if let Err(error) = done {
            if error.is::<output::ReaderGone>() {
                return Err(error);
            }
            say(&error.context(format!("cannot {verb} session {session} of {vm}")));
            status = FAILED;
        }
    }
    Ok(status)
}
