//! The host VM: a disposable Debian in which device-mapper, KVM and systemd exist, made and booted by the bench itself.
//!
//! Used by the binary `banger-bench` on the build machine. Nothing here runs inside the host VM.

pub mod accel;
mod apt;
mod booted;
pub mod image;
pub mod machine;
mod material;
pub mod payload;
mod recipe;

use std::path::Path;

use anyhow::Result;

pub use recipe::USERS;

/// Makes what host VMs are started from, as far as it is not there.
pub fn prepare(cache: &Path) -> Result<()> {
    let image = image::ensure_image(cache)?;
    match accel::choose(cache, &image)? {
        accel::Accel::Kvm => Ok(()),
        tcg @ accel::Accel::Tcg => booted::Booted::ensure(&image, tcg).map(drop),
    }
}
