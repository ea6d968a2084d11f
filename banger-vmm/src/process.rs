//! VMM processes: start, recognise, end.
//!
//! [`launch`] spawns this program again as [`launcher`], which becomes Firecracker.

use crate::cgroup::VmCgroup;
use crate::console;
use crate::end::VmmEnd;
use crate::error::VmmError;
use crate::launcher::{self, Launch};
use crate::pidfd::Pidfd;
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How long the launcher may take to become Firecracker: milliseconds, unless the host has far more
/// to do than it can, and that is no reason to fail a start.
const LAUNCH_WAIT: Duration = Duration::from_secs(60);
/// How long Firecracker may take to answer then.
const START_WAIT: Duration = Duration::from_secs(15);
/// How often the API socket is tried until it is there.
const SOCKET_PAUSE: Duration = Duration::from_millis(5);
/// A process that has ended is reaped at once; when not, its status is not worth more waiting.
const REAP_WAIT: Duration = Duration::from_secs(1);
/// The launcher says one line.
const MAX_REPORT: u64 = 4096;

/// A process that is really this VM's VMM: our child or an adopted one.
#[derive(Debug)]
pub struct Vmm {
    process: Pidfd,
    cgroup: VmCgroup,
    /// Told by the task that reaps our child.
    status: Option<watch::Receiver<Option<VmmEnd>>>,
}

/// Ends a half-started VMM when the start fails or is dropped.
struct Undo(Option<Pidfd>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(process) = self.0.take()
            && let Err(error) = process.signal(Signal::KILL)
        {
            tracing::error!(pid = process.pid(), %error, "cannot end a half-started VMM");
        }
    }
}

/// Spawns the VMM in its cgroup and waits until its API answers. After an error nothing of it runs.
///
/// # Errors
/// [`VmmError`], with the launcher's words or the last line that the VMM wrote.
pub async fn launch(launch: &Launch) -> Result<Vmm, VmmError> {
    // A socket that is left would answer nobody, and Firecracker refuses to bind over it.
    if let Err(source) = std::fs::remove_file(&launch.api_socket)
        && source.kind() != std::io::ErrorKind::NotFound
    {
        return Err(VmmError::File { path: launch.api_socket.clone(), source });
    }
    let orders = launcher::Orders::from(launch).to_json()?;
    let mut child = Command::new(&launch.launcher)
        .arg(launcher::COMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(false)
        .spawn()
        .map_err(VmmError::Spawn)?;
    let pid = child.id().ok_or_else(|| VmmError::Spawn(std::io::Error::other("it has no pid")))?;
    // Not reaped yet, so the number is still this child's.
    let process = Pidfd::open(pid).map_err(VmmError::Spawn)?;
    let mut undo = Undo(Some(process.clone()));
    launch.cgroup.track(&process);
    crate::fail::point("vmm", "launcher started");
    give_orders(&mut child, &orders).await;
    crate::fail::point("vmm", "orders given");
    let report = read_report(&mut child).await;
    let vmm = Vmm::of_child(process, launch.cgroup.clone(), child);
    let answers = match report {
        Ok(report) if report.is_empty() => wait_for_socket(&vmm, launch).await,
        Ok(report) => Err(VmmError::Launcher(report)),
        Err(error) => Err(error),
    };
    if let Err(error) = answers {
        drop(undo);
        launch.cgroup.kill().await.map_err(VmmError::Processes)?;
        return Err(error);
    }
    undo.0 = None;
    crate::fail::point("vmm", "answers");
    Ok(vmm)
}

/// Closes the pipe behind them. A launcher that does not take them says why by itself, or hangs and
/// is seen to.
async fn give_orders(child: &mut Child, orders: &str) {
    if let Some(mut stdin) = child.stdin.take()
        && let Ok(Err(error)) = timeout(LAUNCH_WAIT, stdin.write_all(orders.as_bytes())).await
    {
        tracing::warn!(%error, "the launcher does not read its orders");
    }
}

/// The launcher's error, or nothing once it has become Firecracker: the pipe closes at that moment.
async fn read_report(child: &mut Child) -> Result<String, VmmError> {
    let mut report = Vec::new();
    let Some(stderr) = child.stderr.take() else { return Ok(String::new()) };
    let mut bounded = stderr.take(MAX_REPORT);
    match timeout(LAUNCH_WAIT, bounded.read_to_end(&mut report)).await {
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&report).trim().to_owned()),
        Ok(Err(error)) => Err(VmmError::Spawn(error)),
        Err(_) => Err(VmmError::Launcher(format!("the launcher hangs for {} s", LAUNCH_WAIT.as_secs()))),
    }
}

