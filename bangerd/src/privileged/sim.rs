//! A helper in memory with the real one's rules, as far as the daemon's tests need them: a ledger
//! that outlives the daemon, claims that must be right in every field, and refusals on order.

use super::{Link, PrivilegedError};
use banger_policy::VmId;
use banger_policy::reach::{Mode, Reach};
use banger_proto::helper::{
    CowRecord, DiskIdentity, HelperError, HelperRequest, HelperResponse, Holding, HoldingPage, ProcessState,
    TapIdentity,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

#[derive(Debug, Default)]
struct State {
    ledger: BTreeMap<VmId, Holding>,
    /// Processes that live, as the simulated machine says.
    alive: HashSet<u32>,
    /// What each guest was last let reach.
    reaches: BTreeMap<VmId, Reach>,
    generation: u64,
    /// Operation that is refused, how, and how often.
    refuse: Option<(&'static str, HelperError, usize)>,
    unreachable: bool,
    /// Nothing is answered for the time being.
    busy: watch::Sender<bool>,
    log: Vec<&'static str>,
}

/// The simulated helper. Clones are the same helper.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimHelper(Arc<Mutex<State>>);

impl SimHelper {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The next `times` requests for `operation` are refused.
    pub(crate) fn refuse(&self, operation: &'static str, how: HelperError, times: usize) {
        self.lock().refuse = Some((operation, how, times));
    }

    pub(crate) fn set_unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    /// From now on nothing is answered; what was asked waits.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.lock().busy.send_replace(busy);
    }

    pub(crate) fn set_alive(&self, pid: u32, alive: bool) {
        let mut state = self.lock();
        if alive {
            state.alive.insert(pid);
        } else {
            state.alive.remove(&pid);
        }
    }

    /// What is held beside COW files: the names of everything that a leak would be.
    pub(crate) fn held(&self) -> Vec<String> {
        let state = self.lock();
        let names = |holding: &Holding| {
            let tap = holding.tap.as_ref().map(|tap| tap.tap_device.clone());
            let disk = holding.disk.as_ref().map(|disk| disk.dm_name.clone());
            let reach = (holding.reach != Mode::None).then(|| format!("{} {}", holding.reach, holding.vm));
            let pid = holding.pid.map(|pid| format!("pid {pid}"));
            [tap, disk, reach, pid].into_iter().flatten().collect::<Vec<_>>()
        };
        state.ledger.values().flat_map(names).collect()
    }

    /// The ledger is in memory, as kernel objects are; COW files and their records outlive the
    /// host.
    pub(crate) fn reboot(&self) {
        let mut state = self.lock();
        state.ledger.retain(|_, holding| holding.cow.is_some());
        for holding in state.ledger.values_mut() {
            *holding =
                Holding { tap: None, disk: None, reach: Mode::None, pid: None, quarantined: false, ..holding.clone() };
        }
    }

    /// What the VM's guest was last let reach.
    pub(crate) fn reach(&self, vm: VmId) -> Reach {
        self.lock().reaches.get(&vm).cloned().unwrap_or_default()
    }

    /// The VM's COW file and its record are gone.
    pub(crate) fn lose_cow(&self, vm: VmId) {
        self.lock().ledger.remove(&vm);
    }

    /// How large the VM's root disk is.
    pub(crate) fn root_bytes(&self, vm: VmId) -> Option<u64> {
        self.lock().ledger.get(&vm).and_then(|holding| holding.cow.as_ref()).map(|cow| cow.root_bytes)
    }

    /// How many COW files there are.
    pub(crate) fn cows(&self) -> usize {
        self.lock().ledger.values().filter(|holding| holding.cow.is_some()).count()
    }

    /// Requests that wait for it while it is busy.
    pub(crate) fn asked(&self) -> usize {
        self.lock().busy.receiver_count()
    }

    /// What was asked since the last look.
    pub(crate) fn take_log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().log)
    }
}

