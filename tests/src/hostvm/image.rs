//! Makes the disk of the host VM: package trees by mmdebstrap, packed by `mkfs.ext4 -d`. No mount,
//! and no privilege beyond a user namespace.
//!
//! Called by `banger-bench`. The result is cached under a hash of the recipe; a half-made image is
//! never visible under its final name.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::recipe::{self, Kind};
use super::{apt, material};

/// A finished image: everything that QEMU needs to start the host VM.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it is, and what is made from it.
    pub(super) folder: PathBuf,
    /// Raw ext4 file system, sparse. Never booted itself: every run works on a copy.
    pub disk: PathBuf,
    /// Kernel of the image, outside of it for QEMU's `-kernel`.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

impl Image {
    fn at(folder: &Path) -> Self {
        let [disk, kernel, initrd] = ["disk.ext4", "vmlinuz", "initrd.img"].map(|name| folder.join(name));
        Self { folder: folder.to_owned(), disk, kernel, initrd }
    }
}

/// Returns the image of the present recipe, making it when it is not there.
pub fn ensure_image(cache: &Path, kind: Kind) -> Result<Image> {
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).context("create the image lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("lock the images")?;

    let folder = cache.join(format!("image-{}", fingerprint(kind)));
    if folder.is_dir() {
        super::used(&folder)?;
        return Ok(Image::at(&folder));
    }
    let started = Instant::now();
    eprintln!("bench: making the host VM's image ({})", recipe::SUITE);
    let unfinished = cache.join("image.unfinished");
    remove_tree(&unfinished)?;
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    trees(&unfinished, kind)?;
    pack(&unfinished)?;
    super::unused(cache, "image-")?.iter().try_for_each(|folder| remove_tree(folder))?;
    fs::rename(&unfinished, &folder).with_context(|| format!("publish {}", folder.display()))?;
    eprintln!("bench: image made in {:.0} s", started.elapsed().as_secs_f64());
    Ok(Image::at(&folder))
}

fn fingerprint(kind: Kind) -> String {
    let digest = Sha256::digest(format!("{}{}", recipe::fingerprint(kind), material::FINGERPRINT));
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The three package trees at once: most of the time is waiting for the mirror.
fn trees(folder: &Path, kind: Kind) -> Result<()> {
    let sources = apt::sources(recipe::SUITE)?;
    let (more, more_setup) = match kind {
        Kind::Plain => (&[][..], &[][..]),
        Kind::Neighbours => (recipe::NEIGHBOURS, recipe::NEIGHBOURS_SETUP),
    };
    let packages = [recipe::HOST_PACKAGES, more].concat();
    let setup: Vec<String> = recipe::HOST_SETUP
        .iter()
        .chain(more_setup)
        .map(|line| (*line).to_owned())
        .chain(
            recipe::USERS.iter().map(|(name, uid)| format!(r#"chroot "$1" useradd -m -u {uid} -s /bin/bash {name}"#)),
        )
        .collect();
    std::thread::scope(|scope| {
        let jobs = [
            scope.spawn(|| mmdebstrap(&sources, &packages, &setup, &folder.join("host.tar"))),
            scope.spawn(|| mmdebstrap(&sources, recipe::GUEST_PACKAGES, &[], &folder.join("debian.tar"))),
            scope.spawn(|| {
                mmdebstrap(&sources, recipe::GUEST_SYSTEMD_PACKAGES, &[], &folder.join("debian-systemd.tar"))
            }),
        ];
        for job in jobs {
            job.join().map_err(|_| anyhow::anyhow!("a thread that ran mmdebstrap panicked"))??;
        }
        Ok(())
    })
}

/// The root file system of the guests with Debian, as a tar.
pub(super) fn debian(target: &Path) -> Result<()> {
    mmdebstrap(&apt::sources(recipe::SUITE)?, recipe::GUEST_PACKAGES, &[], target)
}

fn mmdebstrap(sources: &apt::Sources, packages: &[&str], setup: &[String], target: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=tar"]);
    for folder in ["doc", "man", "locale", "info"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    for option in &sources.options {
        command.arg(format!("--aptopt={option}"));
    }
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    for line in setup {
        command.arg(format!("--customize-hook={line}"));
    }
    command.arg(recipe::SUITE).arg(target).args(&sources.lines);
    let output = command.stdin(Stdio::null()).output().context("run mmdebstrap (install the package mmdebstrap)")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = text.lines().rev().take(25).collect();
        bail!(
            "mmdebstrap for {} ended with {}; its last lines:\n{}",
            target.display(),
            output.status,
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }
    Ok(())
}

fn pack(folder: &Path) -> Result<()> {
    in_folder(folder, "mkdir root && tar xpf host.tar -C root --exclude './dev/*' && rm host.tar")?;
    in_folder(folder, "cp root/boot/vmlinuz-* vmlinuz && cp root/boot/initrd.img-* initrd.img")?;
    let boot = folder.join("boot.sh");
    fs::write(&boot, recipe::HOST_BOOT).with_context(|| format!("write {}", boot.display()))?;
    material::write_tiny(&folder.join("root/usr/bin/busybox"), &folder.join("tiny.tar"))?;
    in_folder(
        folder,
        "install -m 0755 boot.sh root/srv/bench/boot.sh && mv debian.tar debian-systemd.tar tiny.tar root/srv/bench/ && chmod 0644 root/srv/bench/*.tar",
    )?;
    in_folder(
        folder,
        &format!("mkfs.ext4 -q -F -m 0 -L host -d root disk.ext4 {} >/dev/null && rm -rf root", recipe::DISK_SIZE),
    )
}

/// Runs a shell line in `folder` as root, or as the root of a user namespace that has this user's
/// subordinate ids.
fn in_folder(folder: &Path, line: &str) -> Result<()> {
    let script = format!("set -eu; PATH=$PATH:/usr/sbin:/sbin; {line}");
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "sh"]);
        command
    };
    let status = command.args(["-c", &script]).current_dir(folder).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("run `{line}`"))?;
    ensure!(status.success(), "`{line}` in {} ended with {status}", folder.display());
    Ok(())
}

fn remove_tree(folder: &Path) -> Result<()> {
    match (folder.parent(), folder.file_name()) {
        (Some(parent), Some(name)) if folder.exists() => in_folder(parent, &format!("rm -rf {}", name.display())),
        _ => Ok(()),
    }
}
