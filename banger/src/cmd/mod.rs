//! One file per command, or per group of commands that differ in a word. Each gives the exit
//! status.

mod bug;
mod cache;
mod chown;
mod completion;
mod context;
mod cp;
mod doctor;
mod exec;
mod image;
mod inside;
mod job;
mod kernel;
mod lifecycle;
mod list;
mod login;
mod mcp;
mod prune;
mod publish;
mod pull;
mod quota;
mod refused;
mod register;
mod relay;
mod run;
mod session;
mod spec;
mod ssh_config;
mod stored;
mod sync;
mod system;
mod top;
mod version;
mod workspace;

use crate::cli::{Command, Vm, Workspace};
use anyhow::Context as _;

/// Runs a command; gives the exit status.
///
/// # Errors
/// What failed and why, for [`crate::error::report`].
pub(crate) async fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Vm(vm) => Box::pin(run_vm(*vm)).await,
        Command::Ps(options) => list::list(options).await,
        Command::Image(command) => image::run(command).await,
        Command::Kernel(command) => kernel::run(command).await,
        Command::Job(command) => job::run(command).await,
        Command::System(command) => system::run(command).await,
        Command::Quota(options) => quota::run(options).await,
        Command::Top(options) => top::run(options).await,
        Command::Doctor(asked) => doctor::run(asked).await,
        Command::Bug(options) => bug::run(options).await,
        Command::SshConfig(options) => ssh_config::run(&options),
        Command::Mcp => mcp::run().await,
        Command::Context(command) => context::run(command),
        Command::Relay => relay::run().await,
        Command::Version(json) => version::run(json).await,
        Command::Completion { shell } => completion::run(shell),
    }
}

async fn run_vm(command: Vm) -> anyhow::Result<u8> {
    use lifecycle::Verb;
    match command {
        Vm::Run(options) => run::run(options).await,
        Vm::Create(options) => run::create(&options).await,
        Vm::Start(names) => lifecycle::run(Verb::Start, names.vms).await,
        Vm::Stop(stop) if stop.everyone => lifecycle::stop_everyone(stop.timeout, stop.host_down).await,
        Vm::Stop(stop) => lifecycle::run(Verb::Stop(stop.timeout), stop.vms).await,
        Vm::Restart(names) => lifecycle::run(Verb::Restart, names.vms).await,
        Vm::Set(set) => {
            let request = spec::change(&set).context("cannot change a VM")?;
            lifecycle::run(Verb::Set(request), set.names.vms).await
        }
        Vm::Kill(kill) => lifecycle::run(Verb::Kill(lifecycle::signal(&kill.signal)?), kill.names.vms).await,
        Vm::Chown { user, names } => chown::run(&user, names.vms).await,
        Vm::Delete(names) => lifecycle::run(Verb::Delete, names.vms).await,
        Vm::Prune { force } => prune::run(force).await,
        Vm::List(options) => list::list(options).await,
        Vm::Show { vm, json } => list::show(vm, json).await,
        Vm::Logs { vm, follow, tail } => exec::logs(vm, follow, tail).await,
        Vm::Stats { vm, watch, json } => inside::stats(vm, watch, json).await,
        Vm::Ports { vm, json } => inside::ports(vm, json).await,
        Vm::Refused { vm, json } => refused::run(vm, json).await,
        Vm::Publish(options) => publish::publish(options).await,
        Vm::Unpublish { vm, ports, .. } => publish::unpublish(&vm, ports).await,
        Vm::Health { vm, json } => inside::health(vm, json).await,
        Vm::Exec(options) => exec::exec(options).await,
        Vm::Cp { from, to } => Box::pin(cp::cp(&from, &to)).await,
        Vm::Workspace(Workspace::Prepare(options)) => workspace::prepare(options).await,
        Vm::Workspace(Workspace::Export(options)) => workspace::export(options).await,
        Vm::Session(command) => session::run(command).await,
        Vm::Ssh { vm, arguments } => login::ssh(vm, &arguments).await,
        Vm::Proxy { vm } => login::proxy(&vm).await,
        Vm::HostKey { vm } => login::host_key(&vm).await,
    }
}
