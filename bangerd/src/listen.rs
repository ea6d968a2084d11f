//! Folders, the socket, and what systemd is told: the edges of the process.

use crate::dns::Kept;
use crate::paths::Paths;
use crate::start_error::StartError;
use nix::libc;
use rustix::io::{FdFlags, fcntl_setfd};
use sd_notify::NotifyState;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use tokio::net::UnixListener;

/// The file's name of the socket for metrics.
const METRICS_FILE: &str = "metrics.sock";

/// Makes what is missing. The package makes the two roots; a build folder does not.
///
/// # Errors
/// [`StartError::Folder`] with the path.
pub(crate) fn make_folders(paths: &Paths) -> Result<(), StartError> {
    let private = [paths.kernels(), paths.vms(), paths.staging(), paths.runtime.join("vm")];
    // The helper, which has no DAC_OVERRIDE, reads images as group root.
    let shared = [paths.state.clone(), paths.images()];
    for (folder, mode) in
        shared.iter().map(|folder| (folder, 0o710)).chain(private.iter().map(|folder| (folder, 0o700)))
    {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
        made.map_err(|source| StartError::Folder { path: folder.clone(), source })?;
    }
    // What an import left that died with the daemon; nothing of it was ever published.
    for entry in std::fs::read_dir(paths.staging()).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        if let Err(error) = removed {
            tracing::warn!("{}: cannot remove a staging file: {error}", path.display());
        }
    }
    Ok(())
}

/// The sockets of the daemon.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// For users.
    pub(crate) calls: UnixListener,
    /// For collectors of metrics. Optional, because an administrator may disable its unit.
    pub(crate) metrics: Option<UnixListener>,
    /// The kernel's word of what was refused; only read. Optional for the same reason, and because
    /// only systemd can make it.
    pub(crate) refused: Option<OwnedFd>,
    /// Of the daemon before this one.
    pub(crate) names: Kept,
}

/// The sockets that systemd passed, else our own.
///
/// # Errors
/// [`StartError::Listen`], [`StartError::Inherited`].
pub(crate) fn bind(paths: &Paths) -> Result<Sockets, StartError> {
    let refused = |source| StartError::Listen { path: paths.socket.clone(), source };
    let mut inherited = listenfd::ListenFd::from_env();
    let count = inherited.len();
    let (mut calls, mut metrics, mut told, mut names) = (None, None, None, Kept::default());
    for index in 0..count {
        // It is left where it is when it is another socket.
        if let Ok(Some(socket)) = inherited.take_custom::<OwnedFd>(index, libc::AF_NETLINK, libc::SOCK_RAW, "netlink") {
            if told.replace(socket).is_some() {
                return Err(StartError::Inherited(count));
            }
            continue;
        }
        if names.take(&mut inherited, index).map_err(refused)? {
            continue;
        }
        let listener = inherited.take_unix_listener(index).map_err(refused)?.ok_or(StartError::Inherited(count))?;
        let place = if is_for_metrics(&listener) { &mut metrics } else { &mut calls };
        if place.replace(listener).is_some() {
            return Err(StartError::Inherited(count));
        }
    }
    let calls = match calls {
        Some(listener) => listener,
        None if count == 0 => bind_own(&paths.socket).map_err(refused)?,
        None => return Err(StartError::Inherited(count)),
    };
    if metrics.is_none()
        && let Some(path) = &paths.metrics_socket
    {
        let refused = |source| StartError::Listen { path: path.clone(), source };
        metrics = Some(bind_own(path).map_err(refused)?);
    }
    let metrics = metrics.map(ready).transpose().map_err(refused)?;
    Ok(Sockets { calls: ready(calls).map_err(refused)?, metrics, refused: told, names })
}

/// Ends the connections that wait for a daemon which cannot start. systemd would start the next one
/// for them at once, and again for as long as one of them is there: a connection waits on although
/// its client has gone. Units that are ordered behind the daemon would never come to their turn.
pub(crate) fn turn_away() {
    let mut inherited = listenfd::ListenFd::from_env();
    for index in 0..inherited.len() {
        if let Ok(Some(listener)) = inherited.take_unix_listener(index)
            && listener.set_nonblocking(true).is_ok()
        {
            while listener.accept().is_ok() {}
        }
    }
}

/// The socket's own name says what it is for: the unit's is `/run/banger/metrics.sock`.
fn is_for_metrics(listener: &StdListener) -> bool {
    let address = listener.local_addr().ok();
    address.and_then(|address| Some(address.as_pathname()?.file_name()? == METRICS_FILE)).unwrap_or(false)
}

