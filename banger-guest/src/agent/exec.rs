//! From a client's request to a process: login shell, environment, pipes or a terminal.
//!
//! Called by [`super::session`]. The process leads a session and process group of its own.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Child;

use super::duplex::Pressure;
use super::login::Login;
use super::pty::Terminal;
use crate::sys::spawn;
use crate::sys::stream::FdStream;

/// Where distributions keep OpenSSH's sftp server.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// What a client asked for on a session channel.
#[derive(Debug)]
pub(super) struct Request {
    /// A command line for the login shell; `None` is an interactive shell.
    pub(super) command: Option<Vec<u8>>,
    pub(super) terminal: Option<Terminal>,
    pub(super) environment: Vec<(String, String)>,
    /// Where root's shell and home are looked up.
    pub(super) passwd: PathBuf,
    /// The connection's, for input that the command does not read.
    pub(super) pressure: Pressure,
}

pub(super) type Input = Box<dyn AsyncWrite + Unpin + Send>;
pub(super) type Output = Box<dyn AsyncRead + Unpin + Send>;

/// A started process and our ends of its streams.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Nothing with a terminal: both streams are one there.
    pub(super) errors: Option<Output>,
    /// The terminal's own descriptor, to change its size.
    pub(super) terminal: Option<OwnedFd>,
}

/// Starts the login shell, as login(1) and sshd(8) do it.
pub(super) fn start(request: &Request) -> io::Result<Started> {
    let login = Login::of_root(&request.passwd);
    let mut command = std::process::Command::new(&login.shell);
    command.arg0(login.shell_name());
    if let Some(line) = &request.command {
        command.arg("-c").arg(OsStr::from_bytes(line));
    }
    command.current_dir(login.folder()).env_clear();
    command.envs(request.environment.iter().map(|(name, value)| (name, value)));
    command
        .env("HOME", &login.home)
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", &login.shell)
        .env("PATH", crate::init::PATH);
    match &request.terminal {
        Some(terminal) => with_terminal(command, terminal),
        None => with_pipes(command),
    }
}

fn with_pipes(mut command: std::process::Command) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn::in_own_session(&mut command, false);
    let mut child = tokio::process::Command::from(command).spawn()?;
    let missing = || io::Error::other("a pipe is missing");
    Ok(Started {
        input: Box::new(child.stdin.take().ok_or_else(missing)?),
        output: Box::new(child.stdout.take().ok_or_else(missing)?),
        errors: Some(Box::new(child.stderr.take().ok_or_else(missing)?)),
        terminal: None,
        child,
    })
}

fn with_terminal(mut command: std::process::Command, terminal: &Terminal) -> io::Result<Started> {
    let pair = terminal.open()?;
    command.stdin(pair.user.try_clone()?).stdout(pair.user.try_clone()?).stderr(pair.user);
    command.env("TERM", &terminal.term).env("SSH_TTY", &pair.name);
    spawn::in_own_session(&mut command, true);
    let (reader, writer) = (pair.controller.try_clone()?, pair.controller.try_clone()?);
    let child = tokio::process::Command::from(command).spawn()?;
    Ok(Started {
        child,
        input: Box::new(FdStream::new(writer)?),
        output: Box::new(FdStream::new(reader)?),
        errors: None,
        terminal: Some(pair.controller),
    })
}

/// The image's own sftp server, if it has one.
pub(super) fn sftp_server() -> Option<&'static str> {
    SFTP_SERVERS.into_iter().find(|path| Path::new(path).exists())
}
