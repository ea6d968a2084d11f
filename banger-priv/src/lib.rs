//! The root helper. `bangerd` asks it for taps, disks, NAT and process identity; it compares every
//! request with its own ledger and does the rest by ioctl and netlink.
//!
//! It runs no program, mounts and parses no file system, kills nothing, and takes no path, name or
//! rule from the wire. All of `unsafe` is in `sys`. [`main`] reads as the start-up order.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod config;
pub mod confine;
pub mod cow;
pub mod disk_thread;
mod fail;
mod filter;
pub mod firewall;
pub mod host;
pub mod images;
pub mod kernel;
pub mod ledger;
pub mod links;
mod log;
mod notify;
pub mod ops;
pub mod proc;
pub mod record;
mod self_check;
pub mod serve;
mod service;
pub mod sys;

use config::{Asked, Config, ConfigError};
use confine::ConfineError;
use cow::Cows;
use disk_thread::DiskThread;
use images::Images;
use kernel::KernelError;
use landlock::{AccessFs, BitFlags};
use ledger::Ledger;
use log::Level;
use ops::{Denied, Machine};
use rustix::fs::OFlags;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

/// Why the helper does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The flags.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Giving up privileges.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Neither systemd's nor one of its own.
    #[error("no listening socket: restart banger-priv.socket, or give --socket in a build folder")]
    NoSocket,
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Guests' flows would outlive them.
    #[error(
        "cannot end flows by their address: that takes Linux 6.11 or later with nf_conntrack_netlink; \
         try `modprobe nf_conntrack_netlink`"
    )]
    Flows(#[source] KernelError),
    /// Ledger and kernel could not be made to agree.
    #[error("recovery failed")]
    Recover(#[from] Denied),
    /// Another step.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step<T>(step: impl Into<String>, result: io::Result<T>) -> Result<T, StartError> {
    result.map_err(|source| StartError::Step { step: step.into(), source })
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(panicked));
    // First: what systemd passed is taken, every other descriptor is closed.
    let passed = sys::start::take_descriptors(notify::passed());
    let served = match config::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Say(text)) => step("write", io::stdout().write_all(text.as_bytes())),
        Ok(Asked::Check(config, call)) => self_check::run(&config, call).map(|never| match never {}),
        Ok(Asked::Serve(config)) => {
            step("close inherited descriptors", passed.map_err(Into::into)).and_then(|passed| run(&config, passed))
        }
        Err(error) => Err(error.into()),
    };
    served.map_or_else(|error| fail_with(&error), |()| ExitCode::SUCCESS)
}

/// A panic's place is ours to print, its text may not be.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let place = info.location().map(|place| format!(" at={}:{}", place.file(), place.line())).unwrap_or_default();
    log::record(Level::Critical, &format!("panic{place}"));
    sys::call::exit(PANICKED)
}

/// EX_SOFTWARE of sysexits(3).
const PANICKED: i32 = 70;

