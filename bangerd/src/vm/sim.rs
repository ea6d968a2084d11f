//! A machine in memory: VMMs are numbers that live or do not, and outlive the daemon as real ones
//! do.

use super::machine::{BootDevices, Machine, MachineError, Running, Seat};
use crate::handles::Handles;
use crate::privileged::sim::SimHelper;
use banger_link::control::NotReady;
use banger_link::link::{Link, LinkError};
use banger_policy::VmId;
use banger_policy::shares::Share;
use banger_proto::daemon::KillSignal;
use banger_proto::guest::BootToken;
use banger_vmm::cgroup::{OutOfMemory, Usage};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
struct State {
    processes: HashMap<VmId, (u32, watch::Sender<Option<String>>)>,
    next_pid: u32,
    /// The step that fails.
    fail: Option<&'static str>,
    /// Guests never say that they are ready.
    deaf: bool,
    /// Machines end while they boot.
    short_lived: bool,
    /// What users have of the host.
    shares: HashMap<u32, Share>,
    /// Whom the kernel ended for want of memory.
    out_of_memory: Option<(VmId, OutOfMemory)>,
    /// What guests say that runs in them; nothing is said when it is `None`.
    commands: Option<u32>,
    /// The names that guests were told last.
    known: HashMap<VmId, Vec<String>>,
    /// Of processes whose end nobody was told.
    unseen: Vec<watch::Sender<Option<String>>>,
}

/// The simulated machine. Clones are the same machine.
#[derive(Clone, Debug)]
pub(super) struct SimMachine {
    state: Arc<Mutex<State>>,
    helper: SimHelper,
}

impl SimMachine {
    pub(super) fn new(helper: SimHelper) -> Self {
        Self { state: Arc::new(Mutex::new(State { next_pid: 100, commands: Some(0), ..State::default() })), helper }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fail(&self, step: Option<&'static str>) {
        self.lock().fail = step;
    }

    pub(super) fn set_short_lived(&self) {
        self.lock().short_lived = true;
    }

    pub(super) fn set_deaf(&self, deaf: bool) {
        self.lock().deaf = deaf;
    }

    pub(super) fn share_of(&self, owner: u32) -> Option<Share> {
        self.lock().shares.get(&owner).copied()
    }

    /// The kernel ends it for want of memory, and the daemon does not notice.
    pub(super) fn run_out_of_memory(&self, vm: &VmId, whose: OutOfMemory) {
        self.vanish(vm);
        self.lock().out_of_memory = Some((*vm, whose));
    }

    pub(super) fn set_commands(&self, commands: Option<u32>) {
        self.lock().commands = commands;
    }

    /// The names that a guest was told last.
    pub(super) fn known(&self, vm: &VmId) -> Option<Vec<String>> {
        self.lock().known.get(vm).cloned()
    }

    pub(super) fn forget_known(&self) {
        self.lock().known.clear();
    }

    pub(super) fn processes(&self) -> usize {
        self.lock().processes.len()
    }

    /// The process ends, and whoever watches it learns why.
    pub(super) fn end(&self, vm: &VmId, reason: &str) {
        if let Some((pid, ended)) = self.lock().processes.remove(vm) {
            self.helper.set_alive(pid, false);
            ended.send_replace(Some(reason.to_owned()));
        }
    }

    /// No process outlives the host, and nobody is told.
    pub(super) fn reboot(&self) {
        for (_, (pid, _)) in self.lock().processes.drain() {
            self.helper.set_alive(pid, false);
        }
    }

    /// The process ends, and the daemon does not notice.
    pub(super) fn vanish(&self, vm: &VmId) {
        let mut state = self.lock();
        if let Some((pid, ended)) = state.processes.remove(vm) {
            self.helper.set_alive(pid, false);
            state.unseen.push(ended);
        }
    }

    /// Now whoever watches what has vanished learns why.
    pub(super) fn tell_unseen(&self, reason: &str) {
        for ended in &self.lock().unseen {
            ended.send_replace(Some(reason.to_owned()));
        }
    }

    fn step(&self, step: &'static str) -> Result<(), MachineError> {
        if self.lock().fail == Some(step) {
            return Err(MachineError::Simulated(step));
        }
        Ok(())
    }
}

impl Machine for SimMachine {
    fn preflight(&self, _: &Seat) -> BoxFuture<'_, Result<(), MachineError>> {
        async { self.step("preflight") }.boxed()
    }

    fn work_disk<'a>(&'a self, seat: &Seat, _: &'a CancellationToken) -> BoxFuture<'a, Result<(), MachineError>> {
        let path = seat.paths.work_disk();
        async move {
            self.step("work disk")?;
            std::fs::write(path, "ext4").map_err(MachineError::NameWorkDisk)
        }
        .boxed()
    }

