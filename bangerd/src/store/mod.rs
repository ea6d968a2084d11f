//! Images and kernels of this host: what each user sees of them, which one a VM gets, and their removal.
//!
//! A name is its owner's, and content is everybody's who has a name for it: it is removed when nobody has, and no VM uses it.
//!
//! Called by `rpc` and by the creation of VMs. A folder is published by one rename before its row is written, and removed after its row was. Between
//! the two it is marked: a marked folder without a row is what a crash has left, and is removed at the next start. One that has neither lost
//! its row otherwise, by an older database say, and disks of VMs may stand on it: it is kept for an administrator to decide.

pub(crate) mod import;
pub(crate) mod page;
mod pulled;

use crate::convert::Converter;
use crate::db::store::{IMAGES, KERNELS, Kind, User};
use crate::db::{Db, DbError};
use crate::error::internal;
use crate::jobs::Jobs;
use crate::paths::Paths;
use crate::turns::Turns;
use crate::util::{WorkerEnded, blocking};
use banger_policy::access::{Owner, Refusal};
use banger_policy::store::{self as policy, Entry, Unresolved};
use banger_policy::{Digest, ImageName, Peer};
use banger_proto::model::{ApiError, ErrorCode, ImageRecord, KernelRecord};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

/// How the names of staging folders begin; the number of the job follows.
const STAGING: &str = ".import-";
/// Lies in the folder of what is being published or removed.
const MARK: &str = "unfinished";

/// Whether a folder of the store is neither being made nor being removed.
pub(crate) fn is_finished(folder: &Path) -> bool {
    digest_of(folder).is_some() && !folder.join(MARK).exists()
}

/// Whether it was left by an import or a removal of ours; an administrator's own files are nobody's to remove.
fn is_unfinished(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    // Earlier releases called a staging folder by a dot and the number alone.
    let number = name.strip_prefix('.').is_some_and(|number| number.parse::<u64>().is_ok());
    name.starts_with(STAGING) || ((number || digest_of(path).is_some()) && path.join(MARK).exists())
}

fn digest_of(folder: &Path) -> Option<Digest> {
    folder.file_name()?.to_str()?.parse().ok()
}

fn mark(folder: &Path) {
    // On a full disk a removal must go on; then what a crash leaves of it is not removed by itself.
    if let Err(error) = std::fs::File::create(folder.join(MARK)) {
        tracing::warn!("{}: cannot mark: {error}", folder.display());
    }
}

fn unmark(folder: &Path) {
    remove(&folder.join(MARK));
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    paths: Paths,
    db: Db,
    jobs: Arc<Jobs>,
    default_image: Option<ImageName>,
    /// Held while something is published or removed: two imports of the same content, or an import and a removal,
    /// would otherwise meet in one folder.
    publishing: Mutex<()>,
    /// Conversions at work.
    imports: Arc<Turns>,
    converter: Converter,
}

impl Store {
    pub(crate) fn new(
        paths: Paths,
        db: Db,
        jobs: Arc<Jobs>,
        default_image: Option<ImageName>,
        converter: Converter,
    ) -> Arc<Self> {
        Arc::new(Self {
            paths,
            db,
            jobs,
            default_image,
            publishing: Mutex::new(()),
            imports: Turns::new(import::AT_ONCE),
            converter,
        })
    }

