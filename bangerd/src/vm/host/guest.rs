//! A guest that runs, or boots.

use crate::vm::machine::{BootDevices, MachineError, Running, Seat};
use banger_link::link::{Link, LinkError};
use banger_link::monitor::{self, Parts};
use banger_proto::daemon::KillSignal;
use banger_vmm::api::{self, Drive, Interface, VmmConfig};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A VMM that lives.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) parts: Parts,
    pub(super) link: Arc<Link>,
    pub(super) vmlinux: PathBuf,
    pub(super) modules: Option<PathBuf>,
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

    fn executable(&self) -> Option<PathBuf> {
        Some(format!("/proc/{}/exe", self.pid()).into())
    }

    fn know(&self, network: Vec<String>) -> BoxFuture<'static, Result<(), LinkError>> {
        let link = Arc::clone(&self.link);
        async move { link.set_names(&network).await }.boxed()
    }

    fn link(&self) -> Option<Arc<Link>> {
        Some(Arc::clone(&self.link))
    }
}
