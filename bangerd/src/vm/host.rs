//! The machine for real: Firecracker in the cgroup of the VM, the control channel, the link inside.

mod files;
mod guest;
mod reader;
mod work_disk;

use super::machine::{BootDevices, Machine, MachineError, Running, Seat};
use crate::args::Args;
use crate::config::Live;
use crate::convert::Converter;
use crate::handles::Handles;
use crate::jobs::Cancelled;
use crate::paths::Paths;
use crate::turns::Turns;
use crate::util::blocking;
use banger_image::ROOTFS_FILE;
use banger_link::control::Control;
use banger_link::keys::KeyPair;
use banger_link::link::Link;
use banger_link::monitor::Parts;
use banger_link::token;
use banger_policy::VmId;
use banger_policy::shares::Share;
use banger_proto::guest::BootToken;
use banger_vmm::cgroup::{Cgroups, Limits, OutOfMemory, Usage, VmCgroup};
use banger_vmm::console;
use banger_vmm::{Files, Launch, StandIn, Vmm, confine};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use guest::Guest;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where a VMM is looked for when nobody says where it is.
const VMM_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec/banger"];
/// What a VMM may take beyond its guest's memory, MiB: its own, page tables, and the page cache of
/// its disks.
const MEMORY_OVERHEAD_MIB: u64 = 256;
/// Firecracker has a thread per vCPU and a handful beside; a fork bomb has more.
const MAX_TASKS: u64 = 256;
const CPU_WEIGHT: u64 = 100;
/// Work disks that are made at once on the host, each by a process that may take a gigabyte.
const WORK_DISKS: usize = 2;

/// The host, as far as VMs need it.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    paths: Paths,
    config: Live,
    /// Wins over the configured one.
    firecracker: Option<PathBuf>,
    stand_in: Option<StandIn>,
    cgroups: Cgroups,
    work_disks: Arc<Turns>,
    converter: Converter,
}

impl Host {
    pub(crate) fn new(args: &Args, config: Live, cgroups: Cgroups, converter: Converter) -> Self {
        Self {
            paths: args.paths.clone(),
            config,
            firecracker: args.firecracker.clone(),
            stand_in: StandIn::from_variable(std::env::var_os(confine::STAND_IN)),
            cgroups,
            work_disks: Turns::new(WORK_DISKS, 1),
            converter,
        }
    }

    fn vmm_binary(&self) -> Result<PathBuf, MachineError> {
        find_vmm(self.firecracker.as_deref().or(self.config.now().firecracker_bin.as_deref()))
    }

    fn host_key(&self, seat: &Seat) -> Result<KeyPair, MachineError> {
        let path = seat.paths.dir.join("host_key");
        KeyPair::load_or_create(&path, &seat.hostname).map_err(MachineError::HostKey)
    }

    fn limits(seat: &Seat) -> Limits {
        let mib = u64::from(seat.spec.memory_mib);
        Limits { memory_bytes: (mib + mib / 16 + MEMORY_OVERHEAD_MIB) << 20, pids: MAX_TASKS, cpu_weight: CPU_WEIGHT }
    }

    async fn start_vmm(
        &self,
        seat: Seat,
        devices: BootDevices,
        user_keys: Vec<String>,
    ) -> Result<Arc<dyn Running>, MachineError> {
        let host = self.clone();
        let for_files = seat.clone();
        let token = blocking(move || host.write_files(&for_files, user_keys)).await?;
        let (parts, link) = self.vmm(&seat, token, self.files(&seat, &devices)).await?;
        Ok(Arc::new(Guest { parts, link, vmlinux: self.vmlinux(&seat), modules: self.modules_disk(&seat) }))
    }

    /// The control channel, and the VMM in its cgroup; it waits for its orders.
    async fn vmm(&self, seat: &Seat, token: BootToken, files: Files) -> Result<(Parts, Arc<Link>), MachineError> {
        let cgroup = self.cgroups.vm(seat.owner, &seat.id);
        cgroup.create(&Self::limits(seat)).map_err(MachineError::Cgroup)?;
        let link = Arc::new(Link::new(seat.paths.vsock(), token.clone()));
        let control = control_of(seat, cgroup.clone(), token)?;
        let launch = Launch {
            binary: self.vmm_binary()?,
            id: seat.id.short(),
            api_socket: seat.paths.api_socket(),
            console: seat.paths.console(),
            cgroup,
            files,
            stand_in: self.stand_in.clone(),
            launcher: Launch::self_exe(),
        };
        let vmm = banger_vmm::launch(&launch).await.map_err(MachineError::Vmm)?;
        let parts = Parts { vmm: Arc::new(vmm), control: Arc::new(control), console: seat.paths.console() };
        Ok((parts, link))
    }

    async fn find_vmm_of(&self, seat: Seat, saved: Handles) -> Result<Option<Arc<dyn Running>>, MachineError> {
        let cgroup = self.cgroups.vm(seat.owner, &seat.id);
        let found = Vmm::adopt(cgroup.clone(), &seat.paths.api_socket(), saved.pid).await;
        let Some(vmm) = found.map_err(MachineError::Find)? else { return Ok(None) };
        let token = token::load(&seat.paths.boot_token()).map_err(MachineError::Token)?;
        let link = Arc::new(Link::new(seat.paths.vsock(), token.clone()));
        let control = control_of(&seat, cgroup, token)?;
        Ok(Some(Arc::new(Guest {
            parts: Parts { vmm: Arc::new(vmm), control: Arc::new(control), console: seat.paths.console() },
            link,
            vmlinux: self.vmlinux(&seat),
            modules: self.modules_disk(&seat),
        })))
    }

