//! The moment between daemon and VMM: `bangerd launch-vmm` reads its orders and becomes
//! Firecracker.
//!
//! Started by [`crate::launch`] only. Every step here is irreversible and made by the process
//! itself, in this order, so that nothing of the VMM ever runs outside its cgroup, with the
//! daemon's descriptors or unconfined. One thread, no runtime. The only way back is one line on the
//! standard error that it was started with.

use crate::cgroup::VmCgroup;
use crate::confine::{self, ConfineError, Files, StandIn};
use crate::error::VmmError;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The word after `bangerd` that selects this.
pub const COMMAND: &str = "launch-vmm";

/// The orders are some kilobytes.
const MAX_ORDERS: u64 = 256 * 1024;

/// What a VMM is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The Firecracker binary.
    pub binary: PathBuf,
    /// Its `--id`: [`banger_policy::VmId::short`].
    pub id: String,
    /// Where it will listen, in the folder that will be its own; what lies there is removed.
    pub api_socket: PathBuf,
    /// Emptied, then appended to.
    pub console: PathBuf,
    /// Where it will run; the group exists already.
    pub cgroup: VmCgroup,
    /// What it may open.
    pub files: Files,
    /// The bench's.
    pub stand_in: Option<StandIn>,
    /// Whose `launch-vmm` is run.
    pub launcher: PathBuf,
}

impl Launch {
    /// This program, also when a newer one lies in its place by now.
    #[must_use]
    pub fn self_exe() -> PathBuf {
        PathBuf::from("/proc/self/exe")
    }
}

/// What is to be done, as JSON on standard input: every user of the host reads command lines, and
/// where a VM's sockets lie is not for everybody.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Orders {
    binary: PathBuf,
    id: String,
    api_socket: PathBuf,
    console: PathBuf,
    cgroup: Option<PathBuf>,
    files: Files,
    stand_in: Option<StandIn>,
}

impl From<&Launch> for Orders {
    fn from(launch: &Launch) -> Self {
        Self {
            binary: launch.binary.clone(),
            id: launch.id.clone(),
            api_socket: launch.api_socket.clone(),
            console: launch.console.clone(),
            cgroup: launch.cgroup.path().map(Path::to_owned),
            files: launch.files.clone(),
            stand_in: launch.stand_in.clone(),
        }
    }
}

impl Orders {
    pub(super) fn to_json(&self) -> Result<String, VmmError> {
        // The one thing that JSON cannot say is a path that is not UTF-8.
        serde_json::to_string(self).map_err(|_| VmmError::Path(self.console.clone()))
    }
}

#[derive(Debug, thiserror::Error)]
enum Step {
    #[error("no orders: this is not started by hand")]
    Orders,
    #[error("cannot keep standard error: {0}")]
    Report(#[source] io::Error),
    #[error("cannot enter {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("cannot begin a session: {0}")]
    Session(#[source] nix::Error),
    #[error("cannot switch core dumps off: {0}")]
    Cores(#[source] nix::Error),
    #[error("cannot give up new privileges: {0}")]
    NoNewPrivs(#[source] nix::Error),
    #[error("cannot enter the folder of its sockets, {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot confine the VMM: {0}")]
    Confine(#[from] ConfineError),
    #[error("cannot open the console {}: {source}", path.display())]
    Console { path: PathBuf, source: io::Error },
    #[error("cannot list open descriptors: {0}")]
    Descriptors(#[source] io::Error),
    #[error("{}: {source}", path.display())]
    Exec { path: PathBuf, source: io::Error },
}

/// Becomes the VMM; returns only when that fails.
#[must_use]
pub fn main() -> ExitCode {
    let mut text = String::new();
    let read = io::stdin().take(MAX_ORDERS).read_to_string(&mut text).ok();
    let orders = read.and_then(|_| serde_json::from_str::<Orders>(&text).ok());
    // A copy that closes by itself at exec: how the daemon sees that it happened.
    let report = io::stderr().as_fd().try_clone_to_owned();
    let failed = match (orders, report) {
        (Some(orders), Ok(report)) => {
            let Err(step) = become_vmm(&orders, &report);
            let _ = writeln!(File::from(report), "{step}");
            return ExitCode::from(126);
        }
        (None, _) => Step::Orders,
        (_, Err(error)) => Step::Report(error),
    };
    eprintln!("bangerd {COMMAND}: {failed}");
    ExitCode::from(2)
}

fn become_vmm(orders: &Orders, report: &OwnedFd) -> Result<std::convert::Infallible, Step> {
    // 1. The cgroup, before anything that may use memory or make a process. `0` is the writer
    //    itself.
    if let Some(group) = &orders.cgroup {
        let path = group.join("cgroup.procs");
        let entered = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"0"));
        entered.map_err(|source| Step::Cgroup { path, source })?;
    }
    // 2. Out of the daemon's session: no signal of a terminal or of its process group arrives.
    nix::unistd::setsid().map_err(Step::Session)?;
    // 3. What it makes (sockets) is the daemon's alone; a core would hold the guest's memory.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).map_err(Step::Cores)?;
    // 4. No exec from here on gains anything.
    nix::sys::prctl::set_no_new_privs().map_err(Step::NoNewPrivs)?;
    // 5. The console: append, so that the daemon may cut the file while the VMM writes.
    let console =
        open_console(&orders.console).map_err(|source| Step::Console { path: orders.console.clone(), source })?;
    let stderr = console.try_clone().map_err(|source| Step::Console { path: orders.console.clone(), source })?;
    // 6. Everything else that the daemon had open. Its own descriptors close at exec anyway; this
    //    is for those that somebody forgot to mark.
    close_all_but(&[report.as_raw_fd(), console.as_raw_fd(), stderr.as_raw_fd()]).map_err(Step::Descriptors)?;
    // 7. Its sockets are named from their folder, so that neither its command line nor
    //    /proc/net/unix tells where that is.
    let (folder, api_socket) = match (orders.api_socket.parent(), orders.api_socket.file_name()) {
        (Some(folder), Some(name)) => (folder, name),
        _ => return Err(Step::Orders),
    };
    std::env::set_current_dir(folder).map_err(|source| Step::Folder { path: folder.to_owned(), source })?;
    let nothing = File::open("/dev/null").map_err(Step::Descriptors)?;
    // 8. What it may open and call. From here on only the exec is left.
    confine::confine(&orders.binary, folder, &orders.files, orders.stand_in.as_ref())?;
    // 9. Firecracker, in an empty environment.
    let source = Command::new(&orders.binary)
        .arg("--api-sock")
        .arg(api_socket)
        .args(["--id", &orders.id])
        .env_clear()
        .stdin(nothing)
        .stdout(console)
        .stderr(stderr)
        .exec();
    Err(Step::Exec { path: orders.binary.clone(), source })
}

fn open_console(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // Also of one that was made otherwise.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

/// Closes every descriptor above the standard three but those named.
fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // One of them was the folder's own, which is closed by now.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_pipe() {
        let orders = Orders {
            binary: "/usr/bin/fire cracker".into(),
            id: "0123456789abcdef".into(),
            api_socket: "/run/\"x\"/api.sock".into(),
            console: "/var/c\\o".into(),
            cgroup: Some("/sys/fs/cgroup/a".into()),
            files: Files { read: vec!["/k".into()], write: vec!["/dev/dm-0".into()] },
            stand_in: Some(StandIn { paths: vec!["/usr/bin".into()] }),
        };
        let text = orders.to_json().unwrap();
        assert_eq!(serde_json::from_str::<Orders>(&text).unwrap(), orders);
        assert!(serde_json::from_str::<Orders>("{}").is_err());
    }
}
