//! The command line: parses, asks the daemon, shows. It holds no state but the user's SSH key,
//! decides nothing about permission, and is no more trusted by the daemon than any other program of
//! the user.
#![forbid(unsafe_code)]
// With `clippy.toml`: `output` alone writes.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod catalogue;
mod cli;
mod client;
mod cmd;
mod contexts;
mod error;
mod guest;
mod handover;
mod input;
mod interrupt;
mod job;
mod kernel_file;
mod machine;
#[cfg(test)]
mod man;
mod mcp;
mod output;
mod pack;
mod private;
mod programs;
mod progress;
mod registry;
mod remote;
mod session;
mod sessions;
mod signals;
mod ssh;
mod terminal;
mod upload;
mod wait;
mod work;
mod workspace;

use clap::Parser as _;
use std::process::ExitCode;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&anyhow::Error::new(error).context("cannot start")),
    };
    // The relay is asked from another machine, and means this one whatever its user has in use
    // here.
    let chosen = match cli.command {
        cli::Command::Relay | cli::Command::Context(_) | cli::Command::Completion { .. } => Ok(()),
        _ => contexts::choose(cli.host.as_deref()),
    };
    let outcome = chosen.and_then(|()| runtime.block_on(cmd::run(cli.command)));
    // A thread may still be blocked in a read of standard input; it ends with the process.
    runtime.shutdown_background();
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) => error::report(&error),
    }
}
