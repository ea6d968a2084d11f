//! From Firecracker's configuration to a QEMU `microvm`: its command line, and the process that
//! dies with this one. Called by `vmm`, from the main thread only.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use serde_json::json;

use super::initramfs;
use super::model::{BootSource, CacheType, Drive, MachineConfig, NetworkInterface, Vsock};

/// Looked up in `PATH`.
const QEMU: &str = "qemu-system-x86_64";

/// Firecracker's command line for a guest that brings none.
const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// A drive and the descriptor that keeps its node busy from the request on, as Firecracker's does.
#[derive(Debug)]
pub(super) struct OpenDrive {
    pub(super) drive: Drive,
    pub(super) path: String,
    pub(super) block_device: bool,
    pub(super) _file: File,
}

/// An interface and its attached tap.
#[derive(Debug)]
pub(super) struct OpenInterface {
    pub(super) interface: NetworkInterface,
    pub(super) tap: File,
}

/// All that has been configured before the start.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) machine: MachineConfig,
    pub(super) boot: Option<BootSource>,
    /// The root device first, the others in the order in which they came: the guest's vda, vdb...
    pub(super) drives: Vec<OpenDrive>,
    pub(super) interfaces: Vec<OpenInterface>,
    pub(super) vsock: Option<Vsock>,
    pub(super) serial_out_path: Option<String>,
}

/// Starts QEMU with its vCPUs stopped. Must be called from a thread that lives as long as the
/// process: the kernel takes that thread's end for the parent's death.
pub(super) fn spawn(config: &Config, boot: &BootSource) -> io::Result<(Child, UnixStream)> {
    let (monitor, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let mut inherited: Vec<RawFd> =
        std::iter::once(theirs.as_raw_fd()).chain(config.interfaces.iter().map(|i| i.tap.as_raw_fd())).collect();
    let initramfs = boot.initrd_path.as_deref().map(initramfs::clear_of_tables).transpose()?;
    let boot = BootSource { initrd_path: initramfs.as_ref().map(initramfs::inherited_path), ..boot.clone() };
    let mut command = Command::new(QEMU);
    command.args(arguments(config, &boot, &inherited)).stdin(Stdio::null());
    inherited.extend(initramfs.as_ref().map(|fd| fd.as_raw_fd()));
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and makes only system calls on descriptors
    // that this frame keeps open; it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            for &fd in &inherited {
                fcntl(std::os::fd::BorrowedFd::borrow_raw(fd), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    Ok((command.spawn()?, monitor))
}

/// QEMU's arguments; `inherited` holds the monitor's descriptor, then one per interface.
fn arguments(config: &Config, boot: &BootSource, inherited: &[RawFd]) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);

    // The second I/O APIC would bring more transports, but under KVM the interrupt of its first pin
    // never arrives.
    add("-M", "microvm,acpi=on,rtc=on,ioapic2=off,auto-kernel-cmdline=off".into());
    // In this order: QEMU says on stderr when it falls back. `max` is `host` under KVM.
    add("-accel", "kvm".into());
    add("-accel", "tcg,thread=multi".into());
    add("-cpu", "max".into());
    add("-smp", config.machine.vcpu_count.to_string());
    add("-m", format!("{}M", config.machine.mem_size_mib));
    add("-display", "none".into());
    // A reset ends the machine, which `vmm` sees as an event; a power-off leaves it standing, as in
    // Firecracker.
    add("-action", "reboot=shutdown,shutdown=pause".into());
    add("-global", "virtio-mmio.force-legacy=false".into());
    add("-device", "i8042".into());

    add("-kernel", boot.kernel_image_path.clone());
    if let Some(initrd) = &boot.initrd_path {
        add("-initrd", initrd.clone());
    }
    add("-append", kernel_arguments(config, boot));

    match &config.serial_out_path {
        Some(path) => add("-chardev", format!("file,id=console,append=on,path={}", path.replace(',', ",,"))),
        None => add("-chardev", "stdio,id=console,signal=off".into()),
    }
    add("-serial", "chardev:console".into());

    let mut descriptors = inherited.iter();
    let mut next_descriptor = || descriptors.next().copied().unwrap_or(-1);
    add("-chardev", format!("socket,id=qmp,fd={}", next_descriptor()));
    add("-mon", "chardev=qmp,mode=control".into());

    // The guest finds the highest bus first, so the first device (vda) gets the highest of those in
    // use.
    let devices = config.drives.len() + config.interfaces.len() + usize::from(config.vsock.is_some());
    let mut buses = (0..devices).rev();
    let mut next_bus = || format!("virtio-mmio-bus.{}", buses.next().unwrap_or(0));
    for (index, open) in config.drives.iter().enumerate() {
        let unsafe_cache = open.drive.cache_type == CacheType::Unsafe;
        let node = json!({
            "node-name": format!("drive{index}"),
            "driver": "raw",
            "read-only": open.drive.is_read_only.unwrap_or(false),
            "cache": { "direct": false, "no-flush": unsafe_cache },
            "file": {
                "driver": if open.block_device { "host_device" } else { "file" },
                "filename": open.path,
                "locking": "off",
                "cache": { "direct": false, "no-flush": unsafe_cache },
            },
        });
        add("-blockdev", node.to_string());
        add("-device", format!("virtio-blk-device,drive=drive{index},bus={}", next_bus()));
    }
    for (index, open) in config.interfaces.iter().enumerate() {
        add("-netdev", format!("tap,id=net{index},fd={}", next_descriptor()));
        let mac = open.interface.guest_mac.as_ref().map(|mac| format!(",mac={mac}")).unwrap_or_default();
        let mtu = open.interface.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
        add("-device", format!("virtio-net-device,netdev=net{index},bus={}{mac}{mtu}", next_bus()));
    }
    if let Some(vsock) = &config.vsock {
        add("-device", format!("vhost-vsock-device,guest-cid={},bus={}", vsock.guest_cid, next_bus()));
    }
    args.extend(["-nodefaults", "-no-user-config", "-S"].map(str::to_owned));
    args
}

