//! Starting the agent, and starting it again; what init and agent agree on.
//!
//! Init starts it. Under an init of the image nobody else would notice its end, so the process that
//! init started stays as a supervisor of the one that serves; where PID 1 is ours, that is PID 1's
//! task.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::console::say;
use crate::init_kind::InitKind;
use crate::sys::signals::Blocked;

/// Search path of everything that is started here, as login(1) sets it for root.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The agent's name in the process list. systemd-shutdown spares processes whose name begins with
/// `@`; this one wants to be told.
pub(crate) const NAME: &str = "banger-agent";
/// Says that this process serves; without it, under an init of the image, it supervises one that
/// does.
pub(crate) const SERVE_FLAG: &str = "--serve";
/// An agent that ends at once is started again after this time, not sooner.
const RESPAWN: Duration = Duration::from_secs(3);

/// The supervisor's name under an init of the image: systemd spares processes whose name begins
/// with `@` when it kills all others, at a soft-reboot too, after which the guest goes on
/// (systemd-soft-reboot.service(8)).
const SUPERVISOR: &str = "@banger-agent";

/// What the process is called. The one that serves is not spared: it is to be told of the guest's
/// end.
fn name(flags: &[&str]) -> &'static str {
    let serves = flags.iter().any(|flag| *flag == SERVE_FLAG || InitKind::of_flag(flag) == Some(InitKind::Own));
    if serves { NAME } else { SUPERVISOR }
}

/// Starts this same program as the agent. The configuration goes through a nameless file in memory,
/// because it holds the VM's private host key: neither arguments nor environment nor a path show
/// it.
pub(crate) fn launch(config: &[u8], flags: &[&str]) -> io::Result<Child> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"banger-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(config)?;
    file.rewind()?;
    Command::new("/proc/self/exe")
        .arg0(name(flags))
        .arg(crate::AGENT_COMMAND)
        .args(flags)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::from(file))
        .spawn()
}

/// How long to wait before an agent that started at `started` is started again.
pub(crate) fn respawn_delay(started: Instant) -> Duration {
    RESPAWN.saturating_sub(started.elapsed())
}

/// Keeps an agent serving until one ends as it should, or is killed while the guest `goes_down`.
pub(crate) fn supervise(config: &[u8], init: InitKind, goes_down: impl Fn() -> bool) -> ExitCode {
    // Signals are for the agent itself, which gets them too: they go to every process at the end.
    let _blocked = Blocked::all();
    loop {
        let started = Instant::now();
        match launch(config, &[SERVE_FLAG, init.flag()]).and_then(|mut agent| agent.wait()) {
            Ok(status) if status.success() => return ExitCode::SUCCESS,
            // Killed with everything else, and nothing is to be served any more.
            _ if goes_down() => return ExitCode::FAILURE,
            Ok(status) => say(format_args!("the agent ended ({status}) and is started again")),
            Err(error) => say(format_args!("the agent does not start: {error}")),
        }
        std::thread::sleep(respawn_delay(started));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_supervisor_is_spared_by_systemd() {
        assert_eq!(name(&[InitKind::Systemd.flag()]), SUPERVISOR);
        assert_eq!(name(&[InitKind::Script.flag()]), SUPERVISOR);
        assert_eq!(name(&[SERVE_FLAG, InitKind::Systemd.flag()]), NAME);
        // PID 1 is ours, and supervises it.
        assert_eq!(name(&[InitKind::Own.flag()]), NAME);
        assert!(SUPERVISOR.starts_with('@') && !NAME.starts_with('@'));
    }
}