impl Link for SimHelper {
    fn exchange<'a>(
        &'a self,
        request: &'a (dyn Fn() -> HelperRequest + Send + Sync),
        operation: &'static str,
    ) -> BoxFuture<'a, Result<HelperResponse, PrivilegedError>> {
        let mut busy = self.lock().busy.subscribe();
        async move {
            // It ends only with the helper.
            drop(busy.wait_for(|busy| !busy).await);
            self.lock().answer(request(), operation)
        }
        .boxed()
    }
}

fn row(state: &mut State, vm: VmId, owner: u32) -> &mut Holding {
    state.ledger.entry(vm).or_insert_with(|| Holding {
        vm,
        owner,
        tap: None,
        disk: None,
        cow: None,
        reach: Mode::None,
        pid: None,
        quarantined: false,
    })
}

impl State {
    fn answer(&mut self, request: HelperRequest, operation: &'static str) -> Result<HelperResponse, PrivilegedError> {
        use HelperRequest as Q;
        use HelperResponse as A;
        if self.unreachable {
            return Err(PrivilegedError::Unreachable {
                socket: "/sim".into(),
                source: std::io::ErrorKind::ConnectionRefused.into(),
            });
        }
        self.log.push(operation);
        if let Some((wanted, how, left)) = self.refuse.as_mut()
            && *wanted == operation
            && *left > 0
        {
            *left -= 1;
            let refusal = *how;
            return Err(PrivilegedError::Refused { operation, refusal }).or_else(|error| match refusal {
                // These pass: they must reach the caller's own retry.
                HelperError::Busy | HelperError::Rate => Ok(busy(&request, refusal)),
                _ => Err(error),
            });
        }
        Ok(match request {
            Q::AcquireTap { vm, owner, .. } => A::AcquireTap(self.acquire_tap(vm, owner)),
            Q::ReleaseTap { vm, tap } => {
                A::ReleaseTap(self.release_claim(vm, |row| row.tap == Some(tap), |row| row.tap = None))
            }
            Q::CreateDisk { vm, owner, image, root_bytes } => {
                let cow = CowRecord { image, root_bytes, allocated_bytes: root_bytes };
                row(self, vm, owner).cow = Some(cow.clone());
                A::CreateDisk(Ok(cow))
            }
            Q::GrowDisk { vm, owner, root_bytes } => A::GrowDisk(match self.ledger.get_mut(&vm) {
                Some(row) if row.disk.is_some() => Err(HelperError::BadState),
                Some(Holding { cow: Some(cow), owner: whose, .. }) if *whose == owner => {
                    if root_bytes < cow.root_bytes {
                        Err(HelperError::BadArgument)
                    } else {
                        (cow.root_bytes, cow.allocated_bytes) = (root_bytes, root_bytes);
                        Ok(cow.clone())
                    }
                }
                _ => Err(HelperError::NotYours),
            }),
            Q::AttachDisk { vm, owner } => A::AttachDisk(self.attach(vm, owner)),
            Q::GiveDisk { vm, owner } => A::GiveDisk(match self.ledger.get_mut(&vm) {
                Some(row) if row.cow.is_some() && row.disk.is_none() && row.tap.is_none() => {
                    row.owner = owner;
                    Ok(())
                }
                Some(row) if row.cow.is_some() => Err(HelperError::BadState),
                _ => Err(HelperError::NotYours),
            }),
            Q::DetachDisk { vm, disk } => {
                A::DetachDisk(self.release_claim(vm, |row| row.disk == Some(disk), |row| row.disk = None))
            }
            Q::DiscardDisk { vm } => A::DiscardDisk(match self.ledger.get(&vm) {
                None => Err(HelperError::NotYours),
                Some(row) if row.disk.is_some() => Err(HelperError::BadState),
                Some(_) => {
                    self.ledger.remove(&vm);
                    Ok(())
                }
            }),
            Q::SetNetwork { vm, reach } => A::SetNetwork(match self.ledger.get_mut(&vm) {
                Some(row) => {
                    row.reach = reach.mode;
                    self.reaches.insert(vm, reach);
                    Ok(())
                }
                None => Err(HelperError::NotYours),
            }),
            Q::BindProcess { vm, pid } => {
                row(self, vm, 0).pid = Some(pid);
                A::BindProcess(Ok(()))
            }
            Q::ProcessRunning { vm, pid } => {
                let bound = self.ledger.get(&vm).and_then(|row| row.pid);
                A::ProcessRunning(Ok(match bound {
                    Some(bound) if bound != pid => ProcessState::NotYours,
                    Some(_) if self.alive.contains(&pid) => ProcessState::Running,
                    Some(_) => ProcessState::Gone,
                    None => ProcessState::NotYours,
                }))
            }
            Q::Identity { vm } => A::Identity(self.ledger.get(&vm).cloned().ok_or(HelperError::NotYours)),
            Q::List { .. } => {
                A::List(Ok(HoldingPage { holdings: self.ledger.values().cloned().collect(), next: None }))
            }
            Q::Release { vm } => A::Release(self.release(vm)),
        })
    }

