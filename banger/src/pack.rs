//! What imports send: files as they are, and tar archives made on the fly of an OCI layout folder
//! and of a kernel with the modules that a guest needs.

use crate::error::explained;
use crate::upload::{Source, open};
use anyhow::Context as _;
use banger_policy::kernel::{KERNEL_ENTRY, MAX_INDEX_BYTES, MODULES_PREFIX, ModuleIndex, ModulePath, PACKAGE_PREFIX};
use banger_policy::rootfs::{HEAD_BYTES, examine, no_archive};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// What `docker save` writes beside an OCI layout, or in its place.
const SAVED: [&str; 2] = ["manifest.json", "repositories"];
/// What to do about a file of the user's that is not readable.
const READABLE: &str = "make the file readable for you; banger reads it with your own rights";

/// What an image is read from.
///
/// # Errors
/// When the path is not there, not readable, or a folder that is no OCI layout.
pub(crate) fn image(path: &Path) -> anyhow::Result<Source> {
    if path == Path::new("-") {
        return Ok(Source {
            total: None,
            write: Box::new(|to| copy(&mut std::io::stdin().lock(), to, "standard input")),
        });
    }
    let mut file = open(path, READABLE)?;
    let metadata = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if metadata.is_dir() {
        return oci_layout(path);
    }
    let total = metadata.is_file().then_some(metadata.len());
    if let Some(length) = total {
        // The daemon finds that out as well, when it has all bytes.
        let look = || format!("cannot look at {}", path.display());
        let head = head(&mut file).with_context(look)?;
        if let Some((what, instead)) = no_archive(&head, length).filter(|_| !is_tar(&head)) {
            return Err(explained(format!("it is {what}, and an archive is needed"), instead));
        }
    }
    let name = path.display().to_string();
    Ok(Source { total, write: Box::new(move |to| copy(&mut file, to, &name)) })
}

/// The first bytes of a file, which stands at its beginning again.
fn head(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    (&mut *file).take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(head)
}

/// Whether the first block is a header: a name in an archive may be what another file begins with.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else { return false };
    let sum = block.iter().enumerate().map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }));
    Header::from_byte_slice(block).cksum().is_ok_and(|said| said == sum.sum::<u32>())
}

/// An ext4 file system. A block device may have one too.
///
/// # Errors
/// When the path is not there or not readable, and when no guest could have it as its root disk:
/// the daemon would find that out only when it has all bytes.
pub(crate) fn root_file_system(path: &Path) -> anyhow::Result<Source> {
    let mut file = open(path, READABLE)?;
    let look = || format!("cannot look at {}", path.display());
    if file.metadata().with_context(look)?.is_dir() {
        return Err(explained(
            "it is a folder, and a file with an ext4 file system is needed",
            "make one of it, as root so that its files keep their owners: mke2fs -t ext4 -d FOLDER rootfs.ext4 SIZE",
        ));
    }
    // A block device has a length only for those who go to its end.
    let length = file.seek(SeekFrom::End(0)).with_context(look)?;
    file.seek(SeekFrom::Start(0)).with_context(look)?;
    let head = head(&mut file).with_context(look)?;
    let bytes = examine(&head, length)?.bytes;
    let name = path.display().to_string();
    Ok(Source { total: Some(bytes), write: Box::new(move |to| copy(&mut file.take(bytes), to, &name)) })
}

fn copy(from: &mut dyn std::io::Read, to: &mut dyn Write, name: &str) -> anyhow::Result<()> {
    std::io::copy(from, to).map(drop).with_context(|| format!("cannot send {name}"))
}

