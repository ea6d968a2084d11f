//! What a guest that has broken out of its VMM would try: a program that is started as
//! `firecracker_bin` and tries to reach everything that is not its own, each attempt with its
//! result on standard output, which is the VM's console.
//!
//! Run by the suite `hostile-vmm` in two ways: by the daemon, confined, where every attempt must be
//! refused; and as the control by root's `runuser -u bangerd`, where those that only the
//! confinement stops must succeed. So every attempt is harmless when it succeeds: files are opened
//! and not written, signals are number 0, limits and modes are set to what they are.
//!
//! It knows what a colluding user could tell it, and more: see [`Targets`].

mod attempts;
mod calls;

pub use attempts::{ATTEMPTS, Alone, Attempt, HIDDEN};

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the suite leaves the targets: below a folder of libraries, which every VMM may read.
pub const TARGETS: &str = "/usr/lib/banger-bench/targets.json";

/// After all attempts but the one that is deadly.
pub const OVER: &str = "attempts are over";

/// How the line begins that says what came of a call of the x32 table. A VMM does not live to write
/// it.
pub const X32: &str = "x32 call: ";

/// A socket of the neighbour's, with an abstract name (unix(7)).
pub const ABSTRACT: &str = "banger-bench-neighbour";

/// Names that a VMM cannot find out by itself, and which it is told so that an attempt fails by
/// being refused and not by missing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Targets {
    /// The daemon.
    pub daemon: i32,
    /// The VMM of another user's running VM.
    pub other_vmm: i32,
    /// A program of the same uid that is neither.
    pub neighbour: i32,
    /// That VM's id.
    pub other_vm: String,
    /// Its cgroup.
    pub other_cgroup: String,
    /// Its root disk.
    pub other_disk: String,
    /// Its tap.
    pub other_tap: String,
    /// The hostile VM's own cgroup.
    pub own_cgroup: String,
    /// An image of the store.
    pub image: String,
}

/// Whether the text of an error says that something was refused, and not that it was not there.
#[must_use]
pub fn is_refusal(result: &str) -> bool {
    ["Permission denied", "Operation not permitted", "Function not implemented", "resource busy", attempts::HUNG_UP]
        .iter()
        .any(|words| result.contains(words))
}

/// How the line of an attempt begins.
#[must_use]
pub fn line(attempt: &str) -> String {
    format!("attempt {attempt}: ")
}

/// Makes every attempt; as a VMM it then waits to be ended.
#[must_use]
pub fn main() -> ExitCode {
    let mut output = io::stdout();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--version") {
        return written(output.write_all(b"Firecracker v1.16.1 (hostile)\n"));
    }
    let targets = match std::fs::read_to_string(TARGETS).map(|text| serde_json::from_str::<Targets>(&text)) {
        Ok(Ok(targets)) => targets,
        other => {
            return written(
                writeln!(output, "no targets in {TARGETS}: {other:?}").and(Err(io::ErrorKind::Other.into())),
            );
        }
    };
    for attempt in ATTEMPTS {
        let result = match (attempt.make)(&targets) {
            Ok(()) => "succeeded".to_owned(),
            Err(error) => format!("refused ({error})"),
        };
        if writeln!(output, "{}{result}", line(attempt.name)).is_err() {
            return ExitCode::FAILURE;
        }
    }
    let over = writeln!(output, "{OVER}").and_then(|()| output.flush());
    let told = match attempts::x32() {
        Ok(_) => "succeeded".to_owned(),
        Err(error) => format!("refused ({error})"),
    };
    let over = over.and_then(|()| writeln!(output, "{X32}{told}"));
    if words.iter().any(|word| word == "--api-sock") {
        // The daemon gives up on it, and ends it.
        std::thread::sleep(Duration::from_secs(600));
    }
    written(over)
}

fn written(result: io::Result<()>) -> ExitCode {
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
