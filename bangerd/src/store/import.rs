//! An upload that becomes an image or a kernel: spooled to an unlinked file, checked and converted on a blocking
//! thread in a staging folder, published by one rename and a row.

use super::{Named as _, STAGING, Store, mark, remove, unmark};
use crate::convert::{ConvertError, Made, What};
use crate::db::DbError;
use crate::db::store::{IMAGES, KERNELS};
use crate::error::{OverLimit, failed, internal, no_space};
use crate::jobs::Job;
use crate::room::Room;
use crate::stream::{self, UploadError};
use crate::util::allocated;
use crate::util::blocking;
use banger_image::Progress;
use banger_image::boot::kernel::{MODULES_DISK, MODULES_FOLDER, VMLINUX_FILE};
use banger_policy::limits::{DEFAULT_BUILD_BYTES, MAX_DISK_BYTES};
use banger_policy::quota::{self, Limited};
use banger_policy::{ImageName, KernelName, Peer};
use banger_proto::model::{ApiError, ErrorCode, ImageRecord, JobResult, KernelRecord};
use banger_proto::time::Timestamp;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::UnixStream;

/// What a kernel's tar may have, bytes; a full one of a distribution has about 600 MiB.
const MAX_KERNEL_UPLOAD: u64 = 2 << 30;
/// Conversions at once on the host. Each is a process that may take a gigabyte, for minutes.
pub(super) const AT_ONCE: usize = 2;
/// The longest text of where an image came from, characters.
const MAX_SOURCE: usize = 200;

/// Warnings of one import that are shown and logged.
const MAX_WARNINGS: u32 = 10;

/// What an upload shall become, checked.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    Image { name: ImageName, source: String, build_size: u64, shared: bool, reference: Option<String>, pulled: bool },
    Kernel { name: Option<KernelName>, shared: bool },
}

impl Wanted {
    /// # Errors
    /// `Denied` when it shall be shared and the peer does not decide that.
    pub(crate) fn may_be_of(self, peer: &Peer) -> Result<Self, ApiError> {
        let (Self::Image { shared, .. } | Self::Kernel { shared, .. }) = &self;
        if *shared {
            let _grant = banger_policy::store::share(peer).granted().map_err(|why| {
                ApiError::new(ErrorCode::Denied, why.to_string()).hint("Import it without --shared, for yourself.")
            })?;
        }
        Ok(self)
    }

    /// # Errors
    /// `BadRequest` for a bad name or size.
    pub(crate) fn image(
        name: &str,
        source: &str,
        build_size: Option<u64>,
        shared: bool,
        reference: Option<&str>,
    ) -> Result<Self, ApiError> {
        let size = build_size.unwrap_or(DEFAULT_BUILD_BYTES);
        if size > MAX_DISK_BYTES {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("a root file system of {size} bytes is over 128G"),
            ));
        }
        Ok(Self::Image {
            name: name.parse().map_err(|error: banger_policy::name::NameError| bad(&error))?,
            source: source.chars().filter(|c| !c.is_control()).take(MAX_SOURCE).collect(),
            build_size: size.next_multiple_of(4096),
            shared,
            reference: reference.map(|text| text.chars().take(MAX_SOURCE).collect()),
            pulled: false,
        })
    }

    /// The source is a registry's reference.
    pub(crate) fn pulled(mut self) -> Self {
        if let Self::Image { pulled, .. } = &mut self {
            *pulled = true;
        }
        self
    }

    /// # Errors
    /// `BadRequest` for a bad name.
    pub(crate) fn kernel(name: Option<&str>, shared: bool) -> Result<Self, ApiError> {
        let name = name.map(str::parse).transpose().map_err(|error: banger_policy::name::NameError| bad(&error))?;
        Ok(Self::Kernel { name, shared })
    }

    pub(crate) fn title(&self) -> String {
        match self {
            Self::Image { name, .. } => format!("import image {name}"),
            Self::Kernel { name: Some(name), .. } => format!("import kernel {name}"),
            Self::Kernel { name: None, .. } => "import kernel".to_owned(),
        }
    }

    /// Was it pulled from the same place before?
    fn renews(&self, image: &ImageRecord) -> bool {
        matches!(self, Self::Image { name, source, pulled: true, .. } if *name == image.name && *source == image.source)
    }

    fn cap(&self) -> u64 {
        match self {
            // Layers may replace each other's files, and a tar has its own headers: more than the result, not much more.
            Self::Image { build_size, .. } => build_size.saturating_mul(2).saturating_add(1 << 30),
            Self::Kernel { .. } => MAX_KERNEL_UPLOAD,
        }
    }
}