/// An OCI image layout (OCI image-layout.md): `oci-layout`, `index.json` and
/// `blobs/<algorithm>/<digest>`; and what `docker save` has beside them, whose index may say
/// nothing.
fn oci_layout(root: &Path) -> anyhow::Result<Source> {
    let saved = SAVED.into_iter().filter(|name| root.join(name).is_file()).map(PathBuf::from);
    if !root.join("oci-layout").is_file() {
        if let Some(name) = saved.into_iter().next() {
            let folder = root.display();
            return Err(explained(
                format!("{folder} is a folder, but no OCI layout: it has a file {}, and no oci-layout", name.display()),
                format!("pack what docker has saved, and import that: tar -C {folder} -cf image.tar ."),
            ));
        }
        return Err(explained(
            format!("{} is a folder, but no OCI layout: it has no file oci-layout", root.display()),
            "a plain root file system keeps its owners and attributes only as an archive, made as root:\n\
             tar --numeric-owner --xattrs --xattrs-include='*' -C FOLDER -cf rootfs.tar .",
        ));
    }
    let mut files: Vec<PathBuf> = ["oci-layout", "index.json"].into_iter().map(PathBuf::from).chain(saved).collect();
    // Programs keep something of their own between the blobs, in files and in folders. A link to a
    // blob is one.
    for algorithm in folder(&root.join("blobs"))? {
        let algorithm = Path::new("blobs").join(algorithm);
        if root.join(&algorithm).is_dir() {
            let blobs = folder(&root.join(&algorithm))?.into_iter().map(|blob| algorithm.join(blob));
            files.extend(blobs.filter(|blob| root.join(blob).is_file()));
        }
    }
    let mut total = 0_u64;
    for file in &files {
        let length =
            std::fs::metadata(root.join(file)).with_context(|| format!("cannot look at {}", file.display()))?;
        total = total.saturating_add(length.len());
    }
    let root = root.to_owned();
    Ok(Source {
        total: Some(total),
        write: Box::new(move |to| {
            let mut archive = Builder::new(to);
            for name in &files {
                let path = root.join(name);
                let file = open(&path, READABLE).with_context(|| path.display().to_string());
                add(&mut archive, name, &mut file?)?;
            }
            archive.finish().context("cannot send the layout")
        }),
    })
}

/// The names in a folder, in a stable order.
fn folder(path: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    let read = || path.read_dir()?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>();
    let mut names = read().with_context(|| format!("cannot read the folder {}", path.display()))?;
    names.sort();
    Ok(names)
}

/// A kernel and its modules folder, of which [`ModuleIndex`] selects what a guest needs to boot.
/// The names in the archive are `banger_policy::kernel`'s.
///
/// # Errors
/// When a file cannot be read, or the kernel cannot boot a guest.
pub(crate) fn kernel(vmlinuz: File, modules: Option<&Path>) -> anyhow::Result<Source> {
    let length = vmlinuz.metadata().context("cannot look at the kernel")?.len();
    let Some(modules) = modules else {
        return Ok(kernel_source(vmlinuz, length, Vec::new(), Vec::new()));
    };
    let (dep, builtin) = (index(modules, "modules.dep")?, index(modules, "modules.builtin")?);
    let wanted = ModuleIndex::parse(&dep, &builtin).and_then(|index| index.boot_modules())?;
    for path in wanted.iter().map(ModulePath::as_str) {
        let file = modules.join(path);
        std::fs::metadata(&file).with_context(|| format!("cannot look at {}", file.display()))?;
    }
    let files = all_modules(modules)?;
    let bytes = files.iter().map(|(_, path)| std::fs::metadata(path).map_or(0, |found| found.len()));
    let total = bytes.fold(length, u64::saturating_add);
    let index = [("modules.dep", dep), ("modules.builtin", builtin)];
    let index = index.map(|(name, text)| (format!("{MODULES_PREFIX}{name}"), text)).to_vec();
    Ok(kernel_source(vmlinuz, total, index, files))
}

