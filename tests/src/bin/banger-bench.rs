//! Runs on the build machine; everything is in `banger_tests::bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::bench::main()
}
