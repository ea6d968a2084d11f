//! Changes to a VM that exists. The row is the intent and comes first: sizes take effect at the
//! next start, which grows the work disk to what the row says; the network takes effect at once,
//! and is compared with the row again when a VM is found running. The root disk is reserved at
//! once, and its size is the helper's to say: a row that says something else, because a daemon was
//! killed in between, is mended by the next start.

use super::actor::Actor;
use super::create::root_disk_refused;
use super::error::VmError;
use super::machine::Seat;
use crate::jobs::Job;
use crate::room;
use banger_policy::lifecycle::State;
use banger_policy::network::{NetworkRequest, VmNetwork};
use banger_policy::quota::{HostLimits, UserLimits};
use banger_policy::reach::Mode;
use banger_policy::snapshot::cow_file_bytes;
use banger_policy::vm::CheckedSpec;
use banger_proto::helper::HelperError;
use banger_proto::model::{SetRequest, VmSpec};

impl Actor {
    /// All of the request, or nothing.
    pub(super) async fn change(&mut self, job: &Job, request: SetRequest) -> Result<(), VmError> {
        let (was, policy_was) = (self.row.spec, self.row.restart);
        let sized = [request.vcpu_count, request.memory_mib].iter().any(Option::is_some)
            || [request.root_size_bytes, request.work_disk_size_bytes].iter().any(Option::is_some);
        if sized && self.row.state == State::Running {
            return Err(VmError::RunsWithItsSize(self.row.name.clone()));
        }
        // It counts with the memory that it has, and is started with it whatever the limits are.
        if request.memory_mib.is_some() && self.row.waits_to_run() {
            return Err(VmError::WaitsWithItsMemory(self.row.name.clone()));
        }
        let network_was = self.row.network.clone();
        let network = network_was.changed(&request.network)?;
        let spec = VmSpec { nat_enabled: network.mode == Mode::Nat, ..changed(was, &request)? };
        let limits = job.limits_of(&self.row.who());
        let host = self.ctx.config.now().limits.host();
        self.record_spec(spec, network, request.restart.unwrap_or(policy_was), limits, host).await?;
        if spec.system_overlay_size_bytes > was.system_overlay_size_bytes
            || spec.work_disk_size_bytes > was.work_disk_size_bytes
        {
            job.stage("reserve disk");
            if let Err(error) = self.grow(was, spec).await {
                self.undo_spec(was, network_was, policy_was).await?;
                return Err(error);
            }
        }
        // What the host's way down left in the row was for the policy of before: nobody is about to
        // start it.
        if self.row.restart != policy_was && self.row.state != State::Running && self.row.boot_id.is_some() {
            self.set_state(self.row.state, &self.row.last_error.clone(), None).await?;
        }
        // Also when it is what the row says already: an earlier answer of the helper's may have
        // been lost.
        if self.row.state != State::Running || request.network == NetworkRequest::default() {
            return Ok(());
        }
        job.stage("network");
        self.learn_names().await;
        let Err(error) = self.align_network().await else { return Ok(()) };
        self.undo_spec(was, network_was, policy_was).await?;
        Err(error)
    }

    /// Room for both disks is decided before either grows; the work disk itself grows at the next
    /// start.
    async fn grow(&self, was: VmSpec, spec: VmSpec) -> Result<(), VmError> {
        let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?;
        let root = spec.system_overlay_size_bytes;
        let cow = cow_file_bytes(root).saturating_sub(cow_file_bytes(was.system_overlay_size_bytes));
        // What the sparse work disk has already is not needed again.
        let has = if spec.work_disk_size_bytes > was.work_disk_size_bytes {
            crate::util::allocated(&seat.paths.work_disk())
        } else {
            spec.work_disk_size_bytes
        };
        let work = spec.work_disk_size_bytes.saturating_sub(has);
        room::claim("larger disks", &[(&seat.paths.cow, cow), (&seat.paths.dir, work)])?;
        if cow > 0 {
            let helper = self.ctx.privileged.of(seat.owner);
            let mut grown = helper.grow_disk(seat.id, seat.owner, root).await;
            // Given to its owner since the last start: the helper's record comes to know it here.
            if grown.as_ref().is_err_and(|error| error.refusal() == Some(HelperError::NotYours)) {
                grown = match helper.give_disk(seat.id, seat.owner).await {
                    Ok(()) => helper.grow_disk(seat.id, seat.owner, root).await,
                    Err(error) => Err(error),
                };
            }
            grown.map_err(|error| root_disk_refused(error, &seat.paths.cow, cow))?;
        }
        Ok(())
    }

    /// What the helper says of the root disk's size is the truth.
    pub(super) async fn align_root_size(&mut self, root: u64) -> Result<(), VmError> {
        if root == self.row.spec.system_overlay_size_bytes {
            return Ok(());
        }
        let spec = VmSpec { system_overlay_size_bytes: root, ..self.row.spec };
        self.undo_spec(spec, self.row.network.clone(), self.row.restart).await
    }

    /// Writes what is so, whatever the limits are.
    async fn undo_spec(
        &mut self,
        spec: VmSpec,
        network: VmNetwork,
        restart: banger_policy::vm::RestartPolicy,
    ) -> Result<(), VmError> {
        self.record_spec(spec, network, restart, UserLimits::NONE, HostLimits::NONE).await
    }

    async fn record_spec(
        &mut self,
        spec: VmSpec,
        network: VmNetwork,
        restart: banger_policy::vm::RestartPolicy,
        limits: UserLimits,
        host: HostLimits,
    ) -> Result<(), VmError> {
        let set = self.db().set_vm_spec(self.row.id, spec, network.clone(), restart, limits, host).await;
        set.map_err(|error| self.refused(error))?;
        (self.row.spec, self.row.network, self.row.restart) = (spec, network, restart);
        self.ctx.fellows.changed();
        Ok(())
    }
}

/// # Errors
/// A number out of bounds, and a disk that would become smaller.
fn changed(was: VmSpec, request: &SetRequest) -> Result<VmSpec, VmError> {
    let work = request.work_disk_size_bytes.unwrap_or(was.work_disk_size_bytes);
    let checked = CheckedSpec::new(
        request.vcpu_count.unwrap_or(was.vcpu_count),
        request.memory_mib.unwrap_or(was.memory_mib),
        request.root_size_bytes.unwrap_or(was.system_overlay_size_bytes),
        work,
    )?;
    for (disk, now, wanted) in [
        ("root", was.system_overlay_size_bytes, checked.root_bytes()),
        ("work", was.work_disk_size_bytes, checked.work_disk_bytes()),
    ] {
        if wanted < now {
            return Err(VmError::Shrinks { disk, has: now });
        }
    }
    Ok(VmSpec {
        vcpu_count: checked.vcpus(),
        memory_mib: checked.memory_mib(),
        system_overlay_size_bytes: checked.root_bytes(),
        work_disk_size_bytes: checked.work_disk_bytes(),
        nat_enabled: was.nat_enabled,
    })
}
