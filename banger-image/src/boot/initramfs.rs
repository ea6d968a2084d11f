//! The initramfs of one start of a VM: our init, its modules, its configuration.
//!
//! Format: "newc" of `Documentation/driver-api/early-userspace/buffer-format.rst` in the kernel,
//! not compressed: it is read once from the page cache, and its size is a few MiB. Holds the
//! guest's host key, so the file is 0600 from its first byte.

use super::MAX_MODULES_BYTES;
use banger_proto::guest::{CONFIG_PATH, GuestConfig, MODULES_DIR};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What goes into an initramfs.
#[derive(Clone, Copy, Debug)]
pub struct Initramfs<'a> {
    /// `banger-guest` on the host.
    pub init: &'a Path,
    /// The kernel's `modules` folder (`NN-name.ko`); `None` when all is built in.
    pub modules: Option<&'a Path>,
    /// What this VM is told.
    pub config: &'a GuestConfig,
}

/// Beside the result, until it is whole.
const UNFINISHED: &str = ".initramfs";

/// Failure of [`write()`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// The guest's init or a module.
    #[error("cannot read {}; is banger installed completely, and the kernel imported?", .path.display())]
    Read {
        /// On the host.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A file of more than 4 GiB, or a module whose name is not ours.
    #[error("{} does not belong into an initramfs", .path.display())]
    Foreign {
        /// On the host.
        path: PathBuf,
    },
    /// More modules than an import takes: the kernel is of an earlier release.
    #[error(
        "{} has more than {} MiB: delete the kernel and import it again", .path.display(), MAX_MODULES_BYTES >> 20
    )]
    Large {
        /// The kernel's `modules` folder.
        path: PathBuf,
    },
    /// The configuration.
    #[error("the guest's configuration cannot be encoded")]
    Config(#[from] serde_json::Error),
    /// The result.
    #[error("cannot write {}", .path.display())]
    Write {
        /// On the host.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}

/// What [`write()`] takes of the disk, bytes: its files without their headers, which have some KiB.
///
/// # Errors
/// [`InitramfsError::Read`] and [`InitramfsError::Large`].
pub fn size(initramfs: &Initramfs<'_>) -> Result<u64, InitramfsError> {
    let length = |path: &Path| {
        let metadata = fs::metadata(path).map_err(|source| InitramfsError::Read { path: path.to_owned(), source })?;
        Ok::<_, InitramfsError>(metadata.len())
    };
    let mut bytes = 0_u64;
    for module in modules(initramfs.modules)? {
        bytes = bytes.saturating_add(length(&module)?);
    }
    match initramfs.modules {
        Some(path) if bytes > MAX_MODULES_BYTES => Err(InitramfsError::Large { path: path.to_owned() }),
        _ => Ok(bytes.saturating_add(length(initramfs.init)?)),
    }
}

/// Writes the initramfs to `path` (mode 0600), which is replaced in one step. Returns its size in
/// bytes.
///
/// # Errors
/// [`InitramfsError`]; `path` is then as it was.
pub fn write(path: &Path, initramfs: &Initramfs<'_>) -> Result<u64, InitramfsError> {
    size(initramfs)?;
    let write_error = |source| InitramfsError::Write { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("."));
    // Always of the same name, and one VM has one writer: what a crash has left is replaced, and
    // does not pile up.
    drop(fs::remove_file(dir.join(UNFINISHED)));
    let file = tempfile::Builder::new().prefix(UNFINISHED).rand_bytes(0).tempfile_in(dir).map_err(write_error)?;
    let mut cpio = Cpio { out: BufWriter::new(file.as_file()), ino: 0, written: 0, path };
    // An init needs /dev/console before it can mount anything: the kernel opens it as its standard
    // streams.
    for dir in ["dev", "proc", "sys", "newroot", MODULES_DIR.trim_start_matches('/')] {
        cpio.entry(dir, 0o040_755, (0, 0), &[])?;
    }
    cpio.entry("dev/console", 0o020_600, (5, 1), &[])?;
    cpio.file("init", 0o755, initramfs.init)?;
    for module in modules(initramfs.modules)? {
        let name = module.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        cpio.file(&format!("{}/{name}", MODULES_DIR.trim_start_matches('/')), 0o600, &module)?;
    }
    let config = serde_json::to_vec(initramfs.config)?;
    cpio.entry(CONFIG_PATH.trim_start_matches('/'), 0o100_600, (0, 0), &config)?;
    cpio.entry("TRAILER!!!", 0, (0, 0), &[])?;
    let written = cpio.written;
    cpio.out.flush().map_err(write_error)?;
    drop(cpio);
    file.persist(path).map_err(|error| write_error(error.error))?;
    Ok(written)
}

/// The module files in load order, which is the order of their names.
fn modules(dir: Option<&Path>) -> Result<Vec<PathBuf>, InitramfsError> {
    let Some(dir) = dir else {
        return Ok(Vec::new());
    };
    let read_error = |source| InitramfsError::Read { path: dir.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ours = name.ends_with(".ko") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.+,".contains(&b));
        if !ours {
            return Err(InitramfsError::Foreign { path });
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

struct Cpio<'a> {
    out: BufWriter<&'a File>,
    ino: u32,
    written: u64,
    path: &'a Path,
}

impl Cpio<'_> {
    fn file(&mut self, name: &str, mode: u32, from: &Path) -> Result<(), InitramfsError> {
        let read_error = |source| InitramfsError::Read { path: from.to_owned(), source };
        let mut file = File::open(from).map_err(read_error)?;
        let size = file.metadata().map_err(read_error)?.len();
        let size = u32::try_from(size).map_err(|_| InitramfsError::Foreign { path: from.to_owned() })?;
        self.header(name, 0o100_000 | mode, (0, 0), size)?;
        let copied = io::copy(&mut file, &mut self.out).map_err(|source| self.write_error(source))?;
        if copied != u64::from(size) {
            return Err(read_error(io::Error::other("it changed while it was read")));
        }
        self.written += copied;
        self.pad()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<(), InitramfsError> {
        let size = u32::try_from(data.len()).map_err(|_| InitramfsError::Foreign { path: name.into() })?;
        self.header(name, mode, device, size)?;
        self.bytes(data)?;
        self.pad()
    }

    /// Owner root, time 0: the same input gives the same bytes.
    fn header(&mut self, name: &str, mode: u32, device: (u32, u32), size: u32) -> Result<(), InitramfsError> {
        self.ino += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let mut header = String::from("070701");
        for field in [self.ino, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        self.bytes(header.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    fn pad(&mut self) -> Result<(), InitramfsError> {
        while !self.written.is_multiple_of(4) {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    fn bytes(&mut self, data: &[u8]) -> Result<(), InitramfsError> {
        self.out.write_all(data).map_err(|source| self.write_error(source))?;
        self.written += data.len() as u64;
        Ok(())
    }

    fn write_error(&self, source: io::Error) -> InitramfsError {
        InitramfsError::Write { path: self.path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and skips aloud")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    fn config() -> GuestConfig {
        GuestConfig {
            hostname: "demo".into(),
            address: [172, 16, 0, 2].into(),
            gateway: [172, 16, 0, 1].into(),
            dns: [1, 1, 1, 1].into(),
            authorized_keys: vec![],
            host_key: "secret".into(),
            control_port: 10_001,
            token: banger_proto::guest::BootToken::new([1; 32]),
            root_device: "/dev/vda".into(),
            work_device: None,
            modules_device: None,
            reads: false,
            image: banger_policy::ImageConfig::default(),
        }
    }

    fn build(dir: &Path) -> PathBuf {
        fs::create_dir(dir.join("m")).unwrap();
        fs::write(dir.join("guest"), b"\x7fELF guest").unwrap();
        fs::write(dir.join("m/01-b.ko"), b"second").unwrap();
        fs::write(dir.join("m/00-z.ko"), b"first").unwrap();
        let path = dir.join("initramfs");
        let modules = dir.join("m");
        let config = config();
        let size =
            write(&path, &Initramfs { init: &dir.join("guest"), modules: Some(&modules), config: &config }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size);
        path
    }

    #[test]
    fn a_private_archive_in_load_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(UNFINISHED), "of a crash").unwrap();
        let path = build(dir.path());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&path).unwrap();
        let at = |needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle).unwrap();
        assert!(at(b"modules/00-z.ko") < at(b"modules/01-b.ko"));
        assert!(bytes.len().is_multiple_of(4) && bytes.starts_with(b"070701"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file is left");
    }

    #[test]
    fn a_missing_init_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initramfs");
        let config = config();
        let error = write(&path, &Initramfs { init: Path::new("/nonexistent/guest"), modules: None, config: &config });
        assert!(matches!(error, Err(InitramfsError::Read { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn more_modules_than_an_import_takes_are_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("m")).unwrap();
        fs::write(dir.path().join("guest"), b"\x7fELF guest").unwrap();
        let (modules, init, config) = (dir.path().join("m"), dir.path().join("guest"), config());
        let initramfs = Initramfs { init: &init, modules: Some(&modules), config: &config };
        let half = |name: &str, more: u64| {
            File::create(modules.join(name)).unwrap().set_len(MAX_MODULES_BYTES / 2 + more).unwrap();
        };
        half("00-a.ko", 0);
        half("01-b.ko", 0);
        assert_eq!(size(&initramfs).unwrap(), MAX_MODULES_BYTES + 10);
        half("01-b.ko", 1);
        let path = dir.path().join("initramfs");
        assert!(matches!(write(&path, &initramfs), Err(InitramfsError::Large { path }) if path == modules));
        assert!(!path.exists());
    }

    #[test]
    fn cpio_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = build(dir.path());
        let input = File::open(&path).unwrap();
        let output = match Command::new("cpio").args(["-itv", "--quiet"]).stdin(input).stderr(Stdio::piped()).output() {
            Ok(output) => output,
            Err(_) => {
                eprintln!("skipped: cpio is not installed");
                return;
            }
        };
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{:?}", output.stderr);
        let line = |name: &str| listing.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        assert!(line("dev/console").starts_with("crw-------") && line("dev/console").contains("5,   1"), "{listing}");
        assert!(line("init").starts_with("-rwxr-xr-x"), "{listing}");
        assert!(line("config.json").starts_with("-rw-------"), "{listing}");
        assert!(line("newroot").starts_with("drwxr-xr-x"), "{listing}");
        assert!(line("modules/00-z.ko").contains(" 5 "), "{listing}");
    }
}
