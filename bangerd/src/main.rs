//! The daemon's entry point; the order of its start is in `lib.rs`.

fn main() -> std::process::ExitCode {
    bangerd::main()
}
