//! A VMM that boots nothing; everything is in `banger_tests::standin::still`.

use std::process::ExitCode;

fn main() -> ExitCode {
    banger_tests::standin::still::main()
}
