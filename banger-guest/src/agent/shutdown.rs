//! How a guest ends: asking its init to, and finding out what its init is doing.
//!
//! Called by the agent, when the daemon asks for an end and when a signal comes. Every init has its
//! own way to be asked, and what powers one off makes another dump its state or start its guest
//! again: so it is asked in the way of the program that it is, and only when it listens. Early in a
//! boot that takes a while.

use banger_proto::guest::ShutdownKind;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::process::Stdio;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::init_kind::InitKind;
use crate::sys::signals;

/// Programs that power off by way of the image's init, for an init of which nothing else is known.
const PROGRAMS: [(&str, &[&str]); 4] =
    [("/sbin/poweroff", &[]), ("/usr/sbin/poweroff", &[]), ("/bin/poweroff", &[]), ("/bin/busybox", &["poweroff"])];
/// How long such a program may take.
const PROGRAM_WAIT: Duration = Duration::from_secs(10);
/// How often it is looked whether the init listens by now.
const LOOK: Duration = Duration::from_millis(50);
/// An init that was told and does not act is told again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a guest has when the daemon does not say it.
const WITHIN: Duration = Duration::from_secs(90);
/// What a switch-off without the init takes of that: its waits (`switch_off`), and some.
const SWITCH_OFF: Duration = Duration::from_secs(15);
/// What the end takes behind our own PID 1 when processes do not end: the agent's last words, PID
/// 1's waits, and the disks.
const OWN_END: Duration = Duration::from_secs(8);
/// Pipes of sysvinit, newer one first.
const SYSVINIT_PIPES: &[&str] = &["/run/initctl", "/dev/initctl"];
/// The pipe of OpenRC's init.
const OPENRC_PIPES: &[&str] = &["/run/openrc/init.ctl", "/run/initctl"];

/// What is done next about an init that is to end the guest.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It has been told, or does not listen yet.
    Wait,
    Signal(i32),
    /// A request into the first of these pipes that somebody reads.
    Pipe(&'static [&'static str], Vec<u8>),
    /// One of [`PROGRAMS`].
    Program,
    /// It cannot be asked, or does not act.
    GiveUp,
}

/// What is known when a step is chosen.
#[derive(Debug, Default)]
struct Seen {
    /// How long it may take.
    limit: Duration,
    /// Since the daemon has asked for the end.
    waited: Duration,
    /// Since the init was told.
    told: Option<Duration>,
    /// The signals that PID 1 catches, keeps for later or waits for, as a mask: others it would
    /// miss.
    hears: u64,
}

fn step(init: InitKind, seen: &Seen) -> Step {
    // A script knows no end but the machine's.
    if init == InitKind::Script || seen.waited >= seen.limit {
        return Step::GiveUp;
    }
    if seen.told.is_some_and(|ago| ago < ASK_AGAIN) {
        return Step::Wait;
    }
    let signal = |number| if hears(seen.hears, number) { Step::Signal(number) } else { Step::Wait };
    match init {
        // It has blocked its signals before it starts the agent, and takes each in time.
        InitKind::Own => Step::Signal(libc::SIGUSR2),
        InitKind::Busybox => signal(libc::SIGUSR2),
        InitKind::Systemd => signal(signals::rt_poweroff()),
        InitKind::Sysvinit => Step::Pipe(SYSVINIT_PIPES, run_level_0()),
        InitKind::Openrc => Step::Pipe(OPENRC_PIPES, b"poweroff".to_vec()),
        InitKind::Other | InitKind::Script => Step::Program,
    }
}

fn hears(mask: u64, number: i32) -> bool {
    u32::try_from(number - 1).ok().and_then(|bit| mask.checked_shr(bit)).is_some_and(|rest| rest & 1 == 1)
}

/// `struct init_request` of sysvinit's initreq.h, for run level 0.
fn run_level_0() -> Vec<u8> {
    const MAGIC: i32 = 0x0309_1969;
    const RUN_LEVEL: i32 = 1;
    /// Seconds between SIGTERM and SIGKILL.
    const SLEEP: i32 = 5;
    let mut request: Vec<u8> =
        [MAGIC, RUN_LEVEL, i32::from(b'0'), SLEEP].into_iter().flat_map(i32::to_ne_bytes).collect();
    request.resize(384, 0);
    request
}

