//! The VMM of a guest that reads the work disk of a VM which does not run.

use super::{Guest, Host, control_of, find_vmm};
use crate::util::blocking;
use crate::vm::machine::{MachineError, Running, Seat};
use banger_image::boot::initramfs::{self, Initramfs};
use banger_image::boot::kernel::{MODULES_FOLDER, VMLINUX_FILE};
use banger_link::link::Link;
use banger_link::monitor::Parts;
use banger_link::token;
use banger_policy::ImageConfig;
use banger_proto::guest::{BootToken, GuestConfig};
use banger_vmm::api::{self, Drive, VmmConfig};
use banger_vmm::{Files, Launch};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Host {
    /// No tap and no root disk: nothing of it is the helper's.
    pub(super) async fn start_reader(&self, seat: Seat, work_disk: PathBuf) -> Result<Arc<dyn Running>, MachineError> {
        super::check_kvm()?;
        let (host, for_files) = (self.clone(), seat.clone());
        let token = blocking(move || host.write_readers_files(&for_files)).await?;
        let cgroup = self.cgroups.vm(seat.owner, &seat.id);
        cgroup.create(&Self::limits(&seat)).map_err(MachineError::Cgroup)?;
        let link = Arc::new(Link::new(seat.paths.vsock(), token.clone()));
        let control = control_of(&seat, cgroup.clone(), token)?;
        let vmlinux = self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE);
        let launch = Launch {
            binary: find_vmm(self.firecracker.as_deref())?,
            id: seat.id.short(),
            api_socket: seat.paths.api_socket(),
            console: seat.paths.console(),
            cgroup,
            files: Files {
                read: vec![vmlinux.clone(), seat.paths.initramfs(), work_disk.clone()],
                write: vec![seat.paths.metrics()],
            },
            stand_in: self.stand_in.clone(),
            launcher: Launch::self_exe(),
        };
        let vmm = banger_vmm::launch(&launch).await.map_err(MachineError::Vmm)?;
        let config = VmmConfig {
            vcpu_count: seat.spec.vcpu_count,
            mem_size_mib: seat.spec.memory_mib,
            kernel: vmlinux.clone(),
            initrd: seat.paths.initramfs(),
            boot_args: banger_image::boot::KERNEL_ARGS.to_owned(),
            drives: vec![Drive { id: "work".to_owned(), path: work_disk, read_only: true }],
            network: None,
            vsock_cid: seat.index.cid(),
            vsock_path: seat.paths.vsock(),
            metrics_path: Some(seat.paths.metrics()),
        };
        let started = api::configure_and_start(&seat.paths.api_socket(), &config).await;
        started.map_err(MachineError::Vmm)?;
        let parts = Parts { vmm: Arc::new(vmm), control: Arc::new(control), console: seat.paths.console() };
        Ok(Arc::new(Guest { parts, link, vmlinux, modules: None }))
    }

    /// All in the folder of its sockets, which goes with it, or as a whole after a crash.
    fn write_readers_files(&self, seat: &Seat) -> Result<BootToken, MachineError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&seat.paths.dir);
        made.map_err(MachineError::Folder)?;
        let token = token::renew(&seat.paths.boot_token()).map_err(MachineError::Token)?;
        let config = GuestConfig {
            hostname: seat.hostname.clone(),
            address: seat.address,
            gateway: self.network.gateway(),
            dns: self.dns,
            authorized_keys: Vec::new(),
            host_key: self.host_key(seat)?.private_pem().map_err(MachineError::HostKey)?,
            control_port: seat.index.control_port(),
            token: token.clone(),
            root_device: String::new(),
            work_device: Some("/dev/vda".to_owned()),
            modules_device: None,
            reads: true,
            image: ImageConfig::default(),
        };
        let modules = self.paths.kernel_dir(&seat.kernel).join(MODULES_FOLDER);
        let parts = Initramfs { init: &self.paths.guest_binary, modules: Some(&modules), config: &config };
        let written = initramfs::write(&seat.paths.initramfs(), &parts);
        written.map_err(MachineError::Initramfs)?;
        create_for_the_vmm(&seat.paths.metrics()).map_err(MachineError::Metrics)?;
        Ok(token)
    }
}

/// A VMM is allowed what exists when it starts.
fn create_for_the_vmm(path: &Path) -> std::io::Result<()> {
    std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map(drop)
}