fn reap(mut child: Child) -> watch::Receiver<Option<VmmEnd>> {
    let (told, status) = watch::channel(None);
    tokio::spawn(async move {
        let end = match child.wait().await {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => VmmEnd::Exited(code),
                (None, Some(signal)) => VmmEnd::Killed(signal),
                (None, None) => VmmEnd::Unknown,
            },
            Err(_) => VmmEnd::Unknown,
        };
        told.send_replace(Some(end));
    });
    status
}

async fn wait_for_socket(vmm: &Vmm, launch: &Launch) -> Result<(), VmmError> {
    let deadline = Instant::now() + START_WAIT;
    loop {
        if UnixStream::connect(&launch.api_socket).await.is_ok() {
            return Ok(());
        }
        if !vmm.is_alive() {
            let said = console::tail(&launch.console, 1).unwrap_or_default().pop();
            let console = said.unwrap_or_else(|| "it said nothing".to_owned());
            return Err(VmmError::Ended { end: vmm.ended().await, console });
        }
        if Instant::now() >= deadline {
            return Err(VmmError::Silent { path: launch.api_socket.clone(), seconds: START_WAIT.as_secs() });
        }
        sleep(SOCKET_PAUSE).await;
    }
}

impl Vmm {
    /// A child of this process; `process` holds it.
    pub fn of_child(process: Pidfd, cgroup: VmCgroup, child: Child) -> Self {
        Self { process, cgroup, status: Some(reap(child)) }
    }

    /// Finds the VMM of a VM that an earlier daemon started: the process behind the API socket
    /// first, the saved number second, and either only when it is in the VM's cgroup. Without
    /// cgroups only the socket proves anything. `None`: it is dead, or what runs is not recognised
    /// and may be killed.
    ///
    /// # Errors
    /// [`VmmError::Processes`] when the cgroup cannot be read.
    pub async fn adopt(cgroup: VmCgroup, api_socket: &Path, saved_pid: Option<u32>) -> Result<Option<Self>, VmmError> {
        let peer = peer_pid(api_socket).await.map_err(VmmError::Processes)?;
        let grouped = cgroup.path().is_some();
        let candidates = [peer, saved_pid.filter(|_| grouped)];
        for pid in candidates.into_iter().flatten() {
            // Held first, looked at second: a number that is reused in between is another pidfd.
            let process = match Pidfd::open(pid) {
                Ok(process) => process,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(VmmError::Processes(error)),
            };
            let belongs = !grouped || cgroup.procs().map_err(VmmError::Processes)?.contains(&pid);
            if belongs && !process.has_ended().map_err(VmmError::Processes)? {
                cgroup.track(&process);
                return Ok(Some(Self { process, cgroup, status: None }));
            }
        }
        Ok(None)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Does it still run?
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.process.has_ended().unwrap_or(false)
    }

    /// Does one of its threads wait for a disk of the host or the like, uninterruptibly (state D of
    /// proc_pid_stat(5))? Not known is no.
    #[must_use]
    pub fn waits_for_the_host(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let states = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        // The name before it is in parentheses, and may have some of its own.
        states.into_iter().any(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D')))
    }

    /// Sends it a signal and does not wait. Ended already is fine.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        self.process.signal(signal)
    }

    /// Returns when it has ended. Cancel safe; any number may wait.
    pub async fn ended(&self) -> VmmEnd {
        if let Err(error) = self.process.ended().await {
            tracing::warn!(pid = self.pid(), %error, "cannot wait for the VMM, looking at it instead");
            while self.is_alive() {
                sleep(Duration::from_millis(200)).await;
            }
        }
        let Some(mut status) = self.status.clone() else { return VmmEnd::Unknown };
        let end = timeout(REAP_WAIT, status.wait_for(Option::is_some)).await;
        end.ok().and_then(Result::ok).and_then(|end| *end).unwrap_or(VmmEnd::Unknown)
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &VmCgroup {
        &self.cgroup
    }
}

/// There is no such process. Anything else (no descriptor, no memory) says nothing about it.
fn gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), None | Some(nix::libc::ESRCH | nix::libc::EINVAL))
}

/// The process that made a listening socket (`SO_PEERCRED`, unix(7)), when it answers and is of our
/// uid.
///
/// # Errors
/// When it cannot be asked, which says nothing about it.
async fn peer_pid(socket: &Path) -> std::io::Result<Option<u32>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let stream = match timeout(Duration::from_secs(2), UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if !matches!(error.kind(), ConnectionRefused | NotFound | PermissionDenied) => {
            return Err(error);
        }
        Ok(Err(_)) | Err(_) => return Ok(None),
    };
    let peer = stream.peer_cred()?;
    let ours = peer.uid() == rustix::process::geteuid().as_raw();
    Ok(peer.pid().filter(|_| ours).and_then(|pid| u32::try_from(pid).ok()))
}

#[cfg(test)]
mod tests;
