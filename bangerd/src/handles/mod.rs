//! What a VM holds in the kernel during one boot, and the three places where it is remembered.
//!
//! The cache is the only live truth while the daemon is up. `handles.json` is its scratch copy, the mirror in
//! the VM's row the copy of what a teardown needs; a teardown asks them in that order. Called by the VM's
//! actor only. Beyond all three stands the helper's ledger, which is the fact.

mod file;

use crate::db::{Db, DbError, Mirror};
use crate::paths::VmPaths;
use banger_policy::VmId;
use banger_proto::helper::{DiskIdentity, TapIdentity};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The handles of one boot. Empty fields are left out of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handles {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tap_device: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_loop: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cow_loop: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dm_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dm_dev: Option<String>,
    /// The helper's number of this boot; without it no claim is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
}

impl Handles {
    /// Nothing is held.
    pub(crate) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn hold_tap(&mut self, tap: &TapIdentity) {
        self.tap_device = Some(tap.tap_device.clone());
        self.generation = Some(tap.generation);
    }

    pub(crate) fn hold_disk(&mut self, disk: &DiskIdentity) {
        self.dm_name = Some(disk.dm_name.clone());
        self.dm_dev = Some(disk.dm_dev.clone());
        self.base_loop = Some(disk.base_loop.clone());
        self.cow_loop = Some(disk.cow_loop.clone());
        self.generation = Some(disk.generation);
    }

    /// The claim to a tap, when everything of it is known.
    pub(crate) fn tap(&self) -> Option<TapIdentity> {
        Some(TapIdentity { tap_device: self.tap_device.clone()?, generation: self.generation? })
    }

    /// The claim to a disk, when everything of it is known.
    pub(crate) fn disk(&self) -> Option<DiskIdentity> {
        Some(DiskIdentity {
            dm_name: self.dm_name.clone()?,
            dm_dev: self.dm_dev.clone()?,
            base_loop: self.base_loop.clone()?,
            cow_loop: self.cow_loop.clone()?,
            generation: self.generation?,
        })
    }

    pub(crate) fn mirror(&self) -> Mirror {
        Mirror {
            tap_device: self.tap_device.clone(),
            base_loop: self.base_loop.clone(),
            cow_loop: self.cow_loop.clone(),
            dm_name: self.dm_name.clone(),
            dm_dev: self.dm_dev.clone(),
            generation: self.generation,
        }
    }

    /// Fills what is missing from a later source, but only when both speak of the same boot.
    fn or(mut self, later: Self) -> Self {
        if self.is_zero() {
            return later;
        }
        if self.generation.is_some() && later.generation.is_some() && self.generation != later.generation {
            return self;
        }
        self.pid = self.pid.or(later.pid);
        self.tap_device = self.tap_device.or(later.tap_device);
        self.base_loop = self.base_loop.or(later.base_loop);
        self.cow_loop = self.cow_loop.or(later.cow_loop);
        self.dm_name = self.dm_name.or(later.dm_name);
        self.dm_dev = self.dm_dev.or(later.dm_dev);
        self.generation = self.generation.or(later.generation);
        self
    }
}

impl From<&Mirror> for Handles {
    fn from(mirror: &Mirror) -> Self {
        let mirror = mirror.clone();
        Self {
            pid: None,
            tap_device: mirror.tap_device,
            base_loop: mirror.base_loop,
            cow_loop: mirror.cow_loop,
            dm_name: mirror.dm_name,
            dm_dev: mirror.dm_dev,
            generation: mirror.generation,
        }
    }
}

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

    /// Remembers handles: file first, cache second, so that a crash between the two leaves the disk ahead, which
    /// the next start can repair; then the mirror. A file that cannot be written is logged and no more.
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

    /// What may be held, for a teardown: cache, then file, then mirror. Zero when no source has anything.
    pub(crate) fn cascade(&self, vm: &VmId, paths: &VmPaths, mirror: &Mirror) -> Handles {
        self.cached(vm).unwrap_or_default().or(saved(paths)).or(Handles::from(mirror))
    }

    /// Forgets: mirror, file and cache.
    ///
    /// # Errors
    /// The mirror's; file and cache are cleared nevertheless.
    pub(crate) async fn clear(&self, vm: VmId, paths: &VmPaths) -> Result<(), DbError> {
        let mirror = self.db.set_vm_mirror(vm, Mirror::default()).await;
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn held() -> Handles {
        Handles {
            pid: Some(7),
            tap_device: Some("bgr-a".into()),
            base_loop: Some("/dev/loop0".into()),
            cow_loop: Some("/dev/loop1".into()),
            dm_name: Some("bgr-x".into()),
            dm_dev: Some("/dev/dm-0".into()),
            generation: Some(u64::MAX),
        }
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(serde_json::to_string(&Handles::default()).unwrap(), "{}");
        let pid = Handles { pid: Some(3), ..Handles::default() };
        assert_eq!(serde_json::to_string(&pid).unwrap(), r#"{"pid":3}"#);
        assert!(!pid.is_zero() && serde_json::from_str::<Handles>("{}").unwrap().is_zero());
    }

    #[test]
    fn a_later_source_fills_gaps_of_the_same_boot_only() {
        let gaps = Handles { tap_device: None, dm_dev: None, ..held() };
        assert_eq!(gaps.clone().or(held()), held());
        let other_boot = Handles { generation: Some(1), ..held() };
        assert_eq!(gaps.clone().or(other_boot), gaps);
        assert_eq!(Handles::default().or(held()), held());
    }
}