    /// Removes what imports and removals left that a crash cut short: staging folders, and marked folders without a row.
    pub(crate) async fn remove_leftovers(&self) -> Result<(), DbError> {
        let (images, kernels) = (self.db.contents(&IMAGES).await?, self.db.contents(&KERNELS).await?);
        for (folder, known) in [(self.paths.images(), images), (self.paths.kernels(), kernels)] {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if digest_of(&path).is_some_and(|id| known.contains(&id)) {
                    unmark(&path);
                } else if is_unfinished(&path) {
                    tracing::warn!(path = %path.display(), "an import or a removal was cut short; removed");
                    remove(&path);
                } else {
                    tracing::warn!(path = %path.display(), "not known, and not of an import that was cut short: kept");
                }
            }
        }
        Ok(())
    }

    /// Removes content when its last name or its last VM is gone; now and as long as the daemon runs.
    pub(crate) fn collect_in_background(self: &Arc<Self>) {
        let store = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                if let Err(error) = store.collect().await {
                    tracing::warn!("cannot remove what nobody uses: {}", crate::error::chain(&error));
                }
                store.db.unused.notified().await;
            }
        });
    }

    async fn collect(&self) -> Result<(), DbError> {
        let _publishing = self.publishing.lock().await;
        for kind in [&IMAGES, &KERNELS] {
            for id in self.db.unused(kind).await? {
                let folder = self.folder(kind, &id);
                mark(&folder);
                if self.db.remove_unused(kind, id).await? {
                    tracing::info!(%id, "{}: nobody uses it any more; removed", kind.word);
                    // Gigabytes take a while. What is left of it is marked.
                    let removed = blocking(move || {
                        remove(&folder);
                        Ok::<_, WorkerEnded>(())
                    });
                    drop(removed.await);
                } else {
                    unmark(&folder);
                }
            }
        }
        Ok(())
    }

    fn folder(&self, kind: &Kind, id: &Digest) -> PathBuf {
        if kind.word == IMAGES.word { self.paths.image_dir(id) } else { self.paths.kernel_dir(id) }
    }

    /// What the peer may use; everything for an administrator with `all`. What others have told of theirs is not told on.
    pub(crate) async fn images(&self, peer: &Peer, all: bool) -> Result<Vec<ImageRecord>, ApiError> {
        let mut images = self.db.images(&self.paths).await.map_err(|error| internal(&error))?;
        may_list(peer, all)?;
        images.retain(|image| all || policy::sees(peer, &image.entry()));
        for image in images.iter_mut().filter(|image| !peer.admin && !peer.owns(&image.entry().owner)) {
            self.without_paths(image);
        }
        Ok(images)
    }

    /// One of the images that the peer may use.
    pub(crate) async fn show_image(&self, peer: &Peer, word: &str) -> Result<ImageRecord, ApiError> {
        let images = self.db.images(&self.paths).await.map_err(|error| internal(&error))?;
        let mut image = named(peer, images, word, &IMAGES)?;
        if !peer.admin && !peer.owns(&image.entry().owner) {
            self.without_paths(&mut image);
        }
        Ok(image)
    }

    /// Of another user's shared image nobody learns where it lay on that user's disk, nor where it lies in the store.
    fn without_paths(&self, image: &mut ImageRecord) {
        if let Some(name) = Path::new(&image.source).file_name().filter(|_| image.source.starts_with('/')) {
            image.source = name.to_string_lossy().into_owned();
        }
        let state = format!("{}/", self.paths.state.display());
        let seed = image.work_seed_path.iter_mut();
        for path in [&mut image.artifact_dir, &mut image.rootfs_path].into_iter().chain(seed) {
            *path = path.strip_prefix(&state).unwrap_or(path).to_owned();
        }
    }

    /// As [`Store::images`].
    pub(crate) async fn kernels(&self, peer: &Peer, all: bool) -> Result<Vec<KernelRecord>, ApiError> {
        may_list(peer, all)?;
        let mut kernels = self.db.kernels().await.map_err(|error| internal(&error))?;
        kernels.retain(|kernel| all || policy::sees(peer, &kernel.entry()));
        Ok(kernels)
    }

    /// The image that was named, else the default one.
    pub(crate) async fn pick_image(&self, peer: &Peer, word: Option<&str>) -> Result<ImageRecord, ApiError> {
        let images = self.db.images(&self.paths).await.map_err(|error| internal(&error))?;
        if let Some(word) = word {
            return named(peer, images, word, &IMAGES);
        }
        let configured = self.default_image.as_ref().map(ImageName::as_str);
        let picked = policy::default_image(peer, &entries(&images), configured);
        take(images, picked).map_err(|why| match why {
            Unresolved::Several => ApiError::new(ErrorCode::Ambiguous, "there is more than one image")
                .hint("Choose one with --image; `banger image list` shows them."),
            Unresolved::None => ApiError::new(ErrorCode::NotFound, "there is no image for you yet")
                .hint("Import one: `banger image import ROOTFS.tar --name NAME`."),
        })
    }

    /// The kernel that was named, else the default one.
    pub(crate) async fn pick_kernel(&self, peer: &Peer, word: Option<&str>) -> Result<KernelRecord, ApiError> {
        let kernels = self.db.kernels().await.map_err(|error| internal(&error))?;
        if let Some(word) = word {
            return named(peer, kernels, word, &KERNELS);
        }
        let picked = policy::default_kernel(peer, &entries(&kernels));
        take(kernels, picked).map_err(|_| {
            ApiError::new(ErrorCode::NotFound, "there is no kernel for you yet").hint(
                "Import the host's own: `banger kernel import /boot/vmlinuz-VERSION`. An administrator does it for everybody with --shared.",
            )
        })
    }

    pub(crate) async fn delete_image(self: &Arc<Self>, peer: &Peer, word: String) -> Result<(), ApiError> {
        let (store, peer) = (Arc::clone(self), peer.clone());
        to_its_end(async move {
            let images = store.db.images(&store.paths).await.map_err(|error| internal(&error))?;
            let image = named(&peer, images, &word, &IMAGES)?;
            store.remove_name(&peer, &IMAGES, &word, image.entry()).await
        })
        .await
    }

    pub(crate) async fn delete_kernel(self: &Arc<Self>, peer: &Peer, word: String) -> Result<(), ApiError> {
        let (store, peer) = (Arc::clone(self), peer.clone());
        to_its_end(async move {
            let kernels = store.db.kernels().await.map_err(|error| internal(&error))?;
            let kernel = named(&peer, kernels, &word, &KERNELS)?;
            store.remove_name(&peer, &KERNELS, &word, kernel.entry()).await
        })
        .await
    }

    async fn remove_name(
        &self,
        peer: &Peer,
        kind: &'static Kind,
        word: &str,
        entry: Entry<'_>,
    ) -> Result<(), ApiError> {
        let _grant = policy::change(peer, &entry.owner).granted().map_err(|why| denied(word, why))?;
        let removed = self.db.remove_name(kind, entry.owner.clone(), entry.name.to_owned()).await;
        removed.map_err(|error| internal(&error))?.map_err(|user| in_use(peer, kind, word, &user))?;
        tracing::info!(banger_uid = peer.uid, owner = %entry.owner.name, "{} {} deleted", kind.word, entry.name);
        self.collect().await.map_err(|error| internal(&error))
    }

    /// Everybody may use the image from now on, or only its owner again.
    pub(crate) async fn share_image(&self, peer: &Peer, word: &str, shared: bool) -> Result<(), ApiError> {
        let images = self.db.images(&self.paths).await.map_err(|error| internal(&error))?;
        self.share(peer, &IMAGES, word, named(peer, images, word, &IMAGES)?.entry(), shared).await
    }

    /// As [`Store::share_image`].
    pub(crate) async fn share_kernel(&self, peer: &Peer, word: &str, shared: bool) -> Result<(), ApiError> {
        let kernels = self.db.kernels().await.map_err(|error| internal(&error))?;
        self.share(peer, &KERNELS, word, named(peer, kernels, word, &KERNELS)?.entry(), shared).await
    }

    async fn share(
        &self,
        peer: &Peer,
        kind: &'static Kind,
        word: &str,
        entry: Entry<'_>,
        shared: bool,
    ) -> Result<(), ApiError> {
        let _grant = policy::share(peer).granted().map_err(|why| denied(word, why))?;
        let name = entry.name.to_owned();
        self.db.share(kind, entry.owner.clone(), name.clone(), shared).await.map_err(|error| match error {
            DbError::Taken(_) => is_shared(kind, &name),
            error => internal(&error),
        })?;
        tracing::info!(banger_uid = peer.uid, owner = %entry.owner.name, shared, "{} {name}", kind.word);
        Ok(())
    }
}

