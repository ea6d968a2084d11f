//! What users bring is parsed by a process of its own: this program again, as `bangerd convert`,
//! which may reach one folder and nothing else. A crash, a bomb or an endless loop there is an
//! error of that import.
//!
//! Called by the store's import jobs, and for the work disk of a new VM, on a blocking thread.
//! [`child`] is the other side. What comes back is believed as little as what came in: its length
//! is bounded, and the store compares bytes before it takes two contents for one.

mod calls;
pub(crate) mod child;

use banger_image::boot::kernel::{ImportedKernel, KernelImportError, MAX_MODULE_NAME, MAX_MODULES};
use banger_image::hashing::Hasher;
use banger_image::work_disk::{self, WorkDisk};
use banger_image::{ImageError, ImportedRootfs, Limits, Progress, WORK_DISK_FILE};
use banger_policy::limits::{MAX_DISK_BYTES, ROOT_STEP_BYTES};
use banger_vmm::cgroup::Cgroups;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest line that is read from a converter, bytes: the names of a kernel's modules.
const MAX_LINE: u64 = 256 * 1024;
/// The longest file name of a module: its number in the order of loading stands before its name.
const MAX_MODULE_FILE: usize = "00-".len() + MAX_MODULE_NAME + ".ko".len();
/// The longest release of a kernel, bytes (`__NEW_UTS_LEN` of `linux/utsname.h`).
const MAX_VERSION: usize = 64;
/// How long a cancelled conversion still runs at most.
const LOOK: Duration = Duration::from_millis(200);
/// A converter that has said its last word gives its memory back, and ends.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// For glibc (mallopt(3), `M_ARENA_MAX`): its second thread shares the heap of the first. A heap of
/// its own would reserve up to 128 MiB of the address space, which is limited.
const ONE_HEAP: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// What is to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum What {
    /// An image that holds so many bytes at most; the reference names one of several.
    Image {
        /// Bytes.
        most: u64,
        /// Its name or tag in the archive, or its digest.
        reference: Option<String>,
    },
    /// An image of an ext4 file system, taken as it is.
    RootDisk,
    /// A kernel and its modules.
    Kernel,
    /// The work disk of a VM, of the image's seed.
    WorkDisk {
        /// Bytes.
        size: u64,
        /// Of the file system.
        uuid: [u8; 16],
        /// Whether the source is a seed, or nothing.
        has_seed: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    /// An empty folder: all that the converter may write to, or read.
    staging: PathBuf,
    what: What,
}

/// What was made in the staging folder.
#[derive(Debug, Serialize, Deserialize)]
pub enum Made {
    /// An image.
    Image(ImportedRootfs),
    /// A kernel.
    Kernel(ImportedKernel),
    /// A work disk.
    WorkDisk,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum ConvertError {
    /// The caller has changed his mind.
    #[error("cancelled")]
    Cancelled,
    /// For want of room.
    #[error("it does not fit the host's disk")]
    Full,
    /// Something is wrong with what was brought.
    #[error("{0}")]
    Refused(String),
    /// Something is wrong on the host.
    #[error("{0}")]
    Host(String),
}

/// A line of the converter.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Stage(String),
    Bytes(u64, u64),
    Warning(String),
    Ended(Box<Result<Made, ConvertError>>),
}

/// Where conversions are done.
#[derive(Clone, Debug)]
pub enum Converter {
    /// In a process of this program, in the group that such processes have.
    Process(PathBuf, Cgroups),
    /// Here: in unit tests, which are another program.
    #[cfg(test)]
    Here,
}

impl Converter {
    /// Converts `source` into `staging`; returns when nothing runs any more.
    ///
    /// # Errors
    /// [`ConvertError`]; what stands in `staging` then is the caller's to remove.
    pub fn run(&self, what: What, source: File, staging: &Path, progress: &dyn Progress) -> Result<Made, ConvertError> {
        let orders = Orders { staging: staging.to_owned(), what };
        match self {
            Self::Process(program, cgroups) => in_a_process(program, cgroups, &orders, source, progress),
            #[cfg(test)]
            Self::Here => {
                let hasher = Hasher::start(|| Ok(())).map_err(|error| ConvertError::host("no thread", &error))?;
                work(&orders, source, &hasher, progress)
            }
        }
    }
}

