//! The control channel: the agent connects from the guest, says that it is ready and alive and when
//! the guest ends, and is told to shut down.
//!
//! Firecracker forwards a guest's connection to CID 2, port P, to the unix socket `<vsock path>_P`
//! (docs/vsock.md of Firecracker). One per running VM, kept by its actor; the agent reconnects for
//! ever, so a new daemon only listens again. Only processes of the VM's own cgroup may connect.
//! What arrives is bounded in length and rate, and decides about this VM only.
//!
//! Every process in a guest may connect to any port of the host. So a connection says the boot's
//! token first, which init and agent alone know; until then it is waited for a short time, beside
//! few others, and decides nothing. The newest that was proved is the agent's.

use crate::clock;
use banger_proto::guest::{BootToken, GuestCommand, GuestEvent, HEARTBEAT_MS, Hello, MAX_CONTROL_LINE, ShutdownKind};
use banger_vmm::cgroup::VmCgroup;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::Instrument as _;

/// The agent says a line now and then; a guest that says more is read slowly.
const LINE_PAUSE: Duration = Duration::from_millis(20);
/// Pause between connections: a guest that does nothing but connect is accepted slowly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// How long a connection may take to prove itself. The agent's first line is on its way when it
/// connects.
const PROOF_WAIT: Duration = Duration::from_secs(5);
/// Connections that are not proved yet. One more takes the place of the oldest, so that many silent
/// ones do not keep the agent out.
const MAX_UNPROVED: usize = 8;
/// A command is a line; an agent that does not take it is as good as none.
const SEND_WAIT: Duration = Duration::from_secs(2);
/// How long [`Control::shutdown`] waits for an agent that is just reconnecting.
const AGENT_WAIT: Duration = Duration::from_secs(2);
/// One that was not heard for longer is worth a line when it is heard again.
const LATE: Duration = Duration::from_millis(HEARTBEAT_MS + 5000);
/// The longest sentence taken from a guest, characters.
const MAX_TEXT: usize = 200;

/// A guest that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyInfo {
    /// The guest's own boot id.
    pub boot_id: String,
}

/// Why a guest did not get ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No word from the agent.
    #[error("the guest was not ready within {0} s")]
    TimedOut(u64),
    /// Guest or VMM came to an end; how.
    #[error("the guest ended before it was ready: {0}")]
    Ended(String),
    /// The guest's own words.
    #[error("the guest cannot boot: {0}")]
    Failed(String),
}

/// What is known of a guest by its agent.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Said on the latest connection.
    pub ready: Option<ReadyInfo>,
    /// When the agent was last heard.
    pub heard: Option<Instant>,
    /// An announced end.
    pub ending: Option<ShutdownKind>,
    /// Why the boot cannot go on.
    pub failed: Option<String>,
    /// Commands that run, as the guest says. It decides by that about itself only.
    pub commands: u32,
}

