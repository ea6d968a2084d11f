//! How a guest ends: asking its init to, and finding out what its init is doing.
//!
//! Called by the control channel (the daemon asks for an end) and by the agent's signal handling.

use banger_proto::guest::ShutdownKind;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::console::say;
use crate::sys::signals;

/// systemd boots with this folder and only systemd makes it (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";
/// Programs that power off by way of the image's init.
const PROGRAMS: [(&str, &[&str]); 4] =
    [("/sbin/poweroff", &[]), ("/usr/sbin/poweroff", &[]), ("/bin/poweroff", &[]), ("/bin/busybox", &["poweroff"])];
/// Between two requests: one that comes before the init listens is lost.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// After so many unheard requests the machine is switched off without its init. The daemon's own bound
/// is shorter or longer as it likes; this one is for a guest whose daemon is gone.
const ATTEMPTS: usize = 30;

/// Powers the guest off through its own init, again and again, and in the end without it.
pub(super) async fn power_off(own_init: bool) {
    for _ in 0..ATTEMPTS {
        if announced_by_systemd().is_none() {
            ask(own_init).await;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    say("the init does not end the machine: switching it off");
    nix::unistd::sync();
    // Remounts every file system read-only; the plain remount is for a kernel without sysrq.
    if std::fs::write("/proc/sysrq-trigger", "u").is_err() {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(format_args!("reboot: {error}"));
}

async fn ask(own_init: bool) {
    if own_init {
        let _ = signals::send(1, libc::SIGUSR2);
        return;
    }
    if Path::new(SYSTEMD).exists() {
        let _ = signals::send(1, signals::rt_poweroff());
        return;
    }
    for (program, arguments) in PROGRAMS {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("PATH", crate::init::PATH).stdin(Stdio::null());
        if command.status().await.is_ok_and(|status| status.success()) {
            return;
        }
    }
    let _ = signals::send(1, libc::SIGUSR2);
}

/// What SIGTERM to the agent means under the image's init; `None` when it does not mean the end.
pub(super) fn announced_by_init() -> Option<ShutdownKind> {
    if let Some(kind) = announced_by_systemd() {
        return Some(kind);
    }
    if Path::new(SYSTEMD).exists() {
        // systemd keeps running: somebody else sent the signal, and the agent is not theirs to stop.
        return None;
    }
    let title = command_line();
    Some(of_sysvinit(&title).unwrap_or(ShutdownKind::Poweroff))
}

fn announced_by_systemd() -> Option<ShutdownKind> {
    of_systemd_shutdown(&command_line())
}

fn command_line() -> Vec<u8> {
    std::fs::read("/proc/1/cmdline").unwrap_or_default()
}

/// systemd's PID 1 executes `systemd-shutdown VERB ...` when all units are stopped.
fn of_systemd_shutdown(command_line: &[u8]) -> Option<ShutdownKind> {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next()?.rsplit(|byte| *byte == b'/').next()?;
    if program != b"systemd-shutdown" && program != b"shutdown" {
        return None;
    }
    match words.next()? {
        b"reboot" | b"kexec" => Some(ShutdownKind::Reboot),
        b"halt" => Some(ShutdownKind::Halt),
        b"poweroff" | b"exit" => Some(ShutdownKind::Poweroff),
        _ => None,
    }
}

/// sysvinit shows its run level in its title: `init [6]`.
fn of_sysvinit(command_line: &[u8]) -> Option<ShutdownKind> {
    let title = String::from_utf8_lossy(command_line);
    let level = title.split('[').nth(1)?.split(']').next()?;
    match level.trim() {
        "0" => Some(ShutdownKind::Poweroff),
        "6" => Some(ShutdownKind::Reboot),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_shutdown_says_how() {
        let of =
            |verb: &str| of_systemd_shutdown(format!("/usr/lib/systemd/systemd-shutdown\0{verb}\0--log\0").as_bytes());
        assert_eq!(of("poweroff"), Some(ShutdownKind::Poweroff));
        assert_eq!(of("reboot"), Some(ShutdownKind::Reboot));
        assert_eq!(of("kexec"), Some(ShutdownKind::Reboot));
        assert_eq!(of("halt"), Some(ShutdownKind::Halt));
        assert_eq!(of("sing"), None);
        assert_eq!(of_systemd_shutdown(b"/sbin/init\0"), None);
        assert_eq!(of_systemd_shutdown(b""), None);
    }

    #[test]
    fn sysvinit_says_its_run_level() {
        assert_eq!(of_sysvinit(b"init [6]\0"), Some(ShutdownKind::Reboot));
        assert_eq!(of_sysvinit(b"init [0]  \0"), Some(ShutdownKind::Poweroff));
        assert_eq!(of_sysvinit(b"init [2]\0"), None);
        assert_eq!(of_sysvinit(b"/sbin/init\0"), None);
    }
}
