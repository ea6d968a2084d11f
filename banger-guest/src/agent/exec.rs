//! From a client's request to a process: user, folder, environment, program; pipes or a terminal.
//!
//! Called by [`super::session`]. The process leads a session and process group of its own. For the daemon's commands the image's
//! configuration speaks; a user who logs in with ssh is root, as the owner of the machine, with the image's variables.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Child;

use super::account::{Account, NoAccount};
use super::duplex::Pressure;
use super::environment::{self, Variables};
use super::program::{self, Unusable};
use super::pty::Terminal;
use super::server::Shared;
use super::words::{self, BadLine};
use crate::sys::spawn::{self, Identity};
use crate::sys::stream::FdStream;

/// Where distributions keep OpenSSH's sftp server.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// Who asks for a command, which decides what it is started with.
#[derive(Debug)]
pub(super) enum Asked {
    /// A user's own ssh, or an IDE: a login as root. Everything goes through the login shell.
    Login,
    /// The daemon, for `vm run` and `vm exec`: the image's user, folder and variables, unless the caller names others.
    Daemon {
        /// Instead of the image's user.
        user: Option<String>,
        /// Instead of the image's folder.
        folder: Option<String>,
    },
}

/// What a client asked for on a session channel.
#[derive(Debug)]
pub(super) struct Request {
    /// The command: the daemon's words, quoted, or a line for the login shell; `None` is an interactive shell.
    pub(super) command: Option<Vec<u8>>,
    pub(super) asked: Asked,
    pub(super) terminal: Option<Terminal>,
    pub(super) environment: Vec<(String, String)>,
    /// The image's configuration, and where users are looked up.
    pub(super) shared: Arc<Shared>,
    /// The connection's, for input that the command does not read.
    pub(super) pressure: Pressure,
}

impl Request {
    /// The variables that the client has named. The kind of the terminal is one of them, and may be named anew.
    fn said(&self) -> Vec<(String, String)> {
        let terminal = self.terminal.iter().map(|terminal| ("TERM".to_owned(), terminal.term.clone()));
        terminal.chain(self.environment.iter().cloned()).collect()
    }
}

/// Why a command is not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Account(#[from] NoAccount),
    #[error(transparent)]
    Program(#[from] Unusable),
    #[error(transparent)]
    Line(#[from] BadLine),
    #[error("cannot start {}: {source}", .program.display())]
    Spawn { program: PathBuf, source: io::Error },
}

impl StartError {
    /// The exit status that a shell would give.
    pub(super) fn status(&self) -> u32 {
        match self {
            Self::Program(error) => error.status(),
            // The interpreter of a script, mostly.
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Account(_) | Self::Line(_) | Self::Spawn { .. } => 126,
        }
    }
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

/// A command, ready but for its streams.
struct Prepared {
    program: PathBuf,
    /// What the process finds as its own name.
    name: std::ffi::OsString,
    arguments: Vec<Vec<u8>>,
    account: Account,
    folder: PathBuf,
    variables: Variables,
}

/// Starts what was asked for.
pub(super) fn start(request: &Request) -> Result<Started, StartError> {
    let prepared = match &request.asked {
        Asked::Login => login(request)?,
        Asked::Daemon { user, folder } => command(request, user.as_deref(), folder.as_deref())?,
    };
    let Prepared { program, name, arguments, account, folder, variables } = prepared;
    let mut command = std::process::Command::new(&program);
    command.arg0(name).args(arguments.iter().map(|word| OsStr::from_bytes(word)));
    command.current_dir(folder).env_clear().envs(variables);
    let identity = Identity { uid: account.uid, gid: account.gid, groups: account.groups };
    let started = match &request.terminal {
        Some(terminal) => with_terminal(command, terminal, identity),
        None => with_pipes(command, identity),
    };
    started.map_err(|source| StartError::Spawn { program, source })
}

/// Root's login shell, as login(1) and sshd(8) start it.
fn login(request: &Request) -> Result<Prepared, StartError> {
    let account = Account::find("root", &request.shared.passwd)?;
    let arguments = request.command.iter().flat_map(|line| [b"-c".to_vec(), line.clone()]).collect();
    Ok(Prepared {
        program: account.shell.clone(),
        name: account.shell_name(),
        arguments,
        folder: account.folder().to_owned(),
        variables: environment::of_login(&account, &request.shared.image.env, &request.said()),
        account,
    })
}

/// The words themselves, without a shell; without words, the login shell of the same user in the same place.
fn command(request: &Request, user: Option<&str>, folder: Option<&str>) -> Result<Prepared, StartError> {
    let image = &request.shared.image;
    let account = Account::find(user.or(image.user.as_deref()).unwrap_or("root"), &request.shared.passwd)?;
    let folder = match (folder, &image.working_dir) {
        (Some(named), _) => program::named_folder(named)?,
        (None, Some(of_image)) => program::image_folder(of_image)?,
        (None, None) => account.folder().to_owned(),
    };
    let variables = environment::of_command(&account, &image.env, &request.said());
    let Some(line) = &request.command else {
        let (program, name) = (account.shell.clone(), account.shell_name());
        return Ok(Prepared { program, name, arguments: Vec::new(), account, folder, variables });
    };
    let mut words = words::split(line)?.into_iter();
    let first = words.next().unwrap_or_default();
    let path = variables.get("PATH").map_or(crate::init::PATH, String::as_str);
    // This program's own: an image need not have tar. Its first argument says what it is started as.
    let program = if first == banger_files::COMMAND.as_bytes() {
        PathBuf::from("/proc/self/exe")
    } else {
        program::locate(&first, path, &folder)?
    };
    let name = OsStr::from_bytes(&first).to_owned();
    Ok(Prepared { program, name, arguments: words.collect(), account, folder, variables })
}

fn with_pipes(mut command: std::process::Command, identity: Identity) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn::in_own_session(&mut command, false, identity);
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

fn with_terminal(mut command: std::process::Command, terminal: &Terminal, identity: Identity) -> io::Result<Started> {
    let pair = terminal.open()?;
    command.stdin(pair.user.try_clone()?).stdout(pair.user.try_clone()?).stderr(pair.user);
    command.env("SSH_TTY", &pair.name);
    spawn::in_own_session(&mut command, true, identity);
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
