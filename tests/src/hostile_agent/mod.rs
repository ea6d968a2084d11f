//! A guest that attacks the daemon and its user with all that a guest can say: what answers on the
//! commands' port, and what talks on its control channel. It needs no machine, so it is a VMM that
//! boots nothing.
//!
//! A VM of the name [`NAME`] is hostile; every other one has an agent that behaves. Run by the
//! suite `hostile-agent`. Three kinds of attempts: on the control channel, by itself, with the
//! results on standard output, which is the VM's console; before a connection is open, one for each
//! of the first connections, which the daemon hears; and on an open connection, one for each word
//! that is run in the VM, which the command line hears.

mod command;
mod control;
mod raw;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use banger_proto::guest::GuestConfig;

pub use control::OVER;

use crate::standin::still::{self, Inhabitant};

/// The host name of the guest that attacks.
pub const NAME: &str = "hostile";

/// The attempts on the control channel, in their order.
#[must_use]
pub fn on_the_control_channel() -> Vec<&'static str> {
    control::ATTEMPTS.iter().map(|(name, _)| *name).collect()
}

/// The attempts before a connection is open, one for each of the first connections.
#[must_use]
pub fn before_it_is_open() -> Vec<&'static str> {
    raw::ATTEMPTS.iter().map(|(name, _)| *name).collect()
}

/// The attempts on an open connection; the first does nothing, and is the control.
#[must_use]
pub fn on_an_open_connection() -> Vec<&'static str> {
    command::names().collect()
}

/// Whether the command line listens to it until its user has enough.
#[must_use]
pub fn goes_on(attempt: &str) -> bool {
    attempt.ends_with("for-ever")
}

/// How the line of an attempt begins.
#[must_use]
pub fn line(attempt: &str) -> String {
    format!("attempt {attempt}: ")
}

/// A VMM that boots nothing, with this guest in it.
#[must_use]
pub fn main() -> ExitCode {
    still::main_with(Inhabitant { called, lives: control::lives })
}

fn called(guest: &GuestConfig, stream: UnixStream) {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    if guest.hostname == NAME
        && let Some((_, attempt)) = raw::ATTEMPTS.get(CALLS.fetch_add(1, Ordering::Relaxed))
    {
        // That the daemon hangs up is how every one of them is to end.
        return drop(attempt(stream));
    }
    if let Err(error) = command::serve(stream) {
        eprintln!("command: {error}");
    }
}
