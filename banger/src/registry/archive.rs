//! The pulled image as the daemon reads it: a tar of an OCI layout (OCI image specification v1.1,
//! `image-layout.md`).

use super::manifest::Blob;
use crate::upload::{Source, WriteAll};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{Read, Write};

/// A tar is written in blocks of so many bytes.
const BLOCK: u64 = 512;

/// The bytes to send, and how many they are. Files stand at their beginning.
pub(super) fn source(media_type: &str, manifest: Vec<u8>, blobs: Vec<(Blob, File)>) -> Source {
    let hex = hex(&Sha256::digest(&manifest));
    let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": manifest.len() });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
    let small = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.into_bytes()),
        (format!("blobs/sha256/{hex}"), manifest),
    ];
    let padded = |size: u64| BLOCK + size.next_multiple_of(BLOCK);
    let total = small.iter().map(|(_, bytes)| padded(bytes.len() as u64)).sum::<u64>()
        + blobs.iter().map(|(blob, _)| padded(blob.size)).sum::<u64>()
        + 2 * BLOCK;
    let write: WriteAll = Box::new(move |to| {
        let mut tar = tar::Builder::new(to);
        for (name, bytes) in &small {
            append(&mut tar, name, bytes.len() as u64, bytes.as_slice())?;
        }
        for (blob, file) in blobs {
            append(&mut tar, &format!("blobs/sha256/{}", blob.digest), blob.size, file.take(blob.size))?;
        }
        tar.finish()?;
        Ok(())
    });
    Source { total: Some(total), write }
}

fn append(tar: &mut tar::Builder<&mut dyn Write>, name: &str, size: u64, data: impl Read) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(tar.append(&header, data)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