pub(super) fn bad(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
}

/// The job as the converters see it. A disk that becomes full ends it like somebody who has changed his mind.
#[derive(Clone)]
struct Watched {
    job: Arc<Job>,
    room: Arc<Room>,
    /// How often it was warned: an archive decides that.
    warned: Arc<AtomicU32>,
}

impl Watched {
    /// Cancelled by nobody: then it was for want of room.
    fn or_short(&self, error: ApiError, what: &str) -> ApiError {
        let by_nobody = error.code == ErrorCode::Cancelled && !self.job.cancelled().is_cancelled();
        if by_nobody {
            self.room.check(what).err().map_or_else(|| no_space(what.to_owned()), ApiError::from)
        } else {
            error
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

/// A staging folder; what is still there at its end is removed.
struct Staging(PathBuf);

impl Staging {
    /// Inside the folder of what it becomes: the rename must not cross file systems, and files must get the group
    /// that the folder hands down, by which the helper reads images.
    fn new(folder: &Path, job: &Job) -> Result<Self, ApiError> {
        let path = folder.join(format!("{STAGING}{}", job.id()));
        remove(&path);
        let made = std::fs::DirBuilder::new().mode(0o710).create(&path);
        made.map_err(|error| failed("the staging folder", &error))?;
        mark(&path);
        crate::fail::point("import", "staging folder made");
        Ok(Self(path))
    }

    /// The digest is a converter's word: whoever took one over could name another user's content, and would be given it.
    async fn is_same(&self, published: &Path, files: impl IntoIterator<Item = PathBuf>) -> Result<(), ApiError> {
        let pairs: Vec<_> = files.into_iter().map(|file| (self.0.join(&file), published.join(&file))).collect();
        let compare = move || {
            for (made, known) in &pairs {
                if !same_bytes(made, known).map_err(|error| failed("the store", &error))? {
                    return Err(ApiError::new(
                        ErrorCode::OperationFailed,
                        "what was made is not what its digest stands for",
                    )
                    .hint("Import it again. If that fails, too, tell an administrator of this host."));
                }
            }
            Ok(())
        };
        blocking(compare).await
    }

    fn publish(&self, to: &Path) -> Result<(), ApiError> {
        // The same content without a row: this one gets it.
        remove(to);
        std::fs::rename(&self.0, to).map_err(|error| failed("the store", &error))?;
        crate::fail::point("import", "published");
        let folder = to.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed("the store", &error))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

impl Store {
    /// Is the name free, and is there room? Asked before the upload, so that nobody sends gigabytes for nothing; decided at the end.
    pub(crate) async fn check_free(&self, peer: &Peer, wanted: &Wanted) -> Result<(), ApiError> {
        let (what, name, names, limited) = match wanted {
            Wanted::Image { name, .. } => {
                let images = self.images(peer, false).await?;
                let own = images.into_iter().filter(|image| peer.owns(&image.entry().owner));
                // A name that is pulled again is not one more.
                let own = own.filter(|image| !wanted.renews(image));
                let names: Vec<String> = own.map(|image| image.name.into()).collect();
                ("image", Some(name.as_str()), names, Limited::Images)
            }
            Wanted::Kernel { name, .. } => {
                let kernels = self.kernels(peer, false).await?;
                let own = kernels.into_iter().filter(|kernel| peer.owns(&kernel.entry().owner));
                let names: Vec<String> = own.map(|kernel| kernel.name.into()).collect();
                ("kernel", name.as_ref().map(KernelName::as_str), names, Limited::Kernels)
            }
        };
        if let Some(name) = name.filter(|name| names.iter().any(|taken| taken == name)) {
            return Err(taken(what, name));
        }
        let count = u64::try_from(names.len()).unwrap_or(u64::MAX);
        quota::fits(limited, &peer.limits, count, 1)
            .map_err(|why| ApiError::from(OverLimit::of(&peer.owner(), why)))?;
        Ok(Room::of(&self.paths.staging()).check("the import")?)
    }

    /// Begins the job of an upload; its stream comes later.
    pub(crate) fn begin(&self, peer: &Peer, wanted: &Wanted) -> Result<Job, ApiError> {
        Ok(self.jobs.begin(peer, wanted.title())?)
    }

    /// The whole of it, to the end of the job.
    pub(crate) async fn import(&self, io: UnixStream, peer: Peer, wanted: Wanted, job: Job) {
        let job = Arc::new(job);
        let result = self.work(io, peer, wanted, &job).await;
        match Arc::try_unwrap(job) {
            Ok(job) => job.finish(result),
            Err(_) => tracing::error!("a worker thread outlives its import"),
        }
    }

    async fn work(&self, io: UnixStream, peer: Peer, wanted: Wanted, job: &Arc<Job>) -> Result<JobResult, ApiError> {
        job.go_on()?;
        job.stage("upload");
        let spool = tempfile::tempfile_in(self.paths.staging()).map_err(|error| failed("the spool file", &error))?;
        let for_upload = spool.try_clone().map_err(|error| failed("the spool file", &error))?;
        let room = Room::of(&self.paths.staging());
        let progress = |bytes: u64| {
            job.detail(format!("{} MiB", bytes >> 20));
            if room.is_short() { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        };
        tokio::select! {
            () = job.cancelled().cancelled() => return Err(ApiError::new(ErrorCode::Cancelled, "cancelled")),
            uploaded = stream::upload(io, for_upload, wanted.cap(), progress) => {
                uploaded.map_err(|error| room.check("the upload").err().map_or_else(|| upload_failed(&error), ApiError::from))?
            }
        };
        crate::fail::point("import", "uploaded");
        // Not before the upload is whole: a client that sends slowly keeps nobody waiting.
        job.stage("wait for a turn");
        let _turn = tokio::select! {
            () = job.cancelled().cancelled() => return Err(ApiError::new(ErrorCode::Cancelled, "cancelled")),
            turn = self.imports.take(peer.uid) => turn,
        };
        let watched =
            |folder: &Path| Watched { job: Arc::clone(job), room: Arc::new(Room::of(folder)), warned: Arc::default() };
        match wanted {
            Wanted::Image { .. } => self.image(spool, peer, wanted, &watched(&self.paths.images())).await,
            Wanted::Kernel { .. } => self.kernel(spool, peer, wanted, &watched(&self.paths.kernels())).await,
        }
    }

    async fn image(&self, spool: File, peer: Peer, wanted: Wanted, watched: &Watched) -> Result<JobResult, ApiError> {
        let Wanted::Image { name, source, build_size, shared, reference, pulled } = wanted else {
            return Err(not_that());
        };
        let staging = Staging::new(&self.paths.images(), &watched.job)?;
        let what = What::Image { most: build_size, reference };
        let Made::Image(made) = self.convert(what, spool, &staging, watched, "the image").await? else {
            return Err(not_that());
        };
        crate::fail::point("import", "converted");
        let _publishing = self.publishing.lock().await;
        watched.job.go_on()?;
        watched.job.stage("publish");
        let dir = self.paths.image_dir(&made.digest);
        // The same content is there already: it gets one more name.
        let known = self.db.contents(&IMAGES).await.map_err(|error| internal(&error))?.contains(&made.digest);
        if known {
            staging.is_same(&dir, [banger_image::ROOTFS_FILE, banger_image::SEED_FILE].map(PathBuf::from)).await?;
        } else {
            staging.publish(&dir)?;
        }
        let now = Timestamp::now();
        let record = ImageRecord {
            id: made.digest,
            name: name.clone(),
            owner: peer.uid,
            owner_name: peer.name.clone().into_owned(),
            shared,
            managed: true,
            rootfs_path: crate::util::text(&dir.join(banger_image::ROOTFS_FILE)),
            work_seed_path: Some(crate::util::text(&dir.join(banger_image::SEED_FILE))),
            artifact_dir: crate::util::text(&dir),
            build_size: made.build_size,
            allocated_bytes: allocated(&dir.join(banger_image::ROOTFS_FILE)),
            docker: false,
            source,
            manifest_digest: made.manifest(),
            config: made.config,
            created_at: now,
            updated_at: now,
        };
        let inserted = if pulled {
            self.db.insert_pulled(record.clone(), peer.admin, peer.limits).await
        } else {
            self.db.insert_image(record.clone(), peer.limits).await
        };
        if let Err(error) = inserted {
            if !known {
                remove(&dir);
            }
            return Err(not_inserted(&peer, "image", name.as_str(), error));
        }
        unmark(&dir);
        Ok(JobResult::Image(Box::new(record)))
    }

    /// In a process of its own, which is waited for on a thread of its own.
    async fn convert(
        &self,
        what: What,
        spool: File,
        staging: &Staging,
        watched: &Watched,
        called: &'static str,
    ) -> Result<Made, ApiError> {
        let (dir, progress, converter) = (staging.0.clone(), watched.clone(), self.converter.clone());
        let made =
            blocking(move || converter.run(what, spool, &dir, &progress).map_err(|error| refused(called, error)));
        made.await.map_err(|error| watched.or_short(error, called))
    }

    async fn kernel(&self, spool: File, peer: Peer, wanted: Wanted, watched: &Watched) -> Result<JobResult, ApiError> {
        let Wanted::Kernel { name, shared } = wanted else { return Err(not_that()) };
        let staging = Staging::new(&self.paths.kernels(), &watched.job)?;
        let Made::Kernel(made) = self.convert(What::Kernel, spool, &staging, watched, "the kernel").await? else {
            return Err(not_that());
        };
        let name = match name {
            Some(name) => name,
            None => made.version.parse().map_err(|error: banger_policy::name::NameError| {
                ApiError::new(ErrorCode::BadRequest, error.to_string()).hint("Give the kernel a name with --name.")
            })?,
        };
        crate::fail::point("import", "converted");
        let _publishing = self.publishing.lock().await;
        watched.job.go_on()?;
        watched.job.stage("publish");
        let dir = self.paths.kernel_dir(&made.digest);
        let known = self.db.contents(&KERNELS).await.map_err(|error| internal(&error))?.contains(&made.digest);
        if known {
            let files: Vec<PathBuf> = made.modules.iter().map(|name| Path::new(MODULES_FOLDER).join(name)).collect();
            let disk = made.has_disk.then(|| MODULES_DISK.into());
            staging.is_same(&dir, files.into_iter().chain([VMLINUX_FILE.into()]).chain(disk)).await?;
        } else {
            staging.publish(&dir)?;
        }
        let record = KernelRecord {
            id: made.digest,
            name: name.clone(),
            owner: peer.uid,
            owner_name: peer.name.clone().into_owned(),
            shared,
            version: made.version,
            modules: made.modules,
            size_bytes: dir.join(VMLINUX_FILE).metadata().map_or(0, |meta| meta.len()),
            created_at: Timestamp::now(),
        };
        if let Err(error) = self.db.insert_kernel(record.clone(), peer.limits).await {
            if !known {
                remove(&dir);
            }
            return Err(not_inserted(&peer, "kernel", name.as_str(), error));
        }
        unmark(&dir);
        Ok(JobResult::Kernel(Box::new(record)))
    }
}

fn not_that() -> ApiError {
    ApiError::new(ErrorCode::Internal, "an upload became something else")
}

pub(super) fn not_inserted(peer: &Peer, what: &str, name: &str, error: DbError) -> ApiError {
    match error {
        DbError::Taken(_) => taken(what, name),
        error @ DbError::IsShared(_) => ApiError::new(ErrorCode::Denied, error.to_string())
            .hint("Pull it under another name with --name, or ask an administrator to pull it."),
        DbError::Limit(why) => ApiError::from(OverLimit::of(&peer.owner(), why)),
        error => internal(&error),
    }
}

fn taken(what: &str, name: &str) -> ApiError {
    ApiError::new(ErrorCode::AlreadyExists, format!("{what} {name} exists already"))
        .hint("Choose another name with --name, or delete it first.")
}

fn refused(what: &str, error: ConvertError) -> ApiError {
    match error {
        ConvertError::Cancelled => ApiError::new(ErrorCode::Cancelled, "cancelled"),
        ConvertError::Full => no_space(format!("{what} does not fit the host's disk")),
        ConvertError::Refused(why) => ApiError::new(ErrorCode::BadRequest, why),
        ConvertError::Host(why) => ApiError::new(ErrorCode::OperationFailed, format!("{what}: {why}")),
    }
}

/// Whether two sparse files have the same bytes: what has data in one of them is compared.
pub(super) fn same_bytes(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    Ok(data_is_in(&one, &other)? && data_is_in(&other, &one)?)
}

fn data_is_in(one: &File, other: &File) -> std::io::Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        let from = match rustix::fs::seek(one, rustix::fs::SeekFrom::Data(at)) {
            Ok(from) => from,
            // Only a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let to = rustix::fs::seek(one, rustix::fs::SeekFrom::Hole(from))?;
        at = from;
        while at < to {
            let length = usize::try_from(CHUNK.min(to - at)).unwrap_or_default();
            ours.resize(length, 0);
            theirs.resize(length, 0);
            one.read_exact_at(&mut ours, at)?;
            other.read_exact_at(&mut theirs, at)?;
            if ours != theirs {
                return Ok(false);
            }
            at += length as u64;
        }
    }
}

fn upload_failed(error: &UploadError) -> ApiError {
    failed("the upload", error)
}
