//! The kernel import on kernels and modules made in code; `make demo` and the bench import real
//! ones.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::kernel::{ImportedKernel, KernelImportError, MAX_MODULES_BYTES, MODULES_DISK, import};
use crate::tests::maker::{gzip, zstd};
use banger_policy::kernel::KernelError;
use std::io::Seek as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;

const RELEASE: &str = "6.12.1-test-amd64";
const DRIVERS: &str = "virtio-mmio\0virtio_blk\0virtio_net\0ext4\0vmw_vsock_virtio_transport\0";

/// An ELF with one loadable segment: itself.
fn elf(kind: u16, machine: u16, body: &[u8]) -> Vec<u8> {
    let length = 64 + 56 + body.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([kind.to_le_bytes(), machine.to_le_bytes()].concat());
    elf.resize(32, 0);
    elf.extend(64_u64.to_le_bytes());
    elf.resize(54, 0);
    elf.extend([56_u16.to_le_bytes(), 1_u16.to_le_bytes()].concat());
    elf.resize(64, 0);
    elf.extend(1_u32.to_le_bytes());
    elf.resize(64 + 32, 0);
    elf.extend([length.to_le_bytes(), length.to_le_bytes()].concat());
    elf.resize(64 + 56, 0);
    elf.extend(body);
    elf
}

fn vmlinux(extra: &str) -> Vec<u8> {
    // Noise, so that the compressed kernel is longer than one header.
    let noise: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let text = format!("\0Linux version {RELEASE} (build@host) (gcc) #1 SMP\n\0{extra}\0");
    elf(2, 62, &[&noise[..], text.as_bytes()].concat())
}

/// A bzImage around `payload`, which ends in its plain size.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x268];
    image[0x1f1] = 4;
    let protected = (0x100 + payload.len()).next_multiple_of(16);
    image[0x1f4..0x1f8].copy_from_slice(&u32::try_from(protected / 16).unwrap().to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x248..0x24c].copy_from_slice(&0x100_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.resize(5 * 512 + 0x100, 0x90);
    image.extend(payload);
    image.resize(5 * 512 + protected, 0);
    image
}

fn sized(packed: &[u8], plain: &[u8]) -> Vec<u8> {
    [packed, &u32::try_from(plain.len()).unwrap().to_le_bytes()].concat()
}

fn module(release: &str) -> Vec<u8> {
    elf(1, 62, format!("\0license=GPL\0vermagic={release} SMP preempt mod_unload \0").as_bytes())
}

fn tar(files: &[(&str, &[u8])]) -> std::fs::File {
    let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *data).unwrap();
    }
    let mut file = builder.into_inner().unwrap();
    file.rewind().unwrap();
    file
}

fn run(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Result<ImportedKernel, KernelImportError>) {
    let dir = tempfile::tempdir().unwrap();
    let result = import(tar(files), dir.path(), &());
    (dir, result)
}

fn error(files: &[(&str, &[u8])]) -> KernelImportError {
    run(files).1.unwrap_err()
}

const BUILTIN: &[u8] =
    b"kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_mmio.ko\nkernel/drivers/block/virtio_blk.ko\n";
const DEP: &[u8] = b"kernel/a/failover.ko:\nkernel/a/virtio_net.ko.gz: kernel/a/failover.ko\n\
    kernel/v/vsock.ko.zst:\nkernel/v/vmw_vsock_virtio_transport.ko: kernel/v/vsock.ko.zst\n";

#[test]
fn a_vmlinuz_with_modules() {
    let plain = vmlinux("");
    let (gz, zst, ko) = (gzip(&module(RELEASE)), zstd(&module(RELEASE)), module(RELEASE));
    for packed in [gzip(&plain), sized(&zstd(&plain), &plain)] {
        let image = bzimage(&packed);
        let files: [(&str, &[u8]); 7] = [
            ("vmlinuz", &image),
            ("modules/modules.dep", DEP),
            ("modules/modules.builtin", BUILTIN),
            ("modules/kernel/a/failover.ko", &ko),
            ("modules/kernel/a/virtio_net.ko.gz", &gz),
            ("modules/kernel/v/vsock.ko.zst", &zst),
            ("modules/kernel/v/vmw_vsock_virtio_transport.ko", &ko),
        ];
        let (_dir, result) = run(&files);
        let kernel = result.unwrap();
        assert_eq!(kernel.version, RELEASE);
        assert!(std::fs::read(&kernel.vmlinux).unwrap() == plain);
        assert_eq!(
            kernel.modules,
            ["00-failover.ko", "01-virtio_net.ko", "02-vsock.ko", "03-vmw_vsock_virtio_transport.ko"]
        );
        for name in &kernel.modules {
            assert!(std::fs::read(kernel.modules_dir.join(name)).unwrap() == ko, "{name}");
        }
        for missing in 3..files.len() {
            let mut some = files.to_vec();
            let (path, _) = some.remove(missing);
            match error(&some) {
                KernelImportError::ModuleFiles { paths } => assert_eq!([format!("modules/{}", paths[0])], [path]),
                other => unreachable!("{other}"),
            }
        }
    }
}

