//! File systems of a booting guest.
//!
//! Called by `init` only, single-threaded. Before [`switch_root`] paths are the initramfs's,
//! afterwards the image's. Nothing here repairs a file system. A place to mount on is a folder of
//! the image, which is made where the image has none ([`Image::folder`]).

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::Error;
use super::image::Image;
use super::keep;
use crate::console::{describe, say};
use crate::sys::ext4;

/// Where the image's root is mounted before it becomes `/`.
const NEW_ROOT: &str = "/newroot";
/// How long a disk may take to appear after its driver is loaded. It takes milliseconds on an idle
/// host and seconds under emulation.
const DEVICE_WAIT: Duration = Duration::from_secs(15);
/// What engines set for each container with a network of its own (`WithSysctls` in Moby): any user
/// may listen on any port, and ping. Images of web servers run as users of their own.
const SYSCTLS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")];
/// How often a device is looked for.
const DEVICE_POLL: Duration = Duration::from_millis(10);
const BASIC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// First names of paths where a link at `/root` cannot have the work disk: it would hide what the
/// system needs.
const SYSTEM_FOLDERS: [&str; 12] =
    ["bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr"];
/// Folders that hold more than a home, and whose own folders may well be one.
const SHARED_FOLDERS: [&str; 8] = ["home", "media", "mnt", "opt", "run", "srv", "tmp", "var"];

/// `/proc`, `/sys` and `/dev`, in the initramfs and again in the image.
pub(super) fn kernel_file_systems() -> Result<(), Error> {
    virtual_fs("proc", "/proc", BASIC, None)?;
    virtual_fs("sysfs", "/sys", BASIC, None)?;
    virtual_fs("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755"))
}

/// What a system expects before its init runs; an init that mounts them itself finds them mounted,
/// as after any initramfs. None of them is worth a failed boot.
pub(super) fn runtime_file_systems() {
    let hidden = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
    let terminals = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
    try_virtual_fs("devpts", "/dev/pts", terminals, Some("gid=5,mode=620,ptmxmode=666"));
    try_virtual_fs("tmpfs", "/dev/shm", hidden, Some("mode=1777"));
    try_virtual_fs("tmpfs", "/run", hidden, Some("mode=755,size=20%"));
    let image = Image::at("/");
    if !image.exists("/tmp") {
        let made = image.folder("/tmp").and_then(|tmp| fs::set_permissions(tmp, fs::Permissions::from_mode(0o1777)));
        if let Err(error) = made {
            say(format_args!("/tmp: {error}"));
        }
    }
}

/// The rest of what an init or a container engine would have done, for an image without an init.
pub(super) fn without_image_init() {
    // An init makes what its services need there; otherwise the image is all that says it.
    if let Err(error) = images_run() {
        say(format_args!("what the image has in /run is not there: {error}"));
    }
    try_virtual_fs("cgroup2", "/sys/fs/cgroup", BASIC, Some("nsdelegate"));
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(name));
    }
    if let Err(error) = Image::at("/").folder("/run/lock") {
        say(format_args!("/run/lock: {error}"));
    }
    for (name, value) in SYSCTLS {
        if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
            say(format_args!("sysctl {name}: {error}"));
        }
    }
    // /var/run of an image may be a folder with stale pid files or a link to /run: both work.
}

