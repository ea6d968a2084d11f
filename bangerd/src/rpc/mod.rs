//! The daemon's door: accepts connections, knows from the socket who is there, and hands calls to
//! the service and streams to their ticket's promise. Nothing here touches a VM.

mod admission;
mod answer;
mod caller;
pub(crate) mod metrics;
pub(crate) mod rate;
mod service;
mod streams;
mod ticket;

use crate::args::Args;
use crate::doctor::Doctor;
use crate::known::Who;
use crate::store::Store;
use crate::vm::Vms;
use admission::{Admission, Place};
use banger_policy::Peer;
use banger_proto::daemon::Daemon as _;
use banger_proto::model::DaemonInfo;
use banger_proto::time::Timestamp;
use banger_proto::transport::{self, DAEMON_LIMITS};
use banger_proto::wire::{PROTOCOL_VERSION, Purpose};
use caller::Caller;
use futures::StreamExt as _;
use rate::Rates;
use std::sync::Arc;
use std::time::Duration;
use tarpc::server::{BaseChannel, Channel as _, Config};
use ticket::Tickets;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// How long is waited after a failed accept: mostly the limit on descriptors, which needs others to
/// close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Daemon {
    vms: Arc<Vms>,
    store: Arc<Store>,
    tickets: Tickets,
    started_at: Timestamp,
    doctor: Doctor,
    /// What each user may still ask, and have written to the log.
    calls: Rates,
    notes: Rates,
}

impl Daemon {
    pub(crate) fn new(vms: Arc<Vms>, store: Arc<Store>, args: &Args) -> Arc<Self> {
        let (calls, notes) = (Rates::calls(), Rates::notes());
        let doctor = Doctor::new(vms.ctx.config.clone(), args.firecracker.clone(), Arc::clone(&vms.ctx.programs));
        Arc::new(Self { vms, store, tickets: Tickets::default(), started_at: Timestamp::now(), doctor, calls, notes })
    }

    async fn info(&self) -> DaemonInfo {
        let program = self.doctor.program().await.ok();
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            started_at: self.started_at,
            vmm_sha256: program.as_ref().map(|program| program.sha256.to_string()).unwrap_or_default(),
            vmm_version: program.map(|program| program.version).unwrap_or_default(),
        }
    }

    /// Whether a line about this peer's connections may be written to the log.
    fn may_note(&self, peer: &Peer) -> bool {
        self.notes.take(Who::of(peer))
    }
}

/// Serves until the daemon is told to end. VMs outlive it, and jobs are found cut short at the next
/// start.
pub(crate) async fn serve(listener: UnixListener, daemon: Arc<Daemon>) {
    let admission = Arc::new(Admission::of_daemon(nix::unistd::Uid::effective()));
    let swept = Arc::clone(&daemon);
    tokio::spawn(async move { swept.tickets.keep_swept().await });
    let mut ended = match signal(SignalKind::terminate()) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!("cannot listen for signals: {error}");
            return;
        }
    };
    loop {
        tokio::select! {
            _ = ended.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (daemon, admission) = (Arc::clone(&daemon), Arc::clone(&admission));
                    let ctx = &daemon.vms.ctx;
                    let (users, limits) = (Arc::clone(&ctx.users), ctx.config.now().limits.clone());
                    tokio::spawn(async move {
                        if let Some(place) = admission::admit(&admission, &stream, users, limits).await {
                            connection(stream, place, daemon).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    tracing::info!("ended; VMs keep running");
}

async fn connection(mut stream: UnixStream, place: Place, daemon: Arc<Daemon>) {
    match transport::accept(&mut stream).await {
        Ok(hello) => match hello.purpose {
            Purpose::Calls => calls(stream, &place, daemon).await,
            Purpose::Stream => streams::serve(stream, &place, &daemon).await,
        },
        Err(error) if daemon.may_note(&place.peer) => {
            tracing::info!(banger_uid = place.peer.uid, "a connection without a hello: {error}");
        }
        Err(_) => {}
    }
}

async fn calls(stream: UnixStream, place: &Place, daemon: Arc<Daemon>) {
    let ctx = &daemon.vms.ctx;
    let caller = Caller::new(place.peer.clone(), Arc::clone(&ctx.users), ctx.config.clone());
    let service = service::Service { caller: Arc::new(caller), daemon };
    let channel = BaseChannel::new(Config::default(), transport::server(stream, DAEMON_LIMITS))
        .max_concurrent_requests(DAEMON_LIMITS.max_in_flight);
    let mut requests = std::pin::pin!(channel.execute(service.serve()));
    // Dropped with the connection: a handler only waits for work that belongs to others.
    let mut handlers = JoinSet::new();
    while let Some(handler) = requests.next().await {
        handlers.spawn(handler);
        while handlers.try_join_next().is_some() {}
    }
}

#[cfg(test)]
mod tests;
