//! What a host needs in the long run: a clock that is set, a journal that is kept, loop devices
//! that are not used up. Nothing here stops a VM from starting today.

use super::read;
use banger_policy::distribution::Family;
use banger_proto::model::Check;
use std::path::Path;

/// What programs that set the clock leave while they run: systemd-timesyncd (only once it has set
/// it), chrony, ntpd and ntpsec, openntpd, ntpd-rs.
const CLOCK_SIGNS: [&str; 6] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
    "/run/chronyd.pid",
    "/run/ntpd.pid",
    "/run/openntpd.pid",
    "/run/ntpd-rs/observe",
];
/// Where programs that set the clock say so to timedatectl (systemd-timedated.service(8)).
const NTP_UNITS: [&str; 2] = ["/usr/lib/systemd/ntp-units.d", "/etc/systemd/ntp-units.d"];
/// Where journald keeps what outlives the boot. Without the folder it keeps nothing
/// (journald.conf(5), `Storage=auto`).
const JOURNAL: &str = "/var/log/journal";
/// The kernel makes loop devices as they are needed, up to the minor numbers that it has
/// (drivers/block/loop.c). Each VM takes two at most.
const LOOP_DEVICES: usize = 1 << 20;
/// From this share on it is said, percent.
const MUCH: usize = 80;

pub(super) fn checks(family: Family) -> Vec<Check> {
    vec![
        clock_is_set(CLOCK_SIGNS.iter().any(|path| Path::new(path).exists()), clock_setters(), family),
        journal(Path::new(JOURNAL)),
        loop_devices(Path::new("/dev/loop-control").exists(), used_loops(Path::new("/sys/block"))),
    ]
}

/// Whether a program is installed that timedatectl can switch on.
fn clock_setters() -> bool {
    NTP_UNITS.iter().any(|folder| std::fs::read_dir(folder).is_ok_and(|mut lists| lists.next().is_some()))
}

fn clock_is_set(set: bool, installed: bool, family: Family) -> Check {
    const NAME: &str = "time";
    if set {
        return Check::pass(NAME, "a program sets the clock");
    }
    Check::warn(
        NAME,
        "no program is known to set the clock: the times of VMs and of logs drift",
        if installed {
            "sudo timedatectl set-ntp true; timedatectl".to_owned()
        } else {
            family.install("systemd-timesyncd", "chrony && sudo systemctl enable --now chronyd")
        },
    )
}

fn journal(folder: &Path) -> Check {
    const NAME: &str = "journal";
    if folder.is_dir() {
        return Check::pass(NAME, "kept over a reboot");
    }
    Check::warn(
        NAME,
        "it ends with the boot: why the host went down cannot be read afterwards",
        format!("sudo mkdir -p {} && sudo journalctl --flush", folder.display()),
    )
}

/// Devices that have a file behind them: the others are left for the next who asks.
fn used_loops(blocks: &Path) -> usize {
    let devices = std::fs::read_dir(blocks).into_iter().flatten().flatten();
    let loops = devices.filter(|device| device.file_name().to_string_lossy().starts_with("loop"));
    loops.filter(|device| !read(device.path().join("loop/backing_file")).is_empty()).count()
}

fn loop_devices(control: bool, used: usize) -> Check {
    const NAME: &str = "loop devices";
    if !control {
        return Check::fail(NAME, "there is no /dev/loop-control: no disk can be made", "sudo modprobe loop");
    }
    if used.saturating_mul(100) >= LOOP_DEVICES.saturating_mul(MUCH) {
        return Check::warn(NAME, format!("{used} of {LOOP_DEVICES} are in use"), "losetup --list");
    }
    Check::pass(NAME, format!("{used} in use"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use banger_proto::model::CheckStatus::{Fail, Pass, Warn};

    #[test]
    fn a_clock_that_nobody_sets() {
        assert_eq!(clock_is_set(true, true, Family::Debian).status, Pass);
        for (installed, family, mend) in [
            (true, Family::Fedora, "sudo timedatectl set-ntp true; timedatectl"),
            (false, Family::Debian, "sudo apt install systemd-timesyncd"),
            (false, Family::Fedora, "sudo dnf install chrony && sudo systemctl enable --now chronyd"),
        ] {
            let check = clock_is_set(false, installed, family);
            assert!(check.status == Warn && check.mend == mend, "{check:?}");
        }
    }

    #[test]
    fn a_journal_that_ends_with_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(journal(dir.path()).status, Pass);
        let check = journal(&dir.path().join("missing"));
        assert!(check.status == Warn && check.mend.contains("journalctl --flush"), "{check:?}");
    }

    #[test]
    fn loop_devices_that_run_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, behind) in [("loop0", "/a\n"), ("loop1", ""), ("sda", "/b\n")] {
            std::fs::create_dir_all(dir.path().join(name).join("loop")).unwrap();
            std::fs::write(dir.path().join(name).join("loop/backing_file"), behind).unwrap();
        }
        assert_eq!(used_loops(dir.path()), 1);
        assert_eq!(used_loops(Path::new("/nowhere")), 0);
        assert_eq!(loop_devices(true, 3).status, Pass);
        assert_eq!(loop_devices(true, LOOP_DEVICES).status, Warn);
        assert_eq!(loop_devices(false, 0).status, Fail);
    }
}
