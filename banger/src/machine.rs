//! The machine whose daemon is asked: this one, or one that the user's own `ssh` reaches
//! (`--host`).
//!
//! There, `banger relay` connects to the daemon's socket and copies bytes, one process for each
//! connection. One login serves all of them (`ControlMaster` of ssh_config(5)). The user's
//! configuration of ssh decides on keys, host keys and jumps; nothing of it is replaced but the
//! socket of that login.

mod address;
mod greeting;

pub(crate) use address::Address;
pub(crate) use greeting::Greeting;

use crate::error::explained;
use crate::output::Streams;
use crate::programs;
use anyhow::{Context as _, ensure};
use nix::unistd::{User, geteuid};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{ChildStderr, Command};

/// Another machine, or the name of one that the user keeps (`banger context`).
pub(crate) const HOST_VARIABLE: &str = "BANGER_HOST";
/// The word for this machine.
pub(crate) const LOCAL: &str = "local";
/// The program to use as `ssh`: an absolute path.
const SSH_VARIABLE: &str = "BANGER_SSH";
/// How long the login is kept for the next command, seconds.
const KEEP: u32 = 60;
/// How long the other machine may take to start `banger relay`.
const GREETING: Duration = Duration::from_secs(30);
/// How long the last words of an ssh that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// `ssh` itself failed (ssh(1), "EXIT STATUS").
const SSH_FAILED: i32 = 255;
/// A shell found no such program.
const NOT_FOUND: i32 = 127;

static CHOSEN: OnceLock<Option<Address>> = OnceLock::new();

/// Decides for this process, once.
pub(crate) fn choose(machine: Option<Address>) {
    let _ = CHOSEN.set(machine);
}

/// The other machine; `None` for this one.
pub(crate) fn chosen() -> Option<&'static Address> {
    CHOSEN.get().and_then(Option::as_ref)
}

/// A variable for the programs that this one starts: they ask the same machine, whatever context is
/// in use by then.
pub(crate) fn variable() -> (&'static str, String) {
    (HOST_VARIABLE, chosen().map_or_else(|| LOCAL.to_owned(), ToString::to_string))
}

/// A connection to the daemon of the other machine.
///
/// # Errors
/// What failed: ssh, banger there, or the right to use it there.
pub(crate) async fn connect(to: &Address) -> anyhow::Result<UnixStream> {
    reach(to).await.with_context(|| format!("cannot reach bangerd on {to}"))
}

async fn reach(to: &Address) -> anyhow::Result<UnixStream> {
    let ssh = program()?;
    let login = Login { control: control_path()? };
    login.begin(&ssh, to).await?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("cannot make a pair of sockets")?;
    let output = theirs.try_clone().context("cannot make a pair of sockets")?;
    let mut command = Command::new(&ssh);
    command.args(login.options()).args(["-o", "BatchMode=yes", "-T"]).args(to.words());
    command.args(["banger", "relay"]);
    // Ctrl-C is for us: what is meant for the other machine crosses the connection.
    command.process_group(0).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    // The other machine's words, as long as the connection lasts. The login, which may ask for a
    // password, has the terminal to itself.
    command.stderr(Stdio::piped());
    command.stdout(Stdio::from(std::os::fd::OwnedFd::from(output)));
    let mut child = command.spawn().with_context(|| format!("cannot start {}", ssh.display()))?;
    // It holds the other end, whose last copy must go with the process.
    drop(command);
    let words = tokio::spawn(pass_on(child.stderr.take()));
    ours.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(ours)?;
    let greeting = tokio::time::timeout(GREETING, greeting::read(&mut stream)).await;
    match greeting {
        Ok(Ok(Greeting::Connected)) => {
            // Reaped, and not killed: bytes may still be on their way when we end.
            tokio::spawn(async move { child.wait().await });
            Ok(stream)
        }
        Ok(Ok(Greeting::Refused { message, hint })) => Err(explained(message, hint)),
        Ok(Ok(Greeting::None(noise))) => {
            let status = child.wait().await.context("cannot wait for ssh")?;
            // What ssh says stands above our own words. A process that it left may hold the pipe.
            drop(tokio::time::timeout(LAST_WORDS, words).await);
            Err(no_greeting(status.code(), to, &noise))
        }
        Ok(Err(error)) => Err(anyhow::Error::new(error).context("the connection of ssh broke")),
        Err(_) => {
            let _ = child.start_kill();
            let why = format!("it did not start `banger relay` within {} s", GREETING.as_secs());
            Err(explained(why, format!("try: ssh {} banger version", to.shown())))
        }
    }
}

