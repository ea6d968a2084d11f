//! The end of everything that a VM holds: processes, then NAT, disk and tap in reverse of their
//! start, then the helper's own view of it. Every step runs whatever failed before it.

use super::actor::Actor;
use super::error::{VmError, joined};
use super::machine::Seat;
use crate::handles::Handles;
use crate::privileged::PrivilegedError;
use crate::util::{blocking, on_a_thread};
use banger_policy::reach::Reach;
use banger_proto::helper::HelperError;
use std::path::Path;

impl Actor {
    /// What the VM may hold, from the first source that knows.
    pub(super) fn held(&self, seat: &Seat) -> Handles {
        self.ctx.handles.cascade(&seat.id, &seat.paths, &self.row.mirror)
    }

    pub(super) async fn kill_processes(&mut self, seat: &Seat) -> Result<(), VmError> {
        self.leave();
        self.close_ports().await;
        Ok(self.ctx.machine.kill(seat, &self.held(seat)).await?)
    }

    /// Releases by what the daemon remembers, then whatever the helper still has for this VM: its
    /// ledger is the fact. So a claim that is refused (a corrupt file, a lost mirror) leaks
    /// nothing, and only the last word counts.
    pub(super) async fn tear_down(&self, seat: &Seat) -> Result<(), VmError> {
        let helper = self.ctx.privileged.of(seat.owner);
        let held = self.held(seat);
        let mut failures = Vec::new();
        let mut note = |result: Result<(), PrivilegedError>| {
            if let Err(error) = result
                && error.refusal() != Some(HelperError::BadState)
            {
                tracing::warn!("teardown: {}", crate::error::chain(&error));
                failures.push(error);
            }
        };
        if let Some(tap) = held.tap() {
            note(helper.set_network(seat.id, Reach::default()).await);
            if let Some(disk) = held.disk() {
                note(helper.detach_disk(seat.id, disk).await);
            }
            note(helper.release_tap(seat.id, tap).await);
        } else if let Some(disk) = held.disk() {
            note(helper.detach_disk(seat.id, disk).await);
        }
        let released = helper.release(seat.id).await.map_err(|last| {
            let last = VmError::from(last.at("the teardown"));
            failures.into_iter().map(VmError::HelperToo).fold(last, VmError::also)
        });
        remove_initramfs(seat).await;
        joined([released, remove_folder(&seat.paths.runtime)])
    }

    pub(super) async fn clear_handles(&mut self, seat: &Seat) -> Result<(), VmError> {
        self.row.mirror = Handles::default();
        let cleared = self.ctx.handles.clear(seat.owner, seat.id, &seat.paths).await;
        self.ctx.refusals.forget(&seat.id);
        Ok(cleared?)
    }

    /// The root disk and the VM's folder.
    pub(super) async fn remove_files(&self, seat: &Seat) -> Result<(), VmError> {
        let discarded = match self.ctx.privileged.of(seat.owner).discard_disk(seat.id).await {
            // It never had one.
            Err(error) if error.refusal() == Some(HelperError::NotYours) => Ok(()),
            other => other.map_err(|error| error.at("the root disk").into()),
        };
        // The work disk may have gigabytes to give back.
        let dir = seat.paths.dir.clone();
        joined([discarded, blocking(move || remove_folder(&dir)).await])
    }
}

/// The next start writes another one: until then its room is nobody's.
async fn remove_initramfs(seat: &Seat) {
    let path = seat.paths.initramfs();
    on_a_thread(move || match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{}: cannot remove the initramfs: {error}", path.display());
        }
        _ => crate::fail::point("boot files", "initramfs removed"),
    })
    .await;
}

/// Removes a folder with all that is in it. Gone is fine.
pub(super) fn remove_folder(path: &Path) -> Result<(), VmError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(VmError::RemoveFolder { path: path.to_owned(), source: error })
        }
        _ => {
            crate::fail::point("folder", "removed");
            Ok(())
        }
    }
}
