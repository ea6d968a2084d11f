//! Archives and images made in code, and the tools that look at the results.

use super::super::hashing::Hasher;
use super::super::source::Window;
use super::super::{ImageError, ImportedRootfs, Limits, import};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::Command;

pub(super) const SIZE: u64 = 64 << 20;

/// Writes tar archives with every liberty that a hostile author has.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(super) Vec<u8>);

/// Type, name, link, and what is not the default.
#[derive(Clone)]
pub(super) struct Item<'a> {
    pub(super) kind: u8,
    pub(super) name: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    pub(super) mtime: u64,
    pub(super) device: (u32, u32),
    pub(super) data: &'a [u8],
    pub(super) pax: Vec<(&'a str, &'a [u8])>,
}

pub(super) fn item<'a>(kind: u8, name: &'a str) -> Item<'a> {
    Item {
        kind,
        name: name.as_bytes(),
        link: b"",
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        owner: (0, 0),
        mtime: 1_700_000_000,
        device: (0, 0),
        data: b"",
        pax: Vec::new(),
    }
}

impl Tar {
    pub(super) fn add(mut self, item: &Item<'_>) -> Self {
        if !item.pax.is_empty() {
            let records: Vec<u8> = item.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            self = self.raw(b'x', b"pax", b"", &records, &super::maker::item(b'x', ""));
        }
        self.raw(item.kind, item.name, item.link, item.data, item)
    }

    fn raw(mut self, kind: u8, name: &[u8], link: &[u8], data: &[u8], item: &Item<'_>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(item.mtime);
        header.set_size(data.len() as u64);
        header.set_device_major(item.device.0).unwrap();
        header.set_device_minor(item.device.1).unwrap();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name);
        bytes[156] = kind;
        bytes[157..157 + link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.add(&item(b'5', name))
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(&Item { data, ..item(b'0', name) })
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.add(&Item { link: target.as_bytes(), ..item(b'2', name) })
    }

    pub(super) fn hardlink(self, name: &str, target: &str) -> Self {
        self.add(&Item { link: target.as_bytes(), ..item(b'1', name) })
    }

    /// GNU's way of long names and link targets.
    pub(super) fn gnu_long(self, kind: u8, text: &[u8]) -> Self {
        let data = [text, &[0]].concat();
        self.raw(kind, b"././@LongLink", b"", &data, &item(kind, ""))
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A PAX record: its length counts its own digits.
pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

pub(crate) fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

pub(crate) fn window_of(bytes: &[u8]) -> Window {
    Window::whole(file_of(bytes)).unwrap()
}

/// Of an import that is not confined.
pub(super) fn hasher() -> Hasher {
    Hasher::start(|| Ok(())).unwrap()
}

/// Imports with small limits; after a failure nothing may look like a result.
pub(super) fn import_bytes(bytes: &[u8], dir: &Path) -> Result<ImportedRootfs, ImageError> {
    import(file_of(bytes), dir, SIZE, None, Limits::for_build_size(SIZE), &hasher(), &())
}

pub(super) fn import_error(bytes: &[u8]) -> ImageError {
    let dir = tempfile::tempdir().unwrap();
    let error = import_bytes(bytes, dir.path()).unwrap_err();
    assert!(!dir.path().join("rootfs.ext4").exists(), "{error}");
    error
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(super) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a tool of e2fsprogs; `None`, said aloud, when it is not installed.
pub(super) fn tool(name: &str, args: &[&str]) -> Option<String> {
    for folder in ["/usr/sbin", "/sbin", "/usr/bin"] {
        let Ok(output) = Command::new(format!("{folder}/{name}")).args(args).output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name} {args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        return Some(text);
    }
    eprintln!("skipped: {name} is not installed (e2fsprogs)");
    None
}

/// `e2fsck -fn` must find nothing at all.
pub(super) fn fsck(image: &Path) {
    tool("e2fsck", &["-fn", image.to_str().unwrap()]);
}

/// An OCI layout as a tar, from layers as they are stored and the digests of their plain tars.
pub(super) struct Oci {
    pub(super) layers: Vec<(Vec<u8>, String)>,
    pub(super) platform: (&'static str, &'static str),
    /// What the configuration says about commands.
    pub(super) config: serde_json::Value,
}

impl Oci {
    pub(super) fn new(layers: &[Vec<u8>]) -> Self {
        Self {
            layers: layers.iter().map(|tar| (gzip(tar), sha256(tar))).collect(),
            platform: ("linux", "amd64"),
            config: serde_json::Value::Null,
        }
    }

    pub(super) fn blobs(&self) -> (Vec<(String, Vec<u8>)>, String) {
        let (os, architecture) = self.platform;
        let diff_ids: Vec<String> = self.layers.iter().map(|(_, id)| format!("sha256:{id}")).collect();
        let config = serde_json::json!({"os": os, "architecture": architecture, "config": self.config, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let descriptor = |data: &[u8], media_type: &str| serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(data)), "size": data.len()});
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(blob, _)| descriptor(blob, "application/vnd.oci.image.layer.v1.tar+gzip"))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [descriptor(&manifest, "application/vnd.oci.image.manifest.v1+json")],
        });
        let mut blobs = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            (format!("blobs/sha256/{}", sha256(&config)), config),
            (format!("blobs/sha256/{}", sha256(&manifest)), manifest.clone()),
        ];
        blobs.extend(self.layers.iter().map(|(blob, _)| (format!("blobs/sha256/{}", sha256(blob)), blob.clone())));
        // Last, as a tar of a folder may have it.
        blobs.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
        (blobs, sha256(&manifest))
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        pack(&self.blobs().0)
    }
}

pub(super) fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Tar::default().dir("./"), |tar, (name, data)| tar.file(name, data)).end()
}
