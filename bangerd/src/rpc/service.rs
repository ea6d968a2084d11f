//! The calls. Each checks who asks, looks something up, and either answers or leaves an order and
//! answers with its job. A call that is dropped at any point changes nothing about what was
//! ordered.

use super::Daemon;
use crate::rpc::caller::Caller;
use crate::rpc::ticket::Promise;
use crate::store::page;
use crate::vm::Ask;
use banger_policy::limits::{MAX_STOP_SECONDS, MIN_STOP_SECONDS};
use banger_policy::{Peer, VmId};
use banger_proto::daemon::{KillSignal, MAX_WATCH_MS, OpenStream, SshAccess};
use banger_proto::model::{
    ApiError, Check, CreateRequest, DaemonInfo, ErrorCode, ImageRecord, JobId, JobPage, JobView, KernelRecord, Leaks,
    LinkRequest, PublishRequest, QuotaPage, RefusedList, SetRequest, StoreKey, StorePage, VmPage, VmRecord, Workspace,
};
use banger_proto::stream::StreamRequest;
use std::sync::Arc;
use std::time::Duration;
use tarpc::context::Context;

/// Jobs of one page.
const JOBS: usize = 32;

/// One connection's service.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) caller: Arc<Caller>,
    pub(super) daemon: Arc<Daemon>,
}

impl Service {
    /// Who calls, for the price of a call: before anything is done for it.
    async fn pay(&self) -> Result<Peer, ApiError> {
        if self.daemon.calls.take(self.caller.counted) {
            Ok(self.caller.now().await)
        } else {
            Err(super::rate::refuse())
        }
    }
}

impl banger_proto::daemon::Daemon for Service {
    async fn info(self, _: Context) -> Result<DaemonInfo, ApiError> {
        self.pay().await?;
        Ok(self.daemon.info().await)
    }

    async fn doctor(self, _: Context) -> Result<Vec<Check>, ApiError> {
        self.pay().await?;
        Ok(self.daemon.doctor.checks(&self.daemon.vms.ctx).await)
    }

    async fn leaks(self, _: Context, fix: bool) -> Result<Leaks, ApiError> {
        let peer = self.pay().await?;
        let leaks = self.daemon.vms.leaks(&peer, fix).await;
        // A call that is refused empties no cache: it would cost nothing to ask again and again.
        if fix && leaks.is_ok() {
            self.daemon.doctor.forget().await;
        }
        Ok(leaks?)
    }

