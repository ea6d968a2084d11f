//! The bench's stand-in for Firecracker; everything is in `banger_tests::standin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::standin::main()
}
