//! Import of a kernel: a distribution's `vmlinuz` with its modules, or a plain `vmlinux`.
//!
//! Called by the import job with one spooled tar, whose form is fixed by `banger_policy::kernel`.
//! Everything the CLI says is checked again: which modules a guest needs is decided here from the
//! index that came along. Nothing is published; the caller renames the staging folder.

pub use super::error::KernelImportError;
pub use super::{MAX_MODULE_NAME, MAX_MODULES, MAX_MODULES_BYTES};

use super::bzimage;
use super::elf;
use super::modules_disk;
use crate::codec::Codec;
use crate::source::{Budget, Progress, Window, check, sha256};
use crate::spool::{Hashes, spool};
use crate::{container, package};
use banger_policy::Digest;
use banger_policy::kernel::{
    KERNEL_ENTRY, KernelError, MAX_INDEX_BYTES, MODULES_PREFIX, ModuleIndex, ModulePath, PACKAGE_PREFIX,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The kernel in a staging folder, and in a kernel's folder.
pub const VMLINUX_FILE: &str = "vmlinux";
/// The folder of its modules there: `NN-name.ko`, decompressed, in load order.
pub const MODULES_FOLDER: &str = "modules";

/// All modules of the release, there when a folder of modules came along: an ext4 file system for
/// `lib/modules/RELEASE`.
pub const MODULES_DISK: &str = "modules.ext4";

/// A whole tar of kernel and modules: 60 MiB for a cloud kernel, ten times that for a full one.
const MAX_TAR: u64 = 2 << 30;
/// Names of drivers as strings in a kernel that has them built in. Only asked when no module index
/// came along.
const DRIVERS: [&str; 5] = ["virtio-mmio", "virtio_blk", "virtio_net", "ext4", "vmw_vsock_virtio_transport"];

/// A finished import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportedKernel {
    /// Of kernel and modules, however they were packed: the same digest means the same guest
    /// kernel.
    pub digest: Digest,
    /// `uname -r` in the guest, such as `6.12.48+deb13-cloud-amd64`.
    pub version: String,
    /// The ELF in the staging folder: mode 0440, synced.
    pub vmlinux: PathBuf,
    /// The modules folder in the staging folder; empty when all is built in.
    pub modules_dir: PathBuf,
    /// File names in it, in load order.
    pub modules: Vec<String>,
    /// Whether there is a [`MODULES_DISK`] in the staging folder: mode 0440, synced.
    pub has_disk: bool,
}

/// Imports a kernel into `staging`, an existing, empty folder of the caller, who removes it on
/// failure.
///
/// # Errors
/// [`KernelImportError`].
pub fn import(source: File, staging: &Path, progress: &dyn Progress) -> Result<ImportedKernel, KernelImportError> {
    progress.stage("read archive");
    let mut budget = Budget::new(MAX_TAR, 100_000);
    let source = Window::whole(source)?;
    let tar = spool(&source, "the archive", staging, Hashes::default(), &mut budget, progress)?;
    let files = Files::collect(&tar, staging, &mut budget, progress)?;
    progress.stage("extract kernel");
    let vmlinux = staging.join(VMLINUX_FILE);
    let image = extract(files.0.get(KERNEL_ENTRY).ok_or(KernelImportError::NoKernel)?, &vmlinux, progress)?;
    elf::check_kernel(&image)?;
    let strings = elf::strings(&image, &DRIVERS).map_err(KernelImportError::Read)?;
    let version = strings.release.ok_or(KernelImportError::NoVersion)?;
    let needed = match files.index()? {
        Some(index) => index.boot_modules()?,
        None => {
            let missing = DRIVERS.iter().filter(|name| !strings.names.contains(*name));
            let names: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
            if !names.is_empty() {
                return Err(KernelImportError::NotBuiltIn { names });
            }
            Vec::new()
        }
    };
    progress.stage("extract modules");
    let modules_dir = staging.join(MODULES_FOLDER);
    std::fs::create_dir(&modules_dir).map_err(KernelImportError::Write)?;
    let mut identity = Sha256::new();
    identity.update(format!("banger kernel 2\nvmlinux {}\n", hex(&sha256(&image, progress)?)));
    let mut modules = Vec::new();
    let mut left = MAX_MODULES_BYTES;
    for (path, packed) in files.modules(&needed)? {
        check(progress)?;
        // They are kept with the kernel, and shown in lists.
        if modules.len() >= MAX_MODULES || path.name().len() > MAX_MODULE_NAME {
            return Err(KernelImportError::ManyModules);
        }
        let module = unpack_module(path.as_str(), packed, &version, left)?;
        left = left.saturating_sub(module.len() as u64);
        let name = format!("{:02}-{}.ko", modules.len(), path.name());
        identity.update(format!("{name} {}\n", hex(&Sha256::digest(&module))));
        write_new(&modules_dir.join(&name), &mut module.as_slice())?;
        modules.push(name);
    }
    let has_disk = files.has_modules();
    if has_disk {
        progress.stage("write modules disk");
        let path = staging.join(MODULES_DISK);
        // The disk follows from these.
        for (name, window) in files.of_modules() {
            identity.update(format!("disk {} {}\n", hex(name.as_bytes()), hex(&sha256(window, progress)?)));
        }
        modules_disk::write(files.of_modules(), &finished(identity.clone())?, &path, progress)?;
    }
    let digest = finished(identity)?;
    Ok(ImportedKernel { digest, version, vmlinux, modules_dir, modules, has_disk })
}

