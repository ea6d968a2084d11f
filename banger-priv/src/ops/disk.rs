//! COW files, loops and dm snapshots.

use super::{Answer, Denied, Machine, again};
use crate::cow::reserve;
use crate::fail;
use crate::kernel::{Kernel, KernelError};
use crate::sys::dm::Device;
use banger_policy::holding::{self, AttachedDisk, Cow, Create, Disk, Grow, Refusal, Row, Step};
use banger_policy::snapshot::cow_file_bytes;
use banger_policy::{Digest, VmId};
use banger_proto::helper::{CowRecord, DiskIdentity, HelperError};
use std::os::fd::{AsFd, BorrowedFd};

/// A file is reserved in pieces, so that other calls are answered in between. Bytes.
const PIECE: u64 = 64 << 20;

/// Is a device that was found by the row's UUID the row's?
pub(super) fn is_ours(device: &Device, row: &Row) -> bool {
    row.owns_disk(&device.name, device.minor, &device.uses)
}

impl<K: Kernel> Machine<K> {
    /// The record of the VM's COW file. The caller has the VM's turn, so a growth in it was interrupted.
    fn cow(&self, vm: &VmId) -> Answer<Option<Cow>> {
        let mut cows = self.cows.borrow_mut();
        if cows.is_damaged(vm) {
            return Err(Denied::new(HelperError::Quarantined, "damaged-cow-record"));
        }
        cows.shrink_back(*vm).map_err(changed)?;
        Ok(cows.get(vm).cloned())
    }

    /// Makes the COW file, fully reserved.
    ///
    /// # Errors
    /// [`HelperError::NoSpace`] leaves nothing behind.
    pub async fn create_disk(&self, vm: VmId, owner: u32, image: Digest, root_bytes: u64) -> Answer<CowRecord> {
        let _turn = self.turn(vm).await?;
        let known = self.cow(&vm)?;
        let count = self.cows.borrow().records().len();
        if let Create::Stored = holding::create_disk(known.as_ref(), count, owner, image, root_bytes).granted()? {
            return self.made(&vm);
        }
        let (_, base_bytes) = self.images.base(&image).map_err(bad_image)?;
        if base_bytes < root_bytes {
            return Err(Denied::new(HelperError::BadImage, "base-too-short"));
        }
        let file_bytes = cow_file_bytes(root_bytes);
        self.cows.borrow().room(file_bytes)?;
        let generation = self.kernel.fresh()?;
        let (growing_to, ready) = (None, false);
        let cow = Cow { vm, owner, image, base_bytes, root_bytes, file_bytes, growing_to, generation, ready };
        let file = self.cows.borrow().begin(&cow).map_err(|error| match error.errno {
            // Somebody put a file there; it is not overwritten, and not removed either.
            libc::EEXIST => Denied::new(HelperError::Quarantined, "cow-without-record"),
            _ => error.into(),
        })?;
        let reserved = self.reserve_all(file.as_fd(), 0, file_bytes).await;
        let finished = reserved.and_then(|()| Ok(self.cows.borrow_mut().finish(file.as_fd(), &cow)?));
        if let Err(denied) = finished {
            // If even this fails, the record says so and the next start completes it.
            drop(self.cows.borrow_mut().remove(vm));
            return Err(denied);
        }
        self.made(&vm)
    }

    fn made(&self, vm: &VmId) -> Answer<CowRecord> {
        let cows = self.cows.borrow();
        Ok(cows.get(vm).map(|cow| CowRecord::of(cow, cows.allocated(vm))).ok_or(Refusal::BadState)?)
    }

