//! The host VM: a disposable Debian in which device-mapper, KVM and systemd exist, made and booted by the bench itself.
//!
//! Used by the binary `banger-bench` on the build machine. Nothing here runs inside the host VM.

pub mod accel;
mod apt;
pub mod image;
pub mod machine;
mod material;
pub mod payload;
mod recipe;

pub use recipe::USERS;
