//! An archive with an image, from documents whose references to each other always hold: no fuzzer
//! finds a SHA-256.

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;

/// Documents of one archive; what is more is left out.
const MOST: usize = 8;

/// Reads `bytes` as documents with NULs between them. The first is the image that is asked for, or
/// empty. The last is what the archive is found by: behind `R` what `docker save` called
/// `repositories`, from `[` on its `manifest.json`, else an `index.json`. In a document, the bytes
/// 1 to 8 stand for `"digest":"...","size":...` of a blob, and 16 to 23 for its digest alone. Blob
/// 1 is a layer, blob 2 the same one compressed, blob 3 the first document, and so on.
#[must_use]
pub fn archive(bytes: &[u8]) -> (Option<String>, Vec<u8>) {
    let mut documents: Vec<&[u8]> = bytes.splitn(MOST, |byte| *byte == 0).collect();
    let wanted = String::from_utf8_lossy(documents.remove(0)).into_owned();
    let last = documents.pop().unwrap_or_default();
    let layer = layer();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&layer).expect("in memory");
    let mut blobs = vec![layer, gzip.finish().expect("in memory")];
    for document in documents {
        blobs.push(referring(document, &blobs));
    }
    let mut files = Vec::new();
    for (number, blob) in (1..).zip(&blobs) {
        // As each of the three names what it refers to.
        for name in [format!("blobs/sha256/{}", digest(blob)), format!("{number}"), format!("c{number}/json")] {
            files.push((name, blob.clone()));
        }
        files.push((format!("c{number}/layer.tar"), blobs[0].clone()));
    }
    match last.split_first() {
        Some((b'R', rest)) => files.push(("repositories".to_owned(), referring(rest, &blobs))),
        Some((b'[', _)) => files.push(("manifest.json".to_owned(), referring(last, &blobs))),
        _ => {
            files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
            files.push(("index.json".to_owned(), referring(last, &blobs)));
        }
    }
    ((!wanted.is_empty()).then_some(wanted), tar_of(&files))
}

/// A small root file system.
fn layer() -> Vec<u8> {
    tar_of(&[("bin/sh".to_owned(), b"#!".to_vec()), ("root/.profile".to_owned(), b"true".to_vec())])
}

fn referring(document: &[u8], blobs: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in document {
        let blob = |first: u8| blobs.get(usize::from(byte.wrapping_sub(first)));
        match byte {
            1..=8 if let Some(blob) = blob(1) => {
                out.extend(format!(r#""digest":"sha256:{}","size":{}"#, digest(blob), blob.len()).bytes());
            }
            16..=23 if let Some(blob) = blob(16) => out.extend(quoted_digest(blob).bytes()),
            other => out.push(*other),
        }
    }
    out
}

/// As a text of JSON.
pub(crate) fn quoted_digest(bytes: &[u8]) -> String {
    format!(r#""sha256:{}""#, digest(bytes))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_slice()).expect("in memory");
    }
    tar.into_inner().expect("in memory")
}