/// The daemon's request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// How long it waits before it ends the machine, seconds.
    pub(super) within: Option<u32>,
}

impl Asked {
    /// How long the init may take. Later the guest is switched off without it: the daemon kills it
    /// soon, and then what is not on the disks would be lost.
    fn limit(self) -> Duration {
        let within = self.whole();
        within.saturating_sub(SWITCH_OFF).max(within / 2)
    }

    fn whole(self) -> Duration {
        self.within.map_or(WITHIN, |seconds| Duration::from_secs(seconds.into()))
    }

    /// How long processes may take before our own PID 1 is asked.
    fn for_processes(self) -> Duration {
        self.whole().saturating_sub(OWN_END)
    }
}

/// Waits until the daemon asks for the end, then asks the init. Returns when that is of no use: the
/// agent has to end the machine itself, and processes have until then. Where PID 1 is our own,
/// `farewell` gives processes their time before; until when may change meanwhile.
pub(super) async fn ask(
    init: InitKind,
    mut asked: watch::Receiver<Option<Asked>>,
    farewell: impl AsyncFnOnce(&dyn Fn() -> Instant),
) -> Instant {
    if asked.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
    let begun = Instant::now();
    if init == InitKind::Own {
        farewell(&|| begun + asked.borrow().map_or(Duration::ZERO, Asked::for_processes)).await;
    }
    let mut told: Option<Instant> = None;
    loop {
        // Our own acts when it is told, and has been told late.
        let of = if init == InitKind::Own { Asked::whole } else { Asked::limit };
        let limit = asked.borrow().map_or(WITHIN, of);
        let seen = Seen { waited: begun.elapsed(), limit, told: told.map(|at| at.elapsed()), hears: heard_by_init() };
        match step(init.now(), &seen) {
            Step::GiveUp => return begun + limit,
            // It is on its last way, and its signals mean nothing any more.
            _ if announced_by_systemd().is_some() => {}
            Step::Wait => {}
            step => match act(step).await {
                Heard::Yes => told = Some(Instant::now()),
                Heard::NotYet => {}
                Heard::Never => return begun + limit,
            },
        }
        sleep(LOOK).await;
    }
}

enum Heard {
    Yes,
    NotYet,
    Never,
}

async fn act(step: Step) -> Heard {
    match step {
        Step::Signal(number) => match signals::send(1, number) {
            Ok(()) => Heard::Yes,
            Err(_) => Heard::NotYet,
        },
        Step::Pipe(pipes, request) => {
            if pipes.iter().any(|pipe| write_to(pipe, &request).is_ok()) {
                Heard::Yes
            } else {
                Heard::NotYet
            }
        }
        Step::Program => run_program().await,
        Step::Wait | Step::GiveUp => Heard::NotYet,
    }
}

/// Fails when nobody reads the pipe, and when it is none: nothing is made, and no file is written.
fn write_to(pipe: &str, request: &[u8]) -> std::io::Result<()> {
    let mut open = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(pipe)?;
    if !open.metadata()?.file_type().is_fifo() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    open.write_all(request)
}

async fn run_program() -> Heard {
    let mut heard = Heard::Never;
    for (program, arguments) in PROGRAMS {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).env("PATH", crate::launch::PATH).stdin(Stdio::null()).kill_on_drop(true);
        match timeout(PROGRAM_WAIT, command.status()).await {
            Ok(Ok(status)) if status.success() => return Heard::Yes,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            // It may not reach its init yet.
            _ => heard = Heard::NotYet,
        }
    }
    // Not at the pace of looks.
    sleep(Duration::from_secs(1)).await;
    heard
}

