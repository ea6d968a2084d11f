//! An upload that becomes an image or a kernel: spooled to an unlinked file, checked and converted
//! on a blocking thread in a staging folder, published by one rename and a row.

use super::error::StoreError;
use super::staging::{Folder, Staging};
use super::stored::Stored;
use super::wanted::{Wanted, WantedImage, WantedKernel};
use super::{Store, remove, set_aside_or_remove, unmark};
use crate::convert::{ConvertError, Made, What};
use crate::db::DbError;
use crate::db::store::Kind;
use crate::error::OverLimit;
use crate::jobs::{Cancelled, Job};
use crate::room::Room;
use crate::stream;
use crate::util::{WorkerEnded, allocated_below, blocking, on_a_thread, text};
use banger_image::boot::kernel::{MODULES_DISK, MODULES_FOLDER, VMLINUX_FILE};
use banger_image::{Progress, ROOTFS_FILE, SEED_FILE};
use banger_policy::quota::{self, Limited};
use banger_policy::{Digest, KernelName, Peer};
use banger_proto::model::{ImageRecord, JobResult, KernelRecord};
use banger_proto::time::Timestamp;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::UnixStream;

/// Conversions at once on the host. Each is a process that may take a gigabyte, for minutes.
pub(super) const AT_ONCE: usize = 2;
/// Warnings of one import that are shown and logged.
const MAX_WARNINGS: u32 = 10;

/// The job as the converters see it. A disk that becomes full ends it like somebody who has changed
/// his mind.
#[derive(Clone)]
struct Watched {
    job: Arc<Job>,
    room: Arc<Room>,
    /// How often it was warned: an archive decides that.
    warned: Arc<AtomicU32>,
}

impl Watched {
    /// Cancelled by nobody: then it was for want of room.
    fn or_short(&self, error: ConvertError, what: &'static str) -> StoreError {
        match error {
            ConvertError::Cancelled if !self.job.cancelled().is_cancelled() => match self.room.check(what) {
                Err(short) => short.into(),
                Ok(()) => StoreError::Convert { what, source: ConvertError::Full },
            },
            source => StoreError::Convert { what, source },
        }
    }
}

impl Progress for Watched {
    fn stage(&self, name: &'static str) {
        self.job.stage(name);
    }

    fn bytes(&self, done: u64, total: u64) {
        let (done, total) = (done >> 20, total >> 20);
        self.job.detail(if total > 0 { format!("{done} of {total} MiB") } else { format!("{done} MiB") });
    }

    fn warn(&self, text: &str) {
        match self.warned.fetch_add(1, Ordering::Relaxed) {
            ..MAX_WARNINGS => self.job.warn(text.to_owned()),
            MAX_WARNINGS => self.job.warn("there are more such warnings, which are not shown".to_owned()),
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.job.cancelled().is_cancelled() || self.room.is_short()
    }
}

impl Store {
    /// Is the name free, and is there room? Asked before the upload, so that nobody sends gigabytes
    /// for nothing; decided at the end.
    pub(crate) async fn check_free(&self, peer: &Peer, wanted: &Wanted) -> Result<(), StoreError> {
        match wanted {
            Wanted::Image(image) => {
                // A name that is pulled again is not one more.
                let counts = |known: &ImageRecord| !image.renews(known);
                self.one_more(peer, Some(image.name.as_str()), Limited::Images, counts).await?;
            }
            Wanted::Kernel(kernel) => {
                let name = kernel.name.as_ref().map(KernelName::as_str);
                self.one_more(peer, name, Limited::Kernels, |_: &KernelRecord| true).await?;
            }
        }
        Ok(Room::of(&self.paths.staging()).check("the import")?)
    }

    /// May the peer have one more of this kind, beside those that count?
    async fn one_more<T: Stored>(
        &self,
        peer: &Peer,
        name: Option<&str>,
        limited: Limited,
        counts: impl Fn(&T) -> bool + Send,
    ) -> Result<(), StoreError> {
        let all = self.list::<T>(peer, false).await?;
        let own: Vec<T> = all.into_iter().filter(|one| peer.owns(&one.entry().owner) && counts(one)).collect();
        if let Some(name) = name.filter(|name| own.iter().any(|one| one.entry().name == *name)) {
            return Err(StoreError::Taken { kind: T::KIND, name: name.to_owned() });
        }
        let count = u64::try_from(own.len()).unwrap_or(u64::MAX);
        quota::fits(limited, &peer.limits, count, 1).map_err(|why| OverLimit::of(&peer.owner(), why))?;
        Ok(())
    }

    /// Begins the job of an upload; its stream comes later.
    pub(crate) fn begin(&self, peer: &Peer, wanted: &Wanted) -> Result<Job, StoreError> {
        Ok(self.jobs.begin(peer, wanted.title())?)
    }