fn fail_with(error: &StartError) -> ExitCode {
    let mut text = format!("banger-priv: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    log::record(Level::Critical, &text);
    ExitCode::FAILURE
}

/// The start-up order. Each step narrows what the later ones can do.
fn run(config: &Config, passed: Option<OwnedFd>) -> Result<(), StartError> {
    // 1. What else the manager says; then the environment is emptied.
    fail::arm();
    sys::start::share_one_heap();
    let notifier = step("connect to NOTIFY_SOCKET", notify::Notifier::connect())?;
    confine::alone()?;
    confine::join_group(config.daemon.gid)?;

    let network = config.bridge.network();

    // 2. Folders, held from now on; one helper at a time.
    let listener = listening(config, passed)?;
    let runtime = own_folder(&config.runtime)?;
    own_folder(&config.state)?;
    let cows = own_folder(&config.state.join("cow"))?;
    let ledger = step("open the ledger", Ledger::open(runtime, boot_id(config)?))?;
    let cows = step("read the COW records", Cows::open(cows))?;
    let images = record::folder(&config.images, OFlags::PATH);
    let images = Images::new(step(format!("open {}", config.images.display()), images)?, config.daemon.uid);
    let processes = Rc::new(proc::Processes::open(config.unit.as_deref())?);

    // 3. Two capabilities, nothing new, no core file.
    confine::privileges()?;

    // 4. This thread serves. What waits for the host's disk is another one's, which does not run
    // yet.
    let disk = DiskThread::default();
    let runtime = step("start the runtime", tokio::runtime::Builder::new_current_thread().enable_all().build())?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // 5. Sockets and devices; then ledger and kernel are made to agree, and the firewall
        //    stands.
        let host = host::Host::open(Rc::clone(&processes), network, config.daemon, disk.clone())?;
        host.make_bridge(config.bridge.name()).await?;
        host.probe_flows().map_err(StartError::Flows)?;
        let machine = Machine::new(host, ledger, cows, images, disk.clone(), network, config.daemon.uid);
        let machine = Rc::new(machine);
        machine.recover().await?;
        machine.watch_all();
        step("listen", listener.set_nonblocking(true))?;
        let listener = step("listen", tokio::net::UnixListener::from_std(listener))?;

        // 6. What was needed up to here and is not needed any more (devices by name, /sys/block,
        //    new sockets, most system calls) is given up. After the sweep, so that the lists hold
        //    nothing for its sake.
        confine::landlock(reach(config))?;
        // Between the two: it has this thread's capabilities and Landlock, and the filter is put on
        // both.
        step("start the disk's thread", disk.start())?;
        confine::seccomp()?;

        // 7. Serve.
        notifier.say("READY=1");
        tokio::task::spawn_local(keep_alive(notifier));
        serve::serve(listener, machine, processes, config.daemon.uid).await;
        Ok(())
    })
}

/// Where something is still opened while serving, and with which rights. Through the handles that
/// are held: this bounds what could be opened without them.
fn reach(config: &Config) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    // A record is a new file, renamed over the old one.
    let records = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile;
    let mut reach = vec![
        // Rows of the ledger. They are read at start only.
        (config.runtime.clone(), records),
        // COW files, for their loops, and their records.
        (config.state.join("cow"), records | AccessFs::ReadFile | AccessFs::Truncate),
        // Base images, for their loops.
        (config.images.clone(), AccessFs::ReadFile.into()),
        // net/tun, and loops: the kernel makes new ones as they are asked for, so they cannot be
        // named here. Under the unit, `DeviceAllow=` tells devices apart.
        ("/dev".into(), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev),
        // Who a process is.
        ("/proc".into(), AccessFs::ReadFile.into()),
    ];
    if config.unit.is_some() {
        // In whose cgroup it is. The unit's own folder comes and goes with the daemon.
        reach.push((proc::CGROUPS.into(), AccessFs::ReadFile.into()));
    }
    reach
}

fn listening(config: &Config, passed: Option<OwnedFd>) -> Result<std::os::unix::net::UnixListener, StartError> {
    match (&config.socket, passed) {
        (Some(path), _) => Ok(serve::bind(path, config.daemon.gid)?),
        (None, Some(socket)) => Ok(socket.into()),
        (None, None) => Err(StartError::NoSocket),
    }
}

/// As systemd writes it: 32 digits, no hyphens.
fn boot_id(config: &Config) -> Result<String, StartError> {
    if let Some(id) = &config.boot_id {
        return Ok(id.to_string_lossy().into_owned());
    }
    let text = step("read the boot id", std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().replace('-', ""))
}

/// A folder in which only the helper writes; made if it is not there.
fn own_folder(path: &Path) -> Result<OwnedFd, StartError> {
    let opened = match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => record::folder(path, OFlags::RDONLY),
    };
    let private = opened.and_then(|folder| {
        let stat = rustix::fs::fstat(&folder)?;
        let private = stat.st_mode & 0o077 == 0 && stat.st_uid == rustix::process::geteuid().as_raw();
        if private { Ok(folder) } else { Err(io::Error::other("it must belong to root, mode 0700")) }
    });
    step(format!("use the folder {}", path.display()), private)
}

/// Tells systemd that the serving thread still turns.
async fn keep_alive(notifier: notify::Notifier) {
    let Some(interval) = notifier.interval else { return };
    loop {
        tokio::time::sleep(interval).await;
        notifier.say("WATCHDOG=1");
    }
}
