//! The calls.

use super::{Fake, State, done, records};
use banger_policy::VmId;
use banger_policy::lifecycle::State as VmState;
use banger_policy::publish::Mapping;
use banger_proto::daemon::{Daemon, KillSignal, OpenStream, SshAccess};
use banger_proto::model::{
    ApiError, Check, CreateRequest, DaemonInfo, ErrorCode, ImageRecord, JobId, JobPage, JobResult, JobState, JobView,
    KernelRecord, Leak, LeakKind, Leaks, LinkRequest, PublishRequest, PublishedPort, Quota, QuotaPage, RefusedList,
    SetRequest, StoreKey, StorePage, VmPage, VmRecord, Workspace,
};
use banger_proto::stream::{StreamRequest, Ticket};
use banger_proto::time::Timestamp;
use std::time::Duration;
use tarpc::context::Context;

/// As the real daemon's pages.
const PAGE: usize = 16;

impl State {
    fn find(&self, name: &str) -> Result<VmRecord, ApiError> {
        let found = self.vms.iter().find(|vm| vm.name.as_str() == name || vm.id.to_string().starts_with(name));
        found.cloned().ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, self.text(&format!("no VM {name}")))
                .hint(self.text("see: banger vm list"))
        })
    }

    fn simple(&mut self, verb: &str, name: &str, end: VmState) -> Result<JobId, ApiError> {
        let vm = self.find(name)?;
        self.calls.push(format!("{verb} {}", vm.name));
        if vm.name.as_str().starts_with("broken") {
            let why = ApiError::new(ErrorCode::GuestNotReady, "the guest did not get ready within 60 s")
                .hint("see its console: banger vm logs broken");
            return Ok(JobId(self.job(verb, JobState::Failed(why))));
        }
        if let Some(known) = self.vms.iter_mut().find(|known| known.id == vm.id) {
            known.state = end;
        }
        Ok(JobId(self.job(verb, done(&vm))))
    }
}

impl Daemon for Fake {
    async fn info(self, _: Context) -> Result<DaemonInfo, ApiError> {
        let state = self.state();
        Ok(DaemonInfo {
            version: state.text("0.1.0"),
            protocol: 1,
            started_at: Timestamp::from_unix(1_763_632_800),
            vmm_version: state.text("Firecracker v1.16.0"),
            vmm_sha256: "5e".repeat(32),
        })
    }

    async fn doctor(self, _: Context) -> Result<Vec<Check>, ApiError> {
        let state = self.state();
        let detail = state.text("there is no /dev/kvm");
        Ok(vec![Check::fail(&state.text("kvm"), detail, state.text("switch virtualisation on in the firmware"))])
    }

    async fn leaks(self, _: Context, fix: bool) -> Result<Leaks, ApiError> {
        let state = self.state();
        let leak = |kind, name: &str, detail: &str, fixed| Leak {
            kind,
            name: state.text(name),
            detail: state.text(detail),
            fixed,
        };
        let leaks = vec![
            leak(LeakKind::Holding, &"5a".repeat(32), "tap bgr-5a5a5a5a5a5, disk /dev/dm-0", fix.then_some(true)),
            leak(LeakKind::Folder, "/run/bangerd/vm/5a5a", "sockets of a VM", fix.then_some(false)),
        ];
        Ok(Leaks { leaks, more: 3 })
    }

    async fn list_vms(self, _: Context, all: bool, after: Option<VmId>) -> Result<VmPage, ApiError> {
        let mut state = self.state();
        state.calls.push(format!("list {all}"));
        let mut vms = state.vms.clone();
        vms.sort_by_key(|vm| vm.id);
        vms.retain(|vm| after.is_none_or(|after| vm.id > after));
        let more = vms.len() > PAGE;
        vms.truncate(PAGE);
        let next = vms.last().map(|vm| vm.id).filter(|_| more);
        Ok(VmPage { vms, next })
    }

    async fn show_vm(self, _: Context, vm: String) -> Result<VmRecord, ApiError> {
        self.state().find(&vm)
    }

