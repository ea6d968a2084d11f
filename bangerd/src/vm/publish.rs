//! Ports of a VM on the host. The rows say which; the host listens while the VM runs. One that the
//! host cannot listen on then keeps no VM from running.

use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::order::Ask;
use super::{Context, Vms};
use crate::db::{DbError, VmRow};
use crate::error::{OverLimit, chain};
use crate::jobs::Job;
use crate::ports::bound::{Bound, NotBound};
use banger_policy::access::Owner;
use banger_policy::lifecycle::State;
use banger_policy::publish::rules::{self, Rules};
use banger_policy::publish::{FREE_PORTS, MAX_PER_VM, Mapping, PortName, Published};
use banger_policy::quota::UserLimits;
use banger_policy::{Peer, VmId};
use banger_proto::model::{JobId, PublishRequest, PublishedPort};

/// How often free ports are chosen anew because somebody else was faster.
const ATTEMPTS: u32 = 4;

/// What somebody wants to publish, checked as far as it can be without asking the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    mapping: Mapping,
    public: bool,
    proxy_protocol: bool,
}

/// # Errors
/// A text that is no mapping, and a port that the rules do not allow.
pub(super) fn check(request: &PublishRequest, limits: &UserLimits, rules: &Rules) -> Result<Vec<Wanted>, VmError> {
    if request.ports.len() > MAX_PER_VM {
        return Err(VmError::TooManyPorts);
    }
    let one = |text: &String| {
        let mapping: Mapping = text.parse()?;
        rules::may(&mapping, request.public, request.proxy_protocol, limits.port_range, rules)?;
        Ok::<_, VmError>(Wanted { mapping, public: request.public, proxy_protocol: request.proxy_protocol })
    };
    request.ports.iter().map(one).collect()
}

/// The ports of a row as users see them.
pub(super) fn shown(row: &VmRow, ctx: &Context) -> Vec<PublishedPort> {
    let one = |port: &Published| {
        let Published { protocol, address, host_port, guest_port, public, proxy_protocol } = *port;
        let problem = ctx.ports.problem(&row.id, port);
        PublishedPort { protocol, address, host_port, guest_port, public, proxy_protocol, problem }
    };
    row.published.iter().map(one).collect()
}

