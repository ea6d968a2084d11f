//! Loops and dm snapshots over base image and COW file.

use super::{Answer, Denied, Machine, again};
use crate::fail;
use crate::kernel::{Kernel, KernelError};
use crate::sys::dm::Device;
use banger_policy::helper::holding::{self, AttachedDisk, Cow, Disk, Refusal, Row, Step};
use banger_policy::{Digest, VmId};
use banger_proto::helper::{DiskIdentity, HelperError};
use std::os::fd::{AsFd, OwnedFd};

/// Is a device that was found by the row's UUID the row's?
pub(super) fn is_ours(device: &Device, row: &Row) -> bool {
    row.owns_disk(&device.name, device.minor, &device.uses)
}

impl<K: Kernel> Machine<K> {
    /// Opens a base image on the disk's thread; answers its size too.
    pub(super) async fn base(&self, image: Digest) -> Answer<(OwnedFd, u64)> {
        let images = self.images.clone();
        self.disk.run(move || images.base(&image)).await.map_err(bad_image)
    }

    /// Attaches base and COW file, and the dm snapshot over them.
    ///
    /// # Errors
    /// [`HelperError::BadImage`] when the base is not the one that the record speaks of.
    pub async fn attach_disk(&self, vm: VmId, owner: u32) -> Answer<DiskIdentity> {
        let _turn = self.turn(vm).await?;
        let cow = self.cow(&vm).await?;
        let fresh = self.kernel.fresh()?;
        let step = holding::attach_disk(self.ledger.borrow().rows(), vm, cow.as_ref(), owner, fresh).granted()?;
        let (Step::Do(grant), Some(cow)) = (step, cow) else { return self.disk(&vm) };
        let row = grant.intent().clone();
        self.put(row.clone())?;
        let made = self.make_disk(&row, &cow).await;
        let committed = made.and_then(|held| self.put(row.clone().with_disk(Disk::Held(held))));
        if committed.is_err() && self.drop_disk(&row).await.is_ok() {
            // Otherwise what was made is found again by its UUID, now or at the next start.
            self.abandon(row.clone().with_disk(Disk::None))?;
        }
        committed.and_then(|()| self.disk(&vm))
    }

    fn disk(&self, vm: &VmId) -> Answer<DiskIdentity> {
        Ok(self.row(vm).as_ref().and_then(DiskIdentity::of).ok_or(Refusal::BadState)?)
    }

    async fn make_disk(&self, row: &Row, cow: &Cow) -> Answer<AttachedDisk> {
        let (base, base_bytes) = self.base(cow.image).await?;
        if base_bytes != cow.base_bytes {
            return Err(Denied::new(HelperError::BadImage, "base-changed"));
        }
        let file = self.whole(cow).await?;
        // An attempt of this very boot that was neither finished nor undone.
        self.drop_disk(row).await?;
        let (name, uuid) = (row.vm.dm_name(), row.vm.dm_uuid(row.generation));
        let base_loop = self.kernel.attach_loop(base.as_fd(), true, &row.vm)?;
        fail::point("base-attached");
        let cow_loop = self.kernel.attach_loop(file.as_fd(), false, &row.vm)?;
        fail::point("cow-attached");
        let minor = self.kernel.dm_create(&name, &uuid)?;
        fail::point("dm-created");
        let held = AttachedDisk { minor, base_loop: K::loop_number(&base_loop), cow_loop: K::loop_number(&cow_loop) };
        self.kernel.dm_load(&uuid, cow.root_bytes / 512, held.base_loop, held.cow_loop).await?;
        fail::point("dm-loaded");
        self.kernel.dm_resume(&uuid)?;
        fail::point("dm-resumed");
        // The device now holds both loops. Are they still on the files that were checked?
        let loops = self.kernel.loop_still_on(&base_loop, base.as_fd())?
            && self.kernel.loop_still_on(&cow_loop, file.as_fd())?;
        let device = self.kernel.dm_find(&uuid)?;
        if !loops || !device.is_some_and(|device| is_ours(&device, &row.clone().with_disk(Disk::Held(held)))) {
            return Err(Denied::new(HelperError::Busy, "dm-changed-while-made"));
        }
        let mut tries = 0;
        while !self.kernel.dm_give(minor)? {
            if !again(&mut tries).await {
                return Err(Denied::new(HelperError::Busy, "dm-node-late"));
            }
        }
        fail::point("dm-given");
        Ok(held)
    }

    /// Detaches the VM's disk.
    ///
    /// # Errors
    /// [`HelperError::Busy`] while somebody has it open.
    pub async fn detach_disk(&self, vm: VmId, disk: &DiskIdentity) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let row = self.row(&vm);
        let running = self.running(row.as_ref())?;
        let Step::Do(grant) = holding::detach_disk(row.as_ref(), disk, running).granted()? else {
            return Ok(());
        };
        let row = grant.into_row();
        let result = self.drop_disk(&row).await;
        self.undone(row.clone(), row.with_disk(Disk::None), result)
    }

    /// Removes the dm device of a row if it is the row's; the loops free themselves.
    pub(super) async fn drop_disk(&self, row: &Row) -> Answer<()> {
        let uuid = row.vm.dm_uuid(row.generation);
        let mut tries = 0;
        loop {
            let device = if row.disk == Disk::None { None } else { self.kernel.dm_find(&uuid)? };
            let Some(device) = device else { return Ok(()) };
            if !is_ours(&device, row) {
                return Err(Denied::new(HelperError::Quarantined, "dm-changed"));
            }
            match self.kernel.dm_remove(&uuid) {
                Err(KernelError { errno: libc::EBUSY, .. }) => {}
                other => {
                    fail::point("dm-removed");
                    return Ok(other?);
                }
            }
            if !again(&mut tries).await {
                return Err(Denied::new(HelperError::Busy, "dm-open"));
            }
        }
    }
}

fn bad_image(error: KernelError) -> Denied {
    match error.errno {
        libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR => error.into(),
        _ => Denied::new(HelperError::BadImage, error.step),
    }
}
