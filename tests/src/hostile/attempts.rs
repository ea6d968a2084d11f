//! The attempts, one function or closure each.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr as InetAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::Targets;
use super::calls::{call, fork, take_tap};

/// How it goes for a process of the daemon's user that is not confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    /// It succeeds: only the confinement is in the way.
    Succeeds,
    /// It is refused all the same: by modes, by the peer, by the kernel.
    Refused,
    /// That depends on the host's settings.
    Either,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// As on the console.
    pub name: &'static str,
    /// Without confinement.
    pub alone: Alone,
    pub(super) make: fn(&Targets) -> io::Result<()>,
}

const fn attempt(name: &'static str, alone: Alone, make: fn(&Targets) -> io::Result<()>) -> Attempt {
    Attempt { name, alone, make }
}

use Alone::{Either, Refused, Succeeds};

/// All of them, in this order; namespaces last, because they change the process that gets one. Not
/// here: [`x32`], for which the unit's own filter kills.
pub const ATTEMPTS: &[Attempt] = &[
    // The daemon's state.
    attempt("read-database", Succeeds, |_| read("/var/lib/banger/banger.db")),
    attempt("write-database", Succeeds, |_| write("/var/lib/banger/banger.db")),
    attempt("read-daemons-secret", Succeeds, |_| read("/var/lib/banger/socket_key")),
    attempt("read-socket-key", Succeeds, |_| read("/var/lib/banger/socket_key")),
    attempt("change-mode-of-database", Succeeds, |_| keep_mode("/var/lib/banger/banger.db")),
    attempt("make-file-in-state-folder", Succeeds, |_| make_and_remove("/var/lib/banger/tmp/planted")),
    attempt("read-image", Succeeds, |on| read(&format!("{}/rootfs.ext4", on.image))),
    attempt("make-file-among-images", Succeeds, |on| make_and_remove(&format!("{}/planted", on.image))),
    attempt("make-file-in-daemons-run-folder", Succeeds, |_| make_and_remove("/run/bangerd/planted")),
    attempt("make-file-in-sockets-run-folder", Refused, |_| make_and_remove("/run/banger/planted")),
    attempt("make-file-in-tmp", Succeeds, |_| make_and_remove("/tmp/planted")),
    attempt("read-configuration", Succeeds, |_| read("/etc/banger/banger.toml")),
    // Another VM.
    attempt("list-vms", Succeeds, |_| fs::read_dir("/var/lib/banger/vms").map(drop)),
    attempt("list-other-vms-folder", Succeeds, |on| fs::read_dir(other(on, "")).map(drop)),
    attempt("read-other-vms-console", Succeeds, |on| read(&other(on, "console.log"))),
    attempt("read-other-vms-host-key", Succeeds, |on| read(&other(on, "host_key"))),
    attempt("read-other-vms-work-disk", Succeeds, |on| read(&other(on, "work.ext4"))),
    attempt("write-other-vms-work-disk", Succeeds, |on| write(&other(on, "work.ext4"))),
    attempt("write-other-vms-root-disk", Succeeds, |on| write(&on.other_disk)),
    attempt("change-mode-of-other-vms-root-disk", Refused, |on| keep_mode(&on.other_disk)),
    attempt("take-other-vms-tap", Refused, |on| {
        take_tap(&OpenOptions::new().read(true).write(true).open("/dev/net/tun")?, &on.other_tap)
    }),
    attempt("list-folders-of-sockets", Succeeds, |_| fs::read_dir("/run/bangerd/vm").map(drop)),
    attempt("watch-folders-of-sockets", Succeeds, |_| call(libc::SYS_inotify_init1, [0]).map(drop)),
    attempt("read-table-of-sockets", Succeeds, |_| read("/proc/net/unix")),
    attempt("connect-to-other-vms-api", Succeeds, |_| connect_to_all("api.sock")),
    attempt("connect-to-other-vms-vsock", Succeeds, |_| connect_to_all("vsock.sock")),
    // Devices.
    attempt("open-loop-control", Refused, |_| write("/dev/loop-control")),
    attempt("open-loop-0", Refused, |_| read("/dev/loop0")),
    attempt("open-device-mapper", Refused, |_| write("/dev/mapper/control")),
    // Control groups, which the daemon's user owns.
    attempt("raise-own-memory-limit", Succeeds, |on| write(&format!("{}/memory.max", on.own_cgroup))),
    attempt("kill-other-vms-cgroup", Succeeds, |on| write(&format!("{}/cgroup.kill", on.other_cgroup))),
    attempt("enter-daemons-cgroup", Succeeds, |_| {
        write("/sys/fs/cgroup/system.slice/bangerd.service/daemon/cgroup.procs")
    }),
    attempt("make-cgroup", Succeeds, |on| {
        let path = format!("{}/planted", on.own_cgroup);
        fs::create_dir(&path).and_then(|()| fs::remove_dir(path))
    }),
    // Processes.
    attempt("read-daemons-memory", Refused, |on| read(&format!("/proc/{}/mem", on.daemon))),
    attempt("list-daemons-descriptors", Refused, |on| fs::read_dir(format!("/proc/{}/fd", on.daemon)).map(drop)),
    attempt("read-neighbours-memory-map", Succeeds, |on| read(&format!("/proc/{}/maps", on.neighbour))),
    attempt("copy-daemons-memory", Refused, |on| copy_memory(on.daemon)),
    attempt("copy-other-vmms-memory", Either, |on| copy_memory(on.other_vmm)),
    attempt("trace-daemon", Refused, |on| trace(on.daemon)),
    attempt("trace-other-vmm", Either, |on| trace(on.other_vmm)),
    attempt("take-daemons-descriptor", Refused, |on| take_descriptor(on.daemon)),
    attempt("take-other-vmms-descriptor", Either, |on| take_descriptor(on.other_vmm)),
    attempt("signal-daemon", Succeeds, |on| signal(libc::SYS_kill, on.daemon)),
    attempt("signal-other-vmm", Succeeds, |on| signal(libc::SYS_kill, on.other_vmm)),
    attempt("signal-neighbour", Succeeds, |on| signal(libc::SYS_kill, on.neighbour)),
    attempt("signal-daemon-as-thread", Succeeds, |on| signal(libc::SYS_tkill, on.daemon)),
    attempt("signal-daemon-by-pidfd", Succeeds, |on| {
        let pidfd = call(libc::SYS_pidfd_open, [number(on.daemon), 0])?;
        call(libc::SYS_pidfd_send_signal, [pidfd, 0, 0, 0]).map(drop)
    }),
    attempt("limit-daemon", Succeeds, |on| limit(on.daemon)),
    attempt("limit-other-vmm", Succeeds, |on| limit(on.other_vmm)),
    attempt("make-process", Succeeds, |_| fork()),
    attempt("run-program", Succeeds, |_| std::process::Command::new("/usr/bin/true").status().map(drop)),
    // Sockets.
    attempt("call-daemon", Refused, |_| say_hello("/run/banger/bangerd.sock")),
    attempt("call-helper", Refused, |_| say_hello("/run/banger/priv.sock")),
    attempt("connect-to-abstract-socket", Succeeds, |_| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(super::ABSTRACT)?).map(drop)
    }),
    attempt("connect-to-loopback", Succeeds, |_| connect([127, 0, 0, 1], 22)),
    attempt("connect-outside", Either, |_| connect([192, 0, 2, 1], 80)),
    attempt("listen-on-tcp", Succeeds, |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    attempt("open-udp", Succeeds, |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    attempt("open-netlink", Succeeds, |_| open_socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    attempt("open-vsock", Either, |_| open_socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    // The kernel.
    attempt("io-uring", Either, |_| call(libc::SYS_io_uring_setup, [1, 0]).map(drop)),
    // Of no size: EINVAL instead of a segment that stays.
    attempt("system-v-memory", Either, |_| call(libc::SYS_shmget, [0, 0, 0o600]).map(drop)),
    attempt("keyring", Succeeds, |_| {
        // KEYCTL_GET_KEYRING_ID of the user's keyring, made when there is none.
        call(libc::SYS_keyctl, [0, usize::MAX - 3, 1]).map(drop)
    }),
    attempt("file-handle", Either, |_| call(libc::SYS_open_by_handle_at, [0, 0, 0]).map(drop)),
    attempt("user-namespace-by-clone", Either, |_| {
        call(libc::SYS_clone, [number(libc::CLONE_NEWUSER | libc::CLONE_THREAD)]).map(drop)
    }),
    attempt("user-namespace", Either, |_| call(libc::SYS_unshare, [number(libc::CLONE_NEWUSER)]).map(drop)),
];

/// Other processes, which the unit hides from what it starts (`ProtectProc=`): they are not there.
pub const HIDDEN: &[&str] = &["read-daemons-memory", "list-daemons-descriptors", "read-neighbours-memory-map"];

/// `getpid` of the x32 table (`__X32_SYSCALL_BIT`): whoever filters by the numbers of the native
/// one alone lets all of that table pass.
pub(super) fn x32() -> io::Result<usize> {
    call(0x4000_0000 | libc::SYS_getpid, [])
}

/// How a peer says no that tells strangers nothing.
pub(super) const HUNG_UP: &str = "hung up";

/// Waiting for an answer that does not come.
const PATIENCE: Duration = Duration::from_secs(2);

fn number(value: i32) -> usize {
    usize::try_from(value).unwrap_or_default()
}

fn other(on: &Targets, file: &str) -> String {
    format!("/var/lib/banger/vms/{}/{file}", on.other_vm)
}

fn read(path: &str) -> io::Result<()> {
    File::open(path).map(drop)
}

fn write(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

fn keep_mode(path: &str) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(fs::metadata(path)?.permissions().mode() & 0o7777))
}

fn make_and_remove(path: &str) -> io::Result<()> {
    File::create_new(path).and_then(|_| fs::remove_file(path))
}

/// Every VM's socket of this name, found by listing; one connection is a success.
fn connect_to_all(name: &str) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for folder in fs::read_dir("/run/bangerd/vm")? {
        result = result.or(UnixStream::connect(folder?.path().join(name)).map(drop));
    }
    result
}

fn copy_memory(pid: i32) -> io::Result<()> {
    let mut byte = 0_u8;
    let ours = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Address 1 is nobody's: permission is asked before the address is looked at, so EFAULT is a
    // success.
    let theirs = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
    let (ours, theirs) = ((&raw const ours).addr(), (&raw const theirs).addr());
    match call(libc::SYS_process_vm_readv, [number(pid), ours, 1, theirs, 1, 0]) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        other => other.map(drop),
    }
}

