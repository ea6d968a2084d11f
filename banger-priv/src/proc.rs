//! Who a process is: by pidfd, with `/proc` read only while the pidfd is held and the process still
//! lives afterwards. Nothing that a process can write (command line, name, executable) is looked
//! at.

use crate::kernel::{At, Outcome, Seen};
use crate::record;
use banger_policy::helper::holding::Process;
use banger_policy::process::{self, DAEMON_LEAF};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Mode, OFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Enough for `/proc/PID/status`, `/proc/PID/stat` and a cgroup.procs of 3,000 processes, bytes.
const ROOM: u64 = 32 * 1024;

/// The folders in which processes and their cgroups are looked up.
#[derive(Debug)]
pub struct Processes {
    proc: OwnedFd,
    /// This process, in `/proc`.
    own: u32,
    /// `/sys/fs/cgroup`, and the daemon's unit below it. The unit's folder comes and goes with the
    /// daemon, so no handle on it is kept. `None`: no check.
    unit: Option<(OwnedFd, String)>,
}

/// Where cgroups are (cgroups(7), version 2).
pub const CGROUPS: &str = "/sys/fs/cgroup";

impl Processes {
    /// `unit`: the daemon's unit, below [`CGROUPS`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(unit: Option<&str>) -> Outcome<Self> {
        let proc = record::folder(Path::new("/proc"), OFlags::PATH).at("open-proc")?;
        let cgroups =
            |unit: &str| Ok((record::folder(Path::new(CGROUPS), OFlags::PATH).at("open-cgroup")?, unit.to_owned()));
        Ok(Self { proc, own: std::process::id(), unit: unit.map(cgroups).transpose()? })
    }

    /// Looks at process `pid`; `None` when there is none.
    ///
    /// # Errors
    /// The kernel's, which must never be taken for "gone".
    pub fn look(&self, pid: u32) -> Outcome<Option<Seen>> {
        self.look_where(pid, || Ok(true))
    }

    /// The same, of a process in the cgroup of this leaf below the daemon's unit; `None` for any
    /// other.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look_in(&self, leaf: &str, pid: u32) -> Outcome<Option<Seen>> {
        self.look_where(pid, || self.in_cgroup(leaf, pid))
    }

    fn look_where(&self, pid: u32, condition: impl FnOnce() -> Outcome<bool>) -> Outcome<Option<Seen>> {
        let Some(pidfd) = open(pid)? else { return Ok(None) };
        let inode = fstat(&pidfd).at("pidfd-stat")?.st_ino;
        let file = |name: &str| read_under(self.proc.as_fd(), &format!("{pid}/{name}"));
        let (read, alive) = while_held(pidfd.as_fd(), || Ok((condition()?, file("status"), file("stat"))))?;
        let (status, stat) = match read {
            (false, ..) => return Ok(None),
            (true, Ok(status), Ok(stat)) => (status, stat),
            // It ended and was reaped meanwhile.
            _ if !alive => return Ok(None),
            _ => return Err(Errno::IO).at("proc-read"),
        };
        let start_ticks = process::start_ticks(&stat).ok_or(Errno::IO).at("proc-stat")?;
        let uids = process::uids(&status).ok_or(Errno::IO).at("proc-status")?;
        Ok(Some(Seen { process: Process { pid, pidfd_inode: inode, start_ticks }, uids, alive }))
    }

    /// Waits for the end of this very process; its number may be another's by now.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn ended(&self, process: Process) -> Outcome<()> {
        let Some(pidfd) = open(process.pid)? else { return Ok(()) };
        if fstat(&pidfd).at("pidfd-stat")?.st_ino != process.pidfd_inode {
            return Ok(());
        }
        #[expect(deprecated, reason = "an OwnedFd keeps its descriptor; the replacement is an unsafe fn")]
        let watched = AsyncFd::with_interest(pidfd, Interest::READABLE).at("pidfd-watch")?;
        watched.readable().await.map(drop).at("pidfd-watch")
    }

    /// The status of one of this process's own threads.
    ///
    /// # Errors
    /// The kernel's.
    pub fn own_status(&self, thread: u32) -> std::io::Result<String> {
        read_under(self.proc.as_fd(), &format!("{}/task/{thread}/status", self.own))
    }

    /// The process at the other end of a connection: its pid, if it is alive and in the daemon's
    /// own cgroup. VMMs share the daemon's uid and its unit; only the leaf tells them apart.
    ///
    /// # Errors
    /// The kernel's.
    pub fn daemon(&self, pidfd: &OwnedFd) -> Outcome<Option<u32>> {
        let info = format!("{}/fdinfo/{}", self.own, pidfd.as_raw_fd());
        let info = read_under(self.proc.as_fd(), &info).at("pidfd-info")?;
        let Some(pid) = process::pidfd_pid(&info) else { return Ok(None) };
        let (inside, alive) = while_held(pidfd.as_fd(), || self.in_cgroup(DAEMON_LEAF, pid))?;
        Ok(if inside && alive { Some(pid) } else { None })
    }

    fn in_cgroup(&self, leaf: &str, pid: u32) -> Outcome<bool> {
        let Some((root, unit)) = &self.unit else { return Ok(true) };
        match read_under(root.as_fd(), &format!("{unit}/{leaf}/cgroup.procs")) {
            Ok(list) => Ok(list.lines().any(|line| line.parse() == Ok(pid))),
            // No such cgroup, or it went away while it was read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
            Err(error) => Err(error).at("cgroup-read"),
        }
    }
}