#[test]
fn all_modules_are_a_file_system_and_count_for_the_digest() {
    let ko = module(RELEASE);
    let image = vmlinux("");
    let builtin = [BUILTIN, b"kernel/n/virtio_net.ko\nkernel/v/vmw_vsock_virtio_transport.ko\n"].concat();
    let files = |tun: &'static [u8]| {
        run(&[
            ("vmlinuz", &image),
            ("modules/modules.dep", b"kernel/t/tun.ko.xz:\nkernel/a/overlay.ko:\n"),
            ("modules/modules.builtin", &builtin),
            ("modules/modules.alias", b"alias char-major-10-200 tun\n"),
            ("modules/kernel/t/tun.ko.xz", tun),
            ("modules/kernel/a/overlay.ko", &ko),
        ])
    };
    let (folder, kernel) = files(b"packed");
    let kernel = kernel.unwrap();
    assert!(kernel.has_disk && kernel.modules.is_empty());
    let disk = folder.path().join(MODULES_DISK);
    let found = std::fs::metadata(&disk).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o440);
    assert!(found.len() < 256 << 20 && found.blocks() * 512 < 8 << 20, "{} bytes", found.len());
    let (again, other) = (files(b"packed"), files(b"Packed"));
    assert_eq!(again.1.unwrap().digest, kernel.digest);
    assert_ne!(other.1.unwrap().digest, kernel.digest);
    let refused = error(&[("vmlinuz", &image), ("modules/modules.dep", b""), ("modules/a\x01b", b"x")]);
    assert!(matches!(refused, KernelImportError::Archive(_) | KernelImportError::Index(_)), "{refused}");
    let Ok(checked) = Command::new("e2fsck").arg("-fn").arg(&disk).output() else {
        eprintln!("skipped: there is no e2fsck");
        return;
    };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let cat = |path: &str| {
        let shown = Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(&disk).output().unwrap();
        shown.stdout
    };
    assert!(cat("/kernel/a/overlay.ko") == ko && cat("/kernel/t/tun.ko.xz") == b"packed");
    assert_eq!(cat("/modules.alias"), b"alias char-major-10-200 tun\n");
}

#[test]
fn packing_does_not_change_the_digest() {
    let plain = vmlinux(DRIVERS);
    let (_a, one) = run(&[("vmlinuz", &plain)]);
    let (_b, two) = run(&[("vmlinuz", &bzimage(&gzip(&plain)))]);
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.digest, two.digest);
    assert!(one.modules.is_empty() && one.modules_dir.is_dir());
    let (_c, three) = run(&[("vmlinuz", &vmlinux(&format!("{DRIVERS}more")))]);
    assert_ne!(one.digest, three.unwrap().digest);
}

#[test]
fn what_is_no_kernel() {
    assert!(matches!(error(&[("other", b"x")]), KernelImportError::NoKernel));
    for junk in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &gzip(b"x")] {
        assert!(matches!(error(&[("vmlinuz", junk)]), KernelImportError::NotAKernel), "{junk:?}");
    }
    let arm = elf(2, 183, b"");
    assert!(matches!(error(&[("vmlinuz", &arm)]), KernelImportError::NotX86_64));
    assert!(matches!(error(&[("vmlinuz", &elf(2, 62, b"program"))]), KernelImportError::NoVersion));
    let lzo = sized(b"\x89LZO\0\r\n\x1a\n and the rest of it", b"");
    assert!(matches!(error(&[("vmlinuz", &bzimage(&lzo))]), KernelImportError::Compression { format: "lzo" }));
    let mut old = bzimage(&gzip(b"x"));
    old[0x236] = 0;
    assert!(matches!(error(&[("vmlinuz", &old)]), KernelImportError::NotX86_64));
}