fn trace(pid: i32) -> io::Result<()> {
    // PTRACE_SEIZE does not stop it; it is let go when this process ends.
    call(libc::SYS_ptrace, [usize::from(0x4206_u16), number(pid), 0, 0]).map(drop)
}

fn take_descriptor(pid: i32) -> io::Result<()> {
    let pidfd = call(libc::SYS_pidfd_open, [number(pid), 0])?;
    call(libc::SYS_pidfd_getfd, [pidfd, 0, 0]).map(drop)
}

fn signal(with: i64, pid: i32) -> io::Result<()> {
    call(with, [number(pid), 0]).map(drop)
}

/// Asks for its limit of core dumps, which takes the same permission as setting it.
fn limit(pid: i32) -> io::Result<()> {
    let mut limits = [0_u64; 2];
    let place = (&raw mut limits).addr();
    call(libc::SYS_prlimit64, [number(pid), number(4), 0, place]).map(drop)
}

fn connect(address: [u8; 4], port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&InetAddr::from((address, port)), PATIENCE).map(drop)
}

fn open_socket(family: i32, kind: i32) -> io::Result<()> {
    call(libc::SYS_socket, [number(family), number(kind), 0]).map(drop)
}

/// Connects as a client of ours does; an answer is a success.
fn say_hello(path: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(Path::new(path))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let hello = banger_proto::wire::Hello::ours(banger_proto::wire::Purpose::Calls).encode();
    let mut answer = [0];
    match stream.write_all(&hello).and_then(|()| stream.read(&mut answer)) {
        Ok(1..) => Ok(()),
        Ok(0) => Err(io::Error::other(HUNG_UP)),
        // Before our hello, or with it unread.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(io::Error::other(HUNG_UP))
        }
        Err(error) => Err(error),
    }
}