    /// The whole of it, to the end of the job.
    pub(crate) async fn import(&self, io: UnixStream, peer: Peer, wanted: Wanted, job: Job) {
        let job = Arc::new(job);
        let result = self.work(io, &peer, wanted, &job).await;
        match Arc::try_unwrap(job) {
            Ok(job) => job.finish(result),
            Err(_) => tracing::error!("a worker thread outlives its import"),
        }
    }

    async fn work(&self, io: UnixStream, peer: &Peer, wanted: Wanted, job: &Arc<Job>) -> Result<JobResult, StoreError> {
        job.go_on()?;
        job.stage("upload");
        let spool = tempfile::tempfile_in(self.paths.staging()).map_err(StoreError::Spool)?;
        let for_upload = spool.try_clone().map_err(StoreError::Spool)?;
        let room = Room::of(&self.paths.staging());
        let used = self.db.of(peer.uid).stored_by(peer.owner()).await?;
        // Until nothing is left of the file.
        let (mut spooled, over) = (self.spooled.begin(peer.uid), OnceLock::new());
        let progress = |bytes: u64| {
            job.detail(format!("{} MiB", bytes >> 20));
            let fits = spooled.has(bytes, used, &peer.limits).map_err(|why| over.get_or_init(|| why));
            if fits.is_err() || room.is_short() { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        };
        tokio::select! {
            () = job.cancelled().cancelled() => return Err(Cancelled.into()),
            uploaded = stream::upload(io, for_upload, wanted.cap(), progress) => {
                uploaded.map_err(|error| match (over.get(), room.check("the upload")) {
                    (Some(why), _) => OverLimit::of(&peer.owner(), *why).into(),
                    (None, Err(short)) => StoreError::from(short),
                    (None, Ok(())) => error.into(),
                })?
            }
        };
        crate::fail::point("import", "uploaded");
        // Not before the upload is whole: a client that sends slowly keeps nobody waiting.
        job.stage("wait for a turn");
        let _turn = tokio::select! {
            () = job.cancelled().cancelled() => return Err(Cancelled.into()),
            turn = self.imports.take(peer.uid) => turn,
        };
        match wanted {
            Wanted::Image(wanted) => {
                let staging = Staging::new(&ImageRecord::root(&self.paths), job).await?;
                let made = self.image(&staging, spool, peer, wanted, job).await;
                staging.end().await;
                made
            }
            Wanted::Kernel(wanted) => {
                let staging = Staging::new(&KernelRecord::root(&self.paths), job).await?;
                let made = self.kernel(&staging, spool, peer, wanted, job).await;
                staging.end().await;
                made
            }
        }
    }

    async fn image(
        &self,
        staging: &Staging,
        spool: File,
        peer: &Peer,
        wanted: WantedImage,
        job: &Arc<Job>,
    ) -> Result<JobResult, StoreError> {
        let WantedImage { name, source, build_size, shared, reference, pulled, registered } = wanted;
        let what = match &registered {
            Some(_) => What::RootDisk,
            None => What::Image { most: build_size, reference },
        };
        let managed = registered.is_none();
        let (kernel_id, kernel) = registered.and_then(|registered| registered.kernel).unzip();
        let Made::Image(made) = self.convert::<ImageRecord>(what, spool, staging, job, "the image").await? else {
            return Err(StoreError::OtherKind);
        };
        let (id, files) = (made.digest, vec![ROOTFS_FILE.into(), SEED_FILE.into()]);
        let record = |dir: &Path| {
            let now = Timestamp::now();
            ImageRecord {
                id,
                name,
                owner: peer.uid,
                owner_name: peer.name.clone().into_owned(),
                shared,
                managed,
                rootfs_path: text(&dir.join(ROOTFS_FILE)),
                work_seed_path: Some(text(&dir.join(SEED_FILE))),
                artifact_dir: text(dir),
                build_size: made.build_size,
                allocated_bytes: allocated_below(dir),
                docker: made.docker,
                source,
                manifest_digest: made.manifest(),
                config: made.config,
                kernel,
                kernel_id,
                created_at: now,
                updated_at: now,
            }
        };
        self.publish(peer, staging, (id, files), pulled, job, record).await
    }

    async fn kernel(
        &self,
        staging: &Staging,
        spool: File,
        peer: &Peer,
        wanted: WantedKernel,
        job: &Arc<Job>,
    ) -> Result<JobResult, StoreError> {
        let made = self.convert::<KernelRecord>(What::Kernel, spool, staging, job, "the kernel").await?;
        let Made::Kernel(made) = made else { return Err(StoreError::OtherKind) };
        let name = match wanted.name {
            Some(name) => name,
            None => made.version.parse().map_err(StoreError::KernelsOwnName)?,
        };
        let modules = made.modules.iter().map(|name| Path::new(MODULES_FOLDER).join(name));
        let disk = made.has_disk.then(|| MODULES_DISK.into());
        let (id, files) = (made.digest, modules.chain([VMLINUX_FILE.into()]).chain(disk).collect());
        let record = |dir: &Path| KernelRecord {
            id,
            name,
            owner: peer.uid,
            owner_name: peer.name.clone().into_owned(),
            shared: wanted.shared,
            version: made.version,
            modules: made.modules,
            size_bytes: allocated_below(dir),
            created_at: Timestamp::now(),
        };
        self.publish(peer, staging, (id, files), false, job, record).await
    }

    /// In a process of its own, which is waited for on a thread of its own.
    async fn convert<T: Stored>(
        &self,
        what: What,
        spool: File,
        staging: &Staging,
        job: &Arc<Job>,
        called: &'static str,
    ) -> Result<Made, StoreError> {
        let room = Arc::new(Room::of(&T::root(&self.paths)));
        let watched = Watched { job: Arc::clone(job), room, warned: Arc::default() };
        let (dir, converter) = (staging.path().to_owned(), self.converter.clone());
        let made = blocking(move || {
            let made = converter.run(what, spool, &dir, &watched);
            Ok::<_, WorkerEnded>(made.map_err(|error| watched.or_short(error, called)))
        });
        let made = made.await??;
        crate::fail::point("import", "converted");
        Ok(made)
    }

    /// Gives what was made a name, and its folder to the store. The same content may be there
    /// already: then that gets one more name, if these files of it are the same.
    async fn publish<T: Stored>(
        &self,
        peer: &Peer,
        staging: &Staging,
        (id, files): (Digest, Vec<PathBuf>),
        pulled: bool,
        job: &Job,
        record: impl FnOnce(&Path) -> T + Send,
    ) -> Result<JobResult, StoreError> {
        job.stage("publish");
        let dir = T::folder(&self.paths, &id);
        let mut compared: Option<Folder> = None;
        let (publishing, known) = loop {
            let is_compared = || compared.as_ref().is_some_and(|folder| folder.is_at(&dir));
            // Gigabytes: nobody else waits for that.
            if self.knows::<T>(&id).await? && !is_compared() {
                compared = self.compared::<T>(staging, &id, &files, job).await?;
                continue;
            }
            let publishing = self.publishing.lock().await;
            job.go_on()?;
            let known = self.knows::<T>(&id).await?;
            if !known || is_compared() {
                break (publishing, known);
            }
        };
        if !known {
            staging.publish(&dir).await?;
        }
        let record = record(&dir);
        if let Err(error) = record.clone().insert(&self.db, peer, pulled).await {
            let aside = if known { None } else { set_aside_or_remove(dir).await };
            drop(publishing);
            if let Some(aside) = aside {
                on_a_thread(move || remove(&aside)).await;
            }
            return Err(not_inserted(peer, T::KIND, record.entry().name, error));
        }
        on_a_thread(move || unmark(&dir)).await;
        Ok(record.result())
    }

    async fn knows<T: Stored>(&self, id: &Digest) -> Result<bool, StoreError> {
        Ok(self.db.contents(T::KIND).await?.contains(id))
    }

    /// The folder of the content, when what was made is the same; `None` when that folder has gone
    /// meanwhile.
    async fn compared<T: Stored>(
        &self,
        staging: &Staging,
        id: &Digest,
        files: &[PathBuf],
        job: &Job,
    ) -> Result<Option<Folder>, StoreError> {
        job.go_on()?;
        let dir = T::folder(&self.paths, id);
        let folder = Folder::open(&dir);
        let same = match &folder {
            Ok(_) => staging.is_same(&dir, files, job.cancelled().clone()).await,
            Err(error) => Err(StoreError::Files(error.kind().into())),
        };
        match same {
            Ok(()) => Ok(folder.ok()),
            // The row goes before the folder.
            Err(_) if !self.knows::<T>(id).await? => Ok(None),
            Err(StoreError::Files(_) | StoreError::OtherContent)
                if folder.as_ref().is_ok_and(|folder| dir.exists() && !folder.is_at(&dir)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) fn not_inserted(peer: &Peer, kind: &'static Kind, name: &str, error: DbError) -> StoreError {
    match error {
        DbError::Taken(_) => StoreError::Taken { kind, name: name.to_owned() },
        DbError::IsShared(name) => StoreError::IsShared(name),
        DbError::Gone => StoreError::KernelGone,
        DbError::Limit(why) => OverLimit::of(&peer.owner(), why).into(),
        error => error.into(),
    }
}