/// Whether the init is as far as to take its orders, its own mounts behind it; `None` when it does
/// not show.
pub(super) fn listens(init: InitKind) -> Option<bool> {
    match init.now() {
        InitKind::Own => Some(true),
        InitKind::Systemd => Some(hears(heard_by_init(), signals::rt_poweroff())),
        InitKind::Busybox => Some(hears(heard_by_init(), libc::SIGUSR2)),
        InitKind::Sysvinit | InitKind::Openrc | InitKind::Script | InitKind::Other => None,
    }
}

/// The signals that PID 1 catches, those that it blocks to take them one by one, and those that it
/// waits for at this moment.
pub(super) fn heard_by_init() -> u64 {
    heard_by(1)
}

fn heard_by(pid: u32) -> u64 {
    // While a process waits in sigtimedwait(2), as busybox does most of its life, the kernel takes
    // what it waits for out of its blocked signals, and nothing else shows it.
    let waits_for = || {
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
        let mut set = [0; size_of::<u64>()];
        File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut set, waiting_set(&call)?).ok()?;
        Some(u64::from_ne_bytes(set))
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    signals_in(&status) | waits_for().unwrap_or_default()
}

/// Where the set lies that a process waits for: the call's number and its first argument
/// (proc_pid_syscall(5)).
fn waiting_set(call: &str) -> Option<u64> {
    let mut words = call.split_whitespace();
    if words.next()?.parse() != Ok(libc::SYS_rt_sigtimedwait) {
        return None;
    }
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

fn signals_in(status: &str) -> u64 {
    let of = |line: &str| {
        let mask = line.strip_prefix("SigBlk:").or_else(|| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(of).fold(0, |mask, more| mask | more)
}

/// Whether PID 1 takes SIGTERM.
pub(super) fn init_hears_term() -> bool {
    hears(heard_by_init(), libc::SIGTERM)
}

/// What SIGTERM to the agent means under the image's init; `None` when it does not mean the end.
pub(super) fn announced_by_init(init: InitKind) -> Option<ShutdownKind> {
    if let Some(kind) = announced_by_systemd() {
        return Some(kind);
    }
    if init.now() == InitKind::Systemd {
        // systemd keeps running: somebody else sent the signal, and the agent is not theirs to
        // stop.
        return None;
    }
    let title = command_line();
    Some(of_sysvinit(&title).unwrap_or(ShutdownKind::Poweroff))
}

pub(super) fn announced_by_systemd() -> Option<ShutdownKind> {
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
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const ALL: u64 = u64::MAX;

    fn seen(seconds: u64, hears: u64) -> Seen {
        Seen { waited: Duration::from_secs(seconds), limit: Asked { within: None }.limit(), told: None, hears }
    }

    #[test]
    fn no_init_gets_a_signal_that_means_something_else_to_it_or_that_it_would_miss() {
        let cases = [(InitKind::Busybox, libc::SIGUSR2), (InitKind::Systemd, signals::rt_poweroff())];
        assert_eq!(step(InitKind::Own, &seen(0, 0)), Step::Signal(libc::SIGUSR2), "it always listens");
        for (init, signal) in cases {
            // What systemd installs first of all: handlers of its own crashes.
            let crash_handlers = 0x0000_0000_0000_04ec;
            assert_eq!(step(init, &seen(0, 0)), Step::Wait, "{init:?} does not listen yet");
            assert_eq!(step(init, &seen(60, crash_handlers)), Step::Wait, "{init:?} does not listen yet");
            assert_eq!(step(init, &seen(0, 1 << (signal - 1))), Step::Signal(signal), "{init:?}");
            assert_eq!(step(init, &seen(60, ALL ^ (1 << (signal - 1)))), Step::Wait, "{init:?}");
        }
        for init in [InitKind::Sysvinit, InitKind::Openrc, InitKind::Script, InitKind::Other] {
            assert!(!matches!(step(init, &seen(0, ALL)), Step::Signal(_)), "{init:?}");
        }
    }

    #[test]
    fn an_init_that_was_told_is_left_to_act_and_not_for_ever() {
        for init in [InitKind::Own, InitKind::Systemd, InitKind::Sysvinit, InitKind::Busybox, InitKind::Other] {
            let after = |told, waited| {
                let (told, waited) = (Some(Duration::from_secs(told)), Duration::from_secs(waited));
                step(init, &Seen { told, waited, limit: Asked { within: Some(90) }.limit(), hears: ALL })
            };
            assert_eq!(after(1, 2), Step::Wait);
            assert!(!matches!(after(11, 12), Step::Wait | Step::GiveUp), "{init:?} is told again");
            assert_eq!(after(1, 75), Step::GiveUp, "before the daemon's own limit");
        }
        assert_eq!(step(InitKind::Script, &seen(0, ALL)), Step::GiveUp);
    }

    #[test]
    fn an_init_gets_less_time_than_the_daemon_gives_the_guest() {
        for (within, limit) in [(None, 75), (Some(90), 75), (Some(600), 585), (Some(20), 10), (Some(30), 15)] {
            assert_eq!(Asked { within }.limit(), Duration::from_secs(limit), "{within:?}");
        }
        assert_eq!(Asked { within: Some(1) }.limit(), Duration::from_millis(500));
        for (within, limit) in [(None, 82), (Some(90), 82), (Some(10), 2), (Some(5), 0), (Some(0), 0)] {
            assert_eq!(Asked { within }.for_processes(), Duration::from_secs(limit), "{within:?}");
        }
    }

    #[test]
    fn what_an_init_hears_is_what_it_catches_or_blocks() {
        // systemd 252 as it serves, and as it begins.
        let serving =
            "Name:\tsystemd\nSigBlk:\t7be3c0fe28014a03\nSigIgn:\t0000000000001000\nSigCgt:\t00000000000004ec\n";
        assert!(hears(signals_in(serving), signals::rt_poweroff()));
        assert!(!hears(signals_in(serving), libc::SIGPIPE), "which it ignores");
        let beginning = serving.replace("7be3c0fe28014a03", "0000000000000000");
        assert!(!hears(signals_in(&beginning), signals::rt_poweroff()));
        assert_eq!(signals_in("garbage\nSigCgt:\tx\n"), 0);
    }

    #[test]
    fn an_init_that_waits_for_a_signal_hears_it() {
        let (started, tid) = std::sync::mpsc::channel();
        // Until the test's process ends.
        std::thread::spawn(move || {
            let blocked = signals::Blocked::all().unwrap();
            started.send(nix::unistd::gettid()).unwrap();
            blocked.wait()
        });
        let tid = tid.recv().unwrap().as_raw();
        let sleeps = || {
            let call = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
            waiting_set(&call).is_some()
        };
        let since = std::time::Instant::now();
        while !sleeps() {
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "/proc/{tid}/syscall never shows the call (CONFIG_HAVE_ARCH_TRACEHOOK)"
            );
            std::thread::yield_now();
        }
        let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap();
        assert!(!hears(signals_in(&status), libc::SIGUSR2), "the kernel does not show it");
        assert!(hears(heard_by(tid.cast_unsigned()), libc::SIGUSR2));
    }

    #[test]
    fn another_call_is_no_wait() {
        assert_eq!(waiting_set("128 0x7ffc1000 0x0 0x0 0x8 0x0 0x0 0x7ffc 0x7f"), Some(0x7ffc_1000));
        for call in ["running", "0 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8", "-1 0x7ffc 0x7f", ""] {
            assert_eq!(waiting_set(call), None, "{call:?}");
        }
    }

    #[test]
    fn a_request_goes_into_a_pipe_that_is_read_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("initctl");
        let pipe = path.to_str().unwrap();
        let request = run_level_0();
        assert_eq!(request.len(), 384);
        assert_eq!(request.get(8), Some(&b'0'));
        assert!(write_to(pipe, &request).is_err() && !path.exists(), "nothing is made");
        std::fs::write(&path, "").unwrap();
        assert!(write_to(pipe, &request).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"", "a file is not written");
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(write_to(pipe, &request).is_err(), "nobody listens yet");
        let mut init = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        write_to(pipe, &request).unwrap();
        let mut got = vec![0; 1000];
        assert_eq!(std::io::Read::read(&mut init, &mut got).unwrap(), request.len());
    }

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
