//! Blobs on the user's disk, by digest, as far as they have arrived: `blobs/sha256/HEX`, and
//! `HEX.partial` for one that is on its way. Nothing is believed because it lies here: what is read
//! is verified each time.
//!
//! A partial file is locked (`flock`) by the process that fills it, so that two of them do not
//! download the same blob.

use super::manifest::Blob;
use crate::error::explained;
use crate::output::amount;
use crate::private::{self, Missing};
use anyhow::Context as _;
use banger_policy::Digest;
use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often one that another process downloads is looked for.
const LOOK: Duration = Duration::from_millis(200);
const PARTIAL: &str = ".partial";
/// Where the blobs lie in the user's folder of caches.
const OWN: &str = "banger/blobs/sha256";

/// The cache.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    /// The user's folder of caches.
    base: PathBuf,
    folder: PathBuf,
    /// Bytes.
    most: u64,
}

/// What [`Cache::begin`] found.
pub(super) enum Begun {
    /// All of it, verified; at its beginning.
    Here(File),
    /// To be downloaded.
    Missing(Partial),
}

/// A blob that is on its way. Nobody else fills it meanwhile.
pub(super) struct Partial {
    pub(super) file: File,
    path: PathBuf,
    target: PathBuf,
}

/// A file of the cache.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    digest: Digest,
    partial: bool,
    bytes: u64,
    used: SystemTime,
}

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// On their way just now, and left alone.
    pub(crate) busy: u64,
}

impl Cache {
    /// In the user's folder of caches. Nothing is made there before something is to be kept.
    pub(crate) fn new(caches: &Path, most: u64) -> Self {
        Self { base: caches.to_owned(), folder: caches.join(OWN), most }
    }

    /// Makes the folder, or sees that it is the user's: root with the home of somebody else writes
    /// nothing there.
    fn open(&self, missing: Missing) -> anyhow::Result<()> {
        private::open(&self.base, Path::new(OWN), geteuid(), missing).map(drop)
    }

    fn target(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// The blob, if it is here and is what it should be. One that is not is removed.
    pub(super) async fn find(&self, blob: &Blob) -> anyhow::Result<Option<File>> {
        let (path, blob) = (self.target(&blob.digest), blob.clone());
        tokio::task::spawn_blocking(move || {
            let mut file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            };
            let is_whole = file.metadata()?.len() == blob.size
                && blob.size > 0
                && hash(&mut file, blob.size)?.finalize()[..] == blob.digest.as_bytes()[..];
            if !is_whole {
                crate::output::remark(&format!("{} is damaged; it is fetched again", path.display()));
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                return Ok(None);
            }
            // What was used last is kept longest.
            drop(file.set_modified(SystemTime::now()));
            file.seek(SeekFrom::Start(0))?;
            Ok(Some(file))
        })
        .await?
    }

