//! A stand-in for Firecracker: its command line and API in front of QEMU's `microvm` machine.
//!
//! The system suites run it as `firecracker_bin` where no real Firecracker is given; nothing that
//! is shipped knows of it. Guest kernel, tap, disks and vsock are real, only the VMM differs. It
//! must never answer better than Firecracker does: what Firecracker refuses is refused here, with
//! the same status and text (checked against Firecracker v1.16.1).
//!
//! It needs what Firecracker does not: `/dev/vhost-vsock`, `AF_VSOCK` sockets, and running
//! `qemu-system-x86_64` with its firmware. Known differences are listed at
//! [`Standin`](vmm::Standin).

mod api;
mod early;
mod http;
mod initramfs;
mod machine;
mod model;
mod server;
pub mod still;
mod tap;
mod vmm;
mod vsock;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The Firecracker release whose API and behaviour this follows.
const VERSION: &str = "1.16.1";

/// What Firecracker answers to `GET /version`.
fn version() -> serde_json::Value {
    serde_json::json!({ "firecracker_version": VERSION })
}

/// Firecracker's exit code for a command line that it does not understand.
const EXIT_ARGUMENTS: u8 = 153;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Version,
    Serve { api_sock: PathBuf, id: String },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ArgumentError {
    #[error("Found argument '{0}' which wasn't expected, or isn't valid in this context.")]
    Unexpected(String),
    #[error("The argument '{0}' requires a value, but none was supplied.")]
    MissingValue(&'static str),
    #[error("Invalid instance ID")]
    InvalidId,
}

/// Runs the stand-in as the process' command line says.
#[must_use]
pub fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Version) => {
            let text = format!("Firecracker v{VERSION} (banger bench stand-in over QEMU microvm)\n\n");
            match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Ok(Command::Serve { api_sock, id }) => match vmm::run(&api_sock, id) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("Error: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("Error: Arguments parsing error: {error}");
            ExitCode::from(EXIT_ARGUMENTS)
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ArgumentError> {
    let mut api_sock = PathBuf::from("/run/firecracker.socket");
    let mut id = "anonymous-instance".to_owned();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--version") => return Ok(Command::Version),
            Some("--api-sock") => {
                api_sock = arguments.next().ok_or(ArgumentError::MissingValue("api-sock"))?.into();
            }
            Some("--id") => {
                let value = arguments.next().ok_or(ArgumentError::MissingValue("id"))?;
                id = value.into_string().map_err(|_| ArgumentError::InvalidId)?;
            }
            _ => return Err(ArgumentError::Unexpected(argument.to_string_lossy().into_owned())),
        }
    }
    let valid = (1..=64).contains(&id.len()) && id.chars().all(|c| c == '-' || c.is_alphanumeric());
    if valid { Ok(Command::Serve { api_sock, id }) } else { Err(ArgumentError::InvalidId) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Command, ArgumentError> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_of_bangerd_is_understood() {
        assert_eq!(
            parse_words(&["--api-sock", "/run/x/api.sock", "--id", "00ff-1"]),
            Ok(Command::Serve { api_sock: "/run/x/api.sock".into(), id: "00ff-1".into() })
        );
        assert_eq!(parse_words(&["--version"]), Ok(Command::Version));
    }

    #[test]
    fn what_firecracker_refuses_is_refused() {
        assert_eq!(parse_words(&["--id", "a_b"]), Err(ArgumentError::InvalidId));
        assert_eq!(parse_words(&["--id", ""]), Err(ArgumentError::InvalidId));
        assert_eq!(parse_words(&["--id"]), Err(ArgumentError::MissingValue("id")));
        assert_eq!(parse_words(&["--no-such"]), Err(ArgumentError::Unexpected("--no-such".into())));
    }
}
