//! The root helper of banger. See the library for its start-up order.

fn main() -> std::process::ExitCode {
    banger_priv::main()
}
