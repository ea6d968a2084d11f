//! The making of a VM: the row is there already (the intent), now come root disk, work disk and
//! folder, and at last the start. Whatever fails, either all of it stands or nothing.

use super::actor::Actor;
use super::error::VmError;
use super::machine::Seat;
use super::start::make_folders;
use crate::jobs::Job;
use crate::privileged::PrivilegedError;
use crate::room;
use banger_policy::ByteSize;
use banger_policy::lifecycle::{Event, State, Then};
use banger_policy::snapshot::cow_file_bytes;
use banger_proto::helper::HelperError;
use banger_proto::model::JobResult;
use std::path::Path;

/// Why the helper did not make a root disk, or make it larger; `needed` is what it would have
/// taken.
pub(super) fn root_disk_refused(error: PrivilegedError, cow: &Path, needed: u64) -> VmError {
    match error.refusal() {
        Some(HelperError::NoSpace) => room::short("the root disk", cow, needed).into(),
        _ => error.at("the root disk").into(),
    }
}

impl Actor {
    /// True when no VM is left.
    pub(super) async fn create(&mut self, job: Job, start: bool, keep: bool) -> bool {
        let result = self.make(&job, start, keep).await;
        let error = match result {
            Ok(result) => {
                job.finish(Ok::<_, VmError>(result));
                return false;
            }
            Err(error) => error,
        };
        if keep {
            let error = match self.keep(&error).await {
                Ok(()) => error,
                Err(more) => error.also(more),
            };
            job.finish(Err(error));
            return false;
        }
        job.stage("undo");
        let undone = self.apply(Event::Delete, None, "").await;
        let gone = matches!(undone, Ok(Then::Gone));
        job.finish(Err(match undone {
            Ok(_) => error,
            Err(more) => error.also(more),
        }));
        gone
    }

    async fn make(&mut self, job: &Job, start: bool, keep: bool) -> Result<JobResult, VmError> {
        let seat = Seat::new(&self.row, &self.ctx.paths, self.ctx.config.now().network)?;
        job.go_on()?;
        // What the request was resolved to; `vm run` shows it before everything else.
        job.stage("spec");
        job.detail(self.describe(&seat));
        job.stage("reserve disk");
        let (root, work) = (seat.spec.system_overlay_size_bytes, seat.spec.work_disk_size_bytes);
        let cow = cow_file_bytes(root);
        // Both disks, before either is made. The work disk is sparse: it must be possible to fill
        // it, as far as can be told today.
        room::claim("the VM's disks", &[(&seat.paths.cow, cow), (&seat.paths.dir, work)])?;
        make_folders(vec![seat.paths.dir.clone()]).await?;
        let reserved = self.ctx.privileged.of(seat.owner).create_disk(seat.id, seat.owner, seat.image, root).await;
        reserved.map_err(|error| root_disk_refused(error, &seat.paths.cow, cow))?;
        job.go_on()?;
        job.stage("work disk");
        self.ctx.machine.work_disk(&seat, job.cancelled()).await?;
        job.go_on()?;
        if !start || keep {
            self.made().await?;
            self.ctx.fellows.changed();
        }
        if start {
            self.carry_out(Event::Start, job, "").await?;
        }
        self.record().await
    }

    fn describe(&self, seat: &Seat) -> String {
        let size = |bytes| ByteSize::from_bytes(bytes).map_or_else(|_| bytes.to_string(), |size| size.to_string());
        let (row, spec) = (&self.row, &seat.spec);
        format!(
            "{}: image {}, kernel {:.12}, {} vCPU, {} memory, {} root disk, {} work disk, network {}, address {}",
            row.name,
            row.image_name,
            row.kernel_id.to_string(),
            spec.vcpu_count,
            size(u64::from(spec.memory_mib) << 20),
            size(spec.system_overlay_size_bytes),
            size(spec.work_disk_size_bytes),
            row.network.mode,
            seat.address
        )
    }

    /// From here on it is a VM, whatever becomes of it: no later look removes it.
    async fn made(&mut self) -> Result<(), VmError> {
        self.db().set_vm_made(self.id()).await?;
        self.row.making = false;
        Ok(())
    }

    /// The user wants to look at what failed.
    async fn keep(&mut self, error: &VmError) -> Result<(), VmError> {
        self.made().await?;
        if self.row.state != State::Error {
            self.set_state(State::Error, &error.message(), None).await?;
        }
        Ok(())
    }
}
