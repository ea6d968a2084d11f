//! The names of running VMs, answered on loopback: `<vm>.<user>.vm`. Not a resolver: it answers
//! from the daemon's own records, asks nobody, and refuses every other name.
//!
//! [`serve`] is started by [`crate::serve`] and ends with the daemon. What it lets whom know is
//! decided in [`banger_policy::dns`]; whose a question is, the kernel says
//! ([`crate::net::caller`]).

mod asker;
pub(crate) mod message;
mod socket;
mod zone;

#[cfg(test)]
mod tests;

use crate::net::caller::{Callers as _, Kernel};
use crate::vm::Vms;
use asker::Askers;
use banger_policy::publish::Protocol;
use banger_policy::publish::rules::Caller;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;
use zone::Zone;

/// Questions that are being answered at the same time; the next ones are dropped, and asked again.
const AT_ONCE: usize = 128;
/// How long is waited for an address that somebody else has.
const AGAIN: Duration = Duration::from_secs(30);

/// Finds out whose sockets talk to ours, each by a question to the kernel.
type WhoTalks = fn(Protocol, &[SocketAddrV4], SocketAddrV4) -> Vec<Option<u32>>;

/// What all questions share.
#[derive(Debug)]
struct Server {
    zone: Zone,
    askers: Askers,
    who: WhoTalks,
    at_once: Arc<tokio::sync::Semaphore>,
}

/// Answers at `address` for as long as the daemon runs. A port that is taken costs the names, and
/// nothing else: `banger doctor` says so.
pub(crate) fn serve(address: SocketAddrV4, vms: Arc<Vms>) {
    let server = Arc::new(Server::new(vms, by_the_kernel));
    tokio::spawn(async move {
        let mut said = false;
        loop {
            match socket::bind(address).await {
                Ok(sockets) => {
                    tracing::info!("names of VMs are answered at {address}");
                    sockets.serve(server).await;
                    return;
                }
                Err(error) if !said => {
                    tracing::error!("no names of VMs: cannot listen on {address}: {error}");
                    said = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

impl Server {
    fn new(vms: Arc<Vms>, who: WhoTalks) -> Self {
        let askers = Askers::new(Arc::clone(&vms.ctx.users), vms.ctx.config.now().dns.resolvers.clone());
        Self { zone: Zone::new(vms), askers, who, at_once: Arc::new(tokio::sync::Semaphore::new(AT_ONCE)) }
    }
}

fn by_the_kernel(protocol: Protocol, peers: &[SocketAddrV4], own: SocketAddrV4) -> Vec<Option<u32>> {
    let kernel = Kernel::default();
    let uid = |peer: &SocketAddrV4| {
        let caller = match protocol {
            Protocol::Tcp => kernel.tcp((*peer).into(), own.into()),
            Protocol::Udp => kernel.udp((*peer).into()),
        };
        match caller {
            Caller::Uid(uid) => Some(uid),
            Caller::Unknown => None,
        }
    };
    peers.iter().map(uid).collect()
}
