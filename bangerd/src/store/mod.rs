//! Images and kernels of this host: what there is, which one a VM gets, and their removal.
//!
//! Called by `rpc` and by the creation of VMs. A folder is published by one rename before its row is written, and removed after its row was. Between
//! the two it is marked: a marked folder without a row is what a crash has left, and is removed at the next start. One that has neither lost
//! its row otherwise, by an older database say, and disks of VMs may stand on it: it is kept for an administrator to decide.

pub(crate) mod import;
pub(crate) mod room;

use crate::db::{Db, DbError};
use crate::error::internal;
use crate::jobs::Jobs;
use crate::paths::Paths;
use crate::vm::host::blocking;
use banger_policy::{Digest, ImageName, Peer, access};
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
}

impl Store {
    pub(crate) fn new(paths: Paths, db: Db, jobs: Arc<Jobs>, default_image: Option<ImageName>) -> Arc<Self> {
        Arc::new(Self { paths, db, jobs, default_image, publishing: Mutex::new(()) })
    }

    /// Removes what imports and removals left that a crash cut short: staging folders, and marked folders without a row.
    pub(crate) async fn remove_leftovers(&self) -> Result<(), DbError> {
        let images: Vec<Digest> = self.db.images(&self.paths).await?.iter().map(|image| image.id).collect();
        let kernels: Vec<Digest> = self.db.kernels().await?.iter().map(|kernel| kernel.id).collect();
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

    pub(crate) async fn images(&self) -> Result<Vec<ImageRecord>, ApiError> {
        self.db.images(&self.paths).await.map_err(|error| internal(&error))
    }

    pub(crate) async fn kernels(&self) -> Result<Vec<KernelRecord>, ApiError> {
        self.db.kernels().await.map_err(|error| internal(&error))
    }

    /// The image that was named, else the configured one, else the only one.
    pub(crate) async fn pick_image(&self, word: Option<&str>) -> Result<ImageRecord, ApiError> {
        let mut images = self.images().await?;
        match word.or(self.default_image.as_ref().map(ImageName::as_str)) {
            Some(word) => named(images, word, "image", |image| (image.name.as_str(), image.id)),
            None if images.len() > 1 => Err(ApiError::new(ErrorCode::Ambiguous, "there is more than one image")
                .hint("Choose one with --image; `banger image list` shows them.")),
            None => images.pop().ok_or_else(|| {
                ApiError::new(ErrorCode::NotFound, "there is no image yet")
                    .hint("Import one: `banger image import ROOTFS.tar`.")
            }),
        }
    }

    /// The kernel that was named, else the newest.
    pub(crate) async fn pick_kernel(&self, word: Option<&str>) -> Result<KernelRecord, ApiError> {
        let kernels = self.kernels().await?;
        match word {
            Some(word) => named(kernels, word, "kernel", |kernel| (kernel.name.as_str(), kernel.id)),
            None => kernels.into_iter().next().ok_or_else(|| {
                ApiError::new(ErrorCode::NotFound, "there is no kernel yet")
                    .hint("Import the host's own: `banger kernel import`.")
            }),
        }
    }

    pub(crate) async fn delete_image(self: &Arc<Self>, peer: Peer, word: String) -> Result<(), ApiError> {
        let store = Arc::clone(self);
        to_its_end(async move { store.remove_image(peer, &word).await }).await
    }

    pub(crate) async fn delete_kernel(self: &Arc<Self>, peer: Peer, word: String) -> Result<(), ApiError> {
        let store = Arc::clone(self);
        to_its_end(async move { store.remove_kernel(peer, &word).await }).await
    }

    async fn remove_image(&self, peer: Peer, word: &str) -> Result<(), ApiError> {
        let _publishing = self.publishing.lock().await;
        let image = named(self.images().await?, word, "image", |image| (image.name.as_str(), image.id))?;
        let _grant = access::store_entry(peer, image.owner).granted().map_err(|why| denied(word, &why))?;
        let folder = self.paths.image_dir(&image.id);
        mark(&folder);
        let deleted = self.db.delete_image(image.id).await.map_err(|error| internal(&error))?;
        deleted.inspect_err(|_| unmark(&folder)).map_err(|user| in_use("image", word, &user))?;
        tracing::info!(banger_uid = peer.uid, image = %image.name, "image deleted");
        remove_later(folder).await
    }

    async fn remove_kernel(&self, peer: Peer, word: &str) -> Result<(), ApiError> {
        let _publishing = self.publishing.lock().await;
        let kernel = named(self.kernels().await?, word, "kernel", |kernel| (kernel.name.as_str(), kernel.id))?;
        let _grant = access::store_entry(peer, kernel.owner).granted().map_err(|why| denied(word, &why))?;
        let folder = self.paths.kernel_dir(&kernel.id);
        mark(&folder);
        let deleted = self.db.delete_kernel(kernel.id).await.map_err(|error| internal(&error))?;
        deleted.inspect_err(|_| unmark(&folder)).map_err(|user| in_use("kernel", word, &user))?;
        tracing::info!(banger_uid = peer.uid, kernel = %kernel.name, "kernel deleted");
        remove_later(folder).await
    }
}

/// Not part of the call: a client that goes away between row and folder must not leave the folder.
async fn to_its_end(work: impl Future<Output = Result<(), ApiError>> + Send + 'static) -> Result<(), ApiError> {
    let done = tokio::spawn(work).await;
    done.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a task ended: {error}")))?
}

/// Gigabytes take a while.
async fn remove_later(folder: PathBuf) -> Result<(), ApiError> {
    blocking(move || {
        remove(&folder);
        Ok(())
    })
    .await
}

/// By exact name first, then id or unique prefix of one.
fn named<T>(all: Vec<T>, word: &str, what: &str, of: impl Fn(&T) -> (&str, Digest)) -> Result<T, ApiError> {
    let mut prefixed = Vec::new();
    for entry in all {
        let (name, id) = of(&entry);
        if name == word {
            return Ok(entry);
        }
        if !word.is_empty() && id.to_string().starts_with(word) {
            prefixed.push(entry);
        }
    }
    match (prefixed.pop(), prefixed.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), _) => Err(ApiError::new(ErrorCode::Ambiguous, format!("{word} fits more than one {what}"))),
        (None, _) => {
            let word: String = word.chars().filter(|c| !c.is_control()).take(160).collect();
            Err(ApiError::new(ErrorCode::NotFound, format!("no such {what}: {word}"))
                .hint(format!("`banger {what} list` shows what there is.")))
        }
    }
}

