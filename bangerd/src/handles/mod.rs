//! What a VM holds in the kernel during one boot, and the three places where it is remembered.
//!
//! The cache is the only live truth while the daemon is up. `handles.json` is its scratch copy, the
//! mirror in the VM's row the copy of what a teardown needs; a teardown asks them in that order.
//! Called by the VM's actor only. Beyond all three stands the helper's ledger, which is the fact.

mod file;

use crate::db::{Db, DbError};
pub(crate) use crate::held::Handles;
use crate::paths::VmPaths;
use banger_policy::VmId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Cache, file and mirror of all VMs.
#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
    cache: Mutex<HashMap<VmId, Handles>>,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db, cache: Mutex::default() }
    }

    /// Remembers handles: file first, cache second, so that a crash between the two leaves the disk
    /// ahead, which the next start can repair; then the mirror. A file that cannot be written is
    /// logged and no more.
    pub(crate) async fn record(&self, vm: VmId, paths: &VmPaths, handles: &Handles) -> Result<(), DbError> {
        if let Err(error) = file::write(&paths.handles(), handles) {
            tracing::warn!("{}: cannot write the handles: {error}", paths.handles().display());
        }
        crate::fail::point("handles", "file written");
        self.seed(vm, handles.clone());
        self.db.set_vm_mirror(vm, handles.mirror()).await
    }

    /// Puts what was found into the cache.
    pub(crate) fn seed(&self, vm: VmId, handles: Handles) {
        self.cache().insert(vm, handles);
    }

    /// What is held, as the cache has it.
    pub(crate) fn cached(&self, vm: &VmId) -> Option<Handles> {
        self.cache().get(vm).cloned()
    }

    /// What may be held, for a teardown: cache, then file, then mirror. Zero when no source has
    /// anything.
    pub(crate) fn cascade(&self, vm: &VmId, paths: &VmPaths, mirror: &Handles) -> Handles {
        self.cached(vm).unwrap_or_default().or(saved(paths)).or(mirror.clone())
    }

    /// Forgets: mirror, file and cache.
    ///
    /// # Errors
    /// The mirror's; file and cache are cleared nevertheless.
    pub(crate) async fn clear(&self, vm: VmId, paths: &VmPaths) -> Result<(), DbError> {
        let mirror = self.db.set_vm_mirror(vm, Handles::default()).await;
        if let Err(error) = file::remove(&paths.handles()) {
            tracing::warn!("{}: cannot remove the handles: {error}", paths.handles().display());
        }
        crate::fail::point("handles", "file removed");
        self.cache().remove(&vm);
        mirror
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Handles>> {
        // Every change is one insert or remove: a panic elsewhere cannot leave it half made.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file's handles; zero when it is missing or cannot be understood, which is logged.
pub(crate) fn saved(paths: &VmPaths) -> Handles {
    file::read(&paths.handles()).unwrap_or_else(|error| {
        tracing::warn!("{}: the saved handles cannot be read; the mirror serves: {error}", paths.handles().display());
        Handles::default()
    })
}
