//! Published ports: the host listens for guests and passes on what comes, without any privilege.
//! On threads of their own, so that whatever users send delays nothing else of the daemon.
//!
//! Called by the VMs' actors, which say what is open: a VM's ports are open while it runs.

pub(crate) mod bound;
mod looks;
mod share;
mod tcp;
mod udp;

use crate::net::caller::Callers;
use banger_policy::VmId;
use banger_policy::net::Network;
use banger_policy::publish::rules::{self, Rules};
use banger_policy::publish::{Protocol, Published};
use bound::{Bound, NotBound};
use looks::Looks;
use share::{PER_PORT, Share, Shares};
use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Threads for all users' bytes. Nothing on them blocks.
const THREADS: usize = 2;
/// How often the log says that somebody was refused at a port.
const NOTE: Duration = Duration::from_secs(60);

/// One port that is open.
#[derive(Debug)]
struct Port {
    vm: VmId,
    owner: u32,
    guest: Ipv4Addr,
    guests: Network,
    published: Published,
    looks: Arc<Looks>,
    share: Arc<Share>,
    places: Arc<Semaphore>,
    /// How many were refused since the log said so, and when that was.
    refused: Mutex<(u64, Option<Instant>)>,
}

#[derive(Debug)]
enum State {
    /// With the places that are left for connections.
    Open(CancellationToken, JoinHandle<()>, Arc<Semaphore>),
    Problem(String),
}

/// The published ports of VMs that run.
#[derive(Debug)]
pub(crate) struct Ports {
    runtime: Handle,
    /// The threads end with it.
    _end: oneshot::Sender<()>,
    rules: Rules,
    looks: Arc<Looks>,
    shares: Shares,
    vms: Mutex<HashMap<VmId, Vec<(Published, State)>>>,
}

impl Ports {
    /// # Errors
    /// When the kernel gives no thread.
    pub(crate) fn start(rules: Rules, callers: Arc<dyn Callers>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("ports").enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("ports".to_owned()).spawn(move || {
            drop(runtime.block_on(ended));
            runtime.shutdown_background();
        })?;
        let (looks, shares, vms) = (Arc::new(Looks::new(callers)), Shares::default(), Mutex::default());
        Ok(Self { runtime: handle, _end: end, rules, looks, shares, vms })
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Vec<(Published, State)>>> {
        // Every change is one insert or remove.
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens, and serves nobody yet.
    ///
    /// # Errors
    /// [`NotBound`].
    pub(crate) fn bind(&self, published: &Published) -> Result<Bound, NotBound> {
        rules::listen(published.address, published.public, &self.rules)?;
        bound::to(published)
    }

    /// From now on what comes is passed on to a guest.
    pub(crate) fn open(&self, vm: VmId, owner: u32, guest: Ipv4Addr, published: Published, bound: Bound) {
        let port = Arc::new(Port {
            vm,
            owner,
            guest,
            guests: self.rules.guests,
            published,
            looks: Arc::clone(&self.looks),
            share: self.shares.of(owner),
            places: Arc::new(Semaphore::new(PER_PORT)),
            refused: Mutex::default(),
        });
        let (token, places) = (CancellationToken::new(), Arc::clone(&port.places));
        let task = self.runtime.spawn(serve(bound, port, token.clone()));
        self.lock().entry(vm).or_default().push((published, State::Open(token, task, places)));
    }

    /// The VM runs, and the host does not listen.
    pub(crate) fn failed(&self, vm: VmId, published: Published, problem: String) {
        self.lock().entry(vm).or_default().push((published, State::Problem(problem)));
    }

    /// Whether anything is passed on to the VM now.
    pub(crate) fn used(&self, vm: &VmId) -> bool {
        let taken = |state: &State| matches!(state, State::Open(.., places) if places.available_permits() < PER_PORT);
        self.lock().get(vm).is_some_and(|ports| ports.iter().any(|(_, state)| taken(state)))
    }

    /// Why the host does not listen for a VM that runs.
    pub(crate) fn problem(&self, vm: &VmId, published: &Published) -> Option<String> {
        self.lock().get(vm)?.iter().find_map(|(port, state)| match state {
            State::Problem(why) if port == published => Some(why.clone()),
            _ => None,
        })
    }

    /// Ends what some of a VM's ports pass on; when this returns the host no longer listens.
    pub(crate) async fn close(&self, vm: &VmId, which: impl Fn(&Published) -> bool) {
        let mut closed = Vec::new();
        {
            let mut vms = self.lock();
            if let Some(ports) = vms.get_mut(vm) {
                closed.extend(ports.extract_if(.., |(port, _)| which(port)));
                if ports.is_empty() {
                    vms.remove(vm);
                }
            }
        }
        let mut tasks = Vec::new();
        for (_, state) in closed {
            if let State::Open(token, task, _) = state {
                token.cancel();
                tasks.push(task);
            }
        }
        for task in tasks {
            drop(task.await);
        }
    }
}

async fn serve(bound: Bound, port: Arc<Port>, ended: CancellationToken) {
    let (published, vm) = (port.published, port.vm);
    let served = async {
        match published.protocol {
            Protocol::Tcp => {
                let listener = tokio::net::TcpListener::from_std(TcpListener::from(bound.0))?;
                let mut relays = JoinSet::new();
                tokio::select! {
                    () = tcp::serve(listener, port, &mut relays) => {}
                    () = ended.cancelled() => {}
                }
                relays.shutdown().await;
            }
            Protocol::Udp => {
                let listener = tokio::net::UdpSocket::from_std(UdpSocket::from(bound.0))?;
                let mut answers = JoinSet::new();
                tokio::select! {
                    () = udp::serve(listener, port, &mut answers) => {}
                    () = ended.cancelled() => {}
                }
                answers.shutdown().await;
            }
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = served.await {
        tracing::warn!(banger_vm = %vm, "the port {published} is not served: {error}");
    }
}

impl Port {
    /// Somebody was refused: the log says so, but not each time.
    fn note_refused(&self) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.0 = refused.0.saturating_add(1);
        if refused.1.is_none_or(|said| said.elapsed() >= NOTE) {
            tracing::info!(banger_vm = %self.vm, "refused at port {}: {} times", self.published, refused.0);
            *refused = (0, Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests;