/// The host's end of one VM's control channel.
#[derive(Debug)]
pub struct Control {
    socket: PathBuf,
    view: watch::Receiver<View>,
    agent: Agent,
    task: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Where Firecracker looks for the host's side of a port.
#[must_use]
pub fn socket_path(vsock_path: &Path, port: u32) -> PathBuf {
    let mut path = vsock_path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Binds by a name that says nothing to a reader of /proc/net/unix, where the name of each bound
/// socket stands.
fn bind_unseen(socket: &Path) -> io::Result<UnixListener> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = std::fs::File::open(folder)?;
    UnixListener::bind(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

fn text(from_guest: &str) -> String {
    from_guest.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

impl Control {
    /// Listens; before the VMM starts, or to take an adopted VM's agent back. Needs a runtime.
    ///
    /// # Errors
    /// What the kernel says to the socket, such as a path over 108 bytes.
    pub fn listen(vsock_path: &Path, port: u32, cgroup: VmCgroup, token: BootToken) -> io::Result<Self> {
        let socket = socket_path(vsock_path, port);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind_unseen(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        banger_vmm::fail::point("control channel", "open");
        let (told, view) = watch::channel(View::default());
        let agent = Arc::new(Mutex::new(None));
        // In the caller's span, so that what it logs says whose it is.
        let task = tokio::spawn(accept(listener, cgroup, token, told, agent.clone()).in_current_span());
        Ok(Self { socket, view, agent, task })
    }

    /// What is known now.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Changes of what is known, but for [`View::heard`] alone.
    pub(crate) fn changes(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Asks the agent to say something, and waits for nothing. One that is older than the question
    /// says something each second.
    pub(crate) fn ask(&self) {
        // Whoever holds the agent tells it something, which it has to answer as well.
        if let Ok(agent) = self.agent.try_lock()
            && let Some(to) = agent.as_ref()
            && let Ok(line) = line(&GuestCommand::Speak)
        {
            // A socket that is full has a question in it already.
            let _ = to.try_write(&line);
        }
    }

    /// Waits until the agent says that it answers. Does not see the guest end:
    /// [`crate::monitor::ready`] does.
    ///
    /// # Errors
    /// [`NotReady`], as soon as it is certain.
    pub(crate) async fn ready(&self, within: Duration) -> Result<ReadyInfo, NotReady> {
        let mut view = self.view.clone();
        let seen = timeout(within, view.wait_for(|view| view.ready.is_some() || view.failed.is_some())).await;
        match seen.as_ref().map(|seen| seen.as_deref()) {
            Ok(Ok(View { failed: Some(why), .. })) => Err(NotReady::Failed(why.clone())),
            Ok(Ok(View { ready: Some(ready), .. })) => Ok(ready.clone()),
            _ => Err(NotReady::TimedOut(within.as_secs())),
        }
    }

    /// Tells the agent to shut the guest down, and how long that may take; false when there is
    /// none, or it does not take it.
    pub async fn shutdown(&self, within: Duration) -> bool {
        let command = GuestCommand::Shutdown { within: u32::try_from(within.as_secs()).ok() };
        let deadline = Instant::now() + AGENT_WAIT;
        loop {
            if tell(&self.agent, &command).await {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

type Agent = Arc<Mutex<Option<OwnedWriteHalf>>>;

/// Sends a command to the agent; false when there is none, or it does not take it.
async fn tell(agent: &Agent, command: &GuestCommand) -> bool {
    let Ok(line) = line(command) else { return false };
    match agent.lock().await.as_mut() {
        Some(to) => matches!(timeout(SEND_WAIT, to.write_all(&line)).await, Ok(Ok(()))),
        None => false,
    }
}

fn line(command: &GuestCommand) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    Ok(line)
}

async fn tell_time(agent: &Agent) {
    tell(agent, &GuestCommand::Time { unix_ms: clock::unix_ms() }).await;
}

/// A connection whose other side knows the token.
type Proved = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

/// The agent has one connection at a time: a newer one takes the older one's place, as after a
/// reconnect.
async fn accept(listener: UnixListener, cgroup: VmCgroup, token: BootToken, told: watch::Sender<View>, agent: Agent) {
    let (told, token) = (Arc::new(told), Arc::new(token));
    // Dropped with this task, and with them who reads.
    let (mut unproved, mut reader) = (Unproved::default(), JoinSet::new());
    let mut jumps = clock::jumps();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(()) = jumps.changed() => {
                tell_time(&agent).await;
                continue;
            }
            Some(proved) = unproved.tasks.join_next(), if !unproved.tasks.is_empty() => {
                if let Ok(Some((from, to))) = proved {
                    // Waits for the earlier one, so that its end cannot take the new agent away.
                    reader.shutdown().await;
                    *agent.lock().await = Some(to);
                    tell_time(&agent).await;
                    reader.spawn(listen_to(from, told.clone(), agent.clone()).in_current_span());
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) if belongs(&stream, &cgroup) => unproved.wait_for(stream, &token),
            Ok(_) => tracing::warn!("refused a connection to a control socket from outside the VM"),
            Err(error) => {
                // Out of descriptors: later, there may be some.
                tracing::warn!(%error, "cannot accept on a control socket");
                sleep(Duration::from_millis(200)).await;
            }
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Connections that have not said the token yet.
#[derive(Default)]
struct Unproved {
    tasks: JoinSet<Option<Proved>>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Unproved {
    fn wait_for(&mut self, stream: UnixStream, token: &Arc<BootToken>) {
        self.oldest_first.retain(|task| !task.is_finished());
        if self.oldest_first.len() >= MAX_UNPROVED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
        }
        let token = Arc::clone(token);
        let proof = async move { timeout(PROOF_WAIT, proved(stream, &token)).await.ok().flatten() };
        self.oldest_first.push_back(self.tasks.spawn(proof.in_current_span()));
    }
}

async fn proved(stream: UnixStream, token: &BootToken) -> Option<Proved> {
    let (from, to) = stream.into_split();
    let mut from = BufReader::with_capacity(MAX_CONTROL_LINE, from);
    let line = next_line(&mut from).await?;
    if serde_json::from_slice::<Hello>(&line).is_ok_and(|hello| hello.token.proves(token)) {
        return Some((from, to));
    }
    tracing::debug!("closed a connection of a guest's process that is not its agent");
    None
}

/// `None` is the end, or a line without one.
async fn next_line(from: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let limit = u64::try_from(MAX_CONTROL_LINE).unwrap_or(0);
    let mut line = Vec::new();
    from.take(limit).read_until(b'\n', &mut line).await.ok()?;
    (line.last() == Some(&b'\n')).then_some(line)
}

/// Is the other side a process of this VM? All VMMs have our uid, so that alone admits another
/// VM's. Without cgroups (a build folder) there is nothing to compare with.
fn belongs(stream: &UnixStream, cgroup: &VmCgroup) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    if peer.uid() != rustix::process::geteuid().as_raw() {
        return false;
    }
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    cgroup.path().is_none() || pid.is_some_and(|pid| cgroup.procs().is_ok_and(|procs| procs.contains(&pid)))
}

async fn listen_to(mut from: BufReader<OwnedReadHalf>, told: Arc<watch::Sender<View>>, agent: Agent) {
    let mut next = Instant::now();
    while let Some(line) = next_line(&mut from).await {
        // No pause after the only line of ten seconds: that would be a second awakening.
        sleep_until(next).await;
        next = Instant::now() + LINE_PAUSE;
        match serde_json::from_slice(&line) {
            Ok(event) => {
                let announced = matches!(event, GuestEvent::Shutdown { .. });
                told.send_if_modified(|view| note(view, event));
                if announced {
                    tell(&agent, &GuestCommand::Noted).await;
                }
            }
            // A newer agent may say more than we know.
            Err(error) => tracing::debug!(%error, "a line on the control channel is not understood"),
        }
    }
    *agent.lock().await = None;
}

/// Whether it was more than a sign of life: nobody waits for these, and they come from every VM.
fn note(view: &mut View, event: GuestEvent) -> bool {
    let now = Instant::now();
    let since = view.heard.replace(now).map(|heard| now.saturating_duration_since(heard));
    if let Some(silent) = since.filter(|since| *since > LATE) {
        tracing::warn!("the guest's agent is heard again, after {:.1} s", silent.as_secs_f64());
    }
    tracing::trace!(?event, "heard the guest's agent");
    match event {
        GuestEvent::Ready { boot_id } => {
            view.ready = Some(ReadyInfo { boot_id: text(&boot_id) });
            // An end that was announced and did not come.
            view.ending = None;
            view.commands = 0;
        }
        GuestEvent::Heartbeat => return false,
        GuestEvent::InUse { commands } => {
            view.commands = commands;
            return false;
        }
        GuestEvent::Shutdown { kind } => view.ending = Some(kind),
        GuestEvent::Failed { reason } => view.failed = Some(text(&reason)),
    }
    true
}

#[cfg(test)]
pub(crate) mod tests;