fn denied(word: &str, why: &access::Refusal) -> ApiError {
    ApiError::new(ErrorCode::Denied, format!("{word}: {why}")).hint("Its owner, root or the group banger-admin can.")
}

fn in_use(what: &str, word: &str, user: &str) -> ApiError {
    ApiError::new(ErrorCode::InUse, format!("{what} {word} is used by VM {user}")).hint("Delete that VM first.")
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
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn id(first: u8) -> Digest {
        let mut bytes = [0x11; 32];
        bytes[0] = first;
        Digest::from_bytes(bytes).unwrap()
    }

    #[test]
    fn a_name_wins_over_a_prefix_and_prefixes_must_be_unique() {
        let all = || vec![("debian", id(0xab)), ("ab", id(0x12)), ("third", id(0x13))];
        let find = |word| named(all(), word, "image", |(name, id)| (name, *id)).map(|(name, _)| name);
        assert_eq!(find("debian").unwrap(), "debian");
        assert_eq!(find("ab").unwrap(), "ab");
        assert_eq!(find("ab1").unwrap(), "debian");
        assert_eq!(find("1").unwrap_err().code, ErrorCode::Ambiguous);
        assert_eq!(find("").unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(find("\u{1b}[2J").unwrap_err().message, "no such image: [2J");
    }
}
