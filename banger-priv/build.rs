//! How the helper is linked, because it is resident on every host: packed relocations take a
//! thirtieth of the room, and identical functions are kept once. Only where Rust's own linker is
//! the default one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("TARGET").as_deref() == Ok("x86_64-unknown-linux-gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=safe");
    }
}
