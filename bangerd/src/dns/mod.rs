//! The names of running VMs, answered on loopback: `<vm>.<user>.vm`. Not a resolver: it answers
//! from the daemon's own records, asks nobody, and refuses every other name.
//!
//! [`serve`] is started by [`crate::serve`] and ends with the daemon. What it lets whom know is
//! decided in [`banger_policy::dns`]; whose a question is, the kernel says
//! ([`crate::net::caller`]).

mod asker;
mod kept;
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
pub(crate) use kept::Kept;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zone::Zone;

/// Questions that are being answered at the same time; the next ones are dropped, and asked again.
const AT_ONCE: usize = 128;
/// How long is waited for an address that somebody else has.
const AGAIN: Duration = Duration::from_secs(30);

/// Whether the daemon has both ports. Until it has, whoever answers there is another program.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicBool);

impl Held {
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

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

/// Answers at the configured address for as long as the daemon runs, with the sockets of the former
/// daemon where systemd has `kept` them. A port that is taken costs the names, and nothing else:
/// `banger doctor` says so.
pub(crate) fn serve(vms: Arc<Vms>, kept: Kept) {
    let address = vms.ctx.config.now().dns.listen;
    let kept = kept.at(address);
    let Some(address) = address else { return };
    let held = Arc::clone(&vms.ctx.names_port);
    let server = Arc::new(Server::new(vms, by_the_kernel));
    tokio::spawn(async move {
        let (mut kept, mut said) = (kept, false);
        loop {
            let sockets = match kept.take() {
                Some(kept) => socket::of(kept, address),
                None => socket::bind(address).await.inspect(|sockets| kept::keep(sockets.as_fds())),
            };
            match sockets {
                Ok(sockets) => {
                    tracing::info!("names of VMs are answered at {address}");
                    held.0.store(true, Ordering::Relaxed);
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
            // Who gets the answer. Somebody else may have sent the question, who learns nothing.
            Protocol::Udp => kernel.receiver((*peer).into(), own.into()),
        };
        match caller {
            Caller::Uid(uid) => Some(uid),
            Caller::Unknown => None,
        }
    };
    peers.iter().map(uid).collect()
}
