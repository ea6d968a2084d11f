//! The VMM of a guest that reads the work disk of a VM which does not run.

use super::Host;
use super::guest::Guest;
use crate::util::blocking;
use crate::vm::machine::{MachineError, Running, Seat};
use banger_link::token;
use banger_proto::guest::{BootToken, GuestConfig};
use banger_vmm::Files;
use banger_vmm::api::{self, Drive, VmmConfig};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

impl Host {
    /// No tap and no root disk: nothing of it is the helper's.
    pub(super) async fn start_reader(&self, seat: Seat, work_disk: PathBuf) -> Result<Arc<dyn Running>, MachineError> {
        super::check_kvm()?;
        let (host, for_files) = (self.clone(), seat.clone());
        let token = blocking(move || host.write_readers_files(&for_files)).await?;
        let vmlinux = self.vmlinux(&seat);
        let files = Files {
            read: vec![vmlinux.clone(), seat.paths.initramfs(), work_disk.clone()],
            write: vec![seat.paths.metrics()],
        };
        let (parts, link) = self.vmm(&seat, token, files).await?;
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
        Ok(Arc::new(Guest { parts, link, vmlinux, modules: None }))
    }

    /// Files and sockets in folders of its own, as a VM has them: a kernel of the user's may bring
    /// a large initramfs, and `/run` is memory that all programs of the host share.
    fn write_readers_files(&self, seat: &Seat) -> Result<BootToken, MachineError> {
        for folder in [&seat.paths.dir, &seat.paths.runtime] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(MachineError::Folder)?;
        }
        let token = token::renew(&seat.paths.boot_token()).map_err(MachineError::Token)?;
        let config = GuestConfig {
            work_device: Some("/dev/vda".to_owned()),
            reads: true,
            // Where a path begins that is not absolute.
            image: seat.image_config.clone(),
            ..self.config_without_disks(seat, &token)?
        };
        self.write_for_boot(seat, &config)?;
        Ok(token)
    }
}