/// Brings what the image has in `/run` into the file system that covers it.
fn images_run() -> std::io::Result<()> {
    const BELOW: &str = ".image";
    let run = Image::at("/").folder("/run")?;
    let below = run.join(BELOW);
    fs::create_dir(&below)?;
    // Of the root's file system alone, without what is mounted in it.
    let kept = mount(Some("/"), &below, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(std::io::Error::from);
    let kept = kept.and_then(|()| {
        let image = below.join(run.strip_prefix("/").unwrap_or(&run));
        let kept = keep::keep(&image, &run);
        umount2(&below, MntFlags::MNT_DETACH)?;
        kept
    });
    fs::remove_dir(&below)?;
    kept
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

/// Mounts the image's root, read-write, and grows it to the VM's root disk. One that can only be
/// read is mounted so, without its journal if need be: its owner can look and save what is there.
///
/// `noinit_itable`: the kernel would write zeros into the inode tables of all groups that were
/// added, hundreds of MiB for a large disk. Behind the image's own file system the disk reads zeros
/// anyway.
pub(super) fn root(device: &Path) -> Result<(), Error> {
    folder(NEW_ROOT)?;
    let mount_as = |flags: MsFlags, options| {
        mount(Some(device), NEW_ROOT, Some("ext4"), flags | MsFlags::MS_NOATIME, Some(options))
    };
    if let Err(source) = mount_as(MsFlags::empty(), "noinit_itable") {
        let read_only = mount_as(MsFlags::MS_RDONLY, "").or_else(|_| mount_as(MsFlags::MS_RDONLY, "noload"));
        // The first error is the cause.
        read_only.map_err(|_| Error::MountDevice { device: device.to_owned(), target: "/".into(), source })?;
        say(format_args!("the root disk is mounted read-only, because it cannot be written to: {source}"));
        return Ok(());
    }
    if let Err(error) = grow(device, Path::new(NEW_ROOT)) {
        say(format_args!("the root disk keeps its size: {error}"));
    }
    Ok(())
}

/// Makes the image's root `/` of this process and of everything that it starts.
pub(super) fn switch_root() -> Result<(), Error> {
    let failed = |step| move |source| Error::SwitchRoot { path: NEW_ROOT, step, source };
    // The files would stay in memory for ever, and one of them holds a private key. The program
    // itself goes on from its open inode.
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

/// Mounts all modules of the running kernel where `modprobe` looks for them. A guest without them
/// boots all the same: what it needed to come up is loaded.
pub(super) fn modules(image: &Image, device: &Path) {
    let mounted = || -> Result<(), Box<dyn std::error::Error>> {
        wait_for_device(device)?;
        let release = nix::sys::utsname::uname()?.release().to_owned();
        let target = image.folder(Path::new("/lib/modules").join(release))?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        // Nobody writes it, so nobody replays its journal.
        mount(Some(device), &target, Some("ext4"), flags, Some("noload"))?;
        Ok(())
    };
    if let Err(error) = mounted() {
        say(format_args!("the kernel's modules are not mounted: {error}"));
    }
}

/// Whether the folder, links followed, is of the file system on the device.
pub(super) fn is_mounted(device: &Path, folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(device), Ok(folder)) = (fs::metadata(device), fs::metadata(folder)) else { return false };
    device.file_type().is_block_device() && device.rdev() == folder.dev()
}

/// As [`is_mounted`], of the kernel's modules.
pub(super) fn modules_are_mounted(device: &Path) -> bool {
    let folder = |name: &nix::sys::utsname::UtsName| Path::new("/lib/modules").join(name.release());
    nix::sys::utsname::uname().is_ok_and(|name| is_mounted(device, &folder(&name)))
}

/// Mounts the work disk on `/root` and grows it when the daemon has made the device larger.
///
/// An image without a place for it boots nevertheless. A disk that cannot be mounted is an error:
/// what is written to `/root` would be elsewhere at the next start.
pub(super) fn work_disk(device: &Path) -> Result<(), Error> {
    wait_for_device(device)?;
    let target = match home(&Image::at("/")) {
        Ok(target) => target,
        Err(error) => {
            say(format_args!("the work disk is not mounted, because /root cannot be made: {error}"));
            return Ok(());
        }
    };
    let flags = MsFlags::MS_NOATIME.union(MsFlags::MS_NODEV);
    mount(Some(device), &target, Some("ext4"), flags, None::<&str>).map_err(|source| Error::MountDevice {
        device: device.to_owned(),
        target: target.clone(),
        source,
    })?;
    if let Err(error) = grow(device, &target) {
        say(format_args!("the work disk keeps its size: {error}"));
    }
    Ok(())
}

/// Mounts the work disk on `/root` of the initramfs, to be read. Its journal is not replayed, which
/// would be writing: after a VM that was killed, the last seconds of its files may be missing.
pub(super) fn work_disk_to_read(device: &Path) -> Result<(), Error> {
    wait_for_device(device)?;
    let target = folder("/root")?;
    let flags = BASIC.union(MsFlags::MS_RDONLY);
    mount(Some(device), &target, Some("ext4"), flags, Some("noload")).map_err(|source| Error::MountDevice {
        device: device.to_owned(),
        target,
        source,
    })
}

/// The folder for the work disk: `/root`, or where it leads if that can be a home.
fn home(image: &Image) -> std::io::Result<PathBuf> {
    const HOME: &str = "/root";
    let leads = image.seen(HOME).unwrap_or_default();
    let mut names = leads.components().skip(1).map(|name| name.as_os_str());
    let usable = names.next().is_some_and(|first| {
        let is_in = |list: &[&str]| list.iter().any(|name| first == *name);
        !is_in(&SYSTEM_FOLDERS) && (names.next().is_some() || !is_in(&SHARED_FOLDERS))
    });
    if usable { image.folder(HOME) } else { image.own_folder(Path::new(HOME)) }
}

fn grow(device: &Path, folder: &Path) -> std::io::Result<()> {
    let size = ext4::device_size(&File::open(device)?)?;
    let block = nix::sys::statfs::statfs(folder)?.block_size();
    let block = u64::try_from(block).ok().filter(|block| *block > 0).unwrap_or(4096);
    Ok(ext4::resize(&File::open(folder)?, size / block)?)
}

fn virtual_fs(kind: &'static str, target: &str, flags: MsFlags, data: Option<&str>) -> Result<(), Error> {
    let target = folder(target)?;
    match mount(Some(kind), &target, Some(kind), flags, data) {
        // EBUSY: the kernel has mounted devtmpfs there itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(Error::Mount { kind, target, source }),
    }
}

fn try_virtual_fs(kind: &'static str, target: &str, flags: MsFlags, data: Option<&str>) {
    if let Err(error) = virtual_fs(kind, target, flags, data) {
        say(describe(&error));
    }
}

fn folder(path: &str) -> Result<PathBuf, Error> {
    Image::at("/").folder(path).map_err(|source| Error::Folder { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::symlink;

    /// Where the work disk is mounted when `/root` is made by `odd` in an image that has
    /// `/usr/bin`.
    fn home_of(odd: impl FnOnce(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
        odd(&folder.path().join("root"));
        let home = home(&Image::at(folder.path())).unwrap();
        assert!(fs::symlink_metadata(&home).unwrap().is_dir());
        home.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn the_work_disk_has_a_place_in_every_image() {
        assert_eq!(home_of(|_| {}), "root");
        assert_eq!(home_of(|root| fs::create_dir(root).unwrap()), "root");
        assert_eq!(home_of(|root| fs::write(root, "a file").unwrap()), "root");
        let of_link = |target: &str| home_of(|root| symlink(target, root).unwrap());
        assert_eq!(of_link("var/roothome"), "var/roothome");
        assert_eq!(of_link("/home/root"), "home/root");
        assert_eq!(of_link("../../workspace"), "workspace");
        for target in ["/", "root", "/usr", "/usr/bin", "/etc/x", "proc/self", "/home", "/var/../home/.", "/run"] {
            assert_eq!(of_link(target), "root", "{target}");
        }
    }
}
