//! Runs inside the host VM; everything is in `banger_tests::suite`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::suite::main()
}
