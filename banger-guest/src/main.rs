//! The program itself; everything is in the library, so that tests reach it.

fn main() -> std::process::ExitCode {
    banger_guest::main()
}