    /// Makes the root disk larger; the guest grows its file system when it starts.
    ///
    /// # Errors
    /// [`HelperError::NoSpace`] leaves it as it was.
    pub async fn grow_disk(&self, vm: VmId, owner: u32, root_bytes: u64) -> Answer<CowRecord> {
        let _turn = self.turn(vm).await?;
        let cow = self.cow(&vm)?;
        let step = holding::grow_disk(self.row(&vm).as_ref(), cow.as_ref(), owner, root_bytes).granted()?;
        let (Grow::Make(_), Some(cow)) = (step, cow) else { return self.made(&vm) };
        let file_bytes = cow_file_bytes(root_bytes);
        self.cows.borrow().room(file_bytes.saturating_sub(cow.file_bytes))?;
        let file = self.cows.borrow_mut().begin_growth(&cow, root_bytes).map_err(changed)?;
        let reserved = self.reserve_all(file.as_fd(), cow.file_bytes, file_bytes).await;
        let cow = Cow { root_bytes, file_bytes, ..cow };
        let finished = reserved.and_then(|()| Ok(self.cows.borrow_mut().finish(file.as_fd(), &cow)?));
        if let Err(denied) = finished {
            // If even this fails, the record says so and the VM's next call completes it.
            let _ = self.cows.borrow_mut().shrink_back(vm);
            return Err(denied);
        }
        self.made(&vm)
    }

    /// The host's reserve is looked at before each piece, for what is still to come: others write too.
    async fn reserve_all(&self, file: BorrowedFd<'_>, mut from: u64, bytes: u64) -> Answer<()> {
        while from < bytes {
            self.cows.borrow().room(bytes.saturating_sub(from))?;
            reserve(file, from, PIECE.min(bytes.saturating_sub(from)))?;
            fail::point("cow-piece");
            from = from.saturating_add(PIECE);
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Removes the COW file; gone already is success.
    ///
    /// # Errors
    /// [`HelperError::BadState`] while it is attached.
    pub async fn discard_disk(&self, vm: VmId) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        holding::discard_disk(self.row(&vm).as_ref()).granted()?;
        if self.cow(&vm)?.is_none() {
            return Ok(());
        }
        let removed = self.cows.borrow_mut().remove(vm);
        removed
            .map_err(|error| Denied::new(HelperError::Kernel(error.raw_os_error().unwrap_or(libc::EIO)), "cow-remove"))
    }

    /// Records another owner of the COW file.
    ///
    /// # Errors
    /// [`HelperError::BadState`] while anything of the VM is held.
    pub async fn give_disk(&self, vm: VmId, owner: u32) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let given = holding::give_disk(self.row(&vm).as_ref(), self.cow(&vm)?.as_ref(), owner).granted()?;
        match given {
            Some(cow) => Ok(self.cows.borrow_mut().change(&cow)?),
            None => Ok(()),
        }
    }

    /// Attaches base and COW file, and the dm snapshot over them.
    ///
    /// # Errors
    /// [`HelperError::BadImage`] when the base is not the one that the record speaks of.
    pub async fn attach_disk(&self, vm: VmId, owner: u32) -> Answer<DiskIdentity> {
        let _turn = self.turn(vm).await?;
        let cow = self.cow(&vm)?;
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
        let (base, base_bytes) = self.images.base(&cow.image).map_err(bad_image)?;
        if base_bytes != cow.base_bytes {
            return Err(Denied::new(HelperError::BadImage, "base-changed"));
        }
        let file = self.cows.borrow().file(cow).map_err(changed)?;
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
        self.kernel.dm_load(&uuid, cow.root_bytes / 512, held.base_loop, held.cow_loop)?;
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
        let Step::Do(grant) = holding::detach_disk(row.as_ref(), &disk.claim(), running).granted()? else {
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

/// A COW file that is not as its record says was changed by somebody, unless the host failed.
fn changed(error: KernelError) -> Denied {
    match error.errno {
        libc::ESTALE | libc::ENOENT | libc::ELOOP | libc::EACCES => Denied::new(HelperError::Quarantined, error.step),
        // The host's disk went read-only or full, or its descriptors are used up.
        _ => error.into(),
    }
}

fn bad_image(error: KernelError) -> Denied {
    match error.errno {
        libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR => error.into(),
        _ => Denied::new(HelperError::BadImage, error.step),
    }
}
