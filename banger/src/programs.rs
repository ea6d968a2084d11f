//! Programs that we run as the user. They are looked for in fixed folders only: what a writable
//! folder on `PATH` holds must not be fed a private key.

use crate::error::explained;
use std::path::{Path, PathBuf};

/// Debian, Fedora and the like; a local build; NixOS.
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"];

/// # Errors
/// When no folder has it, with the package that brings it.
pub(crate) fn find(name: &str) -> anyhow::Result<PathBuf> {
    let found = FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        explained(
            format!("there is no {name} in {}", FOLDERS.join(", ")),
            "install OpenSSH's client (Debian: openssh-client, Fedora: openssh-clients)",
        )
    })
}
