//! A VMM that a guest has taken over; everything is in `banger_tests::hostile`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::hostile::main()
}
