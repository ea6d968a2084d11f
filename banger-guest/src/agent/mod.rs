//! The agent: the daemon's and the user's way into a running guest.
//!
//! Started by init as a second process of the same program, with the configuration on standard
//! input. It serves commands and SSH on vsock, keeps the control channel to the daemon and
//! announces the end of the guest. It lives from the first process of the guest to the last and
//! must not end before it is asked to.

use banger_proto::guest::{GuestConfig, SSH_PORT, ShutdownKind};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::console::{describe, say};
use crate::init_kind::InitKind;
use crate::launch::{self, NAME, SERVE_FLAG};
use crate::sys::stream::FdStream;
use crate::sys::{signals, spawn, vsock};
pub use server::{Error, Server};
pub(crate) use sessions::process::main as session_main;
use startups::{Place, Startups};

mod account;
mod clock;
mod command;
mod control;
mod duplex;
mod ending;
mod environment;
mod exec;
mod farewell;
mod feed;
mod forward;
mod input;
mod inside;
mod keys;
mod names;
mod output;
mod processes;
mod program;
mod pty;
mod reverse;
mod server;
mod session;
mod sessions;
mod shutdown;
mod ssh;
mod startups;
mod switch_off;

/// Open files of the agent: [`server::COMMANDS`] commands with their pipes and connections, and as
/// much for ssh.
const OPEN_FILES: u64 = 16 * 1024;
/// Protection from the kernel's OOM killer: a guest out of memory must stay reachable.
const OOM_SCORE: &str = "-900";
/// How long the announcement of the end may take.
const ANNOUNCE: Duration = Duration::from_millis(1500);
/// How long the agent stays for its commands when the guest ends: what they say last is read. Those
/// that are left then are the init's to end, like all other processes.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// An image with one of these serves SSH on its network itself.
const SSH_DAEMONS: [&str; 6] = [
    "/usr/sbin/sshd",
    "/usr/bin/sshd",
    "/usr/local/sbin/sshd",
    // NixOS's.
    "/run/current-system/sw/bin/sshd",
    "/usr/sbin/dropbear",
    "/usr/bin/dropbear",
];
/// How often the agent looks whether one has been installed. A package unpacks its program some
/// seconds before it starts it.
const GIVE_WAY: Duration = Duration::from_secs(1);
/// Wait after a failed accept, which is a lack of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the agent has init's code do when it begins: an init of the image may have taken the
/// guest's disks away since.
pub(crate) type Begin = fn(&GuestConfig, InitKind);

/// Runs until the guest ends.
pub(crate) fn main(arguments: impl Iterator<Item = String>, begin: Begin) -> ExitCode {
    signals::unblock_all();
    let flags: Vec<String> = arguments.collect();
    let serves = flags.iter().any(|flag| flag == SERVE_FLAG);
    let init = flags.iter().find_map(|flag| InitKind::of_flag(flag)).unwrap_or(InitKind::Other);
    let _ = std::fs::write("/proc/self/comm", NAME);
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // A session of its own: the console's signals are not for the agent.
    let _ = nix::unistd::setsid();
    match read_config() {
        Ok(config) if init == InitKind::Own || serves => finish(run(&config, init, begin)),
        Ok(config) => launch::supervise(&config, init, || shutdown::announced_by_systemd().is_some()),
        Err(error) => finish(Err(error)),
    }
}

