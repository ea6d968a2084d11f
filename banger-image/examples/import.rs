//! Runs the image and kernel imports by hand, without a daemon: `cargo run --release -p
//! banger-image --example import -- rootfs TAR FOLDER [SIZE [REF]]`, and the like for `kernel`,
//! `initramfs` and `work-disk`. `floor` is what imports are compared with. It says how long each
//! stage took, and the most memory that it had. The results are for `e2fsck`, `debugfs`, `readelf`
//! and `qemu-system-x86_64 -M microvm`.
#![expect(clippy::print_stdout, reason = "a tool for the terminal")]

use banger_image::boot::initramfs::{self, Initramfs};
use banger_image::hashing::Hasher;
use banger_image::{self as image, Limits, Progress};
use banger_proto::guest::GuestConfig;
use flate2::bufread::GzDecoder;
use std::cell::Cell;
use std::error::Error;
use std::fs::{File, read_to_string};
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::time::Instant;

struct Stages {
    begun: Instant,
    last: Cell<Option<(&'static str, Instant)>>,
}

impl Stages {
    fn end(&self) {
        if let Some((name, at)) = self.last.take() {
            println!("{name:<24} {:>8.3} s", at.elapsed().as_secs_f64());
        }
    }
}

impl Progress for Stages {
    fn stage(&self, name: &'static str) {
        self.end();
        self.last.set(Some((name, Instant::now())));
    }

    fn warn(&self, text: &str) {
        println!("warning: {text}");
    }
}

/// A guest without a daemon: nobody listens on its control port.
fn demo_config(host_key: String) -> GuestConfig {
    GuestConfig {
        hostname: "demo".into(),
        address: [172, 16, 0, 2].into(),
        gateway: [172, 16, 0, 1].into(),
        dns: [1, 1, 1, 1].into(),
        authorized_keys: Vec::new(),
        host_key,
        control_port: 10_001,
        token: banger_proto::guest::BootToken::new([1; 32]),
        root_device: "/dev/vda".into(),
        work_device: Some("/dev/vdb".into()),
        modules_device: None,
        reads: false,
        image: banger_policy::ImageConfig::default(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let progress = Stages { begun: Instant::now(), last: Cell::new(None) };
    match args.as_slice() {
        ["rootfs", tar, folder, rest @ ..] => {
            let size = rest.first().map_or(Ok(image::DEFAULT_BUILD_SIZE), |size| size.parse())?;
            let limits = Limits::for_build_size(size);
            let (source, reference) = (File::open(tar)?, rest.get(1).copied());
            let hasher = Hasher::start(|| Ok(()))?;
            let imported = image::import(source, Path::new(folder), size, reference, limits, &hasher, &progress)?;
            progress.end();
            println!("{imported:#?}");
        }
        ["kernel", tar, folder] => {
            let imported = banger_image::boot::kernel::import(File::open(tar)?, Path::new(folder), &progress)?;
            progress.end();
            println!("{imported:#?}");
        }
        ["initramfs", kernel, init, key, path] => {
            let modules = Path::new(kernel).join(banger_image::boot::kernel::MODULES_FOLDER);
            let key = Path::new(key);
            let config = demo_config(read_to_string(key)?);
            let contents = Initramfs { init: Path::new(init), modules: Some(&modules), config: &config };
            println!("{} bytes", initramfs::write(Path::new(path), &contents)?);
        }
        ["floor", archive, folder] => floor(Path::new(archive), Path::new(folder))?,
        ["work-disk", seed, path, size] => {
            let seed = (*seed != "-").then(|| File::open(seed)).transpose()?;
            let disk = image::work_disk::WorkDisk { size: size.parse()?, seed, uuid: [0x42; 16] };
            image::work_disk::create(disk, Path::new(path), &progress)?;
        }
        _ => {
            return Err(
                "usage: import rootfs TAR FOLDER [SIZE [REF]] | kernel TAR FOLDER | initramfs KERNEL-FOLDER GUEST KEY PATH | work-disk SEED|- PATH SIZE | floor ARCHIVE FOLDER".into()
            );
        }
    }
    println!("{:.3} s in all", progress.begun.elapsed().as_secs_f64());
    println!("{} KiB of memory at most", peak().unwrap_or_default());
    Ok(())
}

/// The least that an import could do: decompresses what the archive holds and writes it to the
/// disk.
fn floor(archive: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut archive = tar::Archive::new(File::open(archive)?);
    for (number, entry) in archive.entries()?.enumerate() {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let mut entry = BufReader::with_capacity(1 << 20, entry);
        let mut out = File::create(folder.join(number.to_string()))?;
        if entry.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            io::copy(&mut BufReader::with_capacity(1 << 20, GzDecoder::new(entry)), &mut out)?;
        } else {
            io::copy(&mut entry, &mut out)?;
        }
        out.sync_all()?;
    }
    Ok(())
}

/// The most that was resident (`VmHWM` of proc_pid_status(5)).
fn peak() -> Option<u64> {
    let status = read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}