/// Shows what comes on standard error of the other machine, clean where that is a terminal.
async fn pass_on(from: Option<ChildStderr>) {
    let (Some(mut from), mut streams) = (from, Streams::text()) else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        drop(streams.error_output(buffer.get(..read).unwrap_or_default()).await);
    }
}

fn no_greeting(status: Option<i32>, to: &Address, noise: &str) -> anyhow::Error {
    let try_it = format!("try: ssh {} banger version", to.shown());
    match status {
        Some(SSH_FAILED) => explained("ssh failed", try_it),
        Some(NOT_FOUND) => explained(
            "banger is not installed there, or not where its shell looks for programs",
            format!("install the package there; {try_it}"),
        ),
        // The status of a command line that does not know a word.
        Some(2) => explained(
            "the banger there knows no --host",
            format!("install the same version on both machines; {try_it}"),
        ),
        _ if noise.is_empty() => explained("`banger relay` ended there without a word", try_it),
        _ => explained(format!("instead of `banger relay`, something else answers there: {noise}"), try_it),
    }
}

/// The one login that the connections of this user share.
struct Login {
    control: PathBuf,
}

impl Login {
    fn options(&self) -> [String; 4] {
        ["-S".to_owned(), self.control.display().to_string(), "-o".to_owned(), "ControlMaster=no".to_owned()]
    }

    /// Logs in unless somebody has. In the foreground, so that ssh can ask for a passphrase or show
    /// a new host key.
    async fn begin(&self, ssh: &Path, to: &Address) -> anyhow::Result<()> {
        let mut check = Command::new(ssh);
        check.args(self.options()).args(["-O", "check"]).args(to.words());
        check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let there = check.status().await.with_context(|| format!("cannot start {}", ssh.display()))?;
        if there.success() {
            return Ok(());
        }
        let mut login = Command::new(ssh);
        login.arg("-S").arg(&self.control).args(["-o", "ControlMaster=auto", "-o"]);
        login.arg(format!("ControlPersist={KEEP}")).args(["-f", "-N", "-T"]).args(to.words());
        login.stdin(Stdio::null()).stdout(Stdio::null());
        let ended = login.status().await.context("cannot start ssh")?;
        if ended.success() {
            return Ok(());
        }
        Err(explained("ssh cannot log in; what it says stands above", format!("try: ssh {} true", to.shown())))
    }
}

fn program() -> anyhow::Result<PathBuf> {
    match std::env::var_os(SSH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        Some(path) => Err(explained(
            format!("{SSH_VARIABLE} is {}, which is no absolute path", path.display()),
            "such as: /usr/bin/ssh",
        )),
        None => programs::find("ssh"),
    }
}

/// The socket of the login, in a folder that only this user may enter. `%C` is ssh's own name for
/// user, machine and port.
fn control_path() -> anyhow::Result<PathBuf> {
    let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Under `su` and `sudo` both may be another user's, who would answer in the login's place.
    let own = |name| named(name).filter(|path| is_own(path));
    let home = || User::from_uid(geteuid()).ok().flatten().map(|user| user.dir);
    let folder = own("XDG_RUNTIME_DIR").or_else(|| Some(own("HOME").or_else(home)?.join(".ssh")));
    let folder = folder.context("there is no place for the socket of ssh: you have no home folder")?.join("banger");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    ensure!(
        is_own(&folder) && is_closed(&folder),
        "{} must be a folder of your own that nobody else may enter: remove it, or run chmod 700 on it",
        folder.display()
    );
    Ok(folder.join("%C"))
}

/// A folder of the caller's, and no link to one.
fn is_own(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
}

fn is_closed(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.mode() & 0o077 == 0)
}