    /// The blob, or the right to download it. `waiting` is called once when another process does
    /// that already.
    pub(super) async fn begin(&self, blob: &Blob, waiting: impl Fn()) -> anyhow::Result<Begun> {
        self.open(Missing::Make).context("cannot keep what is downloaded")?;
        let target = self.target(&blob.digest);
        let path = self.folder.join(format!("{}{PARTIAL}", blob.digest));
        let mut told = false;
        loop {
            if let Some(file) = self.find(blob).await? {
                return Ok(Begun::Here(file));
            }
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(&path);
            let file = opened.with_context(|| format!("cannot write {}", path.display()))?;
            match file.try_lock() {
                Ok(()) => {
                    // Whoever had it before us may have finished, or removed it.
                    let is_it = |meta: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == meta.ino());
                    if fs::metadata(&path).is_ok_and(is_it) && !target.exists() {
                        return Ok(Begun::Missing(Partial { file, path, target }));
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting();
                    }
                    tokio::time::sleep(LOOK).await;
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }

    fn kept(&self) -> anyhow::Result<Vec<Kept>> {
        let what = || format!("cannot read {}", self.folder.display());
        if !fs::exists(&self.folder).with_context(what)? {
            return Ok(Vec::new());
        }
        self.open(Missing::Refuse)?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(what)? {
            let entry = entry.with_context(what)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (hex, partial) = name.strip_suffix(PARTIAL).map_or((name, false), |hex| (hex, true));
            // What is no file of ours is left alone, and so is what has gone meanwhile.
            let (Ok(digest), Ok(meta)) = (hex.parse(), entry.metadata()) else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            kept.push(Kept { path: entry.path(), digest, partial, bytes: meta.blocks() * 512, used });
        }
        kept.sort_by_key(|file| file.used);
        Ok(kept)
    }

    /// Removes what was not used for longest until there is room for blobs of these sizes, in the
    /// cache and on its disk.
    ///
    /// # Errors
    /// When they do not fit on the disk: then nothing is removed for them.
    pub(super) fn make_room_for(&self, needed: &BTreeMap<Digest, u64>) -> anyhow::Result<()> {
        let (here, others): (Vec<Kept>, Vec<Kept>) =
            self.kept()?.into_iter().partition(|file| needed.contains_key(&file.digest));
        let bytes = needed.values().fold(0_u64, |sum, size| sum.saturating_add(*size));
        let sum = |files: &[Kept]| files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        let missing = bytes.saturating_sub(sum(&here));
        let mut free = self.free()?;
        if missing > free.saturating_add(sum(&others)) {
            let message = format!("{} are to be downloaded, and there is room for {}", amount(missing), amount(free));
            return Err(explained(message, format!("make room on the disk of {}", self.base.display())));
        }
        let mut total = sum(&others).saturating_add(bytes);
        for file in others {
            if total <= self.most && missing <= free {
                break;
            }
            if remove(&file)? {
                total = total.saturating_sub(file.bytes);
                free = free.saturating_add(file.bytes);
            }
        }
        Ok(())
    }

    /// Bytes that the user may still write on the cache's disk.
    fn free(&self) -> anyhow::Result<u64> {
        // What is not there yet will be on the disk of what is above it.
        let there = self.folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        let disk = rustix::fs::statvfs(there).with_context(|| format!("cannot read {}", there.display()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Removes everything, or says what that would be.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn prune(&self, dry_run: bool) -> anyhow::Result<Pruned> {
        let mut pruned = Pruned::default();
        for file in self.kept()? {
            if if dry_run { !is_busy(&file)? } else { remove(&file)? } {
                pruned.files += 1;
                pruned.bytes += file.bytes;
            } else {
                pruned.busy += 1;
            }
        }
        Ok(pruned)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn is_busy(kept: &Kept) -> anyhow::Result<bool> {
    if !kept.partial {
        return Ok(false);
    }
    match File::open(&kept.path) {
        Ok(file) => Ok(matches!(file.try_lock(), Err(TryLockError::WouldBlock))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", kept.path.display())),
    }
}

/// False when another process is filling it.
fn remove(kept: &Kept) -> anyhow::Result<bool> {
    // A partial file is removed under its lock, or its next owner would fill a file without a name.
    let file = if kept.partial { File::open(&kept.path).ok() } else { None };
    if file.as_ref().is_some_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock))) {
        return Ok(false);
    }
    match fs::remove_file(&kept.path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", kept.path.display())),
    }
}

impl Partial {
    /// How much has arrived, and the state of its digest.
    pub(super) async fn so_far(&self) -> anyhow::Result<(u64, Sha256)> {
        let mut file = self.file.try_clone()?;
        tokio::task::spawn_blocking(move || {
            let bytes = file.metadata()?.len();
            let state = hash(&mut file, bytes)?;
            Ok((bytes, state))
        })
        .await?
    }

    /// Gives up what has arrived: a full disk is the user's before it is the cache's.
    pub(super) fn discard(self) {
        drop(fs::remove_file(&self.path));
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > 0 {
            self.file.set_len(0)?;
        }
        self.file.seek(SeekFrom::Start(0)).map(drop)
    }

    /// Makes it a blob of the cache; the caller has verified it.
    pub(super) async fn finish(self) -> anyhow::Result<File> {
        let what = format!("cannot write {}", self.target.display());
        tokio::task::spawn_blocking(move || {
            let Self { mut file, path, target } = self;
            // A crash of the host must not leave a name without the bytes.
            file.sync_data()?;
            fs::rename(&path, &target)?;
            file.seek(SeekFrom::Start(0))?;
            io::Result::Ok(file)
        })
        .await?
        .context(what)
    }
}

/// Reads so many bytes from the beginning; the file stands behind them then.
fn hash(file: &mut File, bytes: u64) -> io::Result<Sha256> {
    file.seek(SeekFrom::Start(0))?;
    let mut state = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut from = file.take(bytes);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(state),
            length => state.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}
