//! PID 1 of an image that has no init: reaps, keeps the agent alive, ends the machine.
//!
//! Called by `init` as its last step. Signals mean what they mean to busybox and systemd, so
//! whatever an image uses to ask for an end works. It starts nothing but the agent.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::convert::Infallible;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use super::error::Error;
use crate::console::{describe, say};
use crate::launch::respawn_delay;
use crate::sys::signals::{self, Blocked};

/// How long processes may take to end after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(2);
/// How long the agent may take to tell the daemon.
/// It waits for its commands, two seconds at most.
const AGENT_WAIT: Duration = Duration::from_secs(4);

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Halt,
    PowerOff,
    Reboot,
}

impl Ending {
    /// The signals of busybox init and of systemd.
    fn asked_by(signal: i32) -> Option<Self> {
        match signal {
            libc::SIGUSR1 => Some(Self::Halt),
            libc::SIGUSR2 | libc::SIGPWR => Some(Self::PowerOff),
            libc::SIGTERM | libc::SIGINT => Some(Self::Reboot),
            other if other == signals::rt_poweroff() => Some(Self::PowerOff),
            other if other == signals::rt_reboot() => Some(Self::Reboot),
            _ => None,
        }
    }

    /// How the agent is told of this ending; see [`crate::agent`].
    fn agent_signal(self) -> i32 {
        match self {
            Self::Halt => libc::SIGUSR1,
            Self::PowerOff => libc::SIGUSR2,
            Self::Reboot => libc::SIGTERM,
        }
    }
}

/// Serves as PID 1 until somebody asks for an end.
pub(super) fn run(start_agent: impl Fn() -> Result<Child, Error>) -> Result<Infallible, Error> {
    // Before there is an agent that may ask for the end: nothing that it says is missed. It lets
    // its own signals through.
    let blocked = Blocked::all().map_err(Error::Signals)?;
    let mut agent = Agent::start(&start_agent)?;
    let ending = loop {
        match blocked.wait() {
            Ok(libc::SIGCHLD) => {
                if reap().contains(&agent.pid) {
                    say("the agent ended and is started again");
                    agent = agent.again(&start_agent);
                }
            }
            Ok(signal) => {
                if let Some(ending) = Ending::asked_by(signal) {
                    break ending;
                }
            }
            Err(_interrupted) => {}
        }
    };
    let _ = signals::send(agent.pid, ending.agent_signal());
    wait_until(AGENT_WAIT, || reap().contains(&agent.pid));
    end_machine(ending)
}

struct Agent {
    pid: i32,
    started: Instant,
}

impl Agent {
    fn start(start: &impl Fn() -> Result<Child, Error>) -> Result<Self, Error> {
        let child = start()?;
        // A pid is at most 2^22 (proc_sys_kernel(5), pid_max).
        Ok(Self { pid: child.id().cast_signed(), started: Instant::now() })
    }

    /// Tried until it succeeds: without memory for an agent, the guest still does its work.
    fn again(&self, start: &impl Fn() -> Result<Child, Error>) -> Self {
        let mut tried = self.started;
        loop {
            std::thread::sleep(respawn_delay(tried));
            tried = Instant::now();
            match Self::start(start) {
                Ok(agent) => return agent,
                Err(error) => say(describe(&error)),
            }
        }
    }
}

/// Ends all other processes at once, for another attempt.
pub(super) fn end_all() {
    let _ = signals::send(-1, libc::SIGKILL);
    wait_until(TERM_WAIT, || {
        reap();
        no_children()
    });
}

/// Ends everything and the machine itself. Nothing comes back from here.
pub(super) fn end_machine(ending: Ending) -> ! {
    let _ = signals::send(-1, libc::SIGTERM);
    let _ = signals::send(-1, libc::SIGCONT);
    wait_until(TERM_WAIT, || {
        reap();
        no_children()
    });
    let _ = signals::send(-1, libc::SIGKILL);
    wait_until(TERM_WAIT, || {
        reap();
        no_children()
    });
    nix::unistd::sync();
    unmount_all();
    nix::unistd::sync();
    let mode = match ending {
        Ending::Halt => RebootMode::RB_HALT_SYSTEM,
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Reboot => RebootMode::RB_AUTOBOOT,
    };
    let Err(error) = reboot(mode);
    say(format_args!("reboot: {error}"));
    loop {
        std::thread::park();
    }
}

/// Unmounts what is backed by a disk, last mount first, and makes the root read-only.
fn unmount_all() {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let disks = table.lines().filter(|line| line.starts_with("/dev/"));
    let mut targets: Vec<&str> = disks.filter_map(|line| line.split(' ').nth(1)).filter(|path| *path != "/").collect();
    targets.reverse();
    for target in targets {
        if let Err(error) = umount2(target, MntFlags::empty()) {
            say(format_args!("unmount {target}: {error}"));
        }
    }
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>) {
        say(format_args!("read-only root: {error}"));
    }
}

/// Collects every child that has ended.
fn reap() -> Vec<i32> {
    let mut ended = Vec::new();
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        match status.pid() {
            Some(pid) => ended.push(pid.as_raw()),
            None => break,
        }
    }
    ended
}

fn no_children() -> bool {
    matches!(waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)), Err(Errno::ECHILD))
}

fn wait_until(bound: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + bound;
    while !done() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_mean_what_they_mean_to_other_inits() {
        let known = [
            (libc::SIGUSR1, Ending::Halt),
            (libc::SIGUSR2, Ending::PowerOff),
            (libc::SIGPWR, Ending::PowerOff),
            (signals::rt_poweroff(), Ending::PowerOff),
            (libc::SIGTERM, Ending::Reboot),
            (libc::SIGINT, Ending::Reboot),
            (signals::rt_reboot(), Ending::Reboot),
        ];
        for (signal, ending) in known {
            assert_eq!(Ending::asked_by(signal), Some(ending));
        }
        assert_eq!(Ending::asked_by(libc::SIGHUP), None);
        assert_eq!(Ending::asked_by(libc::SIGCHLD), None);
    }
}