/// Reads something about a process by its number, then asks whether it lives. When it does, the
/// number was its own all the time that the pidfd was held, and so was what was read. There is no
/// other way here to read by a number.
fn while_held<T>(pidfd: BorrowedFd<'_>, read: impl FnOnce() -> Outcome<T>) -> Outcome<(T, bool)> {
    let value = read()?;
    Ok((value, alive(pidfd)?))
}

/// `None` when there is no such process.
fn open(pid: u32) -> Outcome<Option<OwnedFd>> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(number, PidfdFlags::empty()) {
        // EINVAL and ENOENT: it is a thread, not a process.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Ok(None),
        other => other.map(Some).at("pidfd-open"),
    }
}

/// Has the process behind a pidfd not ended? A zombie has.
///
/// # Errors
/// The kernel's.
pub fn alive(pidfd: BorrowedFd<'_>) -> Outcome<bool> {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::ZERO).at("pidfd-poll")? == 0)
}

/// Reads a small file below a directory, through no symbolic link.
fn read_under(directory: BorrowedFd<'_>, path: &str) -> std::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file: File = openat2(directory, path, flags, Mode::empty(), record::beneath())?.into();
    let mut text = Vec::new();
    file.take(ROOM).read_to_end(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length < ROOM) {
        Ok(String::from_utf8_lossy(&text).into_owned())
    } else {
        Err(Errno::FBIG.into())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn look(pid: u32) -> Option<Seen> {
        Processes::open(None).unwrap().look(pid).unwrap()
    }

    #[test]
    fn a_child_is_seen_living_ended_and_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let seen = look(pid).unwrap();
        let me = nix::unistd::getuid().as_raw();
        assert_eq!((seen.alive, seen.uids, seen.process.pid), (true, [me; 4], pid));
        assert_eq!(look(pid), Some(seen), "the identity is stable");
        child.kill().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while alive(pidfd.as_fd()).unwrap() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!look(pid).unwrap().alive, "a zombie is not alive");
        child.wait().unwrap();
        assert_eq!(look(pid), None);
        assert_eq!(Processes::open(None).unwrap().daemon(&pidfd).unwrap(), None, "-1 is no pid");
    }

    /// A number that becomes another process's between any two steps of a look is not taken for the
    /// first one's.
    #[test]
    fn who_ends_while_it_is_looked_at_is_not_alive() {
        let processes = Processes::open(None).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let seen = processes.look_where(pid, || {
            child.kill().unwrap();
            child.wait().unwrap();
            Ok(true)
        });
        assert_eq!(seen, Ok(None));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let end = || {
            child.kill().unwrap();
            child.wait().unwrap();
            Ok(7)
        };
        assert_eq!(while_held(pidfd.as_fd(), end), Ok((7, false)));
        assert_eq!(processes.look_where(std::process::id(), || Ok(false)), Ok(None), "in another cgroup");
    }

    #[test]
    fn impossible_numbers_are_nobody() {
        for pid in [0, u32::MAX, 1 << 31] {
            assert_eq!(look(pid), None);
        }
    }
}
