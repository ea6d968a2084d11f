//! `banger`: what users type.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger::main()
}
