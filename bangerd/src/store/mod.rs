//! Images and kernels of this host: what each user sees of them, which one a VM gets, and their
//! removal.
//!
//! A name is its owner's, and content is everybody's who has a name for it: it is removed when
//! nobody has, no VM uses it, and, of a kernel, no image names it.
//!
//! Called by `rpc` and by the creation of VMs. A folder is published by one rename before its row
//! is written, and removed after its row was. Between the two it is marked: a marked folder without
//! a row is what a crash has left, and is removed at the next start. One that has neither lost its
//! row otherwise, by an older database say, and disks of VMs may stand on it: it is kept for an
//! administrator to decide.

pub(crate) mod error;
mod import;
pub(crate) mod page;
mod pulled;
mod spooled;
mod staging;
mod stored;
pub(crate) mod wanted;

use crate::config::Live;
use crate::convert::Converter;
use crate::db::store::{IMAGES, KERNELS, User};
use crate::db::{Db, DbError, Unshared};
use crate::jobs::Jobs;
use crate::paths::Paths;
use crate::turns::Turns;
use crate::util::{WorkerEnded, allocated_below, blocking, on_a_thread};
use banger_policy::store::{self as policy, Entry, Unresolved};
use banger_policy::{Digest, ImageName, Peer};
use banger_proto::model::{ImageRecord, KernelRecord};
use error::{StoreError, UsedBy};
use spooled::Spooled;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use stored::{Named, Stored};
use tokio::sync::Mutex;

/// How the names of staging folders begin; the number of the job follows.
const STAGING: &str = ".import-";
/// Lies in the folder of what is being published or removed.
const MARK: &str = "unfinished";

/// Whether a folder of the store is neither being made nor being removed.
pub(crate) fn is_finished(folder: &Path) -> bool {
    digest_of(folder).is_some() && !folder.join(MARK).exists()
}

/// Whether it was left by an import or a removal of ours; an administrator's own files are nobody's
/// to remove.
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

