//! From a client's request to a process: user, folder, environment, program; pipes or a terminal.
//!
//! Called by [`super::command`], [`super::session`] and [`super::sessions`]. The process leads a
//! session and process group of its own. For commands of `vm exec` and `vm run` the image's
//! configuration speaks; a user who logs in with ssh is root, as the owner of the machine, with the
//! image's variables.

use banger_policy::ImageConfig;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Child;

use super::account::{Account, NoAccount};
use super::environment::{self, Variables};
use super::program::{self, Unusable};
use super::pty::Terminal;
use crate::sys::spawn::{self, Identity};
use crate::sys::stream::FdStream;

/// Of a command's input and output, bytes: the command goes on while the agent sends or receives
/// the pieces before. A pipe has 64 KiB by itself (pipe(7)).
const PIPE_SIZE: i32 = 256 * 1024;
/// Where distributions keep OpenSSH's sftp server.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// What a guest's commands are looked up in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tables {
    /// The table of users; that of groups lies beside it.
    pub(super) passwd: PathBuf,
    /// What the image says about commands.
    pub(super) image: ImageConfig,
}

/// What is asked for, and by whom.
#[derive(Debug)]
pub(super) enum Asked {
    /// A user's own ssh, or an IDE: a login as root. A line goes to the login shell; `None` is an
    /// interactive one.
    Login(Option<Vec<u8>>),
    /// `vm run` and `vm exec`: the image's user, folder and variables, unless the caller names
    /// others.
    Command {
        /// The words; none for a login shell.
        words: Vec<Vec<u8>>,
        /// Instead of the image's user.
        user: Option<String>,
        /// Instead of the image's folder.
        folder: Option<Vec<u8>>,
    },
}

/// A command that is to be started.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) asked: Asked,
    pub(super) terminal: Option<Terminal>,
    /// What the client has said, as bytes: a guest's programs may want other texts than UTF-8.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) tables: Arc<Tables>,
}

impl Request {
    /// The variables that the client has named. The kind of the terminal is one of them, and may be
    /// named anew.
    fn said(&self) -> Vec<(OsString, OsString)> {
        let terminal = self.terminal.iter().map(|terminal| ("TERM".into(), terminal.term.clone().into()));
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
    #[error("the agent is ending")]
    Ended,
    #[error("a word, a variable or the folder has a NUL byte, which no program can be given")]
    Nul,
    #[error("cannot start {}: {source}", .program.display())]
    Spawn { program: PathBuf, source: io::Error },
}

impl StartError {
    /// The exit status that a shell would give.
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Program(error) => error.status(),
            // The interpreter of a script, mostly.
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Account(_) | Self::Ended | Self::Nul | Self::Spawn { .. } => 126,
        }
    }
}

pub(super) type Input = Box<dyn AsyncWrite + Unpin + Send>;
pub(super) type Output = Box<dyn Readable>;

/// A pipe or a terminal.
pub(super) trait Readable: AsyncRead + AsFd + Unpin + Send {}
impl<T: AsyncRead + AsFd + Unpin + Send> Readable for T {}

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
    /// The first of them that the user may execute.
    programs: Vec<PathBuf>,
    /// What the process finds as its own name.
    name: OsString,
    arguments: Vec<Vec<u8>>,
    account: Account,
    folder: PathBuf,
    variables: Variables,
}

/// Starts what was asked for. May wait for the guest's disk.
pub(super) fn start(request: &Request) -> Result<Started, StartError> {
    let prepared = match &request.asked {
        Asked::Login(line) => login(request, line.as_deref())?,
        Asked::Command { words, user, folder } => command(request, words, user.as_deref(), folder.as_deref())?,
    };
    let mut refused = None;
    for program in &prepared.programs {
        match try_start(request, &prepared, program) {
            // Only the user's own process finds out what the user may not.
            Err(source) if source.raw_os_error() == Some(libc::EACCES) => {
                refused.get_or_insert((program.clone(), source));
            }
            started => return started.map_err(|source| StartError::Spawn { program: program.clone(), source }),
        }
    }
    let none = || (PathBuf::new(), io::ErrorKind::NotFound.into());
    let (program, source) = refused.unwrap_or_else(none);
    Err(StartError::Spawn { program, source })
}