/// The guest's command line with what Firecracker appends: `pci=off` and the root device.
fn kernel_arguments(config: &Config, boot: &BootSource) -> String {
    let mut text = boot.boot_args.clone().unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned());
    text.push_str(" pci=off");
    if let Some(root) = config.drives.first().filter(|open| open.drive.is_root_device) {
        let mode = if root.drive.is_read_only.unwrap_or(false) { "ro" } else { "rw" };
        text.push_str(&format!(" root=/dev/vda {mode}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(id: &str, root: bool, read_only: bool) -> OpenDrive {
        let json = json!({ "drive_id": id, "is_root_device": root, "is_read_only": read_only, "path_on_host": "/a,b" });
        let file = File::open("/dev/null").unwrap();
        OpenDrive { drive: serde_json::from_value(json).unwrap(), path: "/a,b".into(), block_device: root, _file: file }
    }

    fn boot(args: Option<&str>) -> BootSource {
        serde_json::from_value(json!({ "kernel_image_path": "/k", "boot_args": args })).unwrap()
    }

    /// The values that follow an option.
    fn values<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        args.windows(2).filter_map(|pair| (pair[0] == option).then_some(pair[1].as_str())).collect()
    }

    #[test]
    fn the_first_drive_gets_the_highest_bus() {
        let interface = json!({ "iface_id": "e", "host_dev_name": "t", "guest_mac": "06:00:00:00:00:01" });
        let vsock = json!({ "guest_cid": 4, "uds_path": "v" });
        let config = Config {
            drives: vec![drive("root", true, false), drive("work", false, true)],
            interfaces: vec![OpenInterface {
                interface: serde_json::from_value(interface).unwrap(),
                tap: File::open("/dev/null").unwrap(),
            }],
            vsock: Some(serde_json::from_value(vsock).unwrap()),
            ..Config::default()
        };
        let args = arguments(&config, &boot(Some("quiet")), &[7, 8]);
        assert_eq!(
            values(&args, "-device"),
            [
                "i8042",
                "virtio-blk-device,drive=drive0,bus=virtio-mmio-bus.3",
                "virtio-blk-device,drive=drive1,bus=virtio-mmio-bus.2",
                "virtio-net-device,netdev=net0,bus=virtio-mmio-bus.1,mac=06:00:00:00:00:01",
                "vhost-vsock-device,guest-cid=4,bus=virtio-mmio-bus.0",
            ]
        );
        assert_eq!(values(&args, "-netdev"), ["tap,id=net0,fd=8"]);
        assert!(values(&args, "-chardev").contains(&"socket,id=qmp,fd=7"));
        assert_eq!(values(&args, "-append"), ["quiet pci=off root=/dev/vda rw"]);

        let nodes: Vec<serde_json::Value> =
            values(&args, "-blockdev").into_iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert_eq!(nodes[0].pointer("/file/driver").unwrap(), "host_device");
        assert_eq!(nodes[1].pointer("/file/filename").unwrap(), "/a,b");
        assert_eq!(nodes[1]["read-only"], true);
    }

    #[test]
    fn a_guest_without_arguments_gets_those_of_firecracker() {
        assert_eq!(kernel_arguments(&Config::default(), &boot(None)), format!("{DEFAULT_BOOT_ARGS} pci=off"));
        let config = Config { drives: vec![drive("root", true, true)], ..Config::default() };
        assert_eq!(kernel_arguments(&config, &boot(Some("a"))), "a pci=off root=/dev/vda ro");
    }
}