/// The packages of a distribution's kernel, as they are: the daemon looks into them.
///
/// # Errors
/// When a length cannot be read.
pub(crate) fn packages(files: Vec<File>) -> anyhow::Result<Source> {
    let lengths =
        files.iter().map(|file| file.metadata().map(|found| found.len())).collect::<std::io::Result<Vec<_>>>();
    let total = lengths.context("cannot look at the packages")?.into_iter().fold(0, u64::saturating_add);
    let write = move |to: &mut dyn Write| {
        let mut archive = Builder::new(to);
        for (number, mut file) in (1..).zip(files) {
            add(&mut archive, Path::new(&format!("{PACKAGE_PREFIX}{number:04}")), &mut file)?;
        }
        archive.finish().context("cannot send the packages")
    };
    Ok(Source { total: Some(total), write: Box::new(write) })
}

/// Every regular file below the folder of modules but the two that are sent first, with its name in
/// the archive. Links lead to the kernel's sources, which no guest has.
fn all_modules(modules: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for name in folder(&modules.join(&below))? {
            let relative = below.join(&name);
            let path = modules.join(&relative);
            let what = || format!("cannot look at {}", path.display());
            let kind = path.symlink_metadata().with_context(what)?.file_type();
            if kind.is_dir() {
                folders.push(relative);
            } else if kind.is_file()
                && let Some(text) = relative.to_str().filter(|text| !["modules.dep", "modules.builtin"].contains(text))
            {
                found.push((format!("{MODULES_PREFIX}{text}"), path));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn kernel_source(mut vmlinuz: File, total: u64, index: Vec<(String, String)>, files: Vec<(String, PathBuf)>) -> Source {
    let write = move |to: &mut dyn Write| {
        let mut archive = Builder::new(to);
        add(&mut archive, Path::new(KERNEL_ENTRY), &mut vmlinuz)?;
        for (name, text) in &index {
            let mut header = header(text.len() as u64);
            archive.append_data(&mut header, name, text.as_bytes()).with_context(|| format!("cannot send {name}"))?;
        }
        for (name, path) in &files {
            let file = open(path, READABLE).with_context(|| path.display().to_string());
            add(&mut archive, Path::new(name), &mut file?)?;
        }
        archive.finish().context("cannot send the kernel")
    };
    Source { total: Some(total), write: Box::new(write) }
}

/// An index file of `depmod` or of the kernel's build.
fn index(modules: &Path, name: &str) -> anyhow::Result<String> {
    let path = modules.join(name);
    let mut text = String::new();
    let what = || format!("{} (depmod(8) makes it)", path.display());
    let file = open(&path, READABLE).with_context(what)?;
    file.take(MAX_INDEX_BYTES).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// Adds a file by its name in the archive. Its length is fixed when it is opened; one that shrinks
/// meanwhile is an error, not a short archive.
fn add(archive: &mut Builder<&mut dyn Write>, name: &Path, file: &mut File) -> anyhow::Result<()> {
    let what = || format!("cannot send {}", name.display());
    let length = file.metadata().with_context(what)?.len();
    let mut counted = file.take(length);
    archive.append_data(&mut header(length), name, &mut counted).with_context(what)?;
    if counted.limit() > 0 {
        return Err(anyhow::anyhow!("{} became shorter while it was read", name.display()));
    }
    Ok(())
}

fn header(length: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(length);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn entries(source: Source) -> Vec<(String, Vec<u8>)> {
        let mut bytes = Vec::new();
        (source.write)(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let read = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        read.collect()
    }

    #[test]
    fn an_oci_layout_is_packed_whole() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        for (name, text) in [("oci-layout", "{}"), ("index.json", "[]"), ("blobs/sha256/aa", "x"), ("other", "no")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let packed =
            || -> Vec<String> { entries(image(folder.path()).unwrap()).into_iter().map(|(name, _)| name).collect() };
        assert_eq!(packed(), ["oci-layout", "index.json", "blobs/sha256/aa"]);
        // What docker writes, what a file manager does, links to a blob and to none.
        for (name, text) in [("manifest.json", "[]"), ("repositories", "{}"), ("blobs/.DS_Store", "")] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        std::fs::create_dir(folder.path().join("blobs/sha256/ingest")).unwrap();
        std::os::unix::fs::symlink("aa", folder.path().join("blobs/sha256/bb")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("blobs/sha256/cc")).unwrap();
        let all = ["oci-layout", "index.json", "manifest.json", "repositories", "blobs/sha256/aa", "blobs/sha256/bb"];
        assert_eq!(packed(), all);
    }

    #[test]
    fn a_disk_is_no_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let refused = |head: &[u8]| {
            std::fs::write(&path, head).unwrap();
            image(&path).err().map(|error| {
                let hint = error.downcast_ref::<crate::error::Explained>().unwrap().hint().to_owned();
                format!("{error}: {hint}")
            })
        };
        let mut ext4 = vec![0; 4096];
        ext4[0x438..0x43a].copy_from_slice(b"\x53\xef");
        for (head, words) in [(ext4.as_slice(), "an ext4 file system"), (b"QFI\xfb\0\0\0\x03", "a qcow2 disk")] {
            let error = refused(head).unwrap();
            assert!(error.contains(words) && error.contains("image register --rootfs"), "{error}");
        }
        // A file of that name, and what cannot be told from its first bytes.
        let mut header = header(0);
        header.set_path("hsqs").unwrap();
        header.set_cksum();
        for head in [&header.as_bytes()[..], b"", b"\x1f\x8b\x08", &[0; 1024]] {
            assert_eq!(refused(head), None);
        }
    }

    #[test]
    fn another_folder_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = image(folder.path()).err().unwrap();
        assert!(error.to_string().contains("no OCI layout"), "{error}");
        std::fs::write(folder.path().join("manifest.json"), "[]").unwrap();
        let error = image(folder.path()).err().unwrap();
        let hint = error.downcast_ref::<crate::error::Explained>().unwrap().hint();
        assert!(error.to_string().contains("no OCI layout") && hint.contains("-cf image.tar"), "{error}: {hint}");
    }

    #[test]
    fn packages_are_sent_as_they_are_and_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            std::fs::write(folder.path().join(name), name).unwrap();
            File::open(folder.path().join(name)).unwrap()
        };
        let packed = entries(packages(vec![file("b.deb"), file("a.rpm")]).unwrap());
        let expected = [("package/0001", "b.deb"), ("package/0002", "a.rpm")];
        assert_eq!(packed, expected.map(|(name, text)| (name.to_owned(), text.into())));
    }

    #[test]
    fn a_kernel_brings_all_its_modules() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("modules");
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        let long = format!("kernel/{}", "long-".repeat(30));
        std::fs::create_dir_all(modules.join(&long)).unwrap();
        let builtin = "kernel/virtio_mmio.ko\nkernel/virtio_blk.ko\nkernel/virtio_net.ko\n\
                       kernel/vmw_vsock_virtio_transport.ko\n";
        std::fs::write(modules.join("modules.builtin"), builtin).unwrap();
        std::fs::write(
            modules.join("modules.dep"),
            format!("{long}/ext4.ko: kernel/mb.ko\nkernel/mb.ko:\nkernel/snd.ko:\n"),
        )
        .unwrap();
        for module in [&format!("{long}/ext4.ko"), "kernel/mb.ko", "kernel/snd.ko"] {
            std::fs::write(modules.join(module), module).unwrap();
        }
        let vmlinuz = folder.path().join("vmlinuz");
        std::fs::write(&vmlinuz, "kernel").unwrap();
        let packed = entries(kernel(File::open(&vmlinuz).unwrap(), Some(&modules)).unwrap());
        let names: Vec<&str> = packed.iter().map(|(name, _)| name.as_str()).collect();
        let ext4 = format!("modules/{long}/ext4.ko");
        let snd = "modules/kernel/snd.ko";
        let mb = "modules/kernel/mb.ko";
        assert_eq!(names, ["vmlinuz", "modules/modules.dep", "modules/modules.builtin", &ext4, mb, snd]);
        assert_eq!(packed.first().unwrap().1, b"kernel");
        assert_eq!(entries(kernel(File::open(&vmlinuz).unwrap(), None).unwrap()).len(), 1);
    }
}