fn try_start(request: &Request, prepared: &Prepared, program: &Path) -> io::Result<Started> {
    let Prepared { name, arguments, account, folder, variables, .. } = prepared;
    let mut command = std::process::Command::new(program);
    command.arg0(name).args(arguments.iter().map(|word| OsStr::from_bytes(word)));
    command.current_dir(folder).env_clear().envs(variables);
    let identity = Identity { uid: account.uid, gid: account.gid, groups: account.groups.clone() };
    match &request.terminal {
        Some(terminal) => {
            let login = matches!(request.asked, Asked::Login(_));
            with_terminal(command, terminal, identity, login)
        }
        None => with_pipes(command, identity),
    }
}

/// Root's login shell, as login(1) and sshd(8) start it.
fn login(request: &Request, line: Option<&[u8]>) -> Result<Prepared, StartError> {
    let account = Account::find("root", &request.tables.passwd)?;
    let arguments = line.iter().flat_map(|line| [b"-c".to_vec(), line.to_vec()]).collect();
    Ok(Prepared {
        programs: vec![account.shell.clone()],
        name: account.shell_name(),
        arguments,
        folder: account.folder().to_owned(),
        variables: environment::of_login(&account, &request.tables.image.env, request.said()),
        account,
    })
}

/// The words themselves, without a shell; without words, the login shell of the same user in the
/// same place.
fn command(
    request: &Request,
    words: &[Vec<u8>],
    user: Option<&str>,
    folder: Option<&[u8]>,
) -> Result<Prepared, StartError> {
    let nul = |bytes: &[u8]| bytes.contains(&0);
    let variables = request.environment.iter().any(|(name, value)| nul(name.as_bytes()) || nul(value.as_bytes()));
    if variables || words.iter().any(|word| nul(word)) || folder.is_some_and(nul) {
        return Err(StartError::Nul);
    }
    let image = &request.tables.image;
    let account = Account::find(user.or(image.user.as_deref()).unwrap_or("root"), &request.tables.passwd)?;
    let folder = match (folder, &image.working_dir) {
        (Some(named), _) => program::named_folder(Path::new(OsStr::from_bytes(named)))?,
        (None, Some(of_image)) => program::image_folder(of_image)?,
        (None, None) => account.folder().to_owned(),
    };
    let variables = environment::of_command(&account, &image.env, request.said());
    let Some((first, others)) = words.split_first() else {
        let (programs, name) = (vec![account.shell.clone()], account.shell_name());
        return Ok(Prepared { programs, name, arguments: Vec::new(), account, folder, variables });
    };
    let path = variables.get(OsStr::new("PATH")).map_or(crate::launch::PATH.as_bytes(), |path| path.as_bytes());
    // This program's own: an image need not have tar. Its first argument says what it is started
    // as.
    let programs = if first == banger_files::COMMAND.as_bytes() {
        vec![PathBuf::from("/proc/self/exe")]
    } else {
        program::locate(first, path, &folder)?
    };
    let name = OsStr::from_bytes(first).to_owned();
    Ok(Prepared { programs, name, arguments: others.to_vec(), account, folder, variables })
}

fn with_pipes(mut command: std::process::Command, identity: Identity) -> io::Result<Started> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn::in_own_session(&mut command, false, identity);
    let mut child = tokio::process::Command::from(command).spawn()?;
    let missing = || io::Error::other("a pipe is missing");
    let (input, output) = (child.stdin.take().ok_or_else(missing)?, child.stdout.take().ok_or_else(missing)?);
    for pipe in [input.as_fd(), output.as_fd()] {
        // It is as long as it is at first where that is refused.
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
    Ok(Started {
        input: Box::new(input),
        output: Box::new(output),
        errors: Some(Box::new(child.stderr.take().ok_or_else(missing)?)),
        terminal: None,
        child,
    })
}

fn with_terminal(
    mut command: std::process::Command,
    terminal: &Terminal,
    identity: Identity,
    login: bool,
) -> io::Result<Started> {
    let pair = terminal.open()?;
    command.stdin(pair.user.try_clone()?).stdout(pair.user.try_clone()?).stderr(pair.user);
    if login {
        command.env("SSH_TTY", &pair.name);
    }
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