    async fn end_processes(&self, seat: Seat, saved: Handles) -> Result<(), MachineError> {
        let cgroup = self.cgroups.vm(seat.owner, &seat.id);
        if cgroup.path().is_none() {
            // Without groups a process of an earlier daemon has to be found before it can be ended.
            drop(Vmm::adopt(cgroup.clone(), &seat.paths.api_socket(), saved.pid).await);
        }
        cgroup.kill().await.map_err(MachineError::End)?;
        cgroup.remove().map_err(MachineError::Cgroup)
    }

    fn check(&self, seat: &Seat) -> Result<(), MachineError> {
        check_kvm()?;
        self.vmm_binary()?;
        if !self.paths.guest_binary.is_file() {
            return Err(MachineError::NoGuestBinary(self.paths.guest_binary.clone()));
        }
        let kernel = self.vmlinux(seat);
        if !kernel.is_file() {
            return Err(MachineError::NoKernel(kernel));
        }
        let rootfs = self.paths.image_dir(&seat.image).join(ROOTFS_FILE);
        if !rootfs.is_file() {
            return Err(MachineError::NoImage(rootfs));
        }
        Ok(())
    }
}

/// Can the daemon use KVM?
pub(crate) fn check_kvm() -> Result<(), MachineError> {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").map(drop).map_err(MachineError::NoKvm)
}

/// The VMM's binary: the one that was named, else the first in the fixed folders.
pub(crate) fn find_vmm(named: Option<&Path>) -> Result<PathBuf, MachineError> {
    let is_program =
        |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    match named {
        Some(named) if is_program(named) => Ok(named.to_owned()),
        Some(named) => Err(MachineError::NotAProgram(named.to_owned())),
        None => {
            let found = VMM_FOLDERS.iter().map(|folder| Path::new(folder).join("firecracker")).find(|p| is_program(p));
            found.ok_or_else(|| MachineError::NoVmm(VMM_FOLDERS.join(", ")))
        }
    }
}

/// The channel logs as the VM for as long as that runs, and not as the job that has started it.
fn control_of(seat: &Seat, cgroup: VmCgroup, token: BootToken) -> Result<Control, MachineError> {
    let span = tracing::info_span!(parent: None, "guest", banger_vm = %seat.id, banger_uid = seat.owner);
    let listening = span.in_scope(|| Control::listen(&seat.paths.vsock(), seat.index.control_port(), cgroup, token));
    listening.map_err(MachineError::Control)
}

impl Machine for Host {
    fn preflight(&self, seat: &Seat) -> BoxFuture<'_, Result<(), MachineError>> {
        let (host, seat) = (self.clone(), seat.clone());
        blocking(move || host.check(&seat)).boxed()
    }

    fn work_disk<'a>(
        &'a self,
        seat: &Seat,
        cancelled: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<(), MachineError>> {
        let (host, seat) = (self.clone(), seat.clone());
        async move {
            let _turn = tokio::select! {
                () = cancelled.cancelled() => return Err(Cancelled.into()),
                turn = host.work_disks.take(seat.owner) => turn,
            };
            let (work, cancelled) = (host.clone(), cancelled.clone());
            blocking(move || work.make_work_disk(&seat, cancelled)).await
        }
        .boxed()
    }

    fn launch(
        &self,
        seat: &Seat,
        devices: &BootDevices,
        user_keys: Vec<String>,
    ) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        self.start_vmm(seat.clone(), devices.clone(), user_keys).boxed()
    }

    fn read(&self, seat: &Seat, work_disk: PathBuf) -> BoxFuture<'_, Result<Arc<dyn Running>, MachineError>> {
        self.start_reader(seat.clone(), work_disk).boxed()
    }

    fn adopt(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<Option<Arc<dyn Running>>, MachineError>> {
        self.find_vmm_of(seat.clone(), saved.clone()).boxed()
    }

    fn kill(&self, seat: &Seat, saved: &Handles) -> BoxFuture<'_, Result<(), MachineError>> {
        self.end_processes(seat.clone(), saved.clone()).boxed()
    }

    fn populated(&self, owner: u32, vm: &VmId) -> bool {
        self.cgroups.vm(owner, vm).populated().unwrap_or(true)
    }

    fn groups(&self) -> Vec<(u32, VmId)> {
        self.cgroups.all()
    }

    fn end_group(&self, owner: u32, vm: &VmId) -> BoxFuture<'_, Result<(), MachineError>> {
        let group = self.cgroups.vm(owner, vm);
        async move {
            let ended = group.kill().await.and_then(|()| group.remove());
            ended.map_err(MachineError::Cgroup)
        }
        .boxed()
    }

    fn delegated(&self) -> bool {
        self.cgroups.delegated()
    }

    fn usage(&self, owner: u32, vm: &VmId) -> Option<Usage> {
        self.cgroups.vm(owner, vm).usage().ok()
    }

    fn share(&self, owner: u32, share: Share) -> Result<(), MachineError> {
        self.cgroups.share(owner, share).map_err(MachineError::Share)
    }

    fn owners(&self) -> Vec<u32> {
        self.cgroups.owners()
    }

    fn out_of_memory(&self, owner: u32, vm: &VmId) -> Option<OutOfMemory> {
        self.cgroups.vm(owner, vm).out_of_memory()
    }

    fn console_tail(&self, seat: &Seat, lines: usize) -> Vec<String> {
        console::tail(&seat.paths.console(), lines).unwrap_or_default()
    }

    fn host_key(&self, seat: &Seat) -> Result<String, MachineError> {
        Host::host_key(self, seat).map(|pair| pair.public_line().to_owned())
    }
}
