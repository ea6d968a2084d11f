//! Writes OCI layouts of two layers (OCI image-spec 1.1, "Image Layout"): an archive that is there,
//! and above it what a scenario adds and takes away.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// What is above the lower layer; written by [`Layout::write`].
pub(super) struct Layout {
    lower: PathBuf,
    upper: Vec<Entry>,
    config: Value,
}

struct Entry {
    path: String,
    kind: EntryType,
    mode: u32,
    /// Of a link.
    target: String,
    content: Vec<u8>,
}

impl Layout {
    pub(super) fn over(lower: &Path) -> Self {
        Self { lower: lower.to_owned(), upper: Vec::new(), config: json!({}) }
    }

    fn with(mut self, path: &str, kind: EntryType, mode: u32, target: &str, content: &[u8]) -> Self {
        let (path, target) = (path.to_owned(), target.to_owned());
        self.upper.push(Entry { path, kind, mode, target, content: content.to_vec() });
        self
    }

    pub(super) fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.with(path, EntryType::Regular, mode, "", content)
    }

    pub(super) fn folder(self, path: &str, mode: u32) -> Self {
        self.with(path, EntryType::Directory, mode, "", &[])
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.with(path, EntryType::Symlink, 0o777, target, &[])
    }

    /// A second name of a file, which may be of the lower layer.
    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        self.with(path, EntryType::Link, 0o755, target, &[])
    }

    /// Takes away what the lower layer has there (image-spec, "Whiteouts").
    pub(super) fn without(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        self.file(&format!("{folder}/.wh.{name}"), 0o644, &[])
    }

    /// The image's `config` object (image-spec, "Image Configuration").
    pub(super) fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    fn archive(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.upper {
            let mut header = Header::new_gnu();
            header.set_entry_type(entry.kind);
            header.set_mode(entry.mode);
            header.set_size(entry.content.len() as u64);
            let written = match entry.kind {
                EntryType::Symlink | EntryType::Link => tar.append_link(&mut header, &entry.path, &entry.target),
                _ => tar.append_data(&mut header, &entry.path, entry.content.as_slice()),
            };
            written.with_context(|| format!("write {} into the upper layer", entry.path))?;
        }
        tar.into_inner().context("finish the upper layer")
    }

    pub(super) fn write(self, folder: &Path) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        let blob = |bytes: &[u8]| -> Result<(String, usize)> {
            let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(blobs.join(&hex), bytes).context("write a blob")?;
            Ok((format!("sha256:{hex}"), bytes.len()))
        };
        let described = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
        let lower = blob(&fs::read(&self.lower).with_context(|| format!("read {}", self.lower.display()))?)?;
        let upper = blob(&self.archive()?)?;
        let config = json!({"architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [lower.0.as_str(), upper.0.as_str()]}});
        let config = blob(config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("config.v1+json", &config),
            "layers": [described("layer.v1.tar", &lower), described("layer.v1.tar", &upper)]});
        let manifest = blob(manifest.to_string().as_bytes())?;
        let index = json!({"schemaVersion": 2, "manifests": [described("manifest.v1+json", &manifest)]});
        fs::write(folder.join("index.json"), index.to_string()).context("write the index")?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).context("write the layout's mark")
    }
}