/// The conversion itself.
fn work(orders: &Orders, source: File, hasher: &Hasher, progress: &dyn Progress) -> Result<Made, ConvertError> {
    let staging = &orders.staging;
    match &orders.what {
        What::Image { most, reference } => {
            let limits = Limits::for_build_size(*most);
            let made = banger_image::import(source, staging, *most, reference.as_deref(), limits, hasher, progress);
            made.map(Made::Image).map_err(|error| ConvertError::of_image(&error))
        }
        What::RootDisk => {
            let made = banger_image::register(source, staging, progress);
            made.map(Made::Image).map_err(|error| ConvertError::of_image(&error))
        }
        What::Kernel => {
            let made = banger_image::boot::kernel::import(source, staging, progress);
            made.map(Made::Kernel).map_err(|error| ConvertError::of_kernel(&error))
        }
        What::WorkDisk { size, uuid, has_seed } => {
            let disk = WorkDisk { size: *size, seed: has_seed.then_some(source), uuid: *uuid };
            let made = work_disk::create(disk, &staging.join(WORK_DISK_FILE), progress);
            made.map(|()| Made::WorkDisk).map_err(|error| ConvertError::of_image(&error))
        }
    }
}

impl Made {
    /// Whether a converter of ours could say that. What it says is kept and listed: names and
    /// numbers have their bounds here, too.
    fn is_plausible(&self) -> bool {
        match self {
            Self::Image(image) => {
                let is_size = image.build_size <= MAX_DISK_BYTES && image.build_size.is_multiple_of(ROOT_STEP_BYTES);
                is_size && image.config.check().is_ok()
            }
            Self::Kernel(kernel) => {
                let is_name = |name: &String| {
                    let plain = |c: char| c.is_ascii_graphic() && c != '/';
                    name.len() <= MAX_MODULE_FILE
                        && !name.starts_with('.')
                        && !name.is_empty()
                        && name.chars().all(plain)
                };
                let version = &kernel.version;
                let is_version = version.len() <= MAX_VERSION && version.chars().all(|c| c.is_ascii_graphic());
                is_version && kernel.modules.len() <= MAX_MODULES && kernel.modules.iter().all(is_name)
            }
            Self::WorkDisk => true,
        }
    }
}

impl ConvertError {
    fn of_image(error: &ImageError) -> Self {
        match error {
            ImageError::Cancelled => Self::Cancelled,
            error if crate::error::is_full(error) => Self::Full,
            ImageError::Read { .. } | ImageError::Write { .. } | ImageError::Hashing => {
                Self::Host(crate::error::chain(error))
            }
            error => Self::Refused(crate::error::chain(error)),
        }
    }

    fn of_kernel(error: &KernelImportError) -> Self {
        match error {
            KernelImportError::Cancelled => Self::Cancelled,
            error if crate::error::is_full(error) => Self::Full,
            KernelImportError::Read(_) | KernelImportError::Write(_) => Self::Host(crate::error::chain(error)),
            error => Self::Refused(crate::error::chain(error)),
        }
    }

    fn host(what: &str, error: &io::Error) -> Self {
        Self::Host(format!("{what}: {error}"))
    }
}

fn in_a_process(
    program: &Path,
    cgroups: &Cgroups,
    orders: &Orders,
    source: File,
    progress: &dyn Progress,
) -> Result<Made, ConvertError> {
    let broken = |error: io::Error| ConvertError::host("the converter", &error);
    let (mut ours, theirs) = UnixStream::pair().map_err(broken)?;
    let orders = serde_json::to_string(orders).map_err(|error| ConvertError::Host(error.to_string()))?;
    ours.set_read_timeout(Some(LOOK)).map_err(broken)?;
    let child = Command::new(program)
        .arg(child::COMMAND)
        .env_clear()
        .env(ONE_HEAP.0, ONE_HEAP.1)
        .stdin(Stdio::from(source))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(|error| ConvertError::host("cannot start the converter", &error))?;
    // From here on it is ended and waited for, whatever comes.
    let pid = child.id();
    let mut running = Running(Some(child));
    // It has no orders yet. One that cannot be moved takes of the daemon's share.
    if let Err(error) = cgroups.hold_converter(pid) {
        tracing::warn!("a conversion is not in the group of conversions: {error}");
    }
    // Into the socket's buffer: some hundred bytes. What has ended already says so by its silence.
    match writeln!(ours, "{orders}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(broken(error)),
        _ => {}
    }
    let said = listen(&ours, progress);
    let status = running.end(if progress.cancelled() { Duration::ZERO } else { PATIENCE });
    match said {
        Ok(Some(Ok(made))) if !made.is_plausible() => Err(ConvertError::Refused(
            "what parses it has said what no import comes to; it is made to break programs".to_owned(),
        )),
        Ok(Some(ended)) => ended,
        Ok(None) if progress.cancelled() => Err(ConvertError::Cancelled),
        Ok(None) => Err(ConvertError::Refused(format!(
            "what parses it ended without a result ({status}); it asks for too much memory or time, or is made to break programs"
        ))),
        Err(error) => Err(broken(error)),
    }
}

