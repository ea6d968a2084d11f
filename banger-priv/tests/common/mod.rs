//! A helper's machine on the real kernel, in a network namespace of the test's own thread.
//!
//! What needs root or device-mapper says "skipped: why" and is not counted as having shown
//! anything.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::panic,
    reason = "shared by test programs that each use a part"
)]

use banger_policy::net::Network;
use banger_policy::{Digest, VmId};
use banger_priv::cow::Cows;
use banger_priv::disk_thread::DiskThread;
use banger_priv::host::{Daemon, Host};
use banger_priv::images::Images;
use banger_priv::ledger::Ledger;
use banger_priv::ops::Machine;
use banger_priv::proc::Processes;
use banger_priv::record;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::rc::Rc;
use tempfile::TempDir;

/// The user who stands for bangerd.
pub(crate) const DAEMON: u32 = 65_534;
/// The user whom the VMs belong to.
pub(crate) const OWNER: u32 = 4_242;

pub(crate) fn vm(n: u8) -> VmId {
    let mut bytes = [0x77; 32];
    bytes[0] = n;
    VmId::from_bytes(bytes).unwrap()
}

pub(crate) fn image() -> Digest {
    Digest::from_bytes([0x11; 32]).unwrap()
}

/// Says why a test shows nothing here.
#[expect(clippy::print_stdout, reason = "a skipped test says so")]
pub(crate) fn skipped(why: &str) {
    println!("skipped: {why}");
}

pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped("not root");
    }
    root
}

/// The folders of a helper; they outlive a machine, as files outlive a process.
pub(crate) struct Folders(pub(crate) TempDir);

impl Folders {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Others must be able to reach the images below it.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["run", "images", "state", "state/cow"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["run", "state", "state/cow"] {
            std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// A base image of zeros.
    pub(crate) fn add_image(&self, bytes: u64) {
        let folder = self.path("images").join(image().to_string());
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("rootfs.ext4");
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).unwrap();
        chown(&file, Some(DAEMON), Some(0)).unwrap();
    }

    /// What a start of the helper does, up to serving.
    pub(crate) async fn start(&self) -> Rc<Machine<Host>> {
        let machine = self.start_unrecovered();
        machine.recover().await.unwrap();
        machine
    }

    pub(crate) fn start_unrecovered(&self) -> Rc<Machine<Host>> {
        let network = Network::new(Ipv4Addr::new(172, 16, 0, 1), 24).unwrap();
        let processes = Rc::new(Processes::open(None).unwrap());
        let disk = DiskThread::default();
        disk.start().unwrap();
        let kernel = Host::open(processes, network, Daemon { uid: DAEMON, gid: DAEMON }, disk.clone()).unwrap();
        let folder = |name: &str| record::folder(&self.path(name), rustix::fs::OFlags::RDONLY).unwrap();
        let ledger = Ledger::open(folder("run"), "this-boot".to_owned()).unwrap();
        let (cows, images) = (Cows::open(folder("state/cow")).unwrap(), Images::new(folder("images"), DAEMON));
        Rc::new(Machine::new(kernel, ledger, cows, images, disk, network, DAEMON))
    }
}

/// Runs a test on one thread, in a network namespace of its own.
pub(crate) fn in_namespace<F: Future>(test: F) -> F::Output {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    run("ip link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// Waits until it is so, while the machine works on.
pub(crate) async fn becomes(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_so() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// A shell line that must work; its output.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn works(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).output().unwrap().status.success()
}

/// A process of the daemon's user, which stands for a VMM. Ended with the value.
pub(crate) struct Vmm(pub(crate) Child);

impl Vmm {
    pub(crate) fn start() -> Self {
        Self(Command::new("sleep").arg("600").uid(DAEMON).gid(DAEMON).spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The VMM's end of a tap: raw frames.
pub(crate) struct Wire(std::fs::File);

impl Wire {
    /// Attaches to the link `name`, making it when it is not there.
    pub(crate) fn open(name: &str) -> nix::Result<Self> {
        use std::os::fd::AsRawFd;
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        request[16..18].copy_from_slice(&0x5002_u16.to_ne_bytes());
        // Another test of this process may start a program at this moment, which has the helper's
        // handle on the tap until it begins.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
        loop {
            // SAFETY: the descriptor is open and the request is as long as a struct ifreq.
            let answer = unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
            match nix::errno::Errno::result(answer) {
                Err(nix::errno::Errno::EBUSY) if std::time::Instant::now() < end => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        Ok(Self(file))
    }

    /// Puts an Ethernet frame on the wire, behind an empty virtio header.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        use std::io::Write;
        self.0.write_all(&[&[0; 10][..], frame].concat()).unwrap();
    }

    /// IPv4 packets that came within a short time.
    pub(crate) fn packets(&mut self) -> Vec<Vec<u8>> {
        self.packets_of([8, 0])
    }

    /// Packets of an Ethernet type that came within a short time.
    pub(crate) fn packets_of(&mut self, ether_type: [u8; 2]) -> Vec<Vec<u8>> {
        use std::io::Read;
        let mut packets = Vec::new();
        let end = std::time::Instant::now() + std::time::Duration::from_millis(150);
        let mut frame = [0; 2048];
        while std::time::Instant::now() < end {
            match self.0.read(&mut frame) {
                // Behind the virtio header and the Ethernet header.
                Ok(length) if frame[22..24] == ether_type => packets.push(frame[24..length].to_vec()),
                Ok(_) => {}
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        }
        packets
    }
}

/// An Ethernet frame with an IPv4 UDP packet (no UDP checksum, which IPv4 allows).
pub(crate) fn udp(to_mac: [u8; 6], source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend(4000_u16.to_be_bytes());
    ip.extend(port.to_be_bytes());
    ip.extend([0, 12, 0, 0, b'g', b'u', b's', b't']);
    [&to_mac[..], &[6, 0, 0, 0, 0, 1], &[8, 0], &ip].concat()
}

/// An Ethernet frame with an IPv4 TCP segment.
pub(crate) fn tcp(
    to_mac: [u8; 6],
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    flags: u8,
    number: u32,
    acknowledged: u32,
    bytes: &[u8],
) -> Vec<u8> {
    let mut segment = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    segment.extend(number.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(bytes);
    let length = u16::try_from(segment.len()).unwrap();
    let pseudo = [&source.0.octets()[..], &destination.0.octets(), &[0, 6], &length.to_be_bytes(), &segment].concat();
    segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut ip = vec![0x45, 0];
    ip.extend((length + 20).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    ip.extend(source.0.octets());
    ip.extend(destination.0.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&to_mac[..], &[6, 0, 0, 0, 0, 1], &[8, 0], &ip, &segment].concat()
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The MAC address of a link.
pub(crate) fn mac(link: &str) -> [u8; 6] {
    let text = run(&format!("ip -o link show dev {link} | sed 's/.*ether \\([0-9a-f:]*\\).*/\\1/'"));
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
