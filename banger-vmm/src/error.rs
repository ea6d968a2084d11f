//! What can go wrong between the daemon and a VMM, a variant per step.

use crate::end::VmmEnd;
use std::io;
use std::path::PathBuf;

/// Why a VMM could not be started, configured or found.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The binary is missing or not a program.
    #[error("{}: {source}", path.display())]
    Binary {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The binary does not say what it is.
    #[error("{} --version: {why}", path.display())]
    Version {
        /// The binary.
        path: PathBuf,
        /// What it did instead.
        why: String,
    },
    /// The launcher could not be spawned or watched.
    #[error("cannot start the launcher of the VMM: {0}")]
    Spawn(#[source] io::Error),
    /// The launcher failed; its own words.
    #[error("cannot start firecracker: {0}")]
    Launcher(String),
    /// The process ended before it answered.
    #[error("firecracker ended at once ({end}): {console}")]
    Ended {
        /// How.
        end: VmmEnd,
        /// The last line that it wrote.
        console: String,
    },
    /// It runs, and does not answer.
    #[error("firecracker does not answer on {} after {seconds} s", path.display())]
    Silent {
        /// The API socket.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Its processes could not be read or ended.
    #[error("cannot look after the processes of the VM: {0}")]
    Processes(#[source] io::Error),
    /// A request was refused.
    #[error("firecracker refused {step}: {fault}")]
    Refused {
        /// Which request.
        step: &'static str,
        /// Firecracker's `fault_message`, or the status when there is none.
        fault: String,
    },
    /// A request got no answer.
    #[error("firecracker did not answer {step}: {why}")]
    Unanswered {
        /// Which request.
        step: &'static str,
        /// What was seen instead.
        why: String,
    },
    /// A file for the VMM could not be made.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The API speaks JSON, which has no words for this path.
    #[error("{} is not UTF-8", .0.display())]
    Path(PathBuf),
}
