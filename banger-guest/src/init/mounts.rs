//! File systems of a booting guest.
//!
//! Called by `init` only, single-threaded. Before [`switch_root`] paths are the initramfs's, afterwards
//! the image's. Nothing here repairs a file system.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::console::say;
use crate::sys::ext4;

/// Where the image's root is mounted before it becomes `/`.
const NEW_ROOT: &str = "/newroot";
/// How long a disk may take to appear after its driver is loaded. It takes milliseconds on an idle
/// host and seconds under emulation.
const DEVICE_WAIT: Duration = Duration::from_secs(15);
/// How often a device is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(10);
const BASIC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// `/proc`, `/sys` and `/dev`, in the initramfs and again in the image.
pub(super) fn kernel_file_systems() -> Result<(), Error> {
    virtual_fs("proc", "/proc", BASIC, None)?;
    virtual_fs("sysfs", "/sys", BASIC, None)?;
    virtual_fs("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755"))
}

/// What a system expects before its init runs; an init that mounts them itself finds them mounted, as
/// after any initramfs. None of them is worth a failed boot.
pub(super) fn runtime_file_systems() {
    let hidden = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
    let terminals = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
    try_virtual_fs("devpts", "/dev/pts", terminals, Some("gid=5,mode=620,ptmxmode=666"));
    try_virtual_fs("tmpfs", "/dev/shm", hidden, Some("mode=1777"));
    try_virtual_fs("tmpfs", "/run", hidden, Some("mode=755,size=20%"));
}

/// The rest of what an init would have done, for an image that has none.
pub(super) fn without_image_init() {
    try_virtual_fs("cgroup2", "/sys/fs/cgroup", BASIC, Some("nsdelegate"));
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(name));
    }
    if let Err(error) = fs::create_dir_all("/run/lock") {
        say(format_args!("/run/lock: {error}"));
    }
    // /var/run of an image may be a folder with stale pid files or a link to /run: both work.
}

/// Makes the console the standard streams. The kernel does it only when the initramfs has the node.
pub(super) fn open_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/console")
    else {
        return;
    };
    let _ = nix::unistd::dup2_stdin(&console);
    let _ = nix::unistd::dup2_stdout(&console);
    let _ = nix::unistd::dup2_stderr(&console);
}

/// Waits until `device` is a block device.
pub(super) fn wait_for_device(device: &Path) -> Result<(), Error> {
    let end = Instant::now() + DEVICE_WAIT;
    loop {
        if fs::metadata(device).is_ok_and(|found| found.file_type().is_block_device()) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(Error::NoDevice { path: device.to_owned(), seconds: DEVICE_WAIT.as_secs() });
        }
        std::thread::sleep(DEVICE_POLL);
    }
}

/// Mounts the image's root, read-write, and grows it to the VM's root disk.
///
/// `noinit_itable`: the kernel would write zeros into the inode tables of all groups that were added, hundreds of
/// MiB for a large disk. Behind the image's own file system the disk reads zeros anyway.
pub(super) fn root(device: &Path) -> Result<(), Error> {
    make_folder(Path::new(NEW_ROOT))?;
    mount(Some(device), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable"))
        .map_err(|source| Error::MountDevice { device: device.to_owned(), target: "/", source })?;
    if let Err(error) = grow(device, Path::new(NEW_ROOT)) {
        say(format_args!("the root disk keeps its size: {error}"));
    }
    Ok(())
}

/// Makes the image's root `/` of this process and of everything that it starts.
pub(super) fn switch_root() -> Result<(), Error> {
    let failed = |step| move |source| Error::SwitchRoot { path: NEW_ROOT, step, source };
    // The files would stay in memory for ever, and one of them holds a private key. The program itself
    // goes on from its open inode.
    for path in [banger_proto::guest::CONFIG_PATH, "/init"] {
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir_all(banger_proto::guest::MODULES_DIR);
    for path in ["/proc", "/sys", "/dev"] {
        umount2(path, MntFlags::MNT_DETACH).map_err(failed("unmount"))?;
    }
    nix::unistd::chdir(NEW_ROOT).map_err(failed("enter"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed("move"))?;
    nix::unistd::chroot(".").map_err(failed("chroot"))?;
    nix::unistd::chdir("/").map_err(failed("enter"))
}

/// Mounts the work disk on `/root` and grows it when the daemon has made the device larger.
pub(super) fn work_disk(device: &Path) -> Result<(), Error> {
    const TARGET: &str = "/root";
    wait_for_device(device)?;
    make_folder(Path::new(TARGET))?;
    let flags = MsFlags::MS_NOATIME.union(MsFlags::MS_NODEV);
    mount(Some(device), TARGET, Some("ext4"), flags, None::<&str>).map_err(|source| Error::MountDevice {
        device: device.to_owned(),
        target: TARGET,
        source,
    })?;
    if let Err(error) = grow(device, Path::new(TARGET)) {
        say(format_args!("the work disk keeps its size: {error}"));
    }
    Ok(())
}

fn grow(device: &Path, folder: &Path) -> std::io::Result<()> {
    let size = ext4::device_size(&File::open(device)?)?;
    let block = nix::sys::statfs::statfs(folder)?.block_size();
    let block = u64::try_from(block).ok().filter(|block| *block > 0).unwrap_or(4096);
    Ok(ext4::resize(&File::open(folder)?, size / block)?)
}

fn virtual_fs(kind: &'static str, target: &str, flags: MsFlags, data: Option<&str>) -> Result<(), Error> {
    make_folder(Path::new(target))?;
    match mount(Some(kind), target, Some(kind), flags, data) {
        // EBUSY: the kernel has mounted devtmpfs there itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(Error::Mount { kind, target: target.into(), source }),
    }
}

fn try_virtual_fs(kind: &'static str, target: &str, flags: MsFlags, data: Option<&str>) {
    if let Err(error) = virtual_fs(kind, target, flags, data) {
        say(super::describe(&error));
    }
}

fn make_folder(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Folder { path: path.to_owned(), source }),
    }
}