/// An image or a kernel, as far as it decides who means it.
pub(crate) trait Named {
    fn entry(&self) -> Entry<'_>;
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

fn entries<T: Named>(all: &[T]) -> Vec<Entry<'_>> {
    all.iter().map(T::entry).collect()
}

fn take<T>(all: Vec<T>, at: Result<usize, Unresolved>) -> Result<T, Unresolved> {
    all.into_iter().nth(at?).ok_or(Unresolved::None)
}

fn may_list(peer: &Peer, all: bool) -> Result<(), ApiError> {
    if !all || peer.admin {
        return Ok(());
    }
    Err(ApiError::new(ErrorCode::Denied, "only root and the group banger-admin see what everyone has stored"))
}

/// Not part of the call: a client that goes away between row and folder must not leave the folder.
async fn to_its_end(work: impl Future<Output = Result<(), ApiError>> + Send + 'static) -> Result<(), ApiError> {
    let done = tokio::spawn(work).await;
    done.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a task ended: {error}")))?
}

/// What a word means to the peer.
fn named<T: Named>(peer: &Peer, all: Vec<T>, word: &str, kind: &Kind) -> Result<T, ApiError> {
    let meant = policy::resolve(peer, &entries(&all), word);
    let shown: String = word.chars().filter(|c| !c.is_control()).take(160).collect();
    let what = kind.word;
    take(all, meant).map_err(|why| match why {
        Unresolved::Several => ApiError::new(ErrorCode::Ambiguous, format!("{shown} fits more than one {what}"))
            .hint(format!("Name it by its name; `banger {what} list` shows them.")),
        Unresolved::None => ApiError::new(ErrorCode::NotFound, format!("no such {what}: {shown}"))
            .hint(format!("`banger {what} list` shows what there is.")),
    })
}