    fn acquire_tap(&mut self, vm: VmId, owner: u32) -> Result<TapIdentity, HelperError> {
        let generation = self.generation_of(vm);
        let tap = TapIdentity { tap_device: vm.tap_name(), generation };
        row(self, vm, owner).tap = Some(tap.clone());
        Ok(tap)
    }

    fn attach(&mut self, vm: VmId, owner: u32) -> Result<DiskIdentity, HelperError> {
        if self.ledger.get(&vm).is_none_or(|row| row.cow.is_none() || row.owner != owner) {
            return Err(HelperError::NotYours);
        }
        let generation = self.generation_of(vm);
        let row = row(self, vm, owner);
        let disk = DiskIdentity {
            dm_name: vm.dm_name(),
            dm_dev: "/dev/dm-0".into(),
            base_loop: "/dev/loop0".into(),
            cow_loop: "/dev/loop1".into(),
            generation,
        };
        row.disk = Some(disk.clone());
        Ok(disk)
    }

    /// One number per boot of a VM, as long as it holds anything.
    fn generation_of(&mut self, vm: VmId) -> u64 {
        let row = self.ledger.get(&vm);
        let held = row.and_then(|row| {
            row.tap.as_ref().map(|tap| tap.generation).or_else(|| row.disk.as_ref().map(|disk| disk.generation))
        });
        held.unwrap_or_else(|| {
            self.generation += 1;
            self.generation
        })
    }

    fn may_release(&self, vm: VmId) -> Result<(), HelperError> {
        let pid = self.ledger.get(&vm).and_then(|row| row.pid);
        if pid.is_some_and(|pid| self.alive.contains(&pid)) { Err(HelperError::StillRunning) } else { Ok(()) }
    }

    fn release_claim(
        &mut self,
        vm: VmId,
        is_right: impl FnOnce(&Holding) -> bool,
        release: impl FnOnce(&mut Holding),
    ) -> Result<(), HelperError> {
        self.may_release(vm)?;
        match self.ledger.get_mut(&vm) {
            Some(row) if is_right(row) => {
                release(row);
                Ok(())
            }
            _ => Err(HelperError::NotYours),
        }
    }

    fn release(&mut self, vm: VmId) -> Result<(), HelperError> {
        self.may_release(vm)?;
        if let Some(row) = self.ledger.get_mut(&vm) {
            (row.tap, row.disk, row.reach, row.pid) = (None, None, Mode::None, None);
            if row.cow.is_none() {
                self.ledger.remove(&vm);
            }
        }
        Ok(())
    }
}

fn busy(request: &HelperRequest, how: HelperError) -> HelperResponse {
    match request {
        HelperRequest::DetachDisk { .. } => HelperResponse::DetachDisk(Err(how)),
        HelperRequest::AttachDisk { .. } => HelperResponse::AttachDisk(Err(how)),
        HelperRequest::AcquireTap { .. } => HelperResponse::AcquireTap(Err(how)),
        _ => HelperResponse::Release(Err(how)),
    }
}