/// Takes a folder that is to be removed out of the way of whoever publishes the same content
/// meanwhile; `None`: there is none. If a crash leaves it, the next start removes it as it does a
/// staging folder.
fn set_aside(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let aside = folder.with_file_name(format!("{STAGING}removed-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    match std::fs::rename(folder, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same, for whoever goes on in any case: what cannot be moved is removed where it is, while
/// nobody publishes.
async fn set_aside_or_remove(folder: PathBuf) -> Option<PathBuf> {
    let set_aside_or_remove = move || {
        let aside = set_aside(&folder).unwrap_or_else(|_| {
            remove(&folder);
            None
        });
        Ok::<_, WorkerEnded>(aside)
    };
    blocking(set_aside_or_remove).await.ok().flatten()
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    paths: Paths,
    db: Db,
    jobs: Arc<Jobs>,
    config: Live,
    /// Held while something is published or removed: two imports of the same content, or an import
    /// and a removal, would otherwise meet in one folder.
    publishing: Mutex<()>,
    /// Conversions at work.
    imports: Arc<Turns>,
    /// Uploads that nothing has become of yet.
    spooled: Arc<Spooled>,
    converter: Converter,
}

impl Store {
    pub(crate) fn new(paths: Paths, db: Db, jobs: Arc<Jobs>, config: Live, converter: Converter) -> Arc<Self> {
        Arc::new(Self {
            paths,
            db,
            jobs,
            config,
            publishing: Mutex::new(()),
            imports: Turns::new(import::AT_ONCE, 1),
            spooled: Arc::default(),
            converter,
        })
    }

    /// While this is held, nothing is published or removed.
    #[cfg(test)]
    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.publishing.lock().await
    }

    /// Removes what imports and removals left that a crash cut short: staging folders, and marked
    /// folders without a row. Counts what the others take.
    pub(crate) async fn remove_leftovers(&self) -> Result<(), DbError> {
        self.remove_leftovers_of::<ImageRecord>().await?;
        self.remove_leftovers_of::<KernelRecord>().await
    }

    async fn remove_leftovers_of<T: Stored>(&self) -> Result<(), DbError> {
        let known = self.db.contents(T::KIND).await?;
        let mut taken = Vec::new();
        for entry in std::fs::read_dir(T::root(&self.paths)).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some(id) = digest_of(&path).filter(|id| known.contains(id)) {
                unmark(&path);
                taken.push((id, allocated_below(&path)));
            } else if is_unfinished(&path) {
                tracing::warn!(path = %path.display(), "an import or a removal was cut short; removed");
                remove(&path);
            } else {
                tracing::warn!(path = %path.display(), "not known, and not of an import that was cut short: kept");
            }
        }
        // Earlier releases counted one file of each. Nobody is served by a daemon that ends because
        // this cannot be written to a full disk.
        if let Err(error) = self.db.set_taken(T::KIND, taken).await {
            tracing::warn!("what {}s take is not recorded: {}", T::KIND.word, crate::error::chain(&error));
        }
        Ok(())
    }

    /// Removes the folder of content that has no row, as somebody has seen. An import may have
    /// given it one since.
    ///
    /// # Errors
    /// [`StoreError::Known`], and what the file system says.
    pub(crate) async fn remove_unknown(&self, folder: &Path) -> Result<(), StoreError> {
        let publishing = self.publishing.lock().await;
        let known = [self.db.contents(&IMAGES).await?, self.db.contents(&KERNELS).await?].concat();
        if digest_of(folder).is_some_and(|id| known.contains(&id)) {
            return Err(StoreError::Known);
        }
        let folder = folder.to_owned();
        let set_aside = blocking(move || set_aside(&folder).map_err(StoreError::Files));
        let Some(folder) = set_aside.await? else { return Ok(()) };
        drop(publishing);
        let removed = move || match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Files(error)),
            _ => Ok(()),
        };
        blocking(removed).await
    }

    /// Removes content when its last name or its last VM is gone; now and as long as the daemon
    /// runs.
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
        let mut aside = Vec::new();
        let publishing = self.publishing.lock().await;
        let done = match self.collect_of::<ImageRecord>(&mut aside).await {
            Ok(()) => self.collect_of::<KernelRecord>(&mut aside).await,
            failed => failed,
        };
        drop(publishing);
        // Gigabytes take a while, and nobody else waits for it.
        on_a_thread(move || aside.iter().for_each(|folder| remove(folder))).await;
        done
    }

    /// What is to be removed is put into `aside`.
    async fn collect_of<T: Stored>(&self, aside: &mut Vec<PathBuf>) -> Result<(), DbError> {
        for id in self.db.unused(T::KIND).await? {
            let folder = T::folder(&self.paths, &id);
            let marked = folder.clone();
            on_a_thread(move || mark(&marked)).await;
            if self.db.remove_unused(T::KIND, id).await? {
                tracing::info!(%id, "{}: nobody uses it any more; removed", T::KIND.word);
                aside.extend(set_aside_or_remove(folder).await);
            } else {
                on_a_thread(move || unmark(&folder)).await;
            }
        }
        Ok(())
    }

    /// What the peer may use; everything for an administrator with `all`. What others have told of
    /// theirs is not told on.
    pub(crate) async fn list<T: Stored>(&self, peer: &Peer, all: bool) -> Result<Vec<T>, StoreError> {
        if all && !peer.admin {
            return Err(StoreError::SeeAll);
        }
        let by = (!all).then(|| peer.owner());
        let mut found = T::all(&self.db.of(peer.uid), &self.paths, by).await?;
        found.retain(|one| all || policy::sees(peer, &one.entry()));
        found.iter_mut().for_each(|one| self.as_told_to(peer, one));
        Ok(found)
    }

    /// One of those that the peer may use.
    pub(crate) async fn show<T: Stored>(&self, peer: &Peer, word: &str) -> Result<T, StoreError> {
        let mut found = self.named::<T>(peer, word).await?;
        self.as_told_to(peer, &mut found);
        Ok(found)
    }

    fn as_told_to<T: Stored>(&self, peer: &Peer, one: &mut T) {
        if !peer.admin && !peer.owns(&one.entry().owner) {
            one.for_others(&self.paths);
        }
    }

    /// What a word means to the peer.
    async fn named<T: Stored>(&self, peer: &Peer, word: &str) -> Result<T, StoreError> {
        let by = (!peer.admin).then(|| peer.owner());
        let all = T::all(&self.db.of(peer.uid), &self.paths, by).await?;
        let meant = policy::resolve(peer, &entries(&all), word);
        let (kind, shown) = (T::KIND, word.chars().filter(|c| !c.is_control()).take(160).collect());
        take(all, meant).map_err(|why| match why {
            Unresolved::Several => StoreError::Ambiguous { kind, shown },
            Unresolved::None => StoreError::NotFound { kind, shown },
        })
    }

    /// The image that was named, else the default one.
    pub(crate) async fn pick_image(&self, peer: &Peer, word: Option<&str>) -> Result<ImageRecord, StoreError> {
        if let Some(word) = word {
            return self.named(peer, word).await;
        }
        let images = self.db.of(peer.uid).images(&self.paths, Some(peer.owner())).await?;
        let config = self.config.now();
        let configured = config.default_image_name.as_ref().map(ImageName::as_str);
        let picked = policy::default_image(peer, &entries(&images), configured);
        take(images, picked).map_err(|why| match why {
            Unresolved::Several => StoreError::Several(&IMAGES),
            Unresolved::None => StoreError::NoneYet(&IMAGES),
        })
    }

    /// The kernel that was named, else the default one.
    pub(crate) async fn pick_kernel(&self, peer: &Peer, word: Option<&str>) -> Result<KernelRecord, StoreError> {
        if let Some(word) = word {
            return self.named(peer, word).await;
        }
        let kernels = self.db.of(peer.uid).kernels(Some(peer.owner())).await?;
        let picked = policy::default_kernel(peer, &entries(&kernels));
        take(kernels, picked).map_err(|_| StoreError::NoneYet(&KERNELS))
    }

    /// The kernel of a VM of the image: the one that was named, else the image's own, else the
    /// default one. Who may use an image may not therefore use its kernel: that is asked each time.
    pub(crate) async fn kernel_for(
        &self,
        peer: &Peer,
        image: &ImageRecord,
        word: Option<&str>,
    ) -> Result<KernelRecord, StoreError> {
        let Some(id) = image.kernel_id.filter(|_| word.is_none()) else { return self.pick_kernel(peer, word).await };
        let kernels = self.db.of(peer.uid).kernels(Some(peer.owner())).await?;
        let usable = policy::usable(peer, &entries(&kernels), id);
        take(kernels, usable).map_err(|_| StoreError::ImagesKernel(image.name.to_string()))
    }

    /// The kernel that an image shall name: one that the peer may use, which an administrator may
    /// not with every one that he sees.
    pub(crate) async fn kernel_to_name(&self, peer: &Peer, word: &str) -> Result<KernelRecord, StoreError> {
        let found = self.named::<KernelRecord>(peer, word).await?;
        if policy::sees(peer, &found.entry()) {
            return Ok(found);
        }
        Err(StoreError::KernelOfAnother(word.to_owned()))
    }

    /// Removes a name, and the content when nobody else has it. Not part of the call: a client that
    /// goes away between row and folder must not leave the folder.
    pub(crate) async fn delete<T: Stored>(self: &Arc<Self>, peer: &Peer, word: String) -> Result<(), StoreError> {
        let (store, peer) = (Arc::clone(self), peer.clone());
        let done = tokio::spawn(async move { store.remove_name::<T>(&peer, word).await });
        done.await.map_err(StoreError::TaskEnded)?
    }

    async fn remove_name<T: Stored>(&self, peer: &Peer, word: String) -> Result<(), StoreError> {
        let found = self.named::<T>(peer, &word).await?;
        let (kind, entry) = (T::KIND, found.entry());
        if let Err(why) = policy::change(peer, &entry.owner).granted() {
            return Err(StoreError::Denied { word, why });
        }
        if let Err(user) = self.db.of(peer.uid).remove_name(kind, entry.owner.clone(), entry.name.to_owned()).await? {
            return Err(StoreError::InUse { kind, word, by: used_by(peer, user) });
        }
        tracing::info!(banger_uid = peer.uid, owner = %entry.owner.name, "{} {} deleted", kind.word, entry.name);
        Ok(self.collect().await?)
    }

    /// Everybody may use it from now on, or only its owner again.
    pub(crate) async fn share<T: Stored>(&self, peer: &Peer, word: &str, shared: bool) -> Result<(), StoreError> {
        let found = self.named::<T>(peer, word).await?;
        let (kind, entry) = (T::KIND, found.entry());
        if let Err(why) = policy::share(peer).granted() {
            return Err(StoreError::Denied { word: word.to_owned(), why });
        }
        let name = entry.name;
        let done = T::share(&self.db.of(peer.uid), entry.owner.clone(), name.to_owned(), entry.id, shared).await;
        let done = done.map_err(|error| match error {
            DbError::Taken(name) => StoreError::SharedAlready { kind, name },
            error => error.into(),
        })?;
        done.map_err(|why| match why {
            Unshared::Gone => StoreError::NotFound { kind, shown: name.to_owned() },
            Unshared::Kernel(kernel) => StoreError::KernelNotShared { image: word.to_owned(), kernel },
        })?;
        tracing::info!(banger_uid = peer.uid, owner = %entry.owner.name, shared, "{} {name}", kind.word);
        Ok(())
    }

    /// Makes an image that was registered a managed one.
    pub(crate) async fn promote(&self, peer: &Peer, word: &str) -> Result<(), StoreError> {
        let found = self.named::<ImageRecord>(peer, word).await?;
        let entry = found.entry();
        if let Err(why) = policy::change(peer, &entry.owner).granted() {
            return Err(StoreError::Denied { word: word.to_owned(), why });
        }
        let name = entry.name;
        // Nothing is shared, so no kernel has to be.
        let done = self.db.of(peer.uid).promote_image(entry.owner.clone(), name.to_owned(), entry.id, false).await?;
        done.map_err(|_| StoreError::NotFound { kind: &IMAGES, shown: name.to_owned() })?;
        tracing::info!(banger_uid = peer.uid, owner = %entry.owner.name, "image {name} promoted");
        Ok(())
    }
}

fn entries<T: Named>(all: &[T]) -> Vec<Entry<'_>> {
    all.iter().map(T::entry).collect()
}

fn take<T>(all: Vec<T>, at: Result<usize, Unresolved>) -> Result<T, Unresolved> {
    all.into_iter().nth(at?).ok_or(Unresolved::None)
}

/// A VM or an image is named to its owner and to administrators.
fn used_by(peer: &Peer, user: User) -> UsedBy {
    let User { what, owner } = user;
    if peer.owns(&owner) {
        UsedBy::Own(what)
    } else if peer.admin {
        UsedBy::Told { owner: owner.name.into_owned(), what }
    } else {
        UsedBy::Another(what)
    }
}

/// Removes a folder or file of the store; what cannot be removed is looked at again at the next
/// start.
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