fn denied(word: &str, why: Refusal) -> ApiError {
    ApiError::new(ErrorCode::Denied, format!("{word}: {why}")).hint("Root or a member of the group banger-admin can.")
}

fn is_shared(kind: &Kind, name: &str) -> ApiError {
    let what = kind.word;
    ApiError::new(ErrorCode::AlreadyExists, format!("another {what} of the name {name} is shared already"))
        .hint(format!("Take that one back first; `banger {what} list --all` shows whose it is."))
}

/// A VM is named to its owner and to administrators.
fn in_use(peer: &Peer, kind: &Kind, word: &str, user: &User) -> ApiError {
    let what = kind.word;
    if peer.owns(&user.owner) {
        let message = format!("{what} {word} is used by VM {}", user.vm);
        return ApiError::new(ErrorCode::InUse, message).hint("Delete that VM first.");
    }
    let off = if kind.word == IMAGES.word { "image promote --private" } else { "kernel share --off" };
    let hint = format!("Delete that VM first, or take the {what} back from the others with `banger {off}`.");
    if peer.admin {
        let message = format!("{what} {word} is used by VM {}/{}", user.owner.name, user.vm);
        return ApiError::new(ErrorCode::InUse, message).hint(hint);
    }
    ApiError::new(ErrorCode::InUse, format!("{what} {word} is shared, and a VM of another user uses it"))
        .hint("Ask an administrator (root, or a member of the group banger-admin) to take it back from the others.")
}

/// Removes a folder or file of the store; what cannot be removed is looked at again at the next start.
fn remove(path: &Path) {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("{}: cannot remove: {error}", path.display());
    }
}

#[cfg(test)]
mod tests;