fn finished(identity: Sha256) -> Result<Digest, KernelImportError> {
    let digest: [u8; 32] = identity.finalize().into();
    Digest::from_bytes(digest).map_err(|error| KernelImportError::Corrupt(io::Error::other(error)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Regular files of the tar by name.
struct Files(BTreeMap<String, Window>);

impl Files {
    fn collect(
        tar: &Window,
        staging: &Path,
        budget: &mut Budget,
        progress: &dyn Progress,
    ) -> Result<Self, KernelImportError> {
        let files = container::regular_files(tar, budget, progress)?;
        let packages: Vec<&Window> =
            files.iter().filter(|(name, _)| name.starts_with(PACKAGE_PREFIX)).map(|(_, package)| package).collect();
        if packages.is_empty() {
            return Ok(Self(files));
        }
        Ok(Self(package::unpack(&packages, staging, budget, progress)?))
    }

    /// What came along of `lib/modules/VERSION`, by the paths there.
    fn of_modules(&self) -> impl Iterator<Item = (&str, &Window)> {
        self.0.iter().filter_map(|(name, window)| Some((name.strip_prefix(MODULES_PREFIX)?, window)))
    }

    fn has_modules(&self) -> bool {
        self.of_modules().next().is_some()
    }

    /// `None` when the tar has a kernel and nothing else.
    fn index(&self) -> Result<Option<ModuleIndex>, KernelImportError> {
        if !self.has_modules() {
            return Ok(None);
        }
        let text = |name: &str| {
            let Some(window) = self.0.get(&format!("{MODULES_PREFIX}{name}")) else {
                return Ok(String::new());
            };
            let too_long = || KernelImportError::Index(KernelError::Line { line: 1 });
            if window.len() > MAX_INDEX_BYTES {
                return Err(too_long());
            }
            String::from_utf8(window.read_all().map_err(KernelImportError::Read)?).map_err(|_| too_long())
        };
        Ok(Some(ModuleIndex::parse(&text("modules.dep")?, &text("modules.builtin")?)?))
    }

    /// The file of each module; an error names all that are missing.
    fn modules<'a>(&'a self, needed: &'a [ModulePath]) -> Result<Vec<(&'a ModulePath, &'a Window)>, KernelImportError> {
        let file = |path: &ModulePath| self.0.get(&format!("{MODULES_PREFIX}{}", path.as_str()));
        let found: Vec<_> = needed.iter().filter_map(|path| Some((path, file(path)?))).collect();
        if found.len() == needed.len() {
            return Ok(found);
        }
        let missing = needed.iter().filter(|path| file(path).is_none());
        Err(KernelImportError::ModuleFiles { paths: missing.map(|path| path.as_str().to_owned()).collect() })
    }
}

/// The ELF of what may be a bzImage, written to `path`.
fn extract(kernel: &Window, path: &Path, progress: &dyn Progress) -> Result<Window, KernelImportError> {
    let mut header = vec![0; usize::try_from(kernel.len().min(0x268)).unwrap_or_default()];
    kernel.read_exact_at(&mut header, 0).map_err(KernelImportError::Read)?;
    if bzimage::is_bzimage(&header) {
        let mut file = create_new(path)?;
        bzimage::extract(kernel, &mut file, progress)?;
        file.sync_all().map_err(KernelImportError::Write)?;
    } else {
        // Before a wrong file is copied.
        elf::check_kernel(kernel)?;
        write_new(path, &mut kernel.reader())?;
    }
    Ok(Window::whole(File::open(path).map_err(KernelImportError::Read)?)?)
}

/// The module's ELF of at most `most` bytes, checked to be one of kernel `version`.
fn unpack_module(path: &str, packed: &Window, version: &str, most: u64) -> Result<Vec<u8>, KernelImportError> {
    let bad = |why: String| KernelImportError::Module { path: path.to_owned(), why };
    let codec = Codec::of(&packed.head().map_err(KernelImportError::Read)?);
    let reader = codec.decode(BufReader::new(packed.reader())).map_err(|error| bad(error.to_string()))?;
    let mut module = Vec::new();
    reader.take(most.saturating_add(1)).read_to_end(&mut module).map_err(|error| bad(error.to_string()))?;
    if module.len() as u64 > most {
        return Err(KernelImportError::LargeModules);
    }
    if elf::check(&module) != Ok(elf::ET_REL) {
        return Err(bad("it is not a relocatable x86-64 ELF file".to_owned()));
    }
    let vermagic = module.split(|b| *b == 0).find_map(|text| text.strip_prefix(b"vermagic="));
    match vermagic.and_then(elf::release) {
        Some(found) if found == version => Ok(module),
        Some(found) => Err(KernelImportError::Vermagic { path: path.to_owned(), found, expected: version.to_owned() }),
        None => Err(bad("it has no vermagic".to_owned())),
    }
}

fn create_new(path: &Path) -> Result<File, KernelImportError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o440).open(path);
    let file = file.map_err(KernelImportError::Write)?;
    // Whatever the umask was.
    file.set_permissions(Permissions::from_mode(0o440)).map_err(KernelImportError::Write)?;
    Ok(file)
}

fn write_new(path: &Path, from: &mut dyn io::Read) -> Result<(), KernelImportError> {
    let mut file = create_new(path)?;
    io::copy(from, &mut file).map_err(KernelImportError::Write)?;
    file.sync_all().map_err(KernelImportError::Write)
}
