//! What a run takes into the host VM: one tar, given to QEMU as a raw disk and unpacked there by
//! `tar xf /dev/vdb`.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where the payload lies inside the host VM.
pub const INSIDE: &str = "/srv/bench";

/// Bytes of the disk, of which the tar is the beginning and the rest takes no room. Always the
/// same: a host VM that has booted with one payload goes on with another.
pub(super) const DISK_BYTES: u64 = 2 << 30;

/// Files to take in, each with its name inside and its mode.
#[derive(Debug, Default)]
pub struct Payload {
    files: Vec<(PathBuf, String, u32)>,
}

impl Payload {
    /// Adds a program.
    #[must_use]
    pub fn program(mut self, path: &Path, name: &str) -> Self {
        self.files.push((path.to_owned(), name.to_owned(), 0o755));
        self
    }

    /// Adds a plain file.
    #[must_use]
    pub fn file(mut self, path: &Path, name: &str) -> Self {
        self.files.push((path.to_owned(), name.to_owned(), 0o644));
        self
    }

    /// Writes the tar.
    pub fn write(&self, target: &Path) -> Result<()> {
        let file = File::create(target).with_context(|| format!("create {}", target.display()))?;
        let mut tar = tar::Builder::new(file);
        for (path, name, mode) in &self.files {
            let mut source = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(source.metadata().with_context(|| format!("stat {}", path.display()))?.len());
            tar.append_data(&mut header, name, &mut source).with_context(|| format!("pack {}", path.display()))?;
        }
        let file = tar.into_inner().context("finish the payload")?;
        let length = file.metadata().context("stat the payload")?.len();
        ensure!(length <= DISK_BYTES, "the payload has {length} bytes, and its disk {DISK_BYTES}");
        file.set_len(DISK_BYTES).context("size the payload's disk")
    }
}
