//! `bangerd`, the unprivileged daemon: it keeps the records, drives the life of every VM, and asks
//! the helper for what needs privilege. [`main`] reads as the order of its start.
#![forbid(unsafe_code)]

mod args;
mod config;
mod db;
mod dns;
mod doctor;
mod error;
mod fail;
mod handles;
mod held;
mod jobs;
mod known;
mod listen;
mod log;
mod net;
mod paths;
mod ports;
mod privileged;
mod refused;
mod reload;
mod room;
mod rpc;
mod start_error;
mod store;
mod turns;
mod users;
mod util;
mod vm;

pub mod convert;
pub mod stream;

use args::{Args, Mode};
use banger_vmm::cgroup::Cgroups;
use banger_vmm::{Launch, launcher};
use start_error::StartError;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// A random number of the host's kernel, new at each boot (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long the end of the daemon waits for tasks to notice it.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Set by systemd for a unit with `Type=notify`, see sd_notify(3).
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How long a daemon that cannot start waits before its end. systemd starts the next one at once,
/// which is right after a crash, and fills the log for as long as nobody repairs the cause of this.
const FAILED_PAUSE: Duration = Duration::from_secs(2);
/// Its status for systemd when another start would fail in the same way (`EX_CONFIG`, sysexits.h).
/// The unit's `RestartPreventExitStatus=` has it too.
const NEEDS_A_PERSON: u8 = 78;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    // Before any thread: it becomes the VMM.
    if words.next_if(|word| word == launcher::COMMAND).is_some() {
        return launcher::main();
    }
    if words.next_if(|word| word == convert::child::COMMAND).is_some() {
        return convert::child::main();
    }
    match args::parse(words, |name| std::env::var_os(name)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bangerd: {}", error::chain(&error));
            tracing::error!("{}", error::chain(&error));
            if std::env::var_os(NOTIFY_SOCKET).is_some() {
                std::thread::sleep(FAILED_PAUSE);
                if error.needs_a_person() {
                    listen::turn_away();
                    return ExitCode::from(NEEDS_A_PERSON);
                }
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what a person asks for on the command line is answered there")]
fn run(args: &Args) -> Result<(), StartError> {
    match args.mode {
        Mode::Version => println!("bangerd {}", env!("CARGO_PKG_VERSION")),
        Mode::Help => print!("{}", args::HELP),
        Mode::Check => {
            config::load(&args.paths.config, args.config_named).and_then(|config| log::check(&config.log_level))?;
            println!("{}: ok", args.paths.config.display());
            let path = args.paths.database();
            let verdict = match db::inspect(&path)? {
                db::Verdict::Absent => "not there yet, the first start makes it".to_owned(),
                db::Verdict::Fine { schema } => format!("ok, schema {schema}"),
                db::Verdict::Migrate { from, to } => format!("sound; the next start brings schema {from} to {to}"),
            };
            println!("{}: {verdict}", path.display());
        }
        Mode::PrintDns => {
            let config = config::load(&args.paths.config, args.config_named)?;
            println!("{} {}", config.bridge_name, config.dns.said());
        }
        Mode::CheckConfig => {
            config::load(&args.paths.config, args.config_named).and_then(|config| log::check(&config.log_level))?;
            println!("{}: ok", args.paths.config.display());
        }
        Mode::Serve => {
            let file = config::FileState::of(&args.paths.config);
            let config = config::load(&args.paths.config, args.config_named)?;
            let level = log::init(&config.log_level)?;
            // VMMs are of the same user: neither /proc/PID/mem nor ptrace shows them the daemon
            // (prctl(2)). The launcher is no longer so, for exec sets it back, and is confined
            // instead.
            nix::sys::prctl::set_dumpable(false).map_err(StartError::Dumpable)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(StartError::Runtime)?;
            let ended = runtime.block_on(serve(args, config::Live::of(config, file), level));
            // An import on a blocking thread is not waited for: the next start removes what it
            // left.
            runtime.shutdown_timeout(END_LIMIT);
            ended?;
        }
    }
    Ok(())
}

/// The start-up order. Nothing is answered before the socket is bound and said to be; what users
/// ask is answered while the VMs of an earlier run are still being looked for.
async fn serve(args: &Args, config: config::Live, level: log::Level) -> Result<(), StartError> {
    args.paths.check()?;
    listen::make_folders(&args.paths)?;
    let mut args = args.clone();
    let file = args.paths.socket_key_file();
    args.paths.socket_key =
        paths::SocketKey::load_or_create(&file).map_err(|source| StartError::SocketKey { path: file, source })?;
    let boot_id = std::fs::read_to_string(BOOT_ID).map_err(StartError::BootId)?.trim().to_owned();
    let db = db::Db::open(&args.paths.database()).await?;
    db.back_up_daily(args.paths.database(), args.paths.backups());
    let cgroups = Cgroups::discover().map_err(StartError::Cgroup)?;
    fail::arm(&args.paths.state, &cgroups);
    let privileged = privileged::Privileged::connect_to(&args.paths.helper_socket);
    let jobs = jobs::Jobs::load(db.clone()).await?;
    let converter = convert::Converter::Process(Launch::self_exe(), cgroups.clone());
    let host = vm::host::Host::new(&args, config.clone(), cgroups, converter.clone());
    let store = store::Store::new(args.paths.clone(), db.clone(), Arc::clone(&jobs), config.clone(), converter);
    store.remove_leftovers().await?;
    store.collect_in_background();
    let (networks, guests) = (config.now().publish.clone(), config.now().network);
    let rules = banger_policy::publish::rules::Rules { networks, guests };
    let callers = Arc::new(net::caller::Kernel::default());
    let ports = ports::Ports::start(rules, callers).map_err(StartError::Runtime)?;
    let context = vm::Context {
        ports,
        fellows: vm::Fellows::default(),
        readers: vm::Readers::default(),
        names: net::names::Names::of_the_host(),
        paths: args.paths.clone(),
        config: config.clone(),
        handles: handles::Store::new(db.clone()),
        db,
        privileged,
        machine: Arc::new(host),
        jobs,
        boot_id,
        turns: vm::resume::Turns::default(),
        users: Arc::new(users::Nss),
        actors: Arc::default(),
        refusals: Arc::default(),
        programs: Arc::default(),
        names_port: Arc::default(),
    };
    let vms = vm::Vms::new(context, Arc::clone(&store));
    let sockets = listen::bind(&args.paths)?;
    reload::at_each(reload::signals()?, args.clone(), level, config);
    listen::announce();
    vms.reconcile_in_background();
    vms.refresh_names_in_background();
    vms.tell_fellows_in_background();
    vm::shares::give_at_each_reload(&vms.ctx);
    vm::stats::spawn(&vms);
    vms.watch_owners();
    let config = vms.ctx.config.now();
    let running = Arc::clone(&vms);
    net::subnet::watch(config.network, config.bridge_name.clone(), move || {
        let vms = Arc::clone(&running);
        async move { vms.ctx.handles.any().await }
    });
    dns::serve(Arc::clone(&vms), sockets.names);
    if let Some(socket) = sockets.refused {
        let running = Arc::clone(&vms);
        let whose = move |address| running.ctx.handles.at(address);
        if let Err(error) = refused::listen(socket, &vms.ctx.refusals, whose) {
            tracing::warn!("what guests are refused is not recorded: {error}");
        }
    }
    let daemon = rpc::Daemon::new(vms, store, &args);
    if let Some(listener) = sockets.metrics {
        rpc::metrics::serve(listener, Arc::clone(&daemon));
    }
    rpc::serve(sockets.calls, daemon).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// Those who look before a start are told what the start would say.
    #[test]
    fn a_log_level_that_is_none_is_said_by_each_look_at_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("banger.toml");
        let looked = |mode: &str| {
            let words = [mode, "--config", config.to_str().unwrap(), "--state-dir", dir.path().to_str().unwrap()];
            run(&args::parse(words.into_iter().map(Into::into), |_| None).unwrap())
        };
        for (level, good) in [("info", true), ("bangerd=loud", false)] {
            std::fs::write(&config, format!("log_level = \"{level}\"")).unwrap();
            for mode in ["--check", "--check-config"] {
                let seen = looked(mode);
                assert!(seen.is_ok() == good, "{mode} {level}: {seen:?}");
                assert!(good || matches!(seen, Err(StartError::LogLevel(_))), "{mode} {level}");
            }
        }
    }
}