#[test]
fn a_truncated_kernel_is_one() {
    let plain = vmlinux(DRIVERS);
    let image = bzimage(&gzip(&plain));
    for cut in [0x210, 0x300, 4096, image.len() / 2, image.len() - 1] {
        assert!(matches!(error(&[("vmlinuz", &image[..cut])]), KernelImportError::Truncated), "cut at {cut}");
    }
    for cut in [20, 63, 100, plain.len() / 2, plain.len() - 1] {
        assert!(matches!(error(&[("vmlinuz", &plain[..cut])]), KernelImportError::Truncated), "cut at {cut}");
    }
    let mut damaged = image;
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0);
    assert!(matches!(error(&[("vmlinuz", &damaged)]), KernelImportError::Corrupt(_)));
    let lie = bzimage(&sized(&zstd(&plain), b"short"));
    assert!(matches!(error(&[("vmlinuz", &lie)]), KernelImportError::Corrupt(_)));
}

#[test]
fn missing_drivers_are_named() {
    let plain = vmlinux("virtio_blk\0ext4\0xvirtio_net\0");
    match error(&[("vmlinuz", &plain)]) {
        KernelImportError::NotBuiltIn { names } => {
            assert_eq!(names, ["virtio-mmio", "virtio_net", "vmw_vsock_virtio_transport"]);
        }
        other => unreachable!("{other}"),
    }
    // With an index, the index decides.
    let files: [(&str, &[u8]); 2] = [("vmlinuz", &vmlinux(DRIVERS)), ("modules/modules.builtin", BUILTIN)];
    match error(&files) {
        KernelImportError::Index(KernelError::Missing { names }) => {
            assert_eq!(names, ["virtio_net", "vmw_vsock_virtio_transport"]);
        }
        other => unreachable!("{other}"),
    }
}

/// What of a user's own kernel each start of a VM copies is bounded, however well it is packed.
#[test]
fn boot_modules_are_bounded_together() {
    let plain = vmlinux("");
    let builtin = [BUILTIN, b"virtio_net.ko\n"].concat();
    let large = |bytes: u64| {
        let mut module = module(RELEASE);
        module.resize(usize::try_from(bytes).unwrap(), 0);
        gzip(&module)
    };
    let import = |one: u64, other: u64| {
        run(&[
            ("vmlinuz", &plain),
            ("modules/modules.builtin", &builtin),
            ("modules/modules.dep", b"v/vmw_vsock_virtio_transport.ko.gz: v/vsock.ko.gz\nv/vsock.ko.gz:\n"),
            ("modules/v/vsock.ko.gz", &large(one)),
            ("modules/v/vmw_vsock_virtio_transport.ko.gz", &large(other)),
        ])
        .1
    };
    let half = MAX_MODULES_BYTES / 2;
    assert_eq!(import(half, half).unwrap().modules.len(), 2);
    for (one, other) in [(half, half + 1), (half + 1, half), (MAX_MODULES_BYTES + 1, 4096)] {
        assert!(matches!(import(one, other), Err(KernelImportError::LargeModules)), "{one} {other}");
    }
}

#[test]
fn foreign_modules_are_refused() {
    let plain = vmlinux("");
    let builtin = [BUILTIN, b"virtio_net.ko\n"].concat();
    let with = |module: &[u8]| {
        error(&[
            ("vmlinuz", &plain),
            ("modules/modules.builtin", &builtin),
            ("modules/modules.dep", b"v/vmw_vsock_virtio_transport.ko:\n"),
            ("modules/v/vmw_vsock_virtio_transport.ko", module),
        ])
    };
    assert!(matches!(with(&module("6.1.0-other")), KernelImportError::Vermagic { .. }));
    assert!(matches!(with(b"junk"), KernelImportError::Module { .. }));
    assert!(matches!(with(&elf(2, 62, b"\0vermagic=x")), KernelImportError::Module { .. }));
    assert!(matches!(with(&elf(1, 62, b"no magic")), KernelImportError::Module { .. }));
    assert!(matches!(with(&gzip(&module(RELEASE))[..60]), KernelImportError::Module { .. }));
}