    async fn list_vms(self, _: Context, all: bool, after: Option<VmId>) -> Result<VmPage, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.list(&peer, all, after).await?)
    }

    async fn show_vm(self, _: Context, vm: String) -> Result<VmRecord, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.show(&peer, &vm).await?)
    }

    async fn refused(self, _: Context, vm: String) -> Result<RefusedList, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.refused(&peer, &vm).await?)
    }

    async fn create_vm(self, _: Context, request: CreateRequest, keep_on_error: bool) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.create(&peer, request, keep_on_error).await?)
    }

    async fn start_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.order(&peer, &vm, Ask::Start).await?)
    }

    async fn stop_vm(self, _: Context, vm: String, within: Option<u32>, host_down: bool) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        if let Some(seconds) = within
            && !(MIN_STOP_SECONDS..=MAX_STOP_SECONDS).contains(&seconds)
        {
            let message =
                format!("a guest may have {MIN_STOP_SECONDS} to {MAX_STOP_SECONDS} s to shut down, not {seconds}");
            return Err(ApiError::new(ErrorCode::BadRequest, message).hint("vm kill does not wait."));
        }
        if host_down && !peer.admin {
            let message = "only root and the group banger-admin say that the host goes down";
            return Err(ApiError::new(ErrorCode::Denied, message));
        }
        let within = within.map(|seconds| Duration::from_secs(seconds.into()));
        Ok(self.daemon.vms.order(&peer, &vm, if host_down { Ask::HostDown } else { Ask::Stop { within } }).await?)
    }

    async fn restart_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.order(&peer, &vm, Ask::Restart).await?)
    }

    async fn set_vm(self, _: Context, vm: String, request: SetRequest) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.order(&peer, &vm, Ask::Set(request)).await?)
    }

    async fn kill_vm(self, _: Context, vm: String, signal: KillSignal) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.order(&peer, &vm, Ask::Kill(signal)).await?)
    }

    async fn give_vm(self, _: Context, vm: String, user: String) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.give(&peer, &vm, user).await?)
    }

    async fn delete_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.order(&peer, &vm, Ask::Delete).await?)
    }

    async fn prune_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.prune(&peer, &vm).await?)
    }

    async fn ssh_access(self, _: Context, vm: String, public_key: String) -> Result<SshAccess, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.ssh_access(&peer, &vm, &public_key).await?)
    }

    async fn open_stream(self, _: Context, request: StreamRequest) -> Result<OpenStream, ApiError> {
        let peer = self.pay().await?;
        // Before anything that changes something: a session's look counts as one.
        self.daemon.tickets.room(peer.uid)?;
        let work = super::streams::check(&self.daemon, &peer, request).await?;
        let job = work.job().map(crate::jobs::Job::id);
        let ticket = self.daemon.tickets.issue(Promise { peer: peer.clone(), work })?;
        Ok(OpenStream { ticket, job })
    }

    async fn list_images(
        self,
        _: Context,
        all: bool,
        after: Option<StoreKey>,
    ) -> Result<StorePage<ImageRecord>, ApiError> {
        let peer = self.pay().await?;
        Ok(page::of(self.daemon.store.list::<ImageRecord>(&peer, all).await?, after.as_ref()))
    }

    async fn show_image(self, _: Context, image: String) -> Result<ImageRecord, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.show(&peer, &image).await?)
    }

    async fn link_image(self, _: Context, request: LinkRequest) -> Result<Option<ImageRecord>, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.link_image(&peer, request).await?)
    }

    async fn promote_image(self, _: Context, image: String) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.promote(&peer, &image).await?)
    }

    async fn share_image(self, _: Context, image: String, shared: bool) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.share::<ImageRecord>(&peer, &image, shared).await?)
    }

    async fn delete_image(self, _: Context, image: String) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.delete::<ImageRecord>(&peer, image).await?)
    }

    async fn list_kernels(
        self,
        _: Context,
        all: bool,
        after: Option<StoreKey>,
    ) -> Result<StorePage<KernelRecord>, ApiError> {
        let peer = self.pay().await?;
        Ok(page::of(self.daemon.store.list::<KernelRecord>(&peer, all).await?, after.as_ref()))
    }

    async fn share_kernel(self, _: Context, kernel: String, shared: bool) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.share::<KernelRecord>(&peer, &kernel, shared).await?)
    }

    async fn delete_kernel(self, _: Context, kernel: String) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.delete::<KernelRecord>(&peer, kernel).await?)
    }

    async fn pick_kernel(self, _: Context, kernel: Option<String>) -> Result<KernelRecord, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.store.pick_kernel(&peer, kernel.as_deref()).await?)
    }

    async fn list_jobs(self, _: Context, before: Option<JobId>) -> Result<JobPage, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.ctx.jobs.list(&peer, before, JOBS))
    }

    async fn watch_job(self, _: Context, job: JobId, after_seq: u64) -> Result<JobView, ApiError> {
        let peer = self.pay().await?;
        let limit = Duration::from_millis(MAX_WATCH_MS.into());
        Ok(self.daemon.vms.ctx.jobs.watch(&peer, job, after_seq, limit).await?)
    }

    async fn cancel_job(self, _: Context, job: JobId) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.ctx.jobs.cancel(&peer, job)?)
    }

    async fn set_workspace(self, _: Context, vm: String, workspace: Option<Workspace>) -> Result<(), ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.set_workspace(&peer, &vm, workspace).await?)
    }

    async fn quotas(self, _: Context, all: bool, after: Option<(u32, String)>) -> Result<QuotaPage, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.quotas(&peer, all, after).await?)
    }

    async fn publish_ports(self, _: Context, vm: String, request: PublishRequest) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.publish(&peer, &vm, request).await?)
    }

    async fn unpublish_ports(self, _: Context, vm: String, ports: Vec<String>) -> Result<JobId, ApiError> {
        let peer = self.pay().await?;
        Ok(self.daemon.vms.unpublish(&peer, &vm, &ports).await?)
    }
}
