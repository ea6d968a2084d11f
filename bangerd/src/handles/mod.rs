//! What a VM holds in the kernel during one boot, and the three places where it is remembered.
//!
//! The cache is the only live truth while the daemon is up. `handles.json` is its scratch copy, the
//! mirror in the VM's row the copy of what a teardown needs; a teardown asks them in that order.
//! Called by the VM's actor only. Beyond all three stands the helper's ledger, which is the fact.

mod file;

use crate::db::{Db, DbError};
pub(crate) use crate::held::Handles;
use crate::paths::VmPaths;
use crate::util::on_a_thread;
use banger_policy::VmId;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Cache, file and mirror of all VMs.
#[derive(Debug)]
pub(crate) struct Store {
    db: Db,
    cache: Mutex<HashMap<VmId, Handles>>,
    /// Whether the cache has anything.
    any: watch::Sender<bool>,
}

impl Store {
    pub(crate) fn new(db: Db) -> Self {
        Self { db, cache: Mutex::default(), any: watch::Sender::new(false) }
    }

    /// Remembers handles: file first, cache second, so that a crash between the two leaves the disk
    /// ahead, which the next start can repair; then the mirror. A file that cannot be written is
    /// logged and no more.
    pub(crate) async fn record(&self, owner: u32, vm: VmId, paths: &VmPaths, handles: &Handles) -> Result<(), DbError> {
        self.keep(vm, paths, handles).await;
        self.db.of_vms(owner).set_vm_mirror(vm, handles.mirror()).await
    }

    /// File and cache without the mirror, for whoever writes that together with the state: a row
    /// that names handles and is not running is one of a start that was cut short.
    pub(crate) async fn keep(&self, vm: VmId, paths: &VmPaths, handles: &Handles) {
        let (path, written) = (paths.handles(), handles.clone());
        on_a_thread(move || {
            if let Err(error) = file::write(&path, &written) {
                tracing::warn!("{}: cannot write the handles: {error}", path.display());
            }
            crate::fail::point("handles", "file written");
        })
        .await;
        self.seed(vm, handles.clone());
    }

    /// Puts what was found into the cache.
    pub(crate) fn seed(&self, vm: VmId, handles: Handles) {
        let mut cache = self.cache();
        cache.insert(vm, handles);
        self.any.send_replace(true);
    }

    /// Returns when a VM runs, or is about to. What is done again and again for VMs that run waits
    /// for this first: a host without any is left to sleep.
    pub(crate) async fn any(&self) {
        // The sender is this store's own, so the wait ends with an answer.
        drop(self.any.subscribe().wait_for(|any| *any).await);
    }

    /// What is held, as the cache has it.
    pub(crate) fn cached(&self, vm: &VmId) -> Option<Handles> {
        self.cache().get(vm).cloned()
    }

    /// Who runs with this address, and its tap.
    pub(crate) fn at(&self, address: Ipv4Addr) -> Option<(VmId, String)> {
        let cache = self.cache();
        let (vm, held) = cache.iter().find(|(_, held)| held.guest_ip == Some(address))?;
        Some((*vm, held.tap_device.clone()?))
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
    pub(crate) async fn clear(&self, owner: u32, vm: VmId, paths: &VmPaths) -> Result<(), DbError> {
        let mirror = self.db.of_vms(owner).set_vm_mirror(vm, Handles::default()).await;
        let path = paths.handles();
        on_a_thread(move || {
            if let Err(error) = file::remove(&path) {
                tracing::warn!("{}: cannot remove the handles: {error}", path.display());
            }
            crate::fail::point("handles", "file removed");
        })
        .await;
        let mut cache = self.cache();
        cache.remove(&vm);
        // Under the lock: what another VM says meanwhile is not overwritten.
        self.any.send_replace(!cache.is_empty());
        drop(cache);
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::paths::Paths;
    use futures::FutureExt as _;

    /// With one thread for all tasks, as on a host with one processor.
    #[test]
    fn nobody_waits_for_a_disk_that_stands_still_but_whose_handles_are_written() {
        let (reply, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let store = Store::new(Db::open(&dir.path().join("db")).await.unwrap());
                let paths = Paths { state: dir.path().to_owned(), ..Paths::default() };
                let vm = VmId::from_bytes([1; 32]).unwrap();
                std::fs::create_dir_all(paths.vm(&vm).dir).unwrap();
                // To open it is to wait for a reader.
                let slow = paths.vm(&vm).handles().with_extension("json.new");
                nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).unwrap();
                let reader = async { tokio::fs::read(&slow).await.unwrap() };
                let (paths, handles) = (paths.vm(&vm), Handles::default());
                let ((), read) = futures::join!(store.keep(vm, &paths, &handles), reader);
                reply.send(read).unwrap();
            });
        });
        assert_eq!(answer.recv_timeout(std::time::Duration::from_secs(20)).unwrap(), b"{}");
    }

    #[tokio::test]
    async fn whoever_waits_for_a_vm_that_runs_sleeps_until_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Db::open(&dir.path().join("db")).await.unwrap());
        let paths = Paths { state: dir.path().to_owned(), ..Paths::default() };
        let (one, two) = (VmId::from_bytes([1; 32]).unwrap(), VmId::from_bytes([2; 32]).unwrap());
        assert!(store.any().now_or_never().is_none());
        store.seed(one, Handles::default());
        store.seed(two, Handles::default());
        store.any().await;
        // Neither has a row: what the database says of them is not asked here.
        drop(store.clear(1, one, &paths.vm(&one)).await);
        assert!(store.any().now_or_never().is_some(), "the other one runs");
        drop(store.clear(1, two, &paths.vm(&two)).await);
        assert!(store.any().now_or_never().is_none());
    }
}
