//! COW files: made, lengthened, given away and removed. Every step that touches a file is a job of
//! the disk's thread, so between any two of them other VMs' calls go on, while those of the same VM
//! wait for its turn.
//!
//! What is half done when a step fails is undone at once; what cannot be undone is known as such,
//! and the VM's next call, or the helper's next start, completes it.

use super::{Answer, Denied, Machine};
use crate::cow::{Folder, Kept};
use crate::kernel::{Kernel, KernelError, Outcome};
use banger_policy::helper::holding::{self, Cow, Create, Grow, Refusal};
use banger_policy::snapshot::cow_file_bytes;
use banger_policy::{Digest, VmId};
use banger_proto::helper::{CowRecord, HelperError};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

impl<K: Kernel> Machine<K> {
    /// Does something with the files of the COW folder, on the disk's thread.
    pub(super) async fn on_disk<T, F>(&self, job: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnOnce(&Folder) -> Outcome<T> + Send + 'static,
    {
        let folder = self.cows.borrow().folder();
        self.disk.run(move || job(&folder)).await
    }

    /// The record of the VM's COW file. The caller has the VM's turn, so what is half done was
    /// interrupted, and is undone first.
    pub(super) async fn cow(&self, vm: &VmId) -> Answer<Option<Cow>> {
        if self.cows.borrow().is_damaged(vm) {
            return Err(Denied::new(HelperError::Quarantined, "damaged-cow-record"));
        }
        self.erase(vm).await?;
        let cow = self.cows.borrow().get(vm).map(|kept| kept.cow.clone());
        match cow {
            Some(cow) if cow.growing_to.is_some() => Ok(Some(self.shrink_back(cow).await.map_err(changed)?)),
            settled => Ok(settled),
        }
    }

    /// Makes the COW file, fully reserved.
    ///
    /// # Errors
    /// [`HelperError::NoSpace`] leaves nothing behind.
    pub async fn create_disk(&self, vm: VmId, owner: u32, image: Digest, root_bytes: u64) -> Answer<CowRecord> {
        let _turn = self.turn(vm).await?;
        let known = self.cow(&vm).await?;
        let (generation, file_bytes) = (self.kernel.fresh()?, cow_file_bytes(root_bytes));
        let count = self.cows.borrow().count();
        if let Create::Stored = holding::create_disk(known.as_ref(), count, owner, image, root_bytes).granted()? {
            return self.made(&vm);
        }
        let (base_bytes, growing_to, ready) = (0, None, false);
        let attempt = Cow { vm, owner, image, base_bytes, root_bytes, file_bytes, growing_to, generation, ready };
        // Counted from here on, before anybody else is let in; its base is looked at next.
        self.cows.borrow_mut().attempted(attempt.clone());
        match self.make(attempt).await {
            Ok(kept) => self.cows.borrow_mut().keep(kept),
            Err(denied) => {
                // If even this fails, the attempt is known as one.
                let _ = self.erase(&vm).await;
                return Err(denied);
            }
        }
        self.made(&vm)
    }

    /// Looks at the base image, writes the attempt's record, makes its file and fills it.
    async fn make(&self, attempt: Cow) -> Answer<Kept> {
        let (_, base_bytes) = self.base(attempt.image).await?;
        if base_bytes < attempt.root_bytes {
            return Err(Denied::new(HelperError::BadImage, "base-too-short"));
        }
        let cow = Cow { base_bytes, ..attempt };
        let begun = self.on_disk(move |folder| {
            folder.room(cow.file_bytes)?;
            let file = folder.begin(&cow)?;
            Ok((cow, file))
        });
        let (cow, file) = begun.await.map_err(|error| match error.errno {
            // Somebody put a file there; it is not overwritten, and not removed either.
            libc::EEXIST => Denied::new(HelperError::Quarantined, "cow-without-record"),
            _ => error.into(),
        })?;
        self.fill(cow, file, 0).await
    }

    /// Reserves a file from `from` bytes to the length that its record will have, and makes both
    /// durable.
    async fn fill(&self, cow: Cow, file: OwnedFd, from: u64) -> Answer<Kept> {
        let (file, end, mut reserved) = (Arc::new(file), cow.file_bytes, from);
        while reserved < end {
            let file = Arc::clone(&file);
            reserved = self.on_disk(move |folder| folder.reserve_piece(file.as_fd(), reserved, end)).await?;
        }
        Ok(self.on_disk(move |folder| folder.finish(file.as_fd(), cow)).await?)
    }

    /// The file, with all of its room: who brings files back may have made holes of its zeros.
    pub(super) async fn whole(&self, cow: &Cow) -> Answer<OwnedFd> {
        let open = |cow: Cow| self.on_disk(move |folder| folder.file(&cow));
        if self.cows.borrow().get(&cow.vm).is_some_and(|kept| kept.allocated_bytes < cow.file_bytes) {
            let file = open(cow.clone()).await.map_err(changed)?;
            let kept = self.fill(cow.clone(), file, 0).await?;
            self.cows.borrow_mut().keep(kept);
        }
        open(cow.clone()).await.map_err(changed)
    }

    /// Removes what there is of the VM's attempt, if there is one.
    async fn erase(&self, vm: &VmId) -> Outcome<()> {
        let Some(attempt) = self.cows.borrow().attempt(vm).cloned() else { return Ok(()) };
        let mut more = true;
        while more {
            let attempt = attempt.clone();
            more = self.on_disk(move |folder| folder.erase_piece(&attempt)).await?;
        }
        self.cows.borrow_mut().erased(vm);
        Ok(())
    }

    fn made(&self, vm: &VmId) -> Answer<CowRecord> {
        let cows = self.cows.borrow();
        let record = cows.get(vm).map(|kept| CowRecord::of(&kept.cow, kept.allocated_bytes));
        Ok(record.ok_or(Refusal::BadState)?)
    }

    /// Makes the root disk larger; the guest grows its file system when it starts.
    ///
    /// # Errors
    /// [`HelperError::NoSpace`] leaves it as it was.
    pub async fn grow_disk(&self, vm: VmId, owner: u32, root_bytes: u64) -> Answer<CowRecord> {
        let _turn = self.turn(vm).await?;
        let cow = self.cow(&vm).await?;
        let step = holding::grow_disk(self.row(&vm).as_ref(), cow.as_ref(), owner, root_bytes).granted()?;
        let (Grow::Make(_), Some(cow)) = (step, cow) else { return self.made(&vm) };
        let (from, file_bytes) = (cow.file_bytes, cow_file_bytes(root_bytes));
        let begun = self.on_disk(move |folder| {
            folder.room(file_bytes.saturating_sub(from))?;
            folder.begin_growth(cow, root_bytes)
        });
        let (growing, file) = begun.await.map_err(changed)?;
        self.cows.borrow_mut().change(growing.clone());
        match self.fill(Cow { root_bytes, file_bytes, ..growing }, file, from).await {
            Ok(kept) => self.cows.borrow_mut().keep(kept),
            Err(denied) => {
                // If even this fails, the record says so and the VM's next call completes it.
                drop(self.cow(&vm).await);
                return Err(denied);
            }
        }
        self.made(&vm)
    }

    /// Undoes a growth that was interrupted.
    async fn shrink_back(&self, growing: Cow) -> Outcome<Cow> {
        let kept = self.on_disk(move |folder| folder.shrink_back(growing)).await?;
        let cow = kept.cow.clone();
        self.cows.borrow_mut().keep(kept);
        Ok(cow)
    }

    /// Removes the COW file; gone already is success.
    ///
    /// # Errors
    /// [`HelperError::BadState`] while it is attached.
    pub async fn discard_disk(&self, vm: VmId) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        holding::discard_disk(self.row(&vm).as_ref()).granted()?;
        let Some(cow) = self.cow(&vm).await? else { return Ok(()) };
        // Back to an attempt first: after a crash before the end, the next start completes it.
        let attempt = Cow { ready: false, ..cow };
        let written = attempt.clone();
        self.on_disk(move |folder| folder.give_up(written)).await?;
        self.cows.borrow_mut().attempted(attempt);
        Ok(self.erase(&vm).await?)
    }

    /// Records another owner of the COW file.
    ///
    /// # Errors
    /// [`HelperError::BadState`] while anything of the VM is held.
    pub async fn give_disk(&self, vm: VmId, owner: u32) -> Answer<()> {
        let _turn = self.turn(vm).await?;
        let cow = self.cow(&vm).await?;
        let Some(cow) = holding::give_disk(self.row(&vm).as_ref(), cow.as_ref(), owner).granted()? else {
            return Ok(());
        };
        let written = cow.clone();
        self.on_disk(move |folder| folder.write(&written)).await?;
        self.cows.borrow_mut().change(cow);
        Ok(())
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
