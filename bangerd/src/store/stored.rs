//! What images and kernels have in common: a name that is its owner's, content in a folder by its
//! digest.

use crate::db::store::{IMAGES, KERNELS, Kind};
use crate::db::{Db, DbError, Unshared};
use crate::paths::Paths;
use banger_policy::access::Owner;
use banger_policy::store::Entry;
use banger_policy::{Digest, Peer};
use banger_proto::model::{ImageRecord, JobResult, KernelRecord};
use std::path::{Path, PathBuf};

/// An image or a kernel, as far as it decides who means it.
pub(crate) trait Named {
    fn entry(&self) -> Entry<'_>;
}

/// One kind of what the store has.
pub(crate) trait Stored: Named + Clone + Sized + Send + 'static {
    const KIND: &'static Kind;

    /// Where the folders of this kind are.
    fn root(paths: &Paths) -> PathBuf;

    /// The folder of one content.
    fn folder(paths: &Paths, id: &Digest) -> PathBuf {
        Self::root(paths).join(id.to_string())
    }

    /// The names of this kind that somebody may use, or all.
    fn all(db: &Db, paths: &Paths, by: Option<Owner>) -> impl Future<Output = Result<Vec<Self>, DbError>> + Send;

    /// The rows of a new name; `pulled`: of one that may be there already, and moves.
    fn insert(self, db: &Db, peer: &Peer, pulled: bool) -> impl Future<Output = Result<(), DbError>> + Send;

    /// Lets everybody use the name, or only its owner again. `Err` when that would not be of use.
    fn share(
        db: &Db,
        owner: Owner,
        name: String,
        id: Digest,
        shared: bool,
    ) -> impl Future<Output = Result<Result<(), Unshared>, DbError>> + Send;

    /// Without what only the owner and administrators are told.
    fn for_others(&mut self, paths: &Paths);

    fn result(self) -> JobResult;
}

fn there(changed: bool) -> Result<(), Unshared> {
    if changed { Ok(()) } else { Err(Unshared::Gone) }
}

impl Named for ImageRecord {
    fn entry(&self) -> Entry<'_> {
        let owner = Owner { uid: self.owner, name: self.owner_name.clone().into() };
        Entry { id: self.id, name: self.name.as_str(), owner, shared: self.shared }
    }
}

impl Named for KernelRecord {
    fn entry(&self) -> Entry<'_> {
        let owner = Owner { uid: self.owner, name: self.owner_name.clone().into() };
        Entry { id: self.id, name: self.name.as_str(), owner, shared: self.shared }
    }
}

impl Stored for ImageRecord {
    const KIND: &'static Kind = &IMAGES;

    fn root(paths: &Paths) -> PathBuf {
        paths.images()
    }

    async fn all(db: &Db, paths: &Paths, by: Option<Owner>) -> Result<Vec<Self>, DbError> {
        db.images(paths, by).await
    }

    async fn insert(self, db: &Db, peer: &Peer, pulled: bool) -> Result<(), DbError> {
        if pulled {
            db.insert_pulled(self, peer.admin, peer.limits).await
        } else {
            db.insert_image(self, peer.limits).await
        }
    }

    /// What is shared is promoted.
    async fn share(
        db: &Db,
        owner: Owner,
        name: String,
        id: Digest,
        shared: bool,
    ) -> Result<Result<(), Unshared>, DbError> {
        if shared {
            return db.promote_image(owner, name, id, true).await;
        }
        db.share(Self::KIND, owner, name, id, false).await.map(there)
    }

    /// Nobody else learns where it lay on its owner's disk, nor where it lies in the store.
    fn for_others(&mut self, paths: &Paths) {
        if let Some(name) = Path::new(&self.source).file_name().filter(|_| self.source.starts_with('/')) {
            self.source = name.to_string_lossy().into_owned();
        }
        let state = format!("{}/", paths.state.display());
        let seed = self.work_seed_path.iter_mut();
        for path in [&mut self.artifact_dir, &mut self.rootfs_path].into_iter().chain(seed) {
            *path = path.strip_prefix(&state).unwrap_or(path).to_owned();
        }
    }

    fn result(self) -> JobResult {
        JobResult::Image(Box::new(self))
    }
}

impl Stored for KernelRecord {
    const KIND: &'static Kind = &KERNELS;

    fn root(paths: &Paths) -> PathBuf {
        paths.kernels()
    }

    async fn all(db: &Db, _: &Paths, by: Option<Owner>) -> Result<Vec<Self>, DbError> {
        db.kernels(by).await
    }

    async fn insert(self, db: &Db, peer: &Peer, _: bool) -> Result<(), DbError> {
        db.insert_kernel(self, peer.limits).await
    }

    async fn share(
        db: &Db,
        owner: Owner,
        name: String,
        id: Digest,
        shared: bool,
    ) -> Result<Result<(), Unshared>, DbError> {
        db.share(Self::KIND, owner, name, id, shared).await.map(there)
    }

    /// There is nothing of that in it.
    fn for_others(&mut self, _: &Paths) {}

    fn result(self) -> JobResult {
        JobResult::Kernel(Box::new(self))
    }
}