/// Until the converter has said how it ended; `None` when it says no more, or shall not.
fn listen(stream: &UnixStream, progress: &dyn Progress) -> io::Result<Option<Result<Made, ConvertError>>> {
    let mut from = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        if progress.cancelled() {
            return Ok(None);
        }
        let left = MAX_LINE.saturating_sub(line.len() as u64);
        match (&mut from).take(left).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(None),
            Ok(_) if line.last() == Some(&b'\n') => {
                match serde_json::from_slice(&line) {
                    // The name of a stage is one of ours, or none.
                    Ok(Said::Stage(name)) => {
                        STAGES.iter().filter(|known| **known == name).for_each(|s| progress.stage(s))
                    }
                    Ok(Said::Bytes(done, total)) => progress.bytes(done, total),
                    Ok(Said::Warning(text)) => progress.warn(&text),
                    Ok(Said::Ended(ended)) => return Ok(Some(*ended)),
                    Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                }
                line.clear();
            }
            // The end of the stream, or of the longest line, comes next.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Of `banger_image`.
const STAGES: [&str; 9] = [
    "read archive",
    "verify and unpack layers",
    "merge layers",
    "write work disk seed",
    "write root file system",
    "copy root file system",
    "extract kernel",
    "extract modules",
    "write modules disk",
];

/// A process that does not outlive this.
struct Running(Option<Child>);

impl Running {
    /// Waits for its end, which comes by force after some time. Says how it ended.
    fn end(&mut self, patience: Duration) -> String {
        let Some(mut child) = self.0.take() else { return String::new() };
        let begun = Instant::now();
        let ended = loop {
            match child.try_wait() {
                Ok(None) if begun.elapsed() < patience => std::thread::sleep(PAUSE),
                Ok(Some(status)) => break Ok(status),
                // It is our child until it is waited for, so the number is its own.
                _ => break child.kill().and_then(|()| child.wait()),
            }
        };
        ended.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// Whoever has taken a converter over may say anything: what is kept for lists is what an
    /// import comes to.
    #[test]
    fn nothing_is_kept_that_no_import_comes_to() {
        let digest = format!("1{}", "0".repeat(63));
        let kernel = |version: &str, modules: &[String]| -> Made {
            let value = serde_json::json!({"Kernel": {"digest": digest, "version": version, "vmlinux": "x", "modules_dir": "y", "modules": modules, "has_disk": true}});
            serde_json::from_value(value).unwrap()
        };
        let image_with = |size: u64, config: serde_json::Value| -> Made {
            let value = serde_json::json!({"Image": {"digest": digest, "source": "Tar", "source_digest": digest, "rootfs_path": "x",
                "seed_path": "y", "build_size": size, "content_bytes": 0, "entries": 0, "docker": false, "config": config}});
            serde_json::from_value(value).unwrap()
        };
        let empty = serde_json::to_value(banger_policy::ImageConfig::default()).unwrap();
        let image = |size: u64| image_with(size, empty.clone());
        let configured = |key: &str, value: serde_json::Value| {
            let mut config = empty.clone();
            config[key] = value;
            image_with(ROOT_STEP_BYTES, config)
        };
        let names = |name: &str, count: usize| vec![name.to_owned(); count];
        assert!(
            kernel(
                "6.12.118+deb13-cloud-amd64",
                &names(&format!("00-{}.ko", "m".repeat(MAX_MODULE_NAME)), MAX_MODULES)
            )
            .is_plausible()
        );
        assert!(image(ROOT_STEP_BYTES).is_plausible());
        assert!(configured("env", serde_json::json!(["A=b\nc"])).is_plausible());
        for made in [
            kernel(&"6".repeat(65), &[]),
            kernel("6.12 \u{1b}[31m", &[]),
            kernel("6.12", &names("a.ko", MAX_MODULES + 1)),
            kernel("6.12", &names("../../x", 1)),
            kernel("6.12", &names("..", 1)),
            kernel("6.12", &names("/etc/passwd", 1)),
            kernel("6.12", &names("", 1)),
            kernel("6.12", &names(&"x".repeat(MAX_MODULE_FILE + 1), 1)),
            image(MAX_DISK_BYTES + ROOT_STEP_BYTES),
            image(4096),
            configured("env", serde_json::json!(["A"])),
            configured("user", serde_json::json!("a\0")),
            configured("working_dir", serde_json::json!("../..")),
            configured("cmd", serde_json::json!(["x".repeat(1 << 16)])),
        ] {
            assert!(!made.is_plausible(), "{made:?}");
        }
    }
}