/// Finds the ports free, listens, and writes the rows: all or none.
pub(super) async fn reserve(
    ctx: &Context,
    vm: VmId,
    owner: &Owner,
    limits: UserLimits,
    wanted: &[Wanted],
) -> Result<Vec<(Published, Bound)>, VmError> {
    let chosen_by_us = wanted.iter().any(|wanted| wanted.mapping.host_port.is_none());
    for attempt in 1.. {
        let mut taken = ctx.db.published().await?;
        let mut bound = Vec::new();
        for wanted in wanted {
            let one = match wanted.mapping.host_port {
                Some(port) => {
                    let published = at(wanted, port);
                    if let Some(other) = taken.iter().find(|other| other.published.excludes(&published)) {
                        return Err(in_use(&published, &other.vm, &other.owner, owner));
                    }
                    let listens = ctx.ports.bind(&published);
                    let listens =
                        listens.map_err(|source| VmError::NotBound { port: published.host().to_string(), source })?;
                    (published, listens)
                }
                None => free(ctx, wanted, limits, &taken)?,
            };
            let (vm, owner) = (vm.to_string(), owner.clone());
            taken.push(crate::db::Taken { vm, owner, published: one.0 });
            bound.push(one);
        }
        let rows = bound.iter().map(|(published, _)| *published).collect();
        match ctx.db.of_vms(owner.uid).publish(vm, rows, limits).await {
            Ok(()) => return Ok(bound),
            Err(DbError::PortTaken(_)) if chosen_by_us && attempt < ATTEMPTS => {}
            Err(DbError::PortTaken(other)) => {
                return Err(in_use(&other.published, &other.vm, &other.owner, owner));
            }
            Err(DbError::Limit(why)) => return Err(OverLimit::of(owner, why).into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Vec::new())
}

fn at(wanted: &Wanted, host_port: u16) -> Published {
    let Wanted { mapping: Mapping { address, guest_port, protocol, .. }, public, proxy_protocol } = *wanted;
    Published { protocol, address, host_port, guest_port, public, proxy_protocol }
}

/// A VM's name is told to its owner; of another user's nobody learns more than that there is one.
fn in_use(port: &Published, vm: &str, whose: &Owner, asker: &Owner) -> VmError {
    let by = if whose == asker { format!("your VM {vm}") } else { "another user".to_owned() };
    VmError::PortTaken { port: port.host().to_string(), by }
}

fn free(
    ctx: &Context,
    wanted: &Wanted,
    limits: UserLimits,
    taken: &[crate::db::Taken],
) -> Result<(Published, Bound), VmError> {
    let range = limits.port_range.unwrap_or(FREE_PORTS);
    let mut random = [0; 4];
    crate::util::fill_random(&mut random)?;
    for port in range.from(u32::from_ne_bytes(random)) {
        let published = at(wanted, port);
        if taken.iter().any(|other| other.published.excludes(&published)) {
            continue;
        }
        match ctx.ports.bind(&published) {
            Ok(bound) => return Ok((published, bound)),
            Err(NotBound::InUse) => {}
            Err(source) => return Err(VmError::NotBound { port: published.address.to_string(), source }),
        }
    }
    Err(VmError::NoFreePort(range))
}

impl Vms {
    /// Asks the VM's actor to publish ports.
    pub(crate) async fn publish(&self, peer: &Peer, word: &str, request: PublishRequest) -> Result<JobId, VmError> {
        let row = self.find(peer, word).await?;
        let limits = if peer.owns(&row.who()) { peer.limits } else { UserLimits::NONE };
        let wanted = check(&request, &limits, self.ctx.ports.rules())?;
        self.ask(peer, row, word, Ask::Publish(wanted))
    }

    /// Asks the VM's actor to take ports back.
    pub(crate) async fn unpublish(&self, peer: &Peer, word: &str, ports: &[String]) -> Result<JobId, VmError> {
        let row = self.find(peer, word).await?;
        let names = ports.iter().take(MAX_PER_VM).map(|text| text.parse()).collect::<Result<Vec<PortName>, _>>()?;
        self.ask(peer, row, word, Ask::Unpublish(names))
    }
}

impl Actor {
    pub(super) async fn publish(&mut self, job: &Job, wanted: &[Wanted]) -> Result<(), VmError> {
        if self.row.published.len().saturating_add(wanted.len()) > MAX_PER_VM {
            return Err(VmError::TooManyPorts);
        }
        let (owner, seat) = (self.row.who(), Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?);
        let bound = reserve(&self.ctx, seat.id, &owner, job.limits_of(&owner), wanted).await?;
        if self.row.state == State::Running {
            for (published, bound) in bound {
                self.ctx.ports.open(seat.id, seat.owner, seat.address, published, bound);
            }
        }
        Ok(())
    }

    pub(super) async fn unpublish(&mut self, names: &[PortName]) -> Result<(), VmError> {
        let published = &self.row.published;
        if let Some(unknown) = names.iter().find(|name| !published.iter().any(|port| name.means(port))) {
            return Err(VmError::NotPublished { port: unknown.port, vm: self.row.name.clone() });
        }
        let meant = |port: &Published| names.is_empty() || names.iter().any(|name| name.means(port));
        let gone: Vec<Published> = published.iter().copied().filter(meant).collect();
        self.db().unpublish(self.id(), gone).await?;
        self.ctx.ports.close(&self.id(), meant).await;
        Ok(())
    }

    /// The VM runs: the host listens for it. When its owner has started it, what was published must
    /// still be one of the owner's ports: the administrator may have given them to somebody else.
    pub(super) async fn open_ports(&self, job: Option<&Job>) {
        self.close_ports().await;
        let Ok(seat) = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network) else { return };
        let range = job.and_then(|job| job.limits_of(&self.row.who()).port_range);
        for published in &self.row.published {
            let may = rules::has(published.host_port, range).map_err(NotBound::from);
            match may.and_then(|()| self.ctx.ports.bind(published)) {
                Ok(bound) => self.ctx.ports.open(seat.id, seat.owner, seat.address, *published, bound),
                Err(error) => {
                    let why = chain(&error);
                    let warning = format!("{published} is not published: {why}");
                    match job {
                        Some(job) => job.warn(warning),
                        None => tracing::warn!("{warning}"),
                    }
                    self.ctx.ports.failed(seat.id, *published, why);
                }
            }
        }
    }

    /// Ends all that is passed on to the VM.
    pub(super) async fn close_ports(&self) {
        self.ctx.ports.close(&self.id(), |_| true).await;
    }
}