fn finish(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("agent: {}", describe(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(config: &[u8], init: InitKind, begin: Begin) -> Result<(), Error> {
    let config = serde_json::from_slice(config).map_err(Error::ParseConfig)?;
    begin(&config, init);
    if let Err(error) = spawn::raise_open_files(OPEN_FILES) {
        say(format_args!("agent: its limit of open files stays low: {error}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(serve(config, init))
}

fn read_config() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).map_err(Error::ReadConfig)?;
    // Nothing that is started later may find the configuration on a descriptor of the agent.
    let null = std::fs::File::open("/dev/null").map_err(Error::ReadConfig)?;
    nix::unistd::dup2_stdin(&null).map_err(|error| Error::ReadConfig(error.into()))?;
    Ok(text)
}

async fn serve(config: GuestConfig, init: InitKind) -> Result<(), Error> {
    let server = Arc::new(Server::new(&config)?);
    let listener = vsock::Listener::bind(SSH_PORT).map_err(Error::Listen)?;
    let commands = vsock::Listener::bind(banger_proto::command::PORT).map_err(Error::Listen)?;
    let (announce, announced) = watch::channel(None);
    let (asked, was_asked) = watch::channel(None);
    let counted = Arc::clone(&server);
    let open = move || counted.open_commands();
    let control = tokio::spawn(control::run(config.control_port, config.token, asked, announced, open));
    if !config.reads {
        server.resume_sessions(init);
    }
    let guests_own: fn() -> bool = || has_ssh_daemon(Path::new("/"));
    let mut network = network_listener(guests_own).await;
    let mut give_way = std::pin::pin!(comes(guests_own));
    let mut end = std::pin::pin!(end_of_guest(init));
    let farewell = async |until: &dyn Fn() -> Instant| farewell::farewell(&server, until).await;
    let mut given_up = std::pin::pin!(shutdown::ask(init, was_asked, farewell));
    let (kind, given_up) = loop {
        tokio::select! {
            kind = &mut end => break (kind?, None),
            // Nobody else will end it.
            until = &mut given_up => break (ShutdownKind::Poweroff, Some(until)),
            connection = listener.accept() => serve_vsock(&server, connection).await,
            connection = commands.accept() => serve_command(&server, connection).await,
            connection = accept(network.as_ref()) => serve_network(&server, connection).await,
            () = &mut give_way, if network.is_some() => network = None,
        }
    };
    server.end_commands();
    let sessions = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.end_sessions(LAST_WORDS).await }
    });
    // The control task ends by itself once the announcement is out.
    let _ = announce.send(Some(kind));
    let _ = tokio::time::timeout(ANNOUNCE, control).await;
    if let Some(until) = given_up {
        switch_off::switch_off(init.now(), until).await;
        return Ok(());
    }
    server.wait_for_commands(LAST_WORDS).await;
    let _ = sessions.await;
    Ok(())
}

async fn serve_vsock(server: &Arc<Server>, connection: io::Result<FdStream>) {
    serve_one(server, connection, Startups::host).await;
}

/// A command: the daemon, which proves itself, or nobody.
async fn serve_command(server: &Arc<Server>, connection: io::Result<FdStream>) {
    match connection {
        Ok(stream) => {
            let server = Arc::clone(server);
            tokio::spawn(async move { server.serve_command(stream).await });
        }
        Err(error) => failed_accept(&error).await,
    }
}

async fn failed_accept(error: &io::Error) {
    say(format_args!("agent: accept: {error}"));
    tokio::time::sleep(ACCEPT_RETRY).await;
}

async fn serve_network(server: &Arc<Server>, connection: io::Result<(TcpStream, IpAddr)>) {
    let (stream, source) = match connection {
        Ok((stream, source)) => (Ok(stream), source),
        Err(error) => (Err(error), Ipv4Addr::UNSPECIFIED.into()),
    };
    serve_one(server, stream, |startups| startups.network(source)).await;
}

/// Serves it in a task of its own, unless too many others are on their way to a login.
async fn serve_one<S>(
    server: &Arc<Server>,
    connection: io::Result<S>,
    place: impl FnOnce(&Arc<Startups>) -> Option<Place>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match connection {
        Ok(stream) => {
            let Some(place) = place(server.startups()) else { return };
            let server = Arc::clone(server);
            tokio::spawn(async move { server.serve_from(stream, place).await });
        }
        Err(error) => failed_accept(&error).await,
    }
}

/// The same server on the guest's network, while the guest has none of its own: for tools that know
/// only an address.
async fn network_listener(has_own: fn() -> bool) -> Option<TcpListener> {
    if spawn_blocking(has_own).await.unwrap_or(false) {
        return None;
    }
    let port = u16::try_from(SSH_PORT).ok()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    listener.inspect_err(|error| say(format_args!("agent: no SSH on the network: {error}"))).ok()
}

/// Waits until it is there. The disk may not answer, which must not silence the agent.
async fn comes(is_there: fn() -> bool) {
    let mut looks = tokio::time::interval(GIVE_WAY);
    loop {
        looks.tick().await;
        if spawn_blocking(is_there).await.unwrap_or(false) {
            return;
        }
    }
}

/// `root`: the guest's.
fn has_ssh_daemon(root: &Path) -> bool {
    SSH_DAEMONS.iter().any(|path| root.join(path.trim_start_matches('/')).exists())
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, IpAddr)> {
    match listener {
        Some(listener) => {
            let (stream, source) = listener.accept().await?;
            // Keystrokes must not wait for each other.
            let _ = stream.set_nodelay(true);
            Ok((stream, source.ip()))
        }
        None => std::future::pending().await,
    }
}

/// Whether SIGTERM of that process is the word of our own PID 1, which means a reboot. Anybody else
/// who ends all processes (`kill -TERM -1`) does not mean the machine.
fn ends_own(sender: i32) -> bool {
    sender == 1
}

/// Waits for the signal that ends the guest, and says how it ends.
async fn end_of_guest(init: InitKind) -> Result<ShutdownKind, Error> {
    let own_init = init == InitKind::Own;
    let senders = signals::Senders::note().map_err(Error::Signals)?;
    let stream = |kind| signal(kind).map_err(Error::Signals);
    let mut terminate = stream(SignalKind::terminate())?;
    let mut user1 = stream(SignalKind::user_defined1())?;
    let mut user2 = stream(SignalKind::user_defined2())?;
    // Taken and dropped, so that they do not end the agent.
    let mut hang_up = stream(SignalKind::hangup())?;
    let mut interrupt = stream(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = user1.recv(), if own_init => return Ok(ShutdownKind::Halt),
            _ = user2.recv(), if own_init => return Ok(ShutdownKind::Poweroff),
            _ = terminate.recv() => {
                if own_init {
                    if ends_own(senders.last()) {
                        return Ok(ShutdownKind::Reboot);
                    }
                    continue;
                }
                if let Some(kind) = shutdown::announced_by_init(init) {
                    return Ok(kind);
                }
                // systemd waits for everybody whom it has told, at a soft-reboot as at the end.
                if senders.last() == 1 {
                    return Err(Error::SoftReboot);
                }
            }
            _ = hang_up.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// The configuration of some VM, without a host key.
    pub(super) fn config() -> GuestConfig {
        GuestConfig {
            hostname: "test".into(),
            address: Ipv4Addr::LOCALHOST,
            gateway: Ipv4Addr::LOCALHOST,
            dns: Ipv4Addr::LOCALHOST,
            authorized_keys: Vec::new(),
            host_key: String::new(),
            control_port: 0,
            token: banger_proto::guest::BootToken::new([1; 32]),
            root_device: String::new(),
            work_device: None,
            modules_device: None,
            reads: false,
            image: banger_policy::ImageConfig::default(),
        }
    }

    #[test]
    fn an_ssh_server_is_found_where_images_have_it() {
        for path in ["usr/sbin/sshd", "usr/local/sbin/sshd", "run/current-system/sw/bin/sshd", "usr/bin/dropbear"] {
            let root = tempfile::tempdir().unwrap();
            assert!(!has_ssh_daemon(root.path()));
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            assert!(has_ssh_daemon(root.path()), "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_silences_nobody() {
        let looks = comes(|| {
            std::thread::sleep(Duration::from_secs(2));
            true
        });
        let begun = Instant::now();
        let early = tokio::time::timeout(Duration::from_millis(100), looks).await;
        assert!(early.is_err() && begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn only_pid_1_says_the_end_of_a_guest_without_an_init_of_its_own() {
        let mut end = std::pin::pin!(end_of_guest(InitKind::Own));
        let not_yet = async |end: &mut std::pin::Pin<&mut _>, why: &str| {
            let ended = tokio::time::timeout(Duration::from_millis(200), end).await;
            assert!(ended.is_err(), "{why}");
        };
        not_yet(&mut end, "nothing was sent").await;
        signals::send(nix::unistd::getpid().as_raw(), libc::SIGTERM).unwrap();
        not_yet(&mut end, "anybody sends SIGTERM").await;
        assert!(ends_own(1) && !ends_own(0) && !ends_own(77));
        signals::send(nix::unistd::getpid().as_raw(), libc::SIGUSR2).unwrap();
        assert_eq!(end.await.unwrap(), ShutdownKind::Poweroff);
    }
}
