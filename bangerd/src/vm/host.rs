//! The machine for real: Firecracker in the VM's cgroup, the control channel, the SSH client.

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
use banger_image::boot::initramfs::{self, Initramfs};
use banger_image::boot::kernel::{MODULES_DISK, MODULES_FOLDER, VMLINUX_FILE};
use banger_link::control::Control;
use banger_link::keys::KeyPair;
use banger_link::link::Link;
use banger_link::monitor::{self, Parts};
use banger_link::token;
use banger_policy::VmId;
use banger_policy::shares::Share;
use banger_proto::daemon::KillSignal;
use banger_proto::guest::{BootToken, GuestConfig};
use banger_vmm::api::{self, Drive, Interface, VmmConfig};
use banger_vmm::cgroup::{Cgroups, Limits, OutOfMemory, Usage, VmCgroup};
use banger_vmm::console;
use banger_vmm::{Files, Launch, StandIn, Vmm, confine};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::process::Signal;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where a VMM is looked for when nobody says where it is.
const VMM_FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/lib/banger"];
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
            work_disks: Turns::new(WORK_DISKS),
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

    fn write_files(&self, seat: &Seat, user_keys: Vec<String>) -> Result<BootToken, MachineError> {
        let token = token::renew(&seat.paths.boot_token()).map_err(MachineError::Token)?;
        crate::fail::point("boot files", "token");
        let host_key = self.host_key(seat)?.private_pem().map_err(MachineError::HostKey)?;
        let host = self.config.now();
        let config = GuestConfig {
            hostname: seat.hostname.clone(),
            address: seat.address,
            gateway: host.network.gateway(),
            dns: host.default_dns,
            authorized_keys: user_keys,
            host_key,
            control_port: seat.index.control_port(),
            token: token.clone(),
            root_device: "/dev/vda".to_owned(),
            work_device: Some("/dev/vdb".to_owned()),
            modules_device: self.modules_disk(seat).map(|_| "/dev/vdc".to_owned()),
            reads: false,
            image: seat.image_config.clone(),
        };
        self.write_for_boot(seat, &config)?;
        Ok(token)
    }

    /// What every VMM needs of files beside its disks.
    fn write_for_boot(&self, seat: &Seat, config: &GuestConfig) -> Result<(), MachineError> {
        let modules = self.paths.kernel_dir(&seat.kernel).join(MODULES_FOLDER);
        let parts = Initramfs { init: &self.paths.guest_binary, modules: Some(&modules), config };
        initramfs::write(&seat.paths.initramfs(), &parts).map_err(MachineError::Initramfs)?;
        crate::fail::point("boot files", "initramfs");
        // A VMM is allowed what exists when it starts.
        let metrics =
            std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(seat.paths.metrics());
        metrics.map(drop).map_err(MachineError::Metrics)?;
        crate::fail::point("boot files", "metrics");
        Ok(())
    }

    /// All modules of the VM's kernel; none for a kernel that has everything built in, or was
    /// imported without them.
    fn modules_disk(&self, seat: &Seat) -> Option<PathBuf> {
        Some(self.paths.kernel_dir(&seat.kernel).join(MODULES_DISK)).filter(|path| path.exists())
    }

    /// All that the VMM of this VM may open.
    fn files(&self, seat: &Seat, devices: &BootDevices) -> Files {
        let kernel = self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE);
        Files {
            read: [kernel, seat.paths.initramfs()].into_iter().chain(self.modules_disk(seat)).collect(),
            write: vec![PathBuf::from(&devices.root), seat.paths.work_disk(), seat.paths.metrics()],
        }
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
        Ok(Arc::new(Guest {
            parts,
            link,
            vmlinux: self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE),
            modules: self.modules_disk(&seat),
        }))
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
            vmlinux: self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE),
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
        let kernel = self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE);
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

/// A VMM that lives.
#[derive(Debug)]
struct Guest {
    parts: Parts,
    link: Arc<Link>,
    vmlinux: PathBuf,
    modules: Option<PathBuf>,
}

impl Guest {
    async fn start(&self, seat: Seat, devices: BootDevices) -> Result<(), MachineError> {
        let drive = |id: &str, path: PathBuf| Drive { id: id.to_owned(), path, read_only: false };
        let modules = self.modules.clone().map(|path| Drive { read_only: true, ..drive("modules", path) });
        let config = VmmConfig {
            vcpu_count: seat.spec.vcpu_count,
            mem_size_mib: seat.spec.memory_mib,
            kernel: self.vmlinux.clone(),
            initrd: seat.paths.initramfs(),
            boot_args: banger_image::boot::KERNEL_ARGS.to_owned(),
            drives: [drive("root", devices.root.into()), drive("work", seat.paths.work_disk())]
                .into_iter()
                .chain(modules)
                .collect(),
            network: Some(Interface { tap: devices.tap, mac: seat.index.mac(seat.address) }),
            vsock_cid: seat.index.cid(),
            vsock_path: seat.paths.vsock(),
            metrics_path: Some(seat.paths.metrics()),
        };
        let started = api::configure_and_start(&seat.paths.api_socket(), &config).await;
        started.map_err(MachineError::Vmm)
    }

    async fn wait_ready(&self, limit: Duration) -> Result<(), MachineError> {
        let info = monitor::ready(&self.parts, limit).await?;
        tracing::info!(boot_id = info.boot_id, "guest ready");
        crate::fail::point("guest", "ready");
        Ok(())
    }
}

impl Running for Guest {
    fn pid(&self) -> u32 {
        self.parts.vmm.pid()
    }

    fn boot(&self, seat: &Seat, devices: &BootDevices) -> BoxFuture<'_, Result<(), MachineError>> {
        self.start(seat.clone(), devices.clone()).boxed()
    }

    fn ready(&self, limit: Duration) -> BoxFuture<'_, Result<(), MachineError>> {
        self.wait_ready(limit).boxed()
    }

    fn shut_down(&self, limit: Duration) -> BoxFuture<'_, bool> {
        let asked = async move {
            // The same eyes that see a guest end by itself see it end because it was asked to. They
            // open before it is told: an older word on its console is not about this end.
            let watch = monitor::Watch::begin(self.parts.clone()).await;
            let told = self.parts.control.shutdown(limit).await;
            crate::fail::point("guest", "told to shut down");
            // An agent that has announced the guest's end is not there to be told.
            let ends = told || self.parts.control.view().ending.is_some();
            ends && watch.asked(limit).end().await.clean
        };
        async move { tokio::time::timeout(limit, asked).await.unwrap_or(false) }.boxed()
    }

    fn ended(&self) -> BoxFuture<'static, String> {
        let parts = self.parts.clone();
        async move { monitor::watch(parts).await.reason }.boxed()
    }

    fn signal(&self, signal: KillSignal, limit: Duration) -> BoxFuture<'_, bool> {
        let signal = match signal {
            KillSignal::Kill => Signal::KILL,
            KillSignal::Term => Signal::TERM,
            KillSignal::Int => Signal::INT,
        };
        async move {
            if let Err(error) = self.parts.vmm.signal(signal) {
                tracing::warn!("cannot signal the VMM: {error}");
            }
            tokio::time::timeout(limit, self.parts.vmm.ended()).await.is_ok()
        }
        .boxed()
    }

    fn commands(&self) -> Option<u32> {
        let view = self.parts.control.view();
        view.ready.is_some().then_some(view.commands)
    }

    fn link(&self) -> Option<Arc<Link>> {
        Some(Arc::clone(&self.link))
    }
}