    fn launch(
        &self,
        seat: &Seat,
        _: &BootDevices,
        _: Vec<String>,
    ) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        let (vm, initramfs) = (seat.id, seat.paths.initramfs());
        async move {
            self.step("launch")?;
            std::fs::write(initramfs, "cpio").map_err(MachineError::Folder)?;
            let mut state = self.lock();
            state.next_pid += 1;
            let pid = state.next_pid;
            let (sender, ended) = watch::channel(None);
            state.processes.insert(vm, (pid, sender));
            drop(state);
            self.helper.set_alive(pid, true);
            Ok(Arc::new(SimGuest { machine: self.clone(), vm, pid, ended }) as Arc<dyn Running>)
        }
        .boxed()
    }

    fn read(&self, seat: &Seat, _: PathBuf) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        let (seat, devices) = (seat.clone(), BootDevices { root: String::new(), tap: String::new() });
        async move {
            for folder in [&seat.paths.dir, &seat.paths.runtime] {
                std::fs::create_dir_all(folder).map_err(MachineError::Folder)?;
            }
            Machine::launch(self, &seat, &devices, Vec::new()).await
        }
        .boxed()
    }

    fn adopt(&self, seat: &Seat, _: &Handles) -> BoxFuture<'_, Result<Option<Arc<dyn Running>>, MachineError>> {
        let vm = seat.id;
        async move {
            let found = self.lock().processes.get(&vm).map(|(pid, sender)| (*pid, sender.subscribe()));
            Ok(found
                .map(|(pid, ended)| Arc::new(SimGuest { machine: self.clone(), vm, pid, ended }) as Arc<dyn Running>))
        }
        .boxed()
    }

    fn kill(&self, seat: &Seat, _: &Handles) -> BoxFuture<'_, Result<(), MachineError>> {
        let vm = seat.id;
        async move {
            self.step("kill")?;
            self.end(&vm, "killed");
            Ok(())
        }
        .boxed()
    }

    fn populated(&self, _: u32, vm: &VmId) -> bool {
        self.lock().processes.contains_key(vm)
    }

    fn groups(&self) -> Vec<(u32, VmId)> {
        self.lock().processes.keys().map(|vm| (1001, *vm)).collect()
    }

    fn end_group(&self, _: u32, vm: &VmId) -> BoxFuture<'_, Result<(), MachineError>> {
        let vm = *vm;
        async move {
            self.end(&vm, "killed");
            Ok(())
        }
        .boxed()
    }

    fn delegated(&self) -> bool {
        true
    }

    fn usage(&self, _: u32, vm: &VmId) -> Option<Usage> {
        self.lock().processes.get(vm).map(|_| Usage { memory_bytes: 7 << 20, cpu_usec: 9, ..Usage::default() })
    }

    fn share(&self, owner: u32, share: Share) -> Result<(), MachineError> {
        self.lock().shares.insert(owner, share);
        Ok(())
    }

    fn owners(&self) -> Vec<u32> {
        self.lock().shares.keys().copied().collect()
    }

    fn out_of_memory(&self, _: u32, vm: &VmId) -> Option<OutOfMemory> {
        self.lock().out_of_memory.filter(|(of, _)| of == vm).map(|(_, whose)| whose)
    }

    fn console_tail(&self, _: &Seat, _: usize) -> Vec<String> {
        vec!["Kernel panic - not syncing".to_owned()]
    }

    fn host_key(&self, _: &Seat) -> Result<String, MachineError> {
        Ok("ssh-ed25519 AAAA sim".to_owned())
    }
}

#[derive(Debug)]
struct SimGuest {
    machine: SimMachine,
    vm: VmId,
    pid: u32,
    ended: watch::Receiver<Option<String>>,
}

impl Running for SimGuest {
    fn pid(&self) -> u32 {
        self.pid
    }

    /// Another process may have the number that this one pretends to have.
    fn executable(&self) -> Option<PathBuf> {
        None
    }

    fn boot(&self, _: &Seat, _: &BootDevices) -> BoxFuture<'_, Result<(), MachineError>> {
        async {
            if self.machine.lock().short_lived {
                self.machine.end(&self.vm, "triple fault");
            }
            self.machine.step("boot")
        }
        .boxed()
    }

    fn ready(&self, _: Duration) -> BoxFuture<'_, Result<(), MachineError>> {
        async {
            if self.machine.lock().deaf {
                std::future::pending::<()>().await;
            }
            self.machine.step("guest ready").map_err(|_| NotReady::Failed("as it is told".to_owned()).into())
        }
        .boxed()
    }

    fn shut_down(&self, limit: Duration) -> BoxFuture<'_, bool> {
        async move {
            if self.machine.lock().deaf {
                tokio::time::sleep(limit).await;
                return false;
            }
            self.machine.end(&self.vm, "guest powered off");
            true
        }
        .boxed()
    }

    fn ended(&self) -> BoxFuture<'static, String> {
        let mut ended = self.ended.clone();
        async move {
            let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            reason.unwrap_or_else(|| "the machine is gone".to_owned())
        }
        .boxed()
    }

    fn signal(&self, _: KillSignal, _: Duration) -> BoxFuture<'_, bool> {
        async {
            self.machine.end(&self.vm, "signal");
            true
        }
        .boxed()
    }

    fn commands(&self) -> Option<u32> {
        self.machine.lock().commands
    }

    fn know(&self, network: Vec<String>) -> BoxFuture<'static, Result<(), LinkError>> {
        self.machine.lock().known.insert(self.vm, network);
        futures::future::ready(Ok(())).boxed()
    }

    /// Leads nowhere.
    fn link(&self) -> Option<Arc<Link>> {
        Some(Arc::new(Link::new("/nowhere".into(), BootToken::new([1; 32]))))
    }
}
