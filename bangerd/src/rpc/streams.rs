//! Streams: a connection that shows a ticket gets what the ticket promised.

use super::Daemon;
use super::admission::Place;
use super::caller::Caller;
use crate::rpc::ticket::{Promise, Work};
use crate::store::wanted::{Wanted, WantedImage, WantedKernel};
use crate::stream;
use crate::vm::Way;
use crate::vm::error::VmError;
use banger_link::link::{Link, LinkError};
use banger_policy::Peer;
use banger_proto::model::ApiError;
use banger_proto::stream::{Frame, StreamRequest, Ticket};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// How long a connection may take to show its ticket: as long as the call may take that issues it,
/// since a client does both at once.
const TICKET_LIMIT: Duration = Duration::from_secs(30);

/// Refuses what cannot be served, while there is still a call to answer it. The job of an upload
/// begins here.
pub(super) async fn check(daemon: &Daemon, peer: &Peer, request: StreamRequest) -> Result<Work, ApiError> {
    let wanted = match &request {
        // A reader is started when its stream comes.
        StreamRequest::Command { vm, reads: true }
        | StreamRequest::Session { vm, reads: true }
        | StreamRequest::Logs { vm, .. } => {
            daemon.vms.console(peer, vm).await?;
            return Ok(Work::Serve(request));
        }
        StreamRequest::Inside { vm } => {
            daemon.vms.look_into(peer, vm).await?;
            return Ok(Work::Serve(request));
        }
        StreamRequest::Command { vm, .. } | StreamRequest::Session { vm, .. } | StreamRequest::Ssh { vm } => {
            daemon.vms.link(peer, vm).await?;
            return Ok(Work::Serve(request));
        }
        StreamRequest::ImportImage { name, source, build_size, shared, reference, pulled } => {
            let image = WantedImage::new(peer, name, source, *build_size, *shared)?;
            Wanted::Image(image.reference(reference.as_deref()).pulled(*pulled))
        }
        StreamRequest::RegisterImage { name, source, kernel } => {
            let kernel = match kernel {
                Some(word) => Some(daemon.store.kernel_to_name(peer, word).await?),
                None => None,
            };
            Wanted::Image(WantedImage::registered(peer, name, source, kernel)?)
        }
        StreamRequest::ImportKernel { name, shared } => {
            Wanted::Kernel(WantedKernel::new(peer, name.as_deref(), *shared)?)
        }
    };
    daemon.store.check_free(peer, &wanted).await?;
    let job = daemon.store.begin(peer, &wanted)?;
    Ok(Work::Import(Box::new(wanted), job))
}

pub(super) async fn serve(mut io: UnixStream, place: &Place, daemon: &Arc<Daemon>) {
    let ctx = &daemon.vms.ctx;
    let caller = Caller::new(place.peer.clone(), Arc::clone(&ctx.users), ctx.config.clone());
    let mut ticket = [0; 32];
    if !matches!(tokio::time::timeout(TICKET_LIMIT, io.read_exact(&mut ticket)).await, Ok(Ok(_))) {
        return;
    }
    // Who the peer is by now: what was promised is served by what may be done when it is.
    let peer = caller.now().await;
    let Some(Promise { work, .. }) = daemon.tickets.take(&Ticket(ticket), &peer) else {
        refuse(io, "this ticket is not valid, or no longer: ask again").await;
        return;
    };
    let request = match work {
        Work::Serve(request) => request,
        // It has the connection's place to its end, which comes after the client's.
        Work::Import(wanted, job) => return Box::pin(daemon.store.import(io, peer, *wanted, job)).await,
    };
    let served = match request {
        StreamRequest::Command { vm, reads } => {
            let way = way(daemon, &peer, &vm, reads).await;
            return guest(io, &peer, way, async |link| link.command().await).await;
        }
        StreamRequest::Session { vm, reads } => {
            let way = way(daemon, &peer, &vm, reads).await;
            return guest(io, &peer, way, async |link| link.session().await).await;
        }
        StreamRequest::Inside { vm } => {
            let way = daemon.vms.look_into(&peer, &vm).await.map(|link| Way::Running(link, None));
            return guest(io, &peer, way, async |link| link.inside().await).await;
        }
        StreamRequest::Ssh { vm } => {
            let way = way(daemon, &peer, &vm, false).await;
            return guest(io, &peer, way, async |link| link.ssh().await).await;
        }
        StreamRequest::Logs { vm, follow, tail } => match daemon.vms.console(&peer, &vm).await {
            Ok(console) => {
                let not_theirs = console.ownership.cancelled();
                stream::logs(io, &console.path, follow, tail, not_theirs, console.gone.cancelled()).await
            }
            Err(error) => return refuse(io, &error.message()).await,
        },
        StreamRequest::ImportImage { .. }
        | StreamRequest::RegisterImage { .. }
        | StreamRequest::ImportKernel { .. } => {
            return refuse(io, "this upload has no job").await;
        }
    };
    if let Err(error) = served {
        tracing::debug!(banger_uid = peer.uid, "a stream ended: {error}");
    }
}

async fn way(daemon: &Daemon, peer: &Peer, vm: &str, reads: bool) -> Result<Way, VmError> {
    if reads {
        return daemon.vms.way_to_read(peer, vm).await;
    }
    daemon.vms.link(peer, vm).await.map(|(link, visit)| Way::Running(link, Some(visit)))
}

/// Opens a connection to a guest, and hands it over. The visit lasts as long as the client keeps
/// its stream.
async fn guest(
    io: UnixStream,
    peer: &Peer,
    way: Result<Way, VmError>,
    open: impl AsyncFn(&Link) -> Result<UnixStream, LinkError>,
) {
    let way = match way {
        Ok(way) => way,
        Err(error) => return refuse(io, &error.message()).await,
    };
    match open(way.link()).await {
        Ok(guest) => {
            let handed_over = tokio::select! {
                handed_over = stream::hand_over(io, guest) => handed_over,
                () = way.cut() => Ok(()),
            };
            if let Err(error) = handed_over {
                tracing::debug!(banger_uid = peer.uid, "a connection was not handed over: {error}");
            }
        }
        Err(error) => refuse(io, &unreachable(&error)).await,
    }
    way.leave().await;
}

fn unreachable(error: &LinkError) -> String {
    if error.is_old() {
        return format!("{error}\nif it was started before an upgrade: banger vm restart, which keeps its disks");
    }
    error.to_string()
}

async fn refuse(mut io: UnixStream, why: &str) {
    // A client that is gone need not be told.
    drop(banger_proto::stream::write(&mut io, &Frame::Failed(why.to_owned())).await);
}
