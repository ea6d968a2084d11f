//! Who is let in, and one connection at a time.
//!
//! A peer is admitted by number: exactly the daemon's uid (SO_PEERCRED), alive and in the daemon's
//! own cgroup (SO_PEERPIDFD, cgroup.procs). VMMs run under the same uid in the same unit, so the
//! uid alone would admit them.

use crate::kernel::{At, Kernel};
use crate::log::{self, Level};
use crate::ops::Machine;
use crate::proc::{Processes, alive};
use crate::service::{Limiter, Service};
use banger_proto::helper::Helper;
use banger_proto::transport::{self, HELPER_LIMITS};
use banger_proto::wire::Purpose;
use futures::StreamExt;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::fstat;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tarpc::server::{BaseChannel, Channel};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, spawn_local};

/// Refused connections per second that are written to the journal, and at once.
const REFUSALS: (u32, u32) = (1, 20);
/// How long to wait when no connection can be taken up (descriptors used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The process at the other end of the live connection.
struct Peer {
    pid: u32,
    pidfd: OwnedFd,
    inode: u64,
}

/// The live connection, and who has it.
type Live = Option<(Peer, JoinHandle<()>)>;

/// Serves until the process ends.
pub async fn serve<K: Kernel>(listener: UnixListener, machine: Rc<Machine<K>>, processes: Rc<Processes>, uid: u32) {
    let service = Service::new(machine);
    let refusals = Limiter::new(REFUSALS);
    let mut live: Live = None;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        match admit(&stream, &processes, uid, &mut live) {
            Ok(peer) => {
                service.note(Level::Info, &format!("op=connect peer={} verdict=ok", peer.pid));
                live = Some((peer, spawn_local(connection(stream, service.clone()))));
            }
            Err(rule) if refusals.take() => {
                log::record(Level::Critical, &format!("op=connect verdict=denied rule={rule}"));
            }
            Err(_) => {}
        }
    }
}

/// Is this the daemon, and may it have a connection? Then the one that it had is ended.
fn admit(stream: &UnixStream, processes: &Processes, uid: u32, live: &mut Live) -> Result<Peer, &'static str> {
    let peer = identify(stream, processes, uid)?;
    make_way(live, &peer)?;
    Ok(peer)
}

/// Is this the daemon?
fn identify(stream: &UnixStream, processes: &Processes, uid: u32) -> Result<Peer, &'static str> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(|_| "no-credentials")?;
    if credentials.uid() != uid {
        return Err("other-uid");
    }
    let pidfd = getsockopt(stream, sockopt::PeerPidfd).map_err(|_| "no-pidfd")?;
    let inode = fstat(&pidfd).map_err(|_| "no-pidfd")?.st_ino;
    match processes.daemon(&pidfd) {
        Ok(Some(pid)) => Ok(Peer { pid, pidfd, inode }),
        Ok(None) => Err("outside-daemon-cgroup"),
        Err(error) => Err(error.step),
    }
}

/// One live connection. The end of a daemon that died is noticed at once, by its descriptor being
/// closed. A daemon that connects again has given up its first connection. Another process gets in
/// only when the first has ended, so that a restarted daemon is never kept out by what is left of
/// the old one.
fn make_way(live: &mut Live, peer: &Peer) -> Result<(), &'static str> {
    let Some((first, task)) = live else { return Ok(()) };
    let gone = task.is_finished() || !alive(first.pidfd.as_fd()).map_err(|error| error.step)?;
    if gone || first.inode == peer.inode {
        task.abort();
        return Ok(());
    }
    Err("second-connection")
}

async fn connection<K: Kernel>(mut stream: UnixStream, service: Service<K>) {
    match transport::accept(&mut stream).await {
        Ok(hello) if hello.purpose == Purpose::Calls => {}
        Ok(_) => return service.note(Level::Warning, "op=hello verdict=denied rule=purpose"),
        Err(error) => {
            let rule = if error.kind() == io::ErrorKind::InvalidData { "protocol" } else { "no-hello" };
            return service.note(Level::Warning, &format!("op=hello verdict=denied rule={rule}"));
        }
    }
    // Requests beyond the limit are answered at once with "not taken up".
    let channel = BaseChannel::with_defaults(transport::server(stream, HELPER_LIMITS));
    let requests = channel.max_concurrent_requests(HELPER_LIMITS.max_in_flight);
    requests.execute(service.serve()).for_each(|call| async { drop(spawn_local(call)) }).await;
}

/// Makes the listening socket of a build folder: for the daemon's group alone.
///
/// # Errors
/// The kernel's.
pub fn bind(path: &std::path::Path, gid: u32) -> crate::kernel::Outcome<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        std::fs::remove_file(path).at("socket-remove")?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path).at("socket-bind")?;
    std::os::unix::fs::chown(path, None, Some(gid)).at("socket-chgrp")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).at("socket-chmod")?;
    Ok(listener)
}
