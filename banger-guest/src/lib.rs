//! Init and agent of a guest, one static program.
//!
//! The daemon puts it into the initramfs as `/init`. As PID 1 it is [`init`]: it loads modules,
//! mounts the disks, configures the network, starts itself a second time as [`agent`] and hands
//! over to the image's own init, or stays as PID 1 when the image has none. It runs with every
//! privilege inside the guest and with none outside; nothing here may rely on a file of the image
//! being there or being sane.

#![deny(unsafe_code)]

use std::process::ExitCode;

pub mod agent;
mod console;
mod files;
mod hosts;
mod init;
mod init_kind;
mod launch;
mod sys;

/// The argument with which init starts this program as the agent.
pub(crate) const AGENT_COMMAND: &str = "agent";

/// The argument with which the agent starts this program as a session's own process.
pub(crate) const SESSION_COMMAND: &str = "session";

/// Chooses between init and agent: PID 1 is init, whatever its arguments are.
pub fn main() -> ExitCode {
    if std::process::id() == 1 {
        return init::main();
    }
    if std::env::args_os().next().is_some_and(|name| name == banger_files::COMMAND) {
        return files::main();
    }
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(AGENT_COMMAND) => agent::main(arguments, init::mount_again),
        Some(SESSION_COMMAND) => agent::session_main(),
        _ => {
            console::say("this program is the init of a banger guest and is not started by hand");
            ExitCode::from(2)
        }
    }
}