fn ready(listener: StdListener) -> std::io::Result<UnixListener> {
    // systemd passes it open over execve, and a VMM must not get it.
    fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn bind_own(path: &Path) -> std::io::Result<StdListener> {
    // A socket left by a daemon that died; a live one answers, and is not taken over.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another bangerd answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = StdListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Tells systemd that calls are taken, and from now on that the runtime still turns.
pub(crate) fn announce() {
    tell(&[NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            // sd_watchdog_enabled(3) recommends half of it.
            let mut tick = tokio::time::interval(limit / 2);
            loop {
                tick.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        });
    }
}

/// Tells systemd that a reload has begun. It compares the time with that of its own request.
pub(crate) fn announce_reload() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("cannot notify systemd: {error}"),
    }
}

/// Tells systemd that the reload is over, and people how it went: `systemctl status` shows it.
pub(crate) fn announce_reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    use rustix::io::fcntl_dupfd_cloexec;
    use std::io::Read as _;
    use std::os::fd::{AsFd, AsRawFd as _};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Output};
    use std::time::Duration;

    /// Starts a test of this module by itself: what systemd passed is said by variables of the
    /// process.
    fn started_with(passed: &[OwnedFd], test: &str) -> Output {
        // One after another, and above those of other tests.
        let passed: Vec<OwnedFd> = passed.iter().map(|fd| fcntl_dupfd_cloexec(fd.as_fd(), 300).unwrap()).collect();
        for fd in &passed {
            fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", &format!("listen::tests::{test}")]).env("LISTEN_FDS", passed.len().to_string());
        again.env("LISTEN_FDS_FIRST_FD", passed[0].as_raw_fd().to_string());
        again.output().unwrap()
    }

    #[test]
    fn who_waits_for_a_daemon_that_cannot_start_is_turned_away() {
        if std::env::var_os("LISTEN_FDS").is_some() {
            return turn_away();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bangerd.sock");
        let listener = OwnedFd::from(StdListener::bind(&path).unwrap());
        let mut waiting = UnixStream::connect(&path).unwrap();
        waiting.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let ended =
            started_with(std::slice::from_ref(&listener), "who_waits_for_a_daemon_that_cannot_start_is_turned_away");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        assert_eq!(waiting.read(&mut [0]).unwrap(), 0, "the connection still waits");
    }

    #[tokio::test]
    async fn sockets_that_systemd_passed_are_told_apart() {
        if std::env::var_os("LISTEN_FDS").is_some() {
            let sockets = bind(&Paths::default()).unwrap();
            let address = sockets.calls.local_addr().unwrap();
            assert!(address.as_pathname().unwrap().ends_with("bangerd.sock"));
            let told = sockets.refused.unwrap();
            assert!(sockets.metrics.is_some() && rustix::io::fcntl_getfd(&told).unwrap().contains(FdFlags::CLOEXEC));
            assert!(sockets.names.has_both(), "{:?}", sockets.names);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let listener = |name| OwnedFd::from(StdListener::bind(dir.path().join(name)).unwrap());
        let netlink = || {
            let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
            socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
        };
        let run = |passed: &[OwnedFd]| started_with(passed, "sockets_that_systemd_passed_are_told_apart");
        let datagrams = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let connections = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let all = [listener("metrics.sock"), netlink(), listener("bangerd.sock"), datagrams, connections];
        let ended = run(&all);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
        for wrong in
            [[listener("other.sock"), netlink(), netlink()], [netlink(), listener("a.sock"), listener("b.sock")]]
        {
            let ended = run(&wrong);
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(!ended.status.success() && said.contains("Inherited(3)"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_socket_is_known_by_its_name_and_a_live_one_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let of = |name: &str| StdListener::bind(at(name)).unwrap();
        assert!(is_for_metrics(&of("metrics.sock")) && !is_for_metrics(&of("bangerd.sock")));
        let mut paths = Paths { socket: at("calls.sock"), ..Paths::default() };
        assert!(bind(&paths).unwrap().metrics.is_none(), "none was asked for");
        paths.metrics_socket = Some(at("m.sock"));
        let sockets = bind(&paths).unwrap();
        let mode = std::fs::metadata(at("m.sock")).unwrap().permissions().mode();
        assert_eq!((sockets.metrics.is_some(), mode & 0o777), (true, 0o660));
        assert!(matches!(bind(&paths), Err(StartError::Listen { .. })));
    }
}
