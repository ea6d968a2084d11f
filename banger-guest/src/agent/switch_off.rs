//! The end of the machine without the help of its init: for a script in its place, which knows no
//! end, and for an init that does not act before the daemon's patience is over.
//!
//! Called by the agent when the end is announced. Nothing that was written may be lost, whatever
//! runs.

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

use super::processes::{self, are_left};
use super::shutdown::init_hears_term;
use crate::console::say;
use crate::init_kind::InitKind;
use crate::sys::signals;

/// How long processes may take to end after SIGTERM at least, whatever the user's limit is.
const TERM_WAIT: Duration = Duration::from_secs(3);
/// A script that ends on SIGTERM may work for so long after all others have ended.
const SCRIPT_ALONE: Duration = Duration::from_secs(3);
/// How long disks may take to be written. A disk that takes longer may be dead, and the machine
/// ends anyway.
const SYNC_WAIT: Duration = Duration::from_secs(4);
/// How long file systems may take to become read-only.
const READ_ONLY_WAIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// Ends everything and the machine; processes have until `until`. Comes back only when the kernel
/// does not do it.
pub(super) async fn switch_off(init: InitKind, until: Instant) {
    say("the agent switches the machine off");
    sync().await;
    if init == InitKind::Script && init_hears_term() {
        // A script that ends on SIGTERM takes the kernel with it, in that moment: what it writes
        // has to be on the disks when it is written.
        remount_disks(MsFlags::MS_SYNCHRONOUS);
        let _ = signals::send(1, libc::SIGTERM);
        let there = processes::all();
        let left = until.saturating_duration_since(Instant::now());
        // Half of it for what the script does, and half for what it does not tell.
        alone(TERM_WAIT.max(left / 2), SCRIPT_ALONE, || !are_left(&there, &processes::all())).await;
    }
    let there = processes::all();
    // To all but PID 1 and this process (kill(2)).
    let _ = signals::send(-1, libc::SIGTERM);
    let _ = signals::send(-1, libc::SIGCONT);
    let left = until.saturating_duration_since(Instant::now());
    wait_until(TERM_WAIT.max(left), || !are_left(&there, &processes::all())).await;
    let _ = signals::send(-1, libc::SIGKILL);
    sync().await;
    // Makes every file system read-only, also those with files that are open; the remount is for a
    // kernel without sysrq.
    if std::fs::write("/proc/sysrq-trigger", "u").is_err() {
        remount_disks(MsFlags::MS_RDONLY);
    }
    wait_until(READ_ONLY_WAIT, || disks().iter().all(|disk| disk.read_only)).await;
    sync().await;
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(format_args!("reboot: {error}"));
}

async fn sync() {
    let written = tokio::task::spawn_blocking(nix::unistd::sync);
    if timeout(SYNC_WAIT, written).await.is_err() {
        say("the disks take too long");
    }
}

async fn wait_until(bound: Duration, done: impl Fn() -> bool) {
    let end = Instant::now() + bound;
    while !done() && Instant::now() < end {
        sleep(LOOK).await;
    }
}

/// Waits until `is_alone` has been true for the time `calm` without a break, at most `bound`.
async fn alone(bound: Duration, calm: Duration, is_alone: impl Fn() -> bool) {
    let end = Instant::now() + bound;
    let mut since = Instant::now();
    while since.elapsed() < calm && Instant::now() < end {
        sleep(LOOK).await;
        if !is_alone() {
            since = Instant::now();
        }
    }
}

/// A mounted file system that lies on a disk.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    target: String,
    read_only: bool,
}

fn disks() -> Vec<Disk> {
    disks_in(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

fn disks_in(table: &str) -> Vec<Disk> {
    let of = |line: &str| {
        let mut words = line.split(' ');
        let (device, target, options) = (words.next()?, words.next()?, words.nth(1)?);
        let read_only = options.split(',').any(|option| option == "ro");
        device.starts_with("/dev/").then(|| Disk { target: target.to_owned(), read_only })
    };
    table.lines().filter_map(of).collect()
}

fn remount_disks(flags: MsFlags) {
    for disk in disks().iter().filter(|disk| !disk.read_only) {
        let flags = MsFlags::MS_REMOUNT | flags;
        if let Err(error) = mount(None::<&str>, disk.target.as_str(), None::<&str>, flags, None::<&str>) {
            say(format_args!("remount of {}: {error}", disk.target));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_from_other_mounts() {
        let table = "proc /proc proc rw 0 0\n/dev/vda / ext4 rw,noatime 0 0\n/dev/vdb /root ext4 ro,nodev 0 0\n\
                     tmpfs /run tmpfs rw 0 0\nbad\n";
        let disk = |target: &str, read_only| Disk { target: target.to_owned(), read_only };
        assert_eq!(disks_in(table), [disk("/", false), disk("/root", true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_has_time_while_others_end_and_a_little_more() {
        let (begun, calm) = (Instant::now(), Duration::from_secs(3));
        let after = |others: u64| move || begun.elapsed() >= Duration::from_secs(others);
        alone(Duration::from_secs(40), calm, after(20)).await;
        let near = |seconds: u64| begun.elapsed().abs_diff(Duration::from_secs(seconds)) < Duration::from_millis(200);
        assert!(near(23), "{:?}", begun.elapsed());
        alone(Duration::from_secs(40), calm, || true).await;
        assert!(near(26), "it stays fast: {:?}", begun.elapsed());
        alone(Duration::from_secs(40), calm, || false).await;
        assert!(near(66), "and not for ever: {:?}", begun.elapsed());
    }
}
