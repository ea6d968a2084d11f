//! A VMM whose guest attacks the daemon; everything is in `banger_tests::hostile_agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::hostile_agent::main()
}