    async fn create_vm(self, _: Context, request: CreateRequest, keep_on_error: bool) -> Result<JobId, ApiError> {
        let mut state = self.state();
        let name = request.name.unwrap_or_else(|| "brave-otter".into());
        state.calls.push(format!("create {name} no_start={} keep={keep_on_error}", request.no_start));
        if state.slow {
            return Ok(JobId(state.job("create", JobState::Running)));
        }
        let mut vm = records::vm(&name, if request.no_start { VmState::Created } else { VmState::Running });
        vm.owner = state.owner.unwrap_or_else(|| nix::unistd::getuid().as_raw());
        state.vms.push(vm.clone());
        Ok(JobId(state.job("create", done(&vm))))
    }

    async fn start_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        if self.state().slow {
            return Ok(JobId(self.state().job("start", JobState::Running)));
        }
        self.state().simple("start", &vm, VmState::Running)
    }

    async fn stop_vm(self, _: Context, vm: String, within: Option<u32>, _: bool) -> Result<JobId, ApiError> {
        if let Some(seconds) = within {
            self.state().calls.push(format!("within {seconds} s"));
        }
        self.state().simple("stop", &vm, VmState::Stopped)
    }

    async fn restart_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        self.state().simple("restart", &vm, VmState::Running)
    }

    async fn set_vm(self, _: Context, vm: String, request: SetRequest) -> Result<JobId, ApiError> {
        let state = self.state().find(&vm)?.state;
        self.state().simple(&format!("set {request:?}"), &vm, state)
    }

    async fn kill_vm(self, _: Context, vm: String, signal: KillSignal) -> Result<JobId, ApiError> {
        self.state().simple(&format!("kill {signal:?}"), &vm, VmState::Stopped)
    }

    async fn delete_vm(self, _: Context, vm: String) -> Result<JobId, ApiError> {
        let mut state = self.state();
        let found = state.find(&vm)?;
        state.calls.push(format!("delete {}", found.name));
        if state.slow {
            return Ok(JobId(state.job("delete", JobState::Running)));
        }
        state.vms.retain(|known| known.id != found.id);
        Ok(JobId(state.job("delete", JobState::Done(JobResult::Text("deleted".into())))))
    }

    /// Those whose names begin with `starting` are being started.
    async fn prune_vm(self, context: Context, vm: String) -> Result<JobId, ApiError> {
        let found = self.state().find(&vm)?;
        if found.state == VmState::Running || found.name.as_str().starts_with("starting") {
            return Err(ApiError::new(ErrorCode::AlreadyRunning, format!("{} runs, or is about to", found.name)));
        }
        self.delete_vm(context, vm).await
    }

    async fn ssh_access(self, _: Context, vm: String, public_key: String) -> Result<SshAccess, ApiError> {
        let mut state = self.state();
        let vm = state.find(&vm)?;
        state.calls.push(format!("ssh {}", public_key.split(' ').next().unwrap_or_default()));
        let mut host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA".to_owned();
        if let Some((config, public, _)) = &mut state.agent {
            config.authorized_keys.push(public_key);
            host_key.clone_from(public);
        }
        Ok(SshAccess { vm: vm.id, host_key })
    }

    async fn open_stream(self, _: Context, request: StreamRequest) -> Result<OpenStream, ApiError> {
        if let StreamRequest::ImportKernel { name: Some(name), .. } = &request
            && name == "taken"
        {
            let why = ApiError::new(ErrorCode::AlreadyExists, "kernel taken exists already");
            return Err(why.hint("Choose another name with --name, or delete it first."));
        }
        let mut state = self.state();
        let ticket = Ticket([u8::try_from(state.streams.len() + 1).unwrap(); 32]);
        let upload = match &request {
            StreamRequest::Command { vm, .. }
            | StreamRequest::Inside { vm }
            | StreamRequest::Session { vm, .. }
            | StreamRequest::Ssh { vm }
            | StreamRequest::Logs { vm, .. } => {
                let vm = state.find(vm)?;
                let reads = matches!(request, StreamRequest::Logs { .. } | StreamRequest::Command { reads: true, .. });
                if vm.state != VmState::Running && !reads {
                    let why = format!("{} is {}", vm.name, vm.state);
                    return Err(ApiError::new(ErrorCode::NotRunning, why).hint("start it: banger vm start demo"));
                }
                None
            }
            StreamRequest::ImportImage { .. }
            | StreamRequest::RegisterImage { .. }
            | StreamRequest::ImportKernel { .. } => Some(state.job("import", JobState::Running)),
        };
        state.streams.push((ticket.clone(), request, upload));
        Ok(OpenStream { ticket, job: upload.map(JobId) })
    }

    async fn set_workspace(self, _: Context, vm: String, workspace: Option<Workspace>) -> Result<(), ApiError> {
        let mut state = self.state();
        let found = state.find(&vm)?;
        state.calls.push(format!("workspace {}", workspace.is_some()));
        let known = state.vms.iter_mut().find(|known| known.id == found.id);
        known.into_iter().for_each(|vm| vm.workspace.clone_from(&workspace));
        Ok(())
    }

    async fn quotas(self, _: Context, _: bool, _: Option<(u32, String)>) -> Result<QuotaPage, ApiError> {
        let own = Quota { owner: 1001, owner_name: "alice".into(), limits: Vec::new() };
        Ok(QuotaPage { quotas: vec![own], next: None, host: Vec::new() })
    }

    async fn publish_ports(self, _: Context, vm: String, request: PublishRequest) -> Result<JobId, ApiError> {
        let mut state = self.state();
        let found = state.find(&vm)?;
        state.calls.push(format!("publish {request:?}"));
        let ports = request.ports.iter().map(|text| {
            let port: Mapping = text.parse().unwrap();
            PublishedPort {
                protocol: port.protocol,
                address: port.address,
                host_port: port.host_port.unwrap_or(20_000),
                guest_port: port.guest_port,
                public: request.public,
                proxy_protocol: request.proxy_protocol,
                problem: None,
            }
        });
        let known = state.vms.iter_mut().find(|known| known.id == found.id).unwrap();
        known.published.get_or_insert_default().extend(ports);
        let known = known.clone();
        Ok(JobId(state.job("publish", done(&known))))
    }

    async fn refused(self, _: Context, vm: String) -> Result<RefusedList, ApiError> {
        let state = self.state();
        state.find(&vm)?;
        let mut list = state.refused.clone();
        for one in &mut list.destinations {
            one.protocol = state.text(&one.protocol);
        }
        Ok(list)
    }

    async fn unpublish_ports(self, _: Context, vm: String, ports: Vec<String>) -> Result<JobId, ApiError> {
        let mut state = self.state();
        let found = state.find(&vm)?;
        state.calls.push(format!("unpublish {ports:?}"));
        Ok(JobId(state.job("unpublish", done(&found))))
    }

    async fn link_image(self, _: Context, request: LinkRequest) -> Result<Option<ImageRecord>, ApiError> {
        let mut state = self.state();
        state.calls.push(format!("link {} from {}", request.name, request.source));
        let LinkRequest { name, source, manifest, .. } = request;
        let known = state.pulled.iter().any(|(_, _, known)| *known == manifest);
        state.asked = Some((name.clone(), source, manifest));
        Ok(known.then(|| records::image(&name, 300 << 20)))
    }

    async fn promote_image(self, _: Context, image: String) -> Result<(), ApiError> {
        self.state().calls.push(format!("promote image {image}"));
        Ok(())
    }

    async fn share_image(self, _: Context, image: String, shared: bool) -> Result<(), ApiError> {
        self.state().calls.push(format!("share image {image} {shared}"));
        Ok(())
    }

    async fn share_kernel(self, _: Context, kernel: String, shared: bool) -> Result<(), ApiError> {
        self.state().calls.push(format!("share kernel {kernel} {shared}"));
        Ok(())
    }

    async fn give_vm(self, _: Context, vm: String, user: String) -> Result<JobId, ApiError> {
        let mut state = self.state();
        let found = state.find(&vm)?;
        let known = state.vms.iter_mut().find(|known| known.id == found.id);
        known.into_iter().for_each(|vm| vm.owner_name.clone_from(&user));
        state.simple(&format!("give to {user}"), &vm, found.state)
    }

    async fn list_images(
        self,
        _: Context,
        _: bool,
        after: Option<StoreKey>,
    ) -> Result<StorePage<ImageRecord>, ApiError> {
        let mut image = records::image("debian:13", 300 << 20);
        let state = self.state();
        for text in [&mut image.source, &mut image.artifact_dir, &mut image.rootfs_path] {
            *text = state.text(text);
        }
        // In two pages, the second of them empty.
        let next = StoreKey { owner: 0, owner_name: String::new(), name: String::new() };
        Ok(match after {
            None => StorePage { entries: vec![image], next: Some(next) },
            Some(_) => StorePage { entries: Vec::new(), next: None },
        })
    }

    async fn show_image(self, _: Context, image: String) -> Result<ImageRecord, ApiError> {
        let state = self.state();
        let known = image == "debian:13" || state.pulled.iter().any(|(name, ..)| *name == image);
        let Some(name) = image.parse().ok().filter(|_| known) else {
            return Err(ApiError::new(ErrorCode::NotFound, state.text(&format!("no such image: {image}"))));
        };
        let mut image = ImageRecord { name, ..records::image("debian:13", 300 << 20) };
        for text in [&mut image.source, &mut image.artifact_dir].into_iter().chain(&mut image.config.env) {
            *text = state.text(text);
        }
        Ok(image)
    }

    async fn delete_image(self, _: Context, image: String) -> Result<(), ApiError> {
        if image == "used" {
            return Err(ApiError::new(ErrorCode::InUse, "the VM demo uses it").hint("delete that first"));
        }
        Ok(())
    }

    async fn list_kernels(self, _: Context, _: bool, _: Option<StoreKey>) -> Result<StorePage<KernelRecord>, ApiError> {
        let mut kernel = records::kernel("6.12", 40 << 20);
        let state = self.state();
        kernel.version = state.text(&kernel.version);
        kernel.modules.iter_mut().for_each(|module| *module = state.text(module));
        Ok(StorePage { entries: vec![kernel], next: None })
    }

    async fn pick_kernel(self, _: Context, kernel: Option<String>) -> Result<KernelRecord, ApiError> {
        let state = self.state();
        let name = kernel.unwrap_or_else(|| "6.12".into());
        if name != "6.12" || state.no_kernel {
            let why = state.text(&format!("no such kernel: {name}"));
            return Err(ApiError::new(ErrorCode::NotFound, why).hint("Import the host's own."));
        }
        let mut kernel = records::kernel(&name, 40 << 20);
        kernel.version = state.text(&kernel.version);
        kernel.modules.iter_mut().for_each(|module| *module = state.text(module));
        Ok(kernel)
    }

    async fn delete_kernel(self, _: Context, kernel: String) -> Result<(), ApiError> {
        self.state().calls.push(format!("delete kernel {kernel}"));
        if kernel.starts_with("used") {
            return Err(ApiError::new(ErrorCode::InUse, "the VM demo uses it").hint("delete that first"));
        }
        Ok(())
    }

    /// One to a page.
    async fn list_jobs(self, _: Context, before: Option<JobId>) -> Result<JobPage, ApiError> {
        let state = self.state();
        let mut older = state.jobs.values().rev().filter(|job| before.is_none_or(|before| job.id < before));
        let jobs: Vec<JobView> = older.by_ref().take(1).cloned().collect();
        let next = older.next().and_then(|_| jobs.last().map(|job| job.id));
        Ok(JobPage { jobs, next })
    }

    async fn watch_job(self, _: Context, job: JobId, after_seq: u64) -> Result<JobView, ApiError> {
        let cuts = {
            let mut state = self.state();
            if state.blind {
                return Err(ApiError::new(ErrorCode::Internal, "the records cannot be read"));
            }
            if state.too_often > 0 {
                state.too_often -= 1;
                return Err(ApiError::new(ErrorCode::Limit, "too many calls"));
            }
            state.cuts > 0
        };
        if cuts {
            self.state().cuts -= 1;
            self.cut.notify_waiters();
            std::future::pending::<()>().await;
        }
        for _ in 0..100 {
            let view = self.state().jobs.get(&job.0).cloned();
            match view {
                None => return Err(ApiError::new(ErrorCode::NotFound, format!("no job {job}"))),
                Some(view) if view.seq > after_seq => return Ok(view),
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        self.state().jobs.get(&job.0).cloned().ok_or_else(|| ApiError::new(ErrorCode::NotFound, "gone"))
    }

    async fn cancel_job(self, _: Context, job: JobId) -> Result<(), ApiError> {
        let mut state = self.state();
        state.calls.push(format!("cancel {job}"));
        state.end_job(job.0, JobState::Cancelled);
        Ok(())
    }
}
