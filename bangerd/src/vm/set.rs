//! Changes to a VM that exists. The row is the intent and comes first: sizes take effect at the next start, which grows the work disk to what the row
//! says; NAT takes effect at once, and is compared with the row again when a VM is found running.

use super::actor::Actor;
use super::machine::Seat;
use crate::jobs::Job;
use banger_policy::ByteSize;
use banger_policy::lifecycle::State;
use banger_policy::quota::UserLimits;
use banger_policy::vm::CheckedSpec;
use banger_proto::model::{ApiError, ErrorCode, SetRequest, VmSpec};

impl Actor {
    /// Answers the job.
    pub(super) async fn set(&mut self, job: Job, request: SetRequest) {
        let result = match self.change(&job, request).await {
            Ok(()) => self.record().await,
            Err(error) => Err(error),
        };
        job.finish(result);
    }

    async fn change(&mut self, job: &Job, request: SetRequest) -> Result<(), ApiError> {
        let (was, policy_was) = (self.row.spec, self.row.restart);
        let sized =
            request.vcpu_count.is_some() || request.memory_mib.is_some() || request.work_disk_size_bytes.is_some();
        if sized && self.row.state == State::Running {
            let name = &self.row.name;
            let message = format!("{name} is running: its vCPUs, memory and disks cannot be changed");
            return Err(ApiError::new(ErrorCode::AlreadyRunning, message)
                .hint(format!("Stop it first with `banger vm stop {name}`.")));
        }
        let spec = changed(was, &request)?;
        let limits = job.limits_of(&self.row.who());
        self.record_spec(spec, request.restart.unwrap_or(policy_was), limits).await?;
        // Also when it is what the row says already: an earlier answer of the helper's may have been lost.
        if self.row.state != State::Running || request.nat.is_none() {
            return Ok(());
        }
        job.stage("nat");
        let Err(error) = self.align_nat().await else { return Ok(()) };
        self.record_spec(was, policy_was, UserLimits::NONE).await?;
        Err(error)
    }

    async fn record_spec(
        &mut self,
        spec: VmSpec,
        restart: banger_policy::vm::RestartPolicy,
        limits: UserLimits,
    ) -> Result<(), ApiError> {
        let set = self.ctx.db.set_vm_spec(self.row.id, spec, restart, limits).await;
        set.map_err(|error| self.refused(error))?;
        (self.row.spec, self.row.restart) = (spec, restart);
        Ok(())
    }

    /// Brings the kernel's NAT of a running VM to what the row says.
    pub(super) async fn align_nat(&self) -> Result<(), ApiError> {
        let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.network)?;
        let helper = &self.ctx.privileged;
        let aligned = match seat.spec.nat_enabled {
            true => helper.enable_nat(seat.id).await,
            false => helper.disable_nat(seat.id).await,
        };
        aligned.map_err(|error| error.api("NAT"))
    }
}

/// # Errors
/// A number out of bounds, and a work disk that would become smaller.
fn changed(was: VmSpec, request: &SetRequest) -> Result<VmSpec, ApiError> {
    let bad = |message: String| ApiError::new(ErrorCode::BadRequest, message);
    let work = request.work_disk_size_bytes.unwrap_or(was.work_disk_size_bytes);
    let checked = CheckedSpec::new(
        request.vcpu_count.unwrap_or(was.vcpu_count),
        request.memory_mib.unwrap_or(was.memory_mib),
        was.system_overlay_size_bytes,
        work,
    );
    let checked = checked.map_err(|error| bad(error.to_string()))?;
    if checked.work_disk_bytes() < was.work_disk_size_bytes {
        let size = |bytes| ByteSize::from_bytes(bytes).map_or_else(|_| format!("{bytes}B"), |size| size.to_string());
        let message = format!("a work disk only grows: it has {}, not less", size(was.work_disk_size_bytes));
        return Err(bad(message).hint("Make another VM with a smaller one, and copy what is needed."));
    }
    Ok(VmSpec {
        vcpu_count: checked.vcpus(),
        memory_mib: checked.memory_mib(),
        work_disk_size_bytes: checked.work_disk_bytes(),
        nat_enabled: request.nat.unwrap_or(was.nat_enabled),
        ..was
    })
}
