//! Files of a boot: what the guest is told, its initramfs, and what its VMM may open.

use super::Host;
use crate::room;
use crate::vm::machine::{BootDevices, MachineError, Seat};
use banger_image::boot::initramfs::{self, Initramfs};
use banger_image::boot::kernel::{MODULES_DISK, MODULES_FOLDER, VMLINUX_FILE};
use banger_link::token;
use banger_policy::ImageConfig;
use banger_proto::guest::{BootToken, GuestConfig};
use banger_vmm::Files;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// An initramfs with a distribution's modules is smaller, bytes: such a start is what the host's
/// reserve is for. A larger one leaves the reserve alone.
const ORDINARY: u64 = 16 << 20;

impl Host {
    pub(super) fn write_files(&self, seat: &Seat, user_keys: Vec<String>) -> Result<BootToken, MachineError> {
        let token = token::renew(&seat.paths.boot_token()).map_err(MachineError::Token)?;
        crate::fail::point("boot files", "token");
        let config = GuestConfig {
            authorized_keys: user_keys,
            root_device: "/dev/vda".to_owned(),
            work_device: Some("/dev/vdb".to_owned()),
            modules_device: self.modules_disk(seat).map(|_| "/dev/vdc".to_owned()),
            image: seat.image_config.clone(),
            ..self.config_without_disks(seat, &token)?
        };
        self.write_for_boot(seat, &config)?;
        Ok(token)
    }

    /// What any guest is told about itself and its network.
    pub(super) fn config_without_disks(&self, seat: &Seat, token: &BootToken) -> Result<GuestConfig, MachineError> {
        let host = self.config.now();
        Ok(GuestConfig {
            hostname: seat.hostname.clone(),
            address: seat.address,
            gateway: host.network.gateway(),
            dns: host.default_dns,
            authorized_keys: Vec::new(),
            host_key: self.host_key(seat)?.private_pem().map_err(MachineError::HostKey)?,
            control_port: seat.index.control_port(),
            token: token.clone(),
            root_device: String::new(),
            work_device: None,
            modules_device: None,
            reads: false,
            image: ImageConfig::default(),
        })
    }

    /// What every VMM needs of files beside its disks.
    pub(super) fn write_for_boot(&self, seat: &Seat, config: &GuestConfig) -> Result<(), MachineError> {
        let modules = self.paths.kernel_dir(&seat.kernel).join(MODULES_FOLDER);
        let parts = Initramfs { init: &self.paths.guest_binary, modules: Some(&modules), config };
        let size = initramfs::size(&parts)?;
        if size > ORDINARY {
            room::claim("the initramfs", &[(&seat.paths.dir, size)])?;
        }
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
    pub(super) fn modules_disk(&self, seat: &Seat) -> Option<PathBuf> {
        Some(self.paths.kernel_dir(&seat.kernel).join(MODULES_DISK)).filter(|path| path.exists())
    }

    pub(super) fn vmlinux(&self, seat: &Seat) -> PathBuf {
        self.paths.kernel_dir(&seat.kernel).join(VMLINUX_FILE)
    }

    /// All that the VMM of this VM may open.
    pub(super) fn files(&self, seat: &Seat, devices: &BootDevices) -> Files {
        Files {
            read: [self.vmlinux(seat), seat.paths.initramfs()].into_iter().chain(self.modules_disk(seat)).collect(),
            write: vec![PathBuf::from(&devices.root), seat.paths.work_disk(), seat.paths.metrics()],
        }
    }
}
